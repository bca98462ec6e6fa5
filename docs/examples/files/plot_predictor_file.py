"""
One file that predicts
======================

``rows=False`` saves the graph, scalers and encoders, but no rows. With this file, anyone can
predict from raw columns, without the script: in Python, or in a shell with ``modularml predict``.
The data are the diabetes patients of scikit-learn.

**For your data:** keep model classes of your own in a module that the reader can import. Guide:
:doc:`/howto/25_sharing_a_predictor`.
"""

# sphinx_gallery_alt = "Predictions of the file over those of the study, all on the diagonal."
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge

import modularml as mml
from modularml.plotting import parity

frame = load_diabetes(as_frame=True, scaled=False).frame
fs = mml.FeatureSet.from_pandas("patients", frame, ["bmi", "bp", "s5"], "target")
fs.split_random({"train": 0.7, "test": 0.3}, seed=0)
for domain in ("features", "targets"):
    fs.fit_transform("StandardScaler", domain=domain, fit_to_split="train")
mml.ModelGraph([mml.ModelNode("ridge", Ridge(), fs, targets="target")])
experiment = mml.Experiment.from_active_context("study")
experiment.run_phase(mml.FitPhase.from_split("fit", split="train"))

path = experiment.save(Path(tempfile.mkdtemp()) / "study", rows=False)
graph = mml.ModelGraph.load(path)
new = frame[["bmi", "bp", "s5"]].tail(100)
here, there = experiment.predict(new).ravel(), graph.predict(new).ravel()
print(f"{path.name}, {path.stat().st_size / 1000:.0f} kB, same: {np.array_equal(here, there)}")
print(graph.predict(new.head(2), fmt="pandas").round(1))
parity(here, there, title="File against study")
