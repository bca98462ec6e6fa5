"""
Better, or lucky? A paired test
===============================

Two models are compared fold by fold on the same folds. The test takes into account that folds
share training rows (Nadeau & Bengio 2003), which an ordinary t-test does not. The data are the
diabetes patients of scikit-learn.

**For your data:** give both the same rows, ``n_folds`` and ``seed``; other folds are refused.
Guide: :doc:`/howto/18_comparing_experiments`.
"""

# sphinx_gallery_alt = "Bars of R² of two models, with a dot for each fold; the dots overlap."
from sklearn.datasets import load_diabetes
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge

import modularml as mml

frame = load_diabetes(as_frame=True).frame


def folds(label, model):
    experiment = mml.Experiment(label, seed=0)
    fs = mml.FeatureSet.from_pandas("patients", frame, list(frame)[:-1], "target")
    fs.split_random({"train": 0.8, "test": 0.2}, seed=0)
    mml.ModelGraph([mml.ModelNode("model", model, fs)])
    experiment.execution_plan.add_phase(mml.FitPhase.from_split("fit", split="train"))
    binding = mml.CVBinding(fs, ["train"])
    return mml.CrossValidation(label=label, bindings=binding, n_folds=5, n_repeats=2).run()


rivals = mml.ExperimentCollection(
    [
        folds("ridge", Ridge(0.1)),
        folds("forest", RandomForestRegressor(50, min_samples_leaf=5, random_state=0)),
    ]
)
test = rivals.test("r2", baseline="ridge")
print(test[["mean", "baseline", "difference", "low", "high", "p"]].round(3).to_string())
rivals.plot("val.r2")
