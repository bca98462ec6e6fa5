"""
Split by group
==============

Rows of one patient, cell or machine look alike. With a split by rows, the test asks whether the
model recognizes them; with ``group_by``, it asks about groups that the model has never seen. The
data are synthetic: 30 cells, whose offset no feature explains.

**For your data:** name the column that says which rows belong together, and run ``fs.audit()``.
Guide: :doc:`/howto/03_splits_without_leaks`.
"""

# sphinx_gallery_alt = "Bars of R²: high if rows are dealt singly, far lower if cells stay whole."
import numpy as np
from sklearn.ensemble import RandomForestRegressor

import modularml as mml
from modularml.plotting import bars

rng = np.random.default_rng(0)
cell = np.repeat(np.arange(30), 20)
features = {f"x{i}": rng.normal(size=30)[cell] + 0.1 * rng.normal(size=600) for i in range(4)}
target = features["x0"] + 1.5 * rng.normal(size=30)[cell] + 0.2 * rng.normal(size=600)


def r2(group_by):
    experiment = mml.Experiment("cells", audit="off")  # which would warn of the first split
    fs = mml.FeatureSet.from_dict(
        "cells", {**features, "y": target, "cell": cell}, list(features), "y", "cell"
    )
    fs.split_random({"train": 0.7, "test": 0.3}, group_by=group_by, seed=1)
    mml.ModelGraph([mml.ModelNode("forest", RandomForestRegressor(50, random_state=0), fs)])
    experiment.run_phase(mml.FitPhase.from_split("fit", split="train"))
    return experiment.evaluate("test", metrics="r2")["r2"].item()


scores = {"rows dealt singly": [r2(None)], "cells stay whole": [r2("cell")]}
print({name: round(value, 2) for name, (value,) in scores.items()})
bars(scores, x="R² on the test split")
