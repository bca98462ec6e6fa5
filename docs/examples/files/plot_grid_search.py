"""
An experiment in GridSearchCV
=============================

``ExperimentRegressor`` is a scikit-learn estimator that trains an experiment in ``fit``. A search
can vary the arguments of ``build`` and, by its path, any setting of the experiment. The data are
the diabetes patients of scikit-learn.

**For your data:** return any experiment from ``build``; without ``build``, a ``TabularMLP`` is
trained. Guide: :doc:`/howto/30_scikit_learn`.
"""

# sphinx_gallery_alt = "Bars of R² for each width and learning rate, with a dot for each fold."
from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV

import modularml as mml
from modularml.models.torch import SequentialMLP
from modularml.plotting import bars
from modularml.sklearn import ExperimentRegressor


def build(rows, *, width=16):
    for domain in ("features", "targets"):
        rows.fit_transform("StandardScaler", domain=domain, fit_to_split="train")
    net = mml.ModelNode("net", SequentialMLP(hidden_dim=width), rows)
    mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 0.001}))
    loss = mml.AppliedLoss(mml.Loss("mse"), on=net, inputs=["outputs", "targets"])
    experiment = mml.Experiment.from_active_context("diabetes")
    sampler = mml.SimpleSampler(batch_size=32, shuffle=True)
    train = mml.TrainPhase.from_split(
        "train", split="train", sampler=sampler, losses=[loss], n_epochs=20
    )
    experiment.execution_plan.add_phase(train)
    return experiment


X, y = load_diabetes(return_X_y=True, as_frame=True)
grid = {"width": [4, 32], "graph__optimizer__lr": [0.001, 0.01]}
search = GridSearchCV(ExperimentRegressor(build, random_state=0), grid, cv=3).fit(X, y)
print(search.best_params_, f"R² {search.best_score_:.3f}")
found = search.cv_results_
folds = zip(*(found[f"split{i}_test_score"] for i in range(3)), strict=True)
names = [f"width {p['width']}, lr {p['graph__optimizer__lr']}" for p in found["params"]]
bars(dict(zip(names, folds, strict=True)), x="R² of held-out rows")
