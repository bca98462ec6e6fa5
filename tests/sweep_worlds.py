"""A small experiment with many settings."""

from __future__ import annotations

from typing import Any

import modularml as mml
from modularml.models.torch import SequentialMLP
from tests.worlds import arrays, experiment, featureset, mse


def world(
    *,
    model: Any = None,
    optimizer: Any = None,
    n_epochs: int = 2,
    batch_size: int = 16,
    weight: float = 1.0,
    patience: int = 5,
    schedule: Any = None,
    rows: Any = None,
    stops: bool = True,
    audit: Any = "off",
) -> mml.Experiment:
    """Return an experiment that trains on ``train`` and evaluates on ``val``."""
    fs = featureset(*(arrays(60) if rows is None else rows))
    fs.split_random({"train": 0.8, "val": 0.2}, seed=0)
    model = SequentialMLP(hidden_dim=4) if model is None else model
    optimizer = optimizer or mml.Optimizer("adam", opt_kwargs={"lr": 0.01}, schedule=schedule)
    graph = mml.ModelGraph([mml.ModelNode("net", model, fs)], optimizer)
    own = experiment(audit=audit)
    watch = mml.Evaluation.from_split(
        "watch", split="val", metrics=[mml.EvalLossMetric(loss=mse()), "r2"]
    )
    own.execution_plan.add_phase(
        mml.TrainPhase.from_split(
            "train",
            split="train",
            sampler=mml.SimpleSampler(batch_size=batch_size, shuffle=True, seed=3),
            losses=[mse(weight=weight)],
            n_epochs=n_epochs,
            callbacks=[watch, *[mml.EarlyStopping(patience=patience)] * stops],
        )
    )
    own.execution_plan.add_phase(mml.EvalPhase.from_split("eval", split="val", losses=[mse()]))
    graph.build()
    return own
