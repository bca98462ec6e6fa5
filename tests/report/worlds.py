"""Experiments that reports are made of."""

from __future__ import annotations

from typing import Any

import numpy as np

import modularml as mm
from tests.worlds import QUIET, arrays, featureset, graph_of, mlp, mse

EVIL = "<script>alert('x')</script>"


def trained(
    label: str = "exp", *, n: int = 144, n_epochs: int = 5, name: str = "data", **options: Any
) -> mm.Experiment:
    """Return an experiment with a plan, twelve patients, a validation and a test split."""
    with mm.ExperimentContext().activate():
        x, y = arrays(n)
        patient = np.repeat(np.arange(12), n // 12)
        fs = featureset(x, y, name, patient=patient)
        ratios = {"train": 0.5, "val": 0.25, "test": 0.25}
        fs.split_random(ratios, group_by="patient", seed=1)
        fs.fit_transform("StandardScaler", domain="targets", fit_to_split="train")
        graph_of(fs.reference(tags="patient"), mlp(), "adam", lr=0.01)
        experiment = mm.Experiment.from_active_context(label, seed=3, audit="off", **options)
        train = mm.TrainPhase.from_split(
            "train",
            split="train",
            sampler=mm.SimpleSampler(batch_size=16, shuffle=True),
            losses=[mse()],
            n_epochs=n_epochs,
            callbacks=[
                mm.Evaluation.from_split(
                    "val", split="val", metrics=[mm.EvalLossMetric(loss=mse())]
                ),
                mm.EarlyStopping(patience=50, restore_best=True),
            ],
        )
        test = mm.EvalPhase.from_split(
            "test", split="test", losses=[mse()], metrics=["rmse"], group_by="patient"
        )
        experiment.execution_plan.add_items([train, test])
        experiment.run(**QUIET)
    return experiment
