"""
Learning curve
==============

Would more rows help? Each fold is trained on growing shares of its rows. If the two curves have
met, more rows of the same kind will not help much. The data are the digits of scikit-learn.

**For your data:** with ``group_by=`` in the binding, shares are of whole groups. Guide:
:doc:`/howto/27_looking_at_results`.
"""

# sphinx_gallery_alt = "Accuracy over the number of training rows; the gap narrows."
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

import modularml as mml

digits = load_digits()
columns = {"pixels": digits.data, "digit": digits.target}
fs = mml.FeatureSet.from_dict("digits", columns, "pixels", "digit")
fs.split_random({"train": 0.8, "test": 0.2}, stratify_by="digit", seed=0)
mml.ModelGraph([mml.ModelNode("neighbours", KNeighborsClassifier(5), fs)])
mml.Experiment.from_active_context("digits")

cv = mml.CrossValidation(
    bindings=mml.CVBinding(fs, ["train"], stratify_by="digit"),
    phase=mml.FitPhase.from_split("fit", split="train"),
    n_folds=3,
)
curve = mml.learning_curve(cv, "accuracy", shares=[0.05, 0.1, 0.3, 0.6, 1.0])
means = curve.to_pandas().groupby("size")["held_out"].mean()
print(means.round(3))
curve.plot(title="Digits, 5 nearest neighbours")
