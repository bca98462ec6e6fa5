"""scikit-learn nodes, prediction and building, against the same work by hand."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import clone
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from benchmarks import environments
from benchmarks.cases import table
from benchmarks.timing import cpu_seconds, interleave, one_thread, ratio
from modularml import (
    AppliedLoss,
    EvalPhase,
    Experiment,
    ExperimentContext,
    FeatureSet,
    FitPhase,
    Loss,
    ModelGraph,
    ModelNode,
)
from modularml.models.torch import SequentialMLP


def graph_ratios(*, quick: bool = False) -> list[dict[str, Any]]:
    """Return one row a measurement, each taken in a process of its own."""
    flags = ["--quick"] if quick else []
    rows = []
    for name, (work, limit) in WORKS.items():
        value = environments.run_isolated("graph_ratios", name, *flags)["value"]
        rows.append({"work": work, "value": value, "limit": limit, "ok": value <= limit})
    return rows


WORKS = {
    "linear": ("FitPhase, LinearRegression, 200,000 x 16", 1.03),
    "forest": ("FitPhase, forest, 200,000 x 16", 1.03),
    "encoder": ("torch encoder -> LinearRegression -> evaluation, 200,000 rows", 1.05),
    "predict": ("predict, 1,000,000 rows, MLP(64, 64)", 1.1),
    "row": ("predict, one row of 16 columns as an array, scalers and MLP(32)", 3.0),
    "frame": ("predict, one row of 16 columns as a frame, scalers and MLP(32)", 2.5),
    "build": ("build() of 100 nodes (ms)", 100.0),
    "growth": ("build() of 800 nodes, a node, to one of 100", 1.5),
}


def measure(name: str, n: int, repeats: int) -> float:
    """Return the ratio to the work by hand, or the time that building takes."""
    one_thread()
    if name in ("build", "growth"):
        times = {
            size: statistics.median(build_seconds(size) for _ in range(5)) for size in (100, 800)
        }
        return 1e3 * times[100] if name == "build" else times[800] / times[100] / 8
    forest = RandomForestRegressor(4, max_depth=10, random_state=0)
    works = {
        "linear": lambda: fit(LinearRegression(), n),
        "forest": lambda: fit(forest, n),
        "encoder": lambda: encoder_then_linear(n),
        "predict": lambda: prediction(5 * n),
        "row": lambda: one_row(frame=False),
        "frame": lambda: one_row(frame=True),
    }
    return ratio(interleave(works[name](), repeats=3 if name == "forest" else repeats), "ours")


def fit(estimator: Any, n: int) -> dict[str, Callable[[], object]]:
    """Fit on all rows and predict them, by hand and by a `FitPhase`."""
    data = table(n)
    x, y = data["x"], data["y"][:, 0]
    with ExperimentContext().activate():
        rows = FeatureSet.from_dict("rows", {"x": x, "y": y}, "x", "y")
        rows.add_split(rows.take(np.arange(n), label="all"))
        node = ModelNode("model", clone(estimator), rows)
        ModelGraph([node])
        experiment = Experiment.from_active_context("fit")
        phase = FitPhase.from_split("fit", split="all", freeze_after_fit=False)
    return {
        "hand": lambda: clone(estimator).fit(x, y).predict(x),
        "ours": lambda: experiment.run_phase(phase),
    }


def encoder_then_linear(n: int) -> dict[str, Callable[[], object]]:
    """Encode, fit a linear model on the codes, and evaluate both on other rows."""
    data = table(2 * n)
    x, y = data["x"], data["y"][:, 0]
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    tensors = torch.tensor(x)

    def hand() -> float:
        with torch.no_grad():
            model = LinearRegression().fit(encoder(tensors[:n]).numpy(), y[:n])
            out = model.predict(encoder(tensors[n:]).numpy())
        return float(np.mean((out - y[n:]) ** 2))

    with ExperimentContext().activate():
        rows = FeatureSet.from_dict("rows", {"x": x, "y": y}, "x", "y")
        for label, part in (("train", np.arange(n)), ("test", np.arange(n, 2 * n))):
            rows.add_split(rows.take(part, label=label))
        flat = ModelNode("encoder", nn.Sequential(nn.Flatten(), encoder), rows)
        head = ModelNode("head", LinearRegression(), flat)
        ModelGraph([flat, head])
        experiment = Experiment.from_active_context("fit")
        loss = AppliedLoss(Loss("mse"), on="head", inputs=["outputs", "targets"])
        phases = (
            FitPhase.from_split(
                "fit", split="train", freeze_after_fit=False, active_nodes=["head"]
            ),
            EvalPhase.from_split("test", split="test", losses=[loss]),
        )
    return {"hand": hand, "ours": lambda: [experiment.run_phase(phase) for phase in phases]}


def prediction(n: int) -> dict[str, Callable[[], object]]:
    """Predict rows that are in memory, by the bare module and by the graph."""
    x = np.ascontiguousarray(table(n)["x"])
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )

    def hand() -> np.ndarray:
        net.eval()
        with torch.no_grad():
            return np.concatenate([net(part).numpy() for part in torch.tensor(x).split(8192)])

    with ExperimentContext().activate():
        rows = FeatureSet.from_dict("rows", {"x": x[:8], "y": x[:8, 0]}, "x", "y")
        graph = ModelGraph([ModelNode("net", nn.Sequential(nn.Flatten(), net), rows)])
        graph.build()
    return {"hand": hand, "ours": lambda: graph.predict(x)}


def one_row(*, frame: bool, calls: int = 100) -> dict[str, Callable[[], object]]:
    """Predict one row a hundred times, by scalers and module, and by the graph."""
    x = np.random.default_rng(0).normal(size=(50, 16))
    names = [f"x{i}" for i in range(16)]
    y = x @ np.arange(16) + 5
    inputs, targets = StandardScaler().fit(x), StandardScaler().fit(y[:, None])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1)).eval()
    row: Any = pd.DataFrame(x[:1], columns=names) if frame else x[:1]

    def hand() -> np.ndarray:
        values = row[names].to_numpy() if frame else row
        with torch.no_grad():
            out = net(torch.as_tensor(inputs.transform(values), dtype=torch.float32))
        return targets.inverse_transform(out.numpy().astype(np.float64))

    with ExperimentContext().activate():
        rows = FeatureSet.from_dict(
            "rows", dict(zip(names, x.T, strict=True)) | {"y": y}, names, "y"
        )
        rows.fit_transform("StandardScaler", domain="features")
        rows.fit_transform("StandardScaler", domain="targets")
        graph = ModelGraph([ModelNode("net", net, rows, targets="y")])
        graph.build()
    np.testing.assert_allclose(graph.predict(row), hand(), rtol=1e-5)
    return {
        "hand": lambda: [hand() for _ in range(calls)],
        "ours": lambda: [graph.predict(row) for _ in range(calls)],
    }


def build_seconds(n_nodes: int) -> float:
    """Return the CPU time of building a chain of small models."""
    with ExperimentContext().activate():
        data = table(100)
        rows: Any = FeatureSet.from_dict("rows", {"x": data["x"], "y": data["y"]}, "x", "y")
        nodes: list[Any] = []
        for i in range(n_nodes):
            model = SequentialMLP(output_shape=(4,), n_layers=1)
            nodes.append(ModelNode(f"node{i}", model, nodes[-1] if nodes else rows))
        graph = ModelGraph(nodes)
        return cpu_seconds(graph.build)


if __name__ == "__main__":
    sizes = (5_000, 2) if "--quick" in sys.argv else (200_000, 11)
    print(json.dumps({"value": measure(sys.argv[1], *sizes)}))
