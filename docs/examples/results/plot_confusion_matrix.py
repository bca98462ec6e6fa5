"""
Confusion matrix
================

Which classes are confused with which? The names come from the target column, and ``normalize``
divides each row by its number of samples. The data are the wines of scikit-learn, with three of
their measurements.

**For your data:** text targets need a ``LabelEncoder`` only where a network reads them. Guide:
:doc:`/howto/27_looking_at_results`.
"""

# sphinx_gallery_alt = "Confusion matrix of three growers, most samples on its diagonal."
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression

import modularml as mml

bunch = load_wine(as_frame=True)
frame = bunch.data.assign(grower=[f"grower {'ABC'[i]}" for i in bunch.target])
features = ["alcohol", "malic_acid", "hue"]

fs = mml.FeatureSet.from_pandas("wines", frame, features, "grower")
fs.split_random({"train": 0.5, "test": 0.5}, stratify_by="grower", seed=0)
fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
mml.ModelGraph([mml.ModelNode("logistic", LogisticRegression(), fs)])
experiment = mml.Experiment.from_active_context("wines")
experiment.run_phase(mml.FitPhase.from_split("fit", split="train"))

scores = experiment.evaluate("test", metrics=["accuracy", "f1_macro"])
print(scores.round(3))
scores.plot("confusion", normalize=True, title="Wines of the test split")
