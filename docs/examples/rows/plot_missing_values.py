"""
Fill missing values
===================

An imputer is recorded like a scaler: it learns from the training rows alone, and
``predict`` applies it to new rows. ``add_indicator`` also tells the model what was missing. The
data are the diabetes patients of scikit-learn; a fifth of the values of ``bmi`` is removed here.

**For your data:** name your columns; ``per="patient"`` fills with the mean of the same patient.
Guide: :doc:`/howto/24_missing_values`.
"""

# sphinx_gallery_alt = "Predicted over true progression of the patients in the test split."
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge

import modularml as mml

frame = load_diabetes(as_frame=True, scaled=False).frame
holes = np.random.default_rng(0).random(len(frame)) < 0.2
frame.loc[holes, "bmi"] = np.nan

fs = mml.FeatureSet.from_pandas("patients", frame, ["bmi", "bp", "s5"], "target")
fs.split_random({"train": 0.7, "test": 0.3}, seed=0)
fs.fit_transform(
    SimpleImputer(add_indicator=True), domain="features", keys="bmi", fit_to_split="train"
)
mml.ModelGraph([mml.ModelNode("ridge", Ridge(), fs)])
experiment = mml.Experiment.from_active_context("progression")
experiment.run_phase(mml.FitPhase.from_split("fit", split="train"))

scores = experiment.evaluate("test", metrics=["rmse", "r2"])
print(f"{holes.sum()} values filled\n{scores.round(2)}")
scores.plot(title="Patients of the test split")
