"""Experiments that estimators build: networks, and estimators in a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge

import modularml as mml


class Net(torch.nn.Module):
    """A network of the user's own."""

    def __init__(self, width: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.hidden, self.out = torch.nn.Linear(n_in, width), torch.nn.Linear(width, n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.hidden(x)))


def planned(rows: mml.FeatureSet, loss: str, *, n_epochs: int, **kwargs: Any) -> mml.Experiment:
    applied = mml.AppliedLoss(mml.Loss(loss), on="net", inputs=["outputs", "targets"], **kwargs)
    experiment = mml.Experiment.from_active_context("study")
    sampler = mml.SimpleSampler(batch_size=16, shuffle=True)
    experiment.execution_plan.add_phase(
        mml.TrainPhase.from_split(
            "train", split="train", sampler=sampler, losses=[applied], n_epochs=n_epochs
        )
    )
    return experiment


def network(
    rows: mml.FeatureSet, *, width: int = 8, lr: float = 0.02, n_epochs: int = 5, n_out: int = 1
) -> mml.Experiment:
    """A regressor; rows are read as they are."""
    n_in = rows.get_features("numpy").reshape(len(rows), -1).shape[1]
    model = mml.TorchModelWrapper(
        model_class=Net, model_kwargs={"width": width, "n_in": n_in, "n_out": n_out}
    )
    net = mml.ModelNode("net", model, rows)
    mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": lr}))
    return planned(rows, "mse", n_epochs=n_epochs)


def keras_network(rows: mml.FeatureSet, *, n_epochs: int = 5) -> mml.Experiment:
    import keras

    layers = [keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]
    net = mml.ModelNode("net", keras.Sequential([keras.Input((6,)), *layers]), rows)
    mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"learning_rate": 0.02}))
    return planned(rows, "mse", n_epochs=n_epochs)


def single_logit(rows: mml.FeatureSet, *, n_epochs: int = 5) -> mml.Experiment:
    """A classifier of two classes with one logit."""
    n_in = rows.get_features("numpy").reshape(len(rows), -1).shape[1]
    net = mml.ModelNode("net", torch.nn.Linear(n_in, 1), rows)
    mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 0.05}))
    return planned(rows, "bce_with_logits", n_epochs=n_epochs)


def fitted(rows: mml.FeatureSet, model: Any, losses: Any = ()) -> mml.Experiment:
    """An experiment that fits an estimator of scikit-learn."""
    mml.ModelGraph([mml.ModelNode("net", model, rows)])
    experiment = mml.Experiment.from_active_context("fitted")
    phase = mml.FitPhase.from_split("fit", split="train", losses=list(losses))
    experiment.execution_plan.add_phase(phase)
    return experiment


def ridge(rows: mml.FeatureSet, *, model: Any = Ridge()) -> mml.Experiment:  # noqa: B008
    loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
    return fitted(rows, mml.ScikitModelWrapper(model), [loss])


def logistic(rows: mml.FeatureSet, *, method: str = "predict_proba") -> mml.Experiment:
    return fitted(rows, mml.ScikitModelWrapper(LogisticRegression(), output_method=method))


def log_loss(shares: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return -np.log(shares[np.arange(len(shares)), classes.astype(int).ravel()])


def weighted_logistic(rows: mml.FeatureSet) -> mml.Experiment:
    loss = mml.AppliedLoss(mml.Loss(log_loss), on="net", inputs=["outputs", "targets"])
    return fitted(rows, mml.ScikitModelWrapper(LogisticRegression()), [loss])


def table(n: int = 80, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x, 3 * x[:, 0] - x[:, 1] + 10 + 0.1 * rng.normal(size=n)
