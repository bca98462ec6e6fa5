"""Experiments that reports are made of."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

import modularml as mm
from tests.worlds import QUIET, arrays, featureset, graph_of, mlp, mse

EVIL = "<script>alert('x')</script>"


def trained(
    label: str = "exp",
    *,
    n: int = 144,
    n_epochs: int = 5,
    name: str = "data",
    batch_size: int = 16,
    **options: Any,
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
            sampler=mm.SimpleSampler(batch_size=batch_size, shuffle=True),
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


def folds(experiment: mm.Experiment, n_folds: int = 3, group_by: str | None = "patient") -> Any:
    """Return a cross-validation over all rows of an experiment."""
    with experiment.ctx.activate():
        binding = mm.CVBinding(
            next(iter(experiment.ctx.available_featuresets.values())),
            source_splits=["train", "val", "test"],
            group_by=group_by,
            val_split_name="test",
        )
        plan = mm.CrossValidation(
            label="CV", bindings=binding, n_folds=n_folds, experiment=experiment
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the plan stops early by rows that folds train on
            return plan.run()


def classified() -> mm.Experiment:
    """Return an experiment of three classes, with an evaluation and rows that are not audited."""
    with mm.ExperimentContext().activate():
        x, y = arrays(90)
        x[:, 0] += (kind := np.arange(90) % 3)
        columns = {"x": x, "kind": kind, "scene": y[:, 0]}
        fs = mm.FeatureSet.from_dict(EVIL, columns, "x", "kind", "scene")
        fs.split_random({"train": 0.7, "test": 0.3}, seed=1)
        graph_of(fs.reference(tags=[]), mlp(out=3), "adam", lr=0.05)
        experiment = mm.Experiment.from_active_context(f"Kinds {EVIL}", seed=3, audit="off")
        loss = mm.AppliedLoss(mm.Loss("cross_entropy"), on="net", inputs=["outputs", "targets"])
        sampler = mm.SimpleSampler(batch_size=16, shuffle=True)
        train = mm.TrainPhase.from_split(
            "train", split="train", sampler=sampler, losses=[loss], n_epochs=4
        )
        test = mm.EvalPhase.from_split("test", split="test", losses=[loss])
        experiment.execution_plan.add_items([train, test])
        experiment.run(**QUIET)
    return experiment
