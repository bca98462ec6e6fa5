"""
Permutation importance
======================

How much worse do predictions get when a column is permuted between rows? Columns with the same
information hide each other's importance, so related ones are permuted together here. The data are
the diabetes patients of scikit-learn.

**For your data:** group columns that are related, and use rows that the model has not learned
from. Guide: :doc:`/howto/27_looking_at_results`.
"""

# sphinx_gallery_alt = "Bars of the increase of the error when groups of columns are permuted."
from sklearn.datasets import load_diabetes
from sklearn.ensemble import RandomForestRegressor

import modularml as mml

frame = load_diabetes(as_frame=True, scaled=False).frame
fs = mml.FeatureSet.from_pandas("patients", frame, list(frame)[:-1], "target")
fs.split_random({"train": 0.7, "test": 0.3}, seed=0)
forest = RandomForestRegressor(50, min_samples_leaf=5, random_state=0)
mml.ModelGraph([mml.ModelNode("forest", forest, fs)])
experiment = mml.Experiment.from_active_context("progression")
experiment.run_phase(mml.FitPhase.from_split("fit", split="train"))

together = {
    "body": ["bmi", "bp"],
    "blood serum": ["s1", "s2", "s3", "s4", "s5", "s6"],
    "age": ["age"],
    "sex": ["sex"],
}
table = experiment.importances("test", "rmse", columns=together, n_repeats=10)
print(table[["column", "mean", "std"]].round(2))
table.plot()
