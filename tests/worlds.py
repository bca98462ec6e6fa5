"""Small data, graphs and hand-written loops that tests are held against."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

import modularml as mm
from modularml.callbacks import Callback
from modularml.graph.model_graph import ModelGraph
from modularml.graph.model_node import ModelNode

torch.set_num_threads(1)

QUIET = {"show_training_progress": False, "show_sampler_progress": False}


def arrays(n: int = 50, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features (n, d) and a target (n, 1) that depends on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    y = (x[:, :2].sum(axis=1, keepdims=True) + 0.1 * rng.normal(size=(n, 1))).astype(np.float32)
    return x, y


def featureset(x: np.ndarray, y: np.ndarray, label: str = "data", **tags: Any) -> mm.FeatureSet:
    """Return a FeatureSet of scalar columns ``x0, x1, ...`` and ``y`` (or ``y0, y1, ...``)."""
    feats = {f"x{i}": x[:, i] for i in range(x.shape[1])}
    if y.ndim == 1 or y.shape[1] == 1:
        targets = {"y": y.reshape(-1)}
    else:
        targets = {f"y{i}": y[:, i] for i in range(y.shape[1])}
    return mm.FeatureSet.from_dict(
        label, {**feats, **targets, **tags}, list(feats), list(targets), list(tags)
    )


def mlp(d: int = 6, out: int = 1, seed: int = 0, width: int = 8, **kwargs: Any) -> nn.Sequential:
    """Return a small network with weights from a seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, width), nn.Tanh(), nn.Linear(width, out), **kwargs)


def twin(module: nn.Module) -> nn.Module:
    """Return a module with the same weights."""
    return copy.deepcopy(module)


def graph_of(
    fs: Any, module: Any, opt: str | None = "sgd", label: str = "net", **opt_kwargs: Any
) -> ModelGraph:
    """Return a graph of one node."""
    node = ModelNode(label, module, fs)
    optimizer = None
    if opt is not None:
        optimizer = mm.Optimizer(opt, opt_kwargs=opt_kwargs or {"lr": 0.05})
    return ModelGraph([node], optimizer=optimizer)


def mse(on: str = "net", **kwargs: Any) -> mm.AppliedLoss:
    """Return the mean squared error on a node."""
    return mm.AppliedLoss(mm.Loss("mse"), on=on, inputs=["outputs", "targets"], **kwargs)


def bindings(graph: ModelGraph, sampler: Any = None, split: str | None = None) -> list[Any]:
    """Bind every input of every head node to the same sampler."""
    return [
        mm.InputBinding(node.node_id, ref, split, sampler)
        for node in graph.head_nodes.values()
        for ref in node.feature_refs
    ]


def train_phase(
    graph: ModelGraph,
    losses: Sequence[Any] | None = None,
    *,
    label: str = "train",
    batch_size: int = 16,
    shuffle: bool = False,
    seed: int = 0,
    split: str | None = None,
    **kwargs: Any,
) -> mm.TrainPhase:
    """Return a training phase of a graph."""
    sampler = mm.SimpleSampler(batch_size=batch_size, shuffle=shuffle, seed=seed)
    sources = bindings(graph, sampler, split)
    return mm.TrainPhase(label, input_sources=sources, losses=list(losses or [mse()]), **kwargs)


def eval_phase(
    graph: ModelGraph, losses: Sequence[Any] | None = None, *, label: str = "eval", **kwargs: Any
) -> mm.EvalPhase:
    """Return an evaluation phase of a graph."""
    split = kwargs.pop("split", None)
    return mm.EvalPhase(
        label,
        input_sources=bindings(graph, None, split),
        losses=[mse()] if losses is None else list(losses),
        **kwargs,
    )


def experiment(label: str = "exp", **kwargs: Any) -> mm.Experiment:
    """Return an experiment of the active context."""
    return mm.Experiment.from_active_context(label, **kwargs)


def train(graph: ModelGraph, losses: Sequence[Any] | None = None, **kwargs: Any) -> Any:
    """Train a graph and return the results."""
    phase = train_phase(graph, losses, **kwargs)
    return experiment().run_phase(phase, **QUIET)


def slices(n: int, size: int) -> Iterable[slice]:
    """Cut n rows into batches without shuffling."""
    return [slice(at, min(at + size, n)) for at in range(0, n, size)]


def by_hand(
    module: nn.Module,
    make_optimizer: Callable[[Any], torch.optim.Optimizer],
    x: Any,
    y: Any,
    *,
    loss: Callable[..., Any] | None = None,
    epochs: int = 2,
    batch_size: int = 16,
    orders: Sequence[np.ndarray] | None = None,
) -> list[float]:
    """Train as people write it and return the mean loss over the samples of each epoch."""
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    loss = loss or nn.MSELoss()
    optimizer = make_optimizer([p for p in module.parameters() if p.requires_grad])
    module.train()
    means = []
    for epoch in range(epochs):
        order = torch.as_tensor(np.arange(len(x)) if orders is None else orders[epoch])
        total = 0.0
        for part in slices(len(x), batch_size):
            rows = order[part]
            optimizer.zero_grad()
            value = loss(module(x[rows]), y[rows])
            value.backward()
            optimizer.step()
            total += value.item() * len(rows)
        means.append(total / len(x))
    return means


def weights(module: Any) -> dict[str, torch.Tensor]:
    """Return a copy of weights and buffers."""
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


def assert_equal_weights(a: Any, b: Any, *, atol: float = 0.0) -> None:
    """Compare weights and buffers in order; bit for bit where no tolerance is given."""
    mine = list((weights(a) if isinstance(a, nn.Module) else a).values())
    theirs = list((weights(b) if isinstance(b, nn.Module) else b).values())
    assert len(mine) == len(theirs)
    for left, right in zip(mine, theirs, strict=True):
        if atol:
            torch.testing.assert_close(left, right, atol=atol, rtol=0)
        else:
            assert torch.equal(left, right)


class AtEpoch(Callback):
    """Calls a function at the start of one epoch."""

    def __init__(self, epoch: int, change: Callable[[], Any]) -> None:
        super().__init__()
        self.epoch, self.change = epoch, change

    def on_epoch_start(self, *, exec_ctx: Any, **facts: Any) -> None:
        if exec_ctx.epoch_idx == self.epoch:
            self.change()


def assert_same_folds(
    plan: Callable[[], mm.Experiment], how: dict[str, Any], *, atol: float = 1e-6
) -> None:
    """Compare the metrics of folds by ``cell`` that are trained one by one, and in another way."""
    tables = []
    for options in ({"stacked": False}, how):
        with mm.ExperimentContext().activate():
            exp = plan()
            binding = mm.CVBinding("data", ["train", "val"], group_by="cell")
            cross = mm.CrossValidation(bindings=binding, experiment=exp, n_folds=3, **options)
            table = cross.run(show_fold_progress=False, **QUIET).to_pandas()
            tables.append(table.select_dtypes("number"))
    np.testing.assert_allclose(*tables, rtol=1e-3, atol=atol)
