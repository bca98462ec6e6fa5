"""Experiments drawn at random: save, load, save; equal objects, identical bytes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modularml as mm
from modularml.models.torch import SequentialCNN, SequentialMLP
from tests.fuzz.share import dice, times
from tests.io import things

pytestmark = pytest.mark.slow


def rows(rng: random.Random) -> mm.FeatureSet:
    """Return a set of scalars and sequences, split and scaled somehow."""
    n, gen = rng.randint(12, 40), np.random.default_rng(rng.getrandbits(32))
    dtype = rng.choice([np.float32, np.float64])
    data = {f"x{i}": gen.normal(size=n).astype(dtype) for i in range(rng.randint(1, 3))}
    data["wave"] = gen.normal(size=(n, rng.choice([8, 11]))).astype(dtype)
    data["y"] = gen.normal(size=n).astype(np.float32)
    data["group"] = np.array([f"g{i % 4}" for i in range(n)])
    features = [key for key in data if key not in ("y", "group")]
    fs = mm.FeatureSet.from_dict("rows", data, features, "y", "group")
    how = rng.choice([{}, {"group_by": "group"}, {"stratify_by": "group"}])
    fs.split_random({"train": 0.5, "val": 0.5}, seed=rng.randint(0, 9), **how)
    for _ in range(rng.randint(0, 2)):
        name = rng.choice(["StandardScaler", "MinMaxScaler", "RobustScaler", "Negate"])
        fs.fit_transform(name, domain="features", keys="x0", fit_to_split="train")
    if rng.random() < 0.5:
        fs.fit_transform("StandardScaler", domain="targets", fit_to_split="train")
    return fs


def graph(rng: random.Random, fs: mm.FeatureSet) -> mm.ModelGraph:
    """Return one or two encoders, a merge or none, and a head."""
    torch.manual_seed(rng.getrandbits(32))
    refs: list[Any] = [fs.reference(features="x0"), fs.reference(features="wave")]
    act = rng.choice(["relu", "tanh", "gelu"])
    wide = SequentialMLP(output_shape=(3,), hidden_dim=rng.randint(2, 6), activation=act)
    deep = SequentialCNN(output_shape=(3,), hidden_dim=2, dropout=rng.choice([0.0, 0.3]))
    encoders = [mm.ModelNode("a", wide, refs[0]), mm.ModelNode("b", deep, refs[1])]
    chosen = encoders[: rng.randint(1, 2)] if rng.random() < 0.7 else encoders[1:]
    for node in encoders:
        if node not in chosen:
            mm.ExperimentContext.get_active().remove_node(label=node.label)
    nodes: list[Any] = list(chosen)
    if len(chosen) == 2:
        nodes.append(mm.ConcatNode("both", chosen, concat_axis_targets="first"))
    nodes.append(mm.ModelNode("head", SequentialMLP(output_shape=(1, 1)), nodes[-1]))
    if rng.random() < 0.3:
        nodes[0].freeze()
    name, kwargs = rng.choice(
        [("adam", {"lr": 1e-3}), ("sgd", {"lr": 0.1, "momentum": 0.9}), ("adamw", {})]
    )
    return mm.ModelGraph(nodes, mm.Optimizer(name, opt_kwargs=kwargs))


def experiment(rng: random.Random) -> mm.Experiment:
    """Return an experiment that has run, or not."""
    graph(rng, rows(rng))
    made = mm.Experiment.from_active_context("drawn", audit="off")
    loss = mm.AppliedLoss(mm.Loss(rng.choice(["mse", "mae"])), "head", ["outputs", "targets"])
    val = mm.Evaluation.from_split("val", split="val", metrics=[mm.EvalLossMetric(loss=loss)])
    stop = mm.EarlyStopping(patience=2, restore_best=rng.random() < 0.5)
    sampler = mm.SimpleSampler(
        batch_size=rng.randint(2, 4),
        shuffle=rng.random() < 0.7,
        drop_last=rng.random() < 0.3,
        seed=rng.choice([None, 3]),
    )
    train = mm.TrainPhase.from_split(
        "train",
        split="train",
        sampler=sampler,
        losses=[loss],
        n_epochs=rng.randint(1, 2),
        callbacks=[val, stop] if rng.random() < 0.6 else [],
        result_recording=rng.choice(["all", "last", "none"]),
    )
    made.execution_plan.add_phase(train)
    if rng.random() < 0.5:
        made.execution_plan.add_phase(mm.EvalPhase.from_split("eval", split="val", losses=[loss]))
    if rng.random() < 0.8:
        made.run(**things.QUIET)
    else:
        made.model_graph.build()
    return made


def test_generated_experiments_come_back(tmp_path: Path) -> None:
    rng = dice("generated")
    for i in range(times(500)):
        with mm.ExperimentContext().activate():
            made = experiment(rng)
            first = made.save(tmp_path / "first", overwrite=True)
        with mm.ExperimentContext().activate():
            again = mm.Experiment.load(first)
            second = again.save(tmp_path / "second", overwrite=True)
        assert second.read_bytes() == first.read_bytes(), i
        mine, theirs = (e.ctx.get_node(label="rows") for e in (made, again))
        assert mine.to_arrow().equals(theirs.to_arrow())
        assert made.to_yaml() == again.to_yaml()
        np.testing.assert_array_equal(made.predict(mine), again.predict(theirs))
