"""The diabetes example: scaled targets, and predictions in original units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from modularml._optional import require
from modularml.callbacks import EarlyStopping, EvalLossMetric, Evaluation
from modularml.data import FeatureSet
from modularml.experiment import Experiment, TrainPhase
from modularml.graph import ModelGraph, ModelNode
from modularml.models.torch import SequentialMLP
from modularml.plotting import parity
from modularml.samplers import SimpleSampler
from modularml.training import AppliedLoss, Loss, Optimizer

__all__ = ["load_diabetes", "run_diabetes"]

SEED = 7


def load_diabetes() -> FeatureSet:
    """Create a FeatureSet of scikit-learn's 442 patients, split and scaled."""
    data = require("sklearn.datasets").load_diabetes(as_frame=True, scaled=False)
    frame = data.frame.rename(columns={"target": "progression"})
    frame["patient"] = np.arange(len(frame))
    fs = FeatureSet.from_pandas(
        "diabetes",
        frame,
        feature_cols=list(data.feature_names),
        target_cols="progression",
        tag_cols="patient",
    )
    fs.split_random({"train": 0.6, "val": 0.2, "test": 0.2}, seed=SEED)
    for domain in ("features", "targets"):
        fs.fit_transform("StandardScaler", domain=domain, fit_to_split="train")
    return fs


def run_diabetes(out: Path, *, show: bool) -> float:
    """Train, predict in the target's units and plot; return the test RMSE.

    Parameters
    ----------
    out : Path
        Folder for the figure.
    show : bool
        Whether progress bars are drawn.
    """
    require("torch", purpose="for the demo").manual_seed(SEED)
    experiment = Experiment("diabetes")
    fs = load_diabetes()
    model = SequentialMLP(n_layers=2, hidden_dim=16, dropout=0.3)
    node = ModelNode("regressor", model, fs.reference(tags=[]))
    optimizer = Optimizer("adamw", opt_kwargs={"lr": 3e-3, "weight_decay": 0.05}, backend="torch")
    ModelGraph([node], optimizer=optimizer)
    print(f"\n2. Diabetes\n{fs}\n")
    loss = AppliedLoss(Loss("mse"), on="regressor", inputs=["outputs", "targets"])
    train = TrainPhase.from_split(
        "train",
        split="train",
        sampler=SimpleSampler(batch_size=16, shuffle=True, seed=SEED),
        losses=[loss],
        n_epochs=200,
        callbacks=[
            Evaluation.from_split("val", split="val", metrics=[EvalLossMetric(loss=loss)]),
            EarlyStopping(patience=25, restore_best=True),
        ],
        result_recording="none",
    )
    experiment.run_phase(train, show_training_progress=show)
    test = fs["test"]
    truth = test.get_targets("numpy", rep="raw")[:, 0]
    predicted = experiment.predict(test)[:, 0]
    ridge = _ridge(fs)
    print(f"test RMSE, network:           {_rmse(truth, predicted):.2f}")
    print(f"test RMSE, ridge regression:  {_rmse(truth, ridge):.2f}")
    parity(
        truth,
        predicted,
        title="Diabetes: disease progression, test part",
        name="network",
        other={"ridge": ridge},
        path=out / "diabetes_parity.png",
    )
    return _rmse(truth, predicted)


def _ridge(fs: FeatureSet) -> Any:
    """Return the predictions of ridge regression on the same split and scaling."""
    train, test = fs["train"], fs["test"]
    model = require("sklearn.linear_model").RidgeCV(alphas=np.logspace(-3, 3, 25))
    x = train.get_features("numpy", rep="transformed")
    model.fit(x, train.get_targets("numpy", rep="raw")[:, 0])
    return model.predict(test.get_features("numpy", rep="transformed"))


def _rmse(truth: Any, predicted: Any) -> float:
    return float(np.sqrt(np.mean((truth - predicted) ** 2)))
