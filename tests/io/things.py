"""Small objects that are saved, and files that are bent."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import modularml as mm
from modularml.io.archive import write_archive
from modularml.models.torch import SequentialMLP

QUIET = {"show_training_progress": False}


def featureset(label: str = "cells", n: int = 30) -> mm.FeatureSet:
    """Return a set with splits, scalers, an array column and text."""
    rng = np.random.default_rng(7)
    x, v = rng.normal(size=n).astype(np.float32), rng.normal(size=(n, 3)).astype(np.float32)
    data = {"x": x, "v": v, "y": x * 2 + v[:, 0] + 9, "cell": [f"c{i % 5}" for i in range(n)]}
    fs = mm.FeatureSet.from_dict(label, data, ["x", "v"], "y", "cell")
    fs.split_random({"train": 0.6, "val": 0.2, "test": 0.2}, group_by="cell")
    fs.fit_transform("StandardScaler", domain="features", keys="x", fit_to_split="train")
    fs.fit_transform("MinMaxScaler", domain="targets", fit_to_split="train")
    return fs


def graph(fs: mm.FeatureSet) -> mm.ModelGraph:
    """Return a graph of two nodes, trained by one optimizer."""
    ref = fs.reference(features=["x"])
    a = mm.ModelNode("encoder", SequentialMLP(output_shape=(3,), hidden_dim=4), ref)
    b = mm.ModelNode("head", SequentialMLP(output_shape=(1, 1), hidden_dim=4, dropout=0.2), a)
    return mm.ModelGraph([a, b], optimizer=mm.Optimizer("adam", opt_kwargs={"lr": 0.01}))


def train_phase(n_epochs: int = 2) -> mm.TrainPhase:
    """Return a phase that trains the graph of the active context."""
    loss = mm.AppliedLoss(mm.Loss("mse"), on="head", inputs=["outputs", "targets"])
    val = mm.Evaluation.from_split("val", split="val", metrics=[mm.EvalLossMetric(loss=loss)])
    stop = mm.EarlyStopping(patience=5, restore_best=True)
    sampler = mm.SimpleSampler(batch_size=5, shuffle=True, seed=3)
    return mm.TrainPhase.from_split(
        "train",
        split="train",
        sampler=sampler,
        losses=[loss],
        n_epochs=n_epochs,
        callbacks=[val, stop],
    )


def experiment() -> mm.Experiment:
    """Return an experiment that has run once."""
    graph(featureset())
    made = mm.Experiment.from_active_context("study")
    made.execution_plan.add_phase(train_phase())
    made.run(**QUIET)
    return made


def members(path: Path) -> dict[str, bytes]:
    """Return all members of a file but the manifest."""
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()[1:]}


def resealed(
    path: Path, target: Path, edit: Callable[[dict[str, bytes]], Any], **facts: Any
) -> Path:
    """Write a file with changed members and right hashes, as an attacker would."""
    found = members(path)
    edit(found)
    kind = path.name.split(".")[-2]
    write_archive(target, kind, found, overwrite=True, facts=facts)
    return target


def snapshot(ctx: mm.ExperimentContext) -> Any:
    """Return all that a failed load must leave as it was."""
    return ctx.get_state(), mm.ExperimentContext.get_active() is ctx
