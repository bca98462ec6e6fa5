"""scikit-learn nodes, prediction and building, against the same work by hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression
from torch import nn

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
    """Return one row a measurement: what, value, limit, whether it holds."""
    one_thread()
    n, repeats = (5_000, 2) if quick else (200_000, 7)
    forest = RandomForestRegressor(2 if quick else 4, max_depth=10, random_state=0)
    rows = [
        _row(f"FitPhase, linear model, {n:,} x 16", 1.03, fit(LinearRegression(), n), repeats),
        _row(f"FitPhase, forest, {n:,} x 16", 1.03, fit(forest, n), 2 if quick else 3),
        _row(
            f"torch encoder -> LinearRegression -> evaluation, {n:,} rows",
            1.05,
            encoder_then_linear(n),
            repeats,
        ),
        _row(f"predict, {5 * n:,} rows, MLP(64, 64)", 1.1, prediction(5 * n), repeats),
    ]
    times = {size: statistics.median(build_seconds(size) for _ in range(5)) for size in (100, 800)}
    rows.append(_limited("build() of 100 nodes (ms)", 1e3 * times[100], 100.0))
    rows.append(_limited("build() of 800 nodes / of 100, a node", times[800] / times[100] / 8, 1.5))
    return rows


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


def _row(
    work: str, limit: float, works: dict[str, Callable[[], object]], repeats: int
) -> dict[str, Any]:
    return _limited(work, ratio(interleave(works, repeats=repeats), "ours"), limit)


def _limited(work: str, value: float, limit: float) -> dict[str, Any]:
    return {"work": work, "value": value, "limit": limit, "ok": value <= limit}
