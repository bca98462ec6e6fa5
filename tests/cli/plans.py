"""A small table and a plan that trains on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import modularml as mm
from modularml.models.torch import SequentialMLP

PLAN = """\
data:
  cells:
    csv: cells.csv
    features: [x, z]
    targets: y
    tags: [cell, code]
    unit: {y: V}
    splits:
    - !RandomSplitter {ratios: {train: 0.6, val: 0.2, test: 0.2}, group_by: cell}
    scalers:
    - {scaler: StandardScaler, domain: features, fit_to_split: train}
    - {scaler: !Scaler {scaler: MinMaxScaler, scaler_kwargs: {feature_range: !tuple [0, 2]}},
       domain: targets, fit_to_split: train}
experiment:
  label: study
  seed: 3
  model_graph:
    nodes:
    - label: net
      model: !SequentialMLP {hidden_dim: 8, dropout: 0.1}
      upstream_ref: cells
    optimizer: {opt: adam, opt_kwargs: {lr: 1e-2}}
  execution_plan:
    phases:
    - !TrainPhase
      label: train
      split: train
      sampler: !SimpleSampler {batch_size: 16, shuffle: true}
      losses: [{loss: mse, on: net, inputs: [outputs, targets]}]
      n_epochs: 4
      callbacks:
      - !Evaluation
        eval_phase: !EvalPhase {label: val, split: val}
        metrics: [!EvalLossMetric {loss: {loss: mse, on: net, inputs: [outputs, targets]}}]
      - !EarlyStopping {monitor: val_loss, patience: 9}
    - !EvalPhase {label: test, split: test, metrics: [rmse, r2]}
"""


def write_table(folder: Path, n: int = 120) -> pd.DataFrame:
    """Write ``cells.csv``, with codes that a number would change."""
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, n))
    y = 2 * x - z + 0.1 * rng.normal(size=n) + 9
    cells = [f"c{i % 12:02d}" for i in range(n)]
    codes = [f"{i:04d}" for i in range(n)]
    frame = pd.DataFrame({"x": x, "z": z, "y": y, "cell": cells, "code": codes})
    frame.to_csv(folder / "cells.csv", index=False)
    return frame


def featureset(folder: Path) -> mm.FeatureSet:
    """Return the set of the plan, made in Python."""
    keys = ["x", "z"], "y", ["cell", "code"]
    fs = mm.FeatureSet.from_csv("cells", folder / "cells.csv", *keys, unit={"y": "V"})
    fs.split_random({"train": 0.6, "val": 0.2, "test": 0.2}, group_by="cell")
    fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    scaler = mm.Scaler("MinMaxScaler", {"feature_range": (0, 2)})
    fs.fit_transform(scaler, domain="targets", fit_to_split="train")
    return fs


def experiment(fs: mm.FeatureSet, *, eager: bool = False) -> mm.Experiment:
    """Return the experiment of the plan; with `eager` one that draws some weights at once."""
    made = mm.Experiment("study", ctx=fs.context, seed=3)
    shapes = {"input_shape": (2,), "output_shape": (4,)} if eager else {}
    nodes = [mm.ModelNode("net", SequentialMLP(hidden_dim=8, dropout=0.1, **shapes), fs)]
    if eager:
        nodes.append(mm.ModelNode("head", SequentialMLP(n_layers=1), nodes[0]))
    mm.ModelGraph(nodes, optimizer=mm.Optimizer("adam", opt_kwargs={"lr": 1e-2}))
    loss = mm.AppliedLoss(mm.Loss("mse"), nodes[-1].label, ["outputs", "targets"])
    val = mm.Evaluation.from_split("val", split="val", metrics=[mm.EvalLossMetric(loss=loss)])
    train = mm.TrainPhase.from_split(
        "train",
        split="train",
        sampler=mm.SimpleSampler(batch_size=16, shuffle=True),
        losses=[loss],
        n_epochs=4,
        callbacks=[val, mm.EarlyStopping(patience=9)],
    )
    test = mm.EvalPhase.from_split("test", split="test", metrics=["rmse", "r2"])
    made.execution_plan.add_phase(train)
    made.execution_plan.add_phase(test)
    return made
