"""Variants trained as one, held against the same variants trained one after another."""

from __future__ import annotations

import gc
import logging
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mml
from modularml.callbacks import Callback, MetricResult
from modularml.errors import ConfigError, NonFiniteLossError
from modularml.io.randomness import random_states
from modularml.models.torch import SequentialMLP
from modularml.strategies.variants.runs import Work
from modularml.strategies.variants.variant import Sides, Variant
from tests.worlds import QUIET, arrays, experiment, featureset, mse

N = 640
SILENT = {"show_fold_progress": False, **QUIET}


def plan_of(
    fs: mml.FeatureSet,
    nodes: list[Any],
    optimizer: Any = "adam",
    n_epochs: int = 2,
    seed: int | None = None,
    **phase: Any,
) -> mml.Experiment:
    """An experiment that trains on ``train`` and evaluates on ``val``."""
    if not fs.available_splits:
        fs.split_random({"train": 0.8, "val": 0.2})
    mml.ModelGraph(nodes, mml.Optimizer("adam") if optimizer == "adam" else optimizer)
    own = experiment(audit="off", seed=seed)
    own.model_graph.build()
    tail = nodes[-1].label
    losses = phase.pop("losses", None) or [mse(tail)]
    options = {"sampler": mml.SimpleSampler(batch_size=32, shuffle=True), **phase}
    own.execution_plan.add_phase(
        mml.TrainPhase.from_split(
            "train", split="train", losses=losses, n_epochs=n_epochs, **options
        )
    )
    scored = [a for a in losses if "targets" in a.inputs]
    own.execution_plan.add_phase(mml.EvalPhase.from_split("eval", split="val", losses=scored))
    return own


def world(model: Any = None, **kwargs: Any) -> mml.Experiment:
    """Six features and a target; by default a small network with dropout."""
    fs = featureset(*arrays(N), group=np.arange(N) // 16)
    model = model or SequentialMLP(n_layers=2, hidden_dim=8, dropout=0.2)
    return plan_of(fs, [mml.ModelNode("net", model, fs)], **kwargs)


def run(own: mml.Experiment, variants: list[Variant], stacked: bool) -> dict[str, Any]:
    """Run variants; return experiments and errors by label."""
    work = Work("many", dict(QUIET))
    with closing(work.outcomes(own, own.execution_plan, variants, stacked=stacked)) as outcomes:
        return {variant.label: outcome for variant, outcome in outcomes}


def both(own: mml.Experiment, variants: list[Variant]) -> list[tuple[Any, Any]]:
    """Run variants in both ways, and return pairs of experiments."""
    alone, together = (run(own, variants, stacked) for stacked in (False, True))
    for outcome in (*alone.values(), *together.values()):
        if isinstance(outcome, Exception):
            raise outcome
    return [(alone[v.label], together[v.label]) for v in variants]


def seeds(n: int = 4, **changes: Any) -> list[Variant]:
    return [Variant(f"seed_{i}", i, changes=changes) for i in range(n)]


def assert_close(pairs: list[tuple[Any, Any]], atol: float = 1e-5, weights: bool = True) -> None:
    """Compare losses of every batch and epoch, outputs, and weights."""
    for alone, together in pairs:
        one, other = alone.history[-1].results, together.history[-1].results
        for phase in one.flatten():
            a, b = one[phase].metrics(), other[phase].metrics()
            assert a.keys() == b.keys()
            np.testing.assert_allclose(list(a.values()), list(b.values()), atol=atol, rtol=1e-5)
            for a, b in zip(one[phase]._execution, other[phase]._execution, strict=True):
                for x, y in zip(a.outs, b.outs, strict=True):
                    torch.testing.assert_close(x, y, atol=10 * atol, rtol=1e-4)
        for node in alone.model_graph.nodes.values():
            if weights and hasattr(node, "model"):
                twin = together.model_graph.get_node(node.label)
                states = node.model.module.state_dict(), twin.model.module.state_dict()
                for name, tensor in states[0].items():
                    torch.testing.assert_close(
                        tensor, states[1][name], atol=atol, rtol=1e-4, msg=name
                    )


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, logger="modularml.engine.stacked")
    return caplog


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Count the steps that were trained as one."""
    from modularml.backends.torch_stacked import TorchStack

    steps = []
    real = TorchStack.step

    def step(self: Any, inputs: Any) -> Any:
        steps.append(len(self.live))
        return real(self, inputs)

    monkeypatch.setattr(TorchStack, "step", step)
    return steps


# ------------------------------------------------------------------------------------- equality


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(2, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x.reshape(len(x), 3, 2))[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(2, 1, 8, batch_first=True, dropout=0.0)
        self.head = nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x.reshape(len(x), 3, 2)).flatten(1))


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 3), nn.Linear(18, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table((x.reshape(len(x), 6).clamp(-2, 2) * 2 + 4).long()).flatten(1))


class WeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layer(x.flatten(1))))


def flat(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *layers)


MODELS = {
    "dropout": lambda: SequentialMLP(n_layers=3, hidden_dim=8, dropout=0.3),
    "normalized": lambda: flat(
        nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1)
    ),
    "layer norm": lambda: flat(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1)),
    "convolution": lambda: flat(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3, padding=1), nn.Tanh(), flat(nn.Linear(24, 1))
    ),
    "weight norm": lambda: mml.TorchModelWrapper(model_class=WeightNorm),
    "recurrent": Recurrent,
    "lookup": Lookup,
    "partly frozen": lambda: half_frozen(),  # noqa: PLW0108 - defined below
}


def half_frozen() -> nn.Module:
    model = flat(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    model[1].requires_grad_(False)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_members_equal_variants_trained_alone(name, counted):
    own = world(MODELS[name](), n_epochs=1)
    states = random_states()
    assert_close(both(own, seeds()))
    assert counted == [4] * 16
    np.testing.assert_equal(random_states(), states)


@pytest.mark.private("attention of torch draws its weights by a private method")
def test_attention_gives_the_same_losses(counted):
    """Keys have biases without a gradient, whose rounding Adam turns into steps."""
    pairs = both(world(Attention(), n_epochs=1), seeds())
    assert_close(pairs, weights=False)
    assert counted


OPTIMIZERS = {
    "adam": {"opt": "adam", "opt_kwargs": {"weight_decay": 0.01}},
    "adamw": {"opt": "adamw"},
    "amsgrad": {"opt": "adam", "opt_kwargs": {"amsgrad": True}},
    "sgd": {"opt": "sgd", "opt_kwargs": {"lr": 0.05}},
    "momentum": {"opt": "sgd", "opt_kwargs": {"lr": 0.02, "momentum": 0.9, "nesterov": True}},
    "rmsprop": {"opt": "rmsprop"},
    "norm": {"opt": "adam", "clip_norm": 0.1},
    "value": {"opt": "sgd", "opt_kwargs": {"lr": 0.05}, "clip_value": 0.01},
    "groups": {"opt": "adam", "groups": {"net.layers.0": {"lr": 0.01}}},
    "by epoch": {
        "opt": "adam",
        "schedule": mml.LRSchedule("StepLR", schedule_kwargs={"step_size": 1}),
    },
    "by batch": {
        "opt": "adam",
        "schedule": mml.LRSchedule(
            "OneCycleLR", schedule_kwargs={"max_lr": 0.01, "total_steps": 32}
        ),
    },
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_and_schedules(name, counted):
    own = world(
        SequentialMLP(n_layers=2, hidden_dim=8), optimizer=mml.Optimizer(**OPTIMIZERS[name])
    )
    pairs = both(own, seeds())
    assert_close(pairs)
    assert len(counted) == 32
    for alone, together in pairs:
        one, other = (e.model_graph.optimizer.get_state()["moments"] for e in (alone, together))
        assert one.keys() == other.keys()
        for name, moments in one.items():
            for key, value in moments.items():
                np.testing.assert_allclose(value, other[name][key], atol=1e-5)


def test_members_may_differ_in_numbers(counted):
    own = world(losses=[mse(weight=0.5)])
    settings = [
        {"graph.optimizer.lr": 0.01, "nodes.net.dropout": 0.0},
        {"graph.optimizer.lr": 0.001, "nodes.net.dropout": 0.4, "losses.mse_net.weight": 2.0},
        {"graph.optimizer.lr": 0.003, "nodes.net.dropout": 0.1},
    ]
    variants = [Variant(f"trial_{i}", i, changes=c) for i, c in enumerate(settings)]
    assert_close(both(own, variants))
    assert len(counted) == 32


def test_members_that_differ_in_shape_are_grouped_by_shape(counted, log):
    sizes = [4, 8, 4, 8, 6]
    variants = [
        Variant(f"t{i}", i, changes={"nodes.net.hidden_dim": n}) for i, n in enumerate(sizes)
    ]
    assert_close(both(world(), variants))
    assert counted == [2] * 64  # two pairs; the fifth is alone
    assert "those of equal shape are trained together" in log.text


def test_members_that_differ_in_more_than_numbers_are_trained_alone(counted, log):
    """A function has no parameters, so models look alike."""

    class Bent(nn.Module):
        def __init__(self, bend: float) -> None:
            super().__init__()
            self.bend, self.layer = bend, nn.Linear(6, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1)) ** self.bend

    own = world(mml.TorchModelWrapper(model_class=Bent, model_kwargs={"bend": 1.0}))
    variants = [
        Variant(f"t{i}", i, changes={"nodes.net.bend": b}) for i, b in enumerate([1.0, 2.0])
    ]
    assert_close(both(own, variants), atol=0)
    assert not counted
    assert "they differ in Bent.bend" in log.text


# ----------------------------------------------------------------------------------------- rows


def test_members_with_rows_and_numbers_of_batches_of_their_own(counted):
    """Groups of unequal sizes, and last batches that are shorter."""
    fs = featureset(*arrays(620), group=np.sort(np.random.default_rng(0).integers(0, 9, 620)))
    fs.split_random({"train": 0.8, "val": 0.2}, group_by="group")
    fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    own = plan_of(fs, [mml.ModelNode("net", MODELS["dropout"](), fs)])
    own.model_graph.build()
    binding = mml.CVBinding(fs, ["train", "val"], group_by="group")
    results = [
        mml.CrossValidation(
            bindings=binding, experiment=own, n_folds=4, stacked=stacked, phase=own.execution_plan
        ).run(**SILENT)
        for stacked in (False, True)
    ]
    sizes = {len(f.losses("net")) for f in map(results[0].get_fold, range(4)) for f in [f["train"]]}
    assert len(sizes) > 1  # folds have unequal numbers of batches
    assert_close([tuple(r.get_experiment(i) for r in results) for i in range(4)])
    a, b = (r.out_of_fold("net") for r in results)
    assert (a.index == b.index).all()
    np.testing.assert_allclose(a["prediction"], b["prediction"], atol=1e-4)
    assert set(counted) == {3, 4}  # those that are left when the shortest has ended


@pytest.mark.parametrize("case", ["weights", "pairs", "several inputs", "own optimizers", "frozen"])
def test_graphs_and_samplers(case, counted):
    fs = featureset(*arrays(N), w=np.random.default_rng(1).uniform(0.1, 2, N))
    fs.split_random({"train": 0.8, "val": 0.2})
    options: dict[str, Any] = {}

    def node(label: str, upstream: Any = fs, **kwargs: Any) -> mml.ModelNode:
        model = SequentialMLP(output_shape=(1,), n_layers=2, hidden_dim=8)
        return mml.ModelNode(label, model, upstream, **kwargs)

    if case == "several inputs":
        a, b = node("a"), node("b")
        joined = mml.ConcatNode("both", [a, b], concat_axis=0, concat_axis_targets="first")
        nodes = [a, b, joined, node("net", joined)]
    elif case == "own optimizers":
        nodes = [node("first", optimizer=mml.Optimizer("adam"))]
        nodes.append(node("net", nodes[0], optimizer=mml.Optimizer("sgd")))
        options = {"losses": [mse("first"), mse("net")], "optimizer": None}
    elif case == "frozen":
        nodes = [node("first")]
        nodes.append(node("net", nodes[0]))
    else:
        nodes = [node("net")]
    if case == "weights":
        options["losses"] = [mse(sample_weight="w"), mse(label="second", weight=0.3)]
    if case == "pairs":
        near = {"w": mml.SimilarityCondition(tolerance=0.2)}
        options["sampler"] = mml.PairedSampler(near, batch_size=32, shuffle=True, seed=1)
        inputs = ["outputs.anchor", "targets.anchor"]
        options["losses"] = [mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=inputs)]
    own = plan_of(fs, nodes, **options)
    if case == "frozen":
        own.model_graph.freeze(["first"])
    assert_close(both(own, seeds(3)))
    assert counted


# ------------------------------------------------------------------------------------ callbacks


class Watching(Callback):
    """Counts batches."""

    def __init__(self, label: str = "watching") -> None:
        super().__init__(label)
        self.n = 0

    def on_batch_end(self, **facts: Any) -> None:
        self.n += 1


class Drawing(Callback):
    """Draws random numbers after each epoch, as augmentation of its own would."""

    def on_epoch_end(self, **facts: Any) -> Any:
        value = float(torch.rand(())) + float(np.random.rand())  # noqa: NPY002
        return MetricResult(name="drawn", value=value)


def test_a_callback_that_looks_at_batches_is_trained_alone(counted, log):
    own = world(callbacks=[Watching()])
    assert_close(both(own, seeds(2)), atol=0)
    assert not counted
    assert "callback 'watching' looks at each batch" in log.text


def test_callbacks_of_each_member_see_that_member(counted):
    """Evaluations, schedules and random numbers are those of variants trained alone."""
    schedule = mml.LRSchedule(
        "ReduceLROnPlateau", schedule_kwargs={"patience": 0}, monitor="val_loss"
    )
    fs = featureset(*arrays(N))
    fs.split_random({"train": 0.8, "val": 0.2})
    nodes = [mml.ModelNode("net", SequentialMLP(n_layers=2, hidden_dim=8, dropout=0.2), fs)]
    graph = mml.ModelGraph(nodes, mml.Optimizer("adam", opt_kwargs={"lr": 0.02}, schedule=schedule))
    own = experiment(audit="off")
    watch = mml.Evaluation.from_split(
        "watch", split="val", metrics=[mml.EvalLossMetric(loss=mse())]
    )
    own.execution_plan.add_phase(
        mml.TrainPhase.from_split(
            "train",
            split="train",
            sampler=mml.SimpleSampler(batch_size=32, shuffle=True),
            losses=[mse()],
            n_epochs=4,
            callbacks=[watch, Drawing()],
        )
    )
    graph.build()
    pairs = both(own, seeds(3))
    assert_close(pairs)
    assert len(counted) == 64
    rates = [e.model_graph.optimizer.instance.param_groups[0]["lr"] for pair in pairs for e in pair]
    assert rates[::2] == rates[1::2]


def early_stopping(n_epochs: int = 25) -> mml.Experiment:
    fs = featureset(*arrays(400), cell=np.arange(400) // 10)
    fs.split_random({"train": 0.7, "val": 0.3}, group_by="cell")
    model = SequentialMLP(n_layers=2, hidden_dim=16)
    mml.ModelGraph(
        [mml.ModelNode("net", model, fs)], mml.Optimizer("adam", opt_kwargs={"lr": 0.03})
    )
    own = experiment(audit="off")
    watch = mml.Evaluation.from_split(
        "watch", split="val", metrics=[mml.EvalLossMetric(loss=mse())]
    )
    phase = mml.TrainPhase.from_split(
        "train",
        split="train",
        sampler=mml.SimpleSampler(batch_size=16, shuffle=True),
        losses=[mse()],
        n_epochs=n_epochs,
        callbacks=[watch, mml.EarlyStopping(patience=2, restore_best=True)],
    )
    own.execution_plan.add_phase(phase)
    own.execution_plan.add_phase(mml.EvalPhase.from_split("eval", split="val", losses=[mse()]))
    own.model_graph.build()
    return own


def test_members_stop_in_the_epoch_in_which_they_stop_alone(counted):
    """Rounding may move the minimum of a noisy curve: nine of ten must agree."""
    pairs = both(early_stopping(), seeds(10))
    epochs = [
        [len(e.history[-1].results["train"].losses("net").where(label="mse_net")) for e in p]
        for p in pairs
    ]
    same = [pair for pair, (a, b) in zip(pairs, epochs, strict=True) if a == b]
    assert len({a for a, _ in epochs}) > 2
    assert len(same) >= 9
    assert_close(same, atol=1e-3)
    assert {min(counted), max(counted)} != {10}


class Warming(nn.Module):
    """Has a temperature, which a callback or the model itself changes."""

    def __init__(self, counts: bool = False) -> None:
        super().__init__()
        self.layer, self.temperature, self.counts = nn.Linear(6, 1), 1.0, counts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.temperature += 0.01 * self.counts
        return self.layer(x.flatten(1)) * self.temperature


class Heating(Callback):
    def on_epoch_start(self, *, experiment: Any, exec_ctx: Any, **facts: Any) -> None:
        own = experiment.model_graph.get_node("net").model.module
        own.temperature = 1.0 + 0.5 * exec_ctx.epoch_idx


def test_attributes_that_a_callback_changes_are_honoured(counted):
    wrapped = mml.TorchModelWrapper(model_class=Warming)
    assert_close(both(world(wrapped, callbacks=[Heating()], n_epochs=3), seeds(3)))
    assert counted == [3] * 48


def test_losses_that_a_callback_changes_are_honoured(counted):
    class Weighting(Callback):
        def on_epoch_start(self, *, phase: Any, exec_ctx: Any, **facts: Any) -> None:
            phase.losses[0].weight = 1.0 + exec_ctx.epoch_idx

    own = world(SequentialMLP(n_layers=1), callbacks=[Weighting()], n_epochs=3)
    assert_close(both(own, seeds(3)))
    assert counted


SAME_BYTES = pytest.mark.private("a change in place to the same values is seen by torch's counter")


@pytest.mark.parametrize(
    "case", ["counts", "hook", "weight hook", pytest.param("renorm", marks=SAME_BYTES)]
)
def test_models_that_do_more_than_a_trace_repeats_are_trained_alone(case, counted, log):
    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 1)
            self.table = nn.Embedding(4, 6, max_norm=0.1 if case == "renorm" else None)
            if case == "hook":
                self.layer.register_forward_hook(lambda module, args, out: 2 * out)
            if case == "weight hook":
                self.layer.weight.register_hook(lambda grad: 0.5 * grad)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            index = torch.zeros(len(x), dtype=torch.int64)
            return self.layer(x.flatten(1) + self.table(index))

    wrapped = mml.TorchModelWrapper(model_class=Hooked)
    if case == "counts":
        wrapped = mml.TorchModelWrapper(model_class=Warming, model_kwargs={"counts": True})
    assert_close(both(world(wrapped), seeds(2)), atol=0)
    assert not counted
    assert "not all runs are trained as one" in log.text


class Linear(nn.Module):
    """A linear layer, and whatever a subclass does to its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)
        self.register_buffer("mean", torch.zeros(6))
        self.scale, self.settings, self.counts = torch.tensor(1.0), {"scale": 1.0}, [0]
        self.own_generator, self.last = np.random.default_rng(0), torch.zeros(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.rows(x.flatten(1)))

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale * self.settings["scale"] * GLOBAL["scale"]


GLOBAL = {"scale": 1.0}


class ReplacingABuffer(Linear):
    def rows(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class ReplacingATensor(Linear):
    def rows(self, x: torch.Tensor) -> torch.Tensor:
        self.last = 0.9 * self.last + 0.1 * x.detach().mean(0)
        return x - self.last


class CountingInAList(Linear):
    def rows(self, x: torch.Tensor) -> torch.Tensor:
        self.counts[0] += 1
        return x * (1 + (self.counts[0] > 5))


class DrawingFromNumpy(Linear):
    def rows(self, x: torch.Tensor) -> torch.Tensor:
        return x * (np.random.rand() > 0.02)  # noqa: NPY002 - as users do


class DrawingFromItsOwn(Linear):
    def rows(self, x: torch.Tensor) -> torch.Tensor:
        return x * (0.5 if self.own_generator.random() < 0.3 else 1.0)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (ReplacingABuffer, "replaces a buffer in the forward pass"),
        (ReplacingATensor, "changes its own attributes"),
        (CountingInAList, "changes its own attributes"),
        (DrawingFromNumpy, "random generator"),
        (DrawingFromItsOwn, "changes its own attributes"),
    ],
)
def test_models_with_states_that_no_trace_repeats_are_trained_alone(model, reason, counted, log):
    """The comparison that finds it out leaves no mark either."""
    own, states = world(mml.TorchModelWrapper(model_class=model)), random_states()
    pairs = both(own, seeds(3))
    if model is not DrawingFromNumpy:  # whose generator goes on from run to run
        np.testing.assert_equal(random_states(), states)
    assert not counted
    assert reason in log.text
    if model is not DrawingFromNumpy:
        assert_close(pairs, atol=0)


def test_hooks_of_all_modules_are_called_at_each_step(counted, log):
    calls: list[int] = []
    own = world(mml.TorchModelWrapper(model_class=Linear), n_epochs=1)
    register = torch.nn.modules.module.register_module_forward_hook
    handle = register(lambda module, inputs, outputs: calls.append(len(outputs)))
    try:
        run(own, seeds(2), False)
        alone = sorted(calls)
        calls.clear()
        run(own, seeds(2), True)
    finally:
        handle.remove()
    assert sorted(calls) == alone
    assert not counted
    assert "have hooks" in log.text


def test_in_place_statistics_are_those_of_models_trained_alone(counted):
    class Inplace(Linear):
        def rows(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
            return x - self.mean

    assert_close(both(world(mml.TorchModelWrapper(model_class=Inplace)), seeds(3)))
    assert counted == [3] * 32


def replace_tensor(module: Any, epoch: int) -> None:
    module.scale = torch.tensor(1.0 + epoch)


def fill_tensor(module: Any, epoch: int) -> None:
    module.scale.fill_(1.0 + epoch)


def change_dict(module: Any, epoch: int) -> None:
    module.settings["scale"] = 1.0 + epoch


def change_global(module: Any, epoch: int) -> None:
    GLOBAL["scale"] = 1.0 + epoch


def add_hook(module: Any, epoch: int) -> None:
    if epoch == 1:
        module.layer.register_forward_hook(lambda layer, args, out: 2 * out)


def replace_weight(module: Any, epoch: int) -> None:
    if epoch == 1:
        module.layer.weight = nn.Parameter(module.layer.weight.detach() * 0.5)


def assign_weights(module: Any, epoch: int) -> None:
    state = {name: tensor.clone() * 0.5 for name, tensor in module.state_dict().items()}
    module.load_state_dict(state, assign=True)


CHANGES = [
    replace_tensor,
    fill_tensor,
    change_dict,
    change_global,
    add_hook,
    replace_weight,
    assign_weights,
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_callback_changes_between_epochs_is_honoured(change, counted, monkeypatch):
    class Changing(Callback):
        def on_epoch_start(self, *, experiment: Any, exec_ctx: Any, **facts: Any) -> None:
            change(experiment.model_graph.get_node("net").model.module, exec_ctx.epoch_idx)

    monkeypatch.setitem(GLOBAL, "scale", 1.0)
    own = world(mml.TorchModelWrapper(model_class=Linear), callbacks=[Changing()], n_epochs=3)
    assert_close(both(own, seeds(3)))
    assert counted[:16] == [3] * 16
    assert len(counted) == (16 if change is add_hook else 48)


def test_a_tensor_that_a_callback_changes_in_one_member_is_honoured(counted, log):
    class Filling(Callback):
        def on_epoch_start(self, *, experiment: Any, exec_ctx: Any, **facts: Any) -> None:
            if experiment.label.endswith("seed_1"):
                fill_tensor(experiment.model_graph.get_node("net").model.module, exec_ctx.epoch_idx)

    own = world(mml.TorchModelWrapper(model_class=Linear), callbacks=[Filling()], n_epochs=3)
    assert_close(both(own, seeds(3)))
    assert counted == [3] * 16
    assert "they differ in Linear.scale" in log.text


def test_members_that_differ_only_on_rare_rows_are_trained_alone(counted, log):
    """A limit that no row of the first batch reaches makes no difference there."""

    class Limited(nn.Module):
        def __init__(self, limit: float) -> None:
            super().__init__()
            self.limit, self.layer = limit, nn.Linear(6, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1)).clamp(-self.limit, self.limit)

    own = world(mml.TorchModelWrapper(model_class=Limited, model_kwargs={"limit": 5.0}))
    variants = [Variant(f"t{i}", i, changes={"nodes.net.limit": 5.0 - 3.4 * i}) for i in range(2)]
    assert_close(both(own, variants), atol=0)
    assert not counted
    assert "they differ in Limited.limit" in log.text


class Momentum(nn.Module):
    """A loss relative to its own running mean, which is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(2.0))

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = ((outputs - targets) ** 2).mean()
        self.mean.mul_(0.9).add_(0.1 * loss.detach())
        return loss / self.mean


def test_losses_with_statistics_are_trained_alone(counted, log):
    loss = mml.Loss(factory=Momentum, backend="torch", over="batch")
    own = world(losses=[mml.AppliedLoss(loss, on="net", inputs=["outputs", "targets"])])
    assert_close(both(own, seeds(2)), atol=0)
    assert not counted
    assert "loss changes its own attributes" in log.text


def test_losses_that_differ_in_an_argument_are_trained_alone(counted, log):
    """No residual of the first batch needs to reach the limits of a Huber loss."""
    loss = mml.AppliedLoss(
        mml.Loss("huber", loss_kwargs={"delta": 5.0}), on="net", inputs=["outputs", "targets"]
    )
    label = loss.label
    variants = [
        Variant(f"t{i}", 0, changes={f"losses.{label}.delta": d}) for i, d in enumerate([5.0, 1.5])
    ]
    assert_close(both(world(losses=[loss]), variants), atol=0)
    assert not counted
    assert "they differ in HuberLoss.delta" in log.text


def test_weights_in_one_memory_are_trained_alone(counted, log):
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 1)
            self.second.weight = nn.Parameter(self.first.weight.data)  # both are moved

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1))))))

    assert_close(both(world(mml.TorchModelWrapper(model_class=Aliased)), seeds(2)), atol=0)
    assert not counted
    assert "share memory" in log.text


def test_a_convolution_before_a_batch_normalization_is_trained_as_one(counted):
    """The gradient of its bias is only rounding, which Adam would turn into steps."""
    layers = nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 2), nn.BatchNorm1d(3), nn.ReLU()
    model = flat(*layers, nn.MaxPool1d(2, 1), flat(nn.Linear(12, 1)))
    assert_close(both(world(model, optimizer=mml.Optimizer("sgd"), n_epochs=1), seeds(3)))
    assert counted == [3] * 16


class Modes(Callback):
    """Logs whether deterministic algorithms are on."""

    def on_epoch_end(self, **facts: Any) -> Any:
        value = float(torch.are_deterministic_algorithms_enabled())
        return MetricResult(name="deterministic", value=value)


@pytest.mark.parametrize("stacked", [False, True])
def test_options_of_the_experiment_are_those_of_its_members(stacked, tmp_path, counted):
    """Runs side by side end in another order than they begin; the last turns modes off."""
    own = world(callbacks=[Modes()])
    config = mml.ResultsConfig(results_dir=tmp_path, memory_budget=0)
    with own.ctx.activate():
        new = mml.Experiment.from_active_context(
            "exp", audit="off", deterministic=True, results_config=config
        )
    new.execution_plan.add_items(own.execution_plan.all)
    found = run(new, seeds(3), stacked)
    assert bool(counted) is stacked
    for member in found.values():
        metrics = member.history[-1].results["train"].metrics()
        assert [v for (name, *_), v in metrics.items() if name == "deterministic"] == [1.0, 1.0]
    assert not torch.are_deterministic_algorithms_enabled()
    assert len(list(tmp_path.rglob("*.safetensors"))) >= 3
    recorded = [m.history[-1].results["train"].tensors("net", "outputs") for m in found.values()]
    assert len({float(next(iter(r.values())).sum()) for r in recorded}) == 3


def losses_of(seed: int) -> list[list[float]]:
    """Build a graph and train three folds of it, trained as one."""
    with mml.ExperimentContext().activate():
        own = world(n_epochs=2, seed=seed)
        cv = mml.CrossValidation(
            bindings=mml.CVBinding("data", ["train"]),
            experiment=own,
            n_folds=3,
            phase=own.execution_plan.all[0],
            stacked=True,
        )
        results = cv.run(**SILENT)
        return [list(results.get_fold(i)["train"].metrics().values()) for i in range(3)]


def test_seeded_runs_in_two_threads_do_not_disturb_each_other(counted):
    """Generators of the process are swapped only while no seeded run of another thread computes."""
    alone = [losses_of(seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(losses_of, (1, 2))) == alone
    assert counted


def test_graphs_built_in_another_thread_do_not_disturb_a_seeded_run():
    alone = losses_of(1)
    done = threading.Event()

    def build() -> int:
        n = 0
        while not done.is_set():
            with mml.ExperimentContext().activate():
                world()
            n += 1
        return n

    with ThreadPoolExecutor(1) as pool:
        n_built = pool.submit(build)
        try:
            assert losses_of(1) == alone
        finally:
            done.set()
        assert n_built.result() > 0


def test_gradients_are_left_as_a_members_own_step_leaves_them(counted):
    class Norms(Callback):
        def on_epoch_end(self, *, experiment: Any, **facts: Any) -> Any:
            norms = [p.grad.norm() for p in weights_of(experiment)]
            return MetricResult(name="norm", value=float(torch.stack(norms).norm()))

    own = world(callbacks=[Norms()], optimizer=mml.Optimizer("adam", clip_norm=0.5))
    assert_close(both(own, seeds(3)))
    assert counted


# --------------------------------------------------------------------------------------- faults


def test_a_member_that_diverges_ends_alone(counted):
    own = world(SequentialMLP(n_layers=2, hidden_dim=8), optimizer=mml.Optimizer("sgd"))
    rates = [1e-3, 1e30, 1e-2]
    variants = [Variant(f"t{i}", i, changes={"graph.optimizer.lr": r}) for i, r in enumerate(rates)]
    alone, together = (run(own, variants, stacked) for stacked in (False, True))
    assert_close([(alone[k], together[k]) for k in ("t0", "t2")])
    assert isinstance(alone["t1"], NonFiniteLossError)
    assert isinstance(together["t1"], NonFiniteLossError)
    assert str(together["t1"]) == str(alone["t1"])
    assert {2, 3} == set(counted)


def test_an_error_of_one_member_is_its_own(counted):
    class Failing(Drawing):
        def on_epoch_end(self, *, experiment: Any, **facts: Any) -> None:
            if experiment.label.endswith("seed_1"):
                raise ValueError("this one")

    own = world(callbacks=[Failing()], n_epochs=3)
    states, n_threads = random_states(), threading.active_count()
    found = run(own, seeds(3), True)
    assert isinstance(found["seed_1"], ValueError)
    assert [
        len(found[k].history[-1].results["train"].losses("net")) for k in ("seed_0", "seed_2")
    ] == [48, 48]
    np.testing.assert_equal(random_states(), states)
    assert threading.active_count() == n_threads
    assert gc.get_freeze_count() == 0


def compared(own: mml.Experiment, variants: list[Variant]) -> dict[str, str]:
    """Run variants in both ways; compare those that succeed, and return messages of the others."""
    alone, together = (run(own, variants, stacked) for stacked in (False, True))
    pairs = {label: (alone[label], together[label]) for label in alone}
    failed = {k: pair for k, pair in pairs.items() if isinstance(pair[0], Exception)}
    for one, other in failed.values():
        assert (type(one), str(one)) == (type(other), str(other))
    assert_close([pair for label, pair in pairs.items() if label not in failed])
    return {label: str(one) for label, (one, _) in failed.items()}


class Rare(nn.Module):
    """Has statistics and dropout, and fails where a number is too large for its table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.body = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.table(x.flatten(1)[:, 0].long()))


def test_an_index_out_of_range_ends_only_the_member_that_reads_it(counted, log):
    """The step is undone, and the members train on alone until the end of the epoch."""
    n, rng = 640, np.random.default_rng(0)
    x = rng.integers(0, 9, (n, 1)).astype("float32")
    x[300] = 9  # read by the second of four members
    fs = featureset(x, rng.normal(size=(n, 1)).astype("float32"))
    own = plan_of(fs, [mml.ModelNode("net", mml.TorchModelWrapper(model_class=Rare), fs)])
    parts = [Sides(np.arange(i, n, 4), np.arange(20), np.arange(n)) for i in (1, 0, 2, 3)]
    variants = [Variant(f"m{i}", i, sides={"data": own_rows}) for i, own_rows in enumerate(parts)]
    assert compared(own, variants) == {"m1": "index out of range in self"}
    assert "IndexError: index out of range" in log.text
    assert counted.count(4) <= 5
    assert counted.count(3) == 5  # the second epoch


@pytest.mark.parametrize("at", [0, 1])
def test_a_model_that_fails_in_one_member_ends_that_member(at, counted):
    class Breaking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.broken = nn.Linear(6, 1), False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.broken:
                raise ValueError("broken")
            return self.layer(x.flatten(1))

    class Breaks(Callback):
        def on_epoch_start(self, *, experiment: Any, exec_ctx: Any, **facts: Any) -> None:
            module = experiment.model_graph.get_node("net").model.module
            module.broken = experiment.label.endswith("seed_1") and exec_ctx.epoch_idx == at

    wrapped = mml.TorchModelWrapper(model_class=Breaking)
    own = world(wrapped, callbacks=[Breaks()], n_epochs=3)
    assert compared(own, seeds(4)) == {"seed_1": "broken"}
    assert {3} <= set(counted) <= {3, 4}


def test_rows_that_cannot_be_read_end_one_member(counted, monkeypatch):
    from modularml.engine.batch_feed import BatchFeed

    real, orders, damaged = BatchFeed._tensors, [], []

    def tensors(self: Any, part: int, batches: Any) -> Any:
        order = next(iter(batches[0].rows.values())).tolist()
        orders.append(order)
        for i, own in enumerate(real(self, part, batches)):
            if i == 3 and order in damaged:
                raise OSError("a damaged file")
            yield own

    monkeypatch.setattr(BatchFeed, "_tensors", tensors)
    own = world(n_epochs=3)
    run(own, seeds(4), False)
    damaged.append(orders[2 * len(orders) // 4 + 1])  # the second epoch of the third run
    assert compared(own, seeds(4)) == {"seed_2": "a damaged file"}
    assert counted[:19] == [4] * 19
    assert set(counted[19:]) == {3}


def test_a_schedule_that_fails_ends_the_runs_as_it_does_alone(counted):
    def rate(step: int) -> float:
        if step == 20:
            raise ZeroDivisionError("no rate")
        return 1.0

    schedule = mml.LRSchedule("LambdaLR", schedule_kwargs={"lr_lambda": rate}, every="batch")
    own = world(optimizer=mml.Optimizer("adam", schedule=schedule))
    assert compared(own, seeds(2)) == {"seed_0": "no rate", "seed_1": "no rate"}
    assert counted


def test_closing_ends_all_members():
    own = world(n_epochs=3)
    n_threads, states = threading.active_count(), random_states()
    outcomes = Work("many", dict(QUIET)).outcomes(own, own.execution_plan, seeds(3), stacked=True)
    next(outcomes)
    outcomes.close()
    assert threading.active_count() == n_threads
    np.testing.assert_equal(random_states(), states)


def test_random_models_are_trained_alone(counted, log):
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1) + torch.randn(6))

    assert_close(both(world(mml.TorchModelWrapper(model_class=Noisy)), seeds(2)), atol=0)
    assert not counted
    assert "random operation" in log.text


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"accumulate": 2}, "accumulate=2"),
        ({"precision": "bf16"}, "precision='bf16'"),
        ({"on_nonfinite": "skip"}, "on_nonfinite='skip'"),
    ],
)
def test_options_that_are_not_supported_are_named(option, reason, counted, log):
    assert_close(both(world(**option), seeds(2)), atol=0)
    assert not counted
    assert f"{reason} is not supported" in log.text


def test_other_frameworks_are_trained_alone(log):
    from sklearn.linear_model import Ridge

    fs = featureset(*arrays(N))
    fs.split_random({"train": 0.8, "val": 0.2})
    mml.ModelGraph([mml.ModelNode("net", Ridge(), fs)])
    own = experiment(audit="off")
    own.execution_plan.add_phase(mml.FitPhase.from_split("fit", split="train"))
    cv = mml.CrossValidation(
        bindings=mml.CVBinding(fs, ["train", "val"]), experiment=own, n_folds=3, stacked=True
    )
    assert len(cv.run(**SILENT).summary(metrics=["r2"])) == 1


def test_bad_values_are_refused():
    own = world()
    binding = mml.CVBinding("data", ["train"])
    for stacked in ("yes", None, 2):
        with pytest.raises((ConfigError, TypeError), match="stacked must be True"):
            mml.CrossValidation(bindings=binding, experiment=own, stacked=stacked)
    with pytest.raises(ConfigError, match="trains all in this process, got n_jobs=2"):
        mml.CrossValidation(bindings=binding, experiment=own, stacked=True, n_jobs=2)


def test_automatic_stacking_is_for_long_trainings_of_small_torch_models(counted):
    for n_epochs, expected in ((2, 0), (110, 3)):
        with mml.ExperimentContext().activate():
            own = world(SequentialMLP(n_layers=1), n_epochs=n_epochs, result_recording="none")
            binding = mml.CVBinding("data", ["train"])
            mml.CrossValidation(
                bindings=binding, experiment=own, n_folds=3, phase=own.execution_plan.all[0]
            ).run(**SILENT)
        assert max(counted, default=0) == expected


def test_members_are_ordinary_runs_with_files_of_their_own(tmp_path, counted):
    own = world(SequentialMLP(n_layers=2, hidden_dim=8))
    (train,) = (p for p in own.execution_plan.flatten() if p.label == "train")
    train.set_checkpointing(mml.Checkpointing(mode="disk", directory=tmp_path / "states"))
    pairs = both(own, seeds(3))
    assert counted
    assert len(list((tmp_path / "states").rglob("*.ckpt.mml"))) == 3 * 2  # as of runs alone
    x = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    rows = {f"x{i}": x[:, i] for i in range(6)}
    for alone, together in pairs:
        path = together.save(tmp_path / together.label)
        with mml.ExperimentContext().activate():
            loaded = mml.Experiment.load(path)
        values = loaded.predict(rows)
        np.testing.assert_array_equal(values, together.predict(rows))
        np.testing.assert_allclose(values, alone.predict(rows), atol=1e-5)
        assert [r.status for r in together.history] == ["completed"]
        storages = {p.untyped_storage().data_ptr() for p in weights_of(together)}
        assert len(storages) == 4  # not views of the stack


def weights_of(own: mml.Experiment) -> list[torch.Tensor]:
    return list(own.model_graph.get_node("net").model.module.parameters())


# ------------------------------------------------------------------------------ interruptions


def cross_validation(folder: Any, stacked: bool, n_epochs: int = 4) -> mml.CrossValidation:
    own = world(n_epochs=n_epochs)
    own.set_checkpoint_dir(folder)
    return mml.CrossValidation(
        bindings=mml.CVBinding("data", ["train", "val"]),
        experiment=own,
        n_folds=3,
        phase=own.execution_plan,
        stacked=stacked,
    )


@pytest.mark.parametrize("at", [20, 32])  # within the second epoch, and at its end
def test_a_signal_ends_all_members_and_they_resume(tmp_path, monkeypatch, counted, at):
    from modularml.backends.torch_stacked import TorchStack

    real = TorchStack.step

    def step(self: Any, inputs: Any) -> Any:
        done = real(self, inputs)
        if len(counted) == at:
            signal.raise_signal(signal.SIGINT)
        return done

    whole = cross_validation(tmp_path / "whole", stacked=True).run(**SILENT)
    counted.clear()
    monkeypatch.setattr(TorchStack, "step", step)
    n_threads, handler = threading.active_count(), signal.getsignal(signal.SIGINT)
    with mml.ExperimentContext().activate():
        stopped = cross_validation(tmp_path / "stopped", stacked=True)
        with pytest.raises(KeyboardInterrupt):
            stopped.run(resume="auto", **SILENT)
    assert len(counted) == at
    assert threading.active_count() == n_threads
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.setattr(TorchStack, "step", real)
    with mml.ExperimentContext().activate():
        resumed = cross_validation(tmp_path / "stopped", stacked=True).run(resume="auto", **SILENT)
    assert_close([tuple(r.get_experiment(i) for r in (whole, resumed)) for i in range(3)])


def test_a_signal_in_a_callback_ends_all_members(tmp_path, counted):
    class Ending(Callback):
        def on_epoch_end(self, *, experiment: Any, exec_ctx: Any, **facts: Any) -> None:
            if exec_ctx.epoch_idx == 1 and experiment.label.endswith("fold_1"):
                signal.raise_signal(signal.SIGINT)

    cv = cross_validation(tmp_path, stacked=True)
    cv.phase.all[0].add_callback(Ending())
    with pytest.raises(KeyboardInterrupt):
        cv.run(resume="auto", **SILENT)
    assert len(list(tmp_path.rglob("interrupted.ckpt.mml"))) == 3


def test_without_checkpoints_a_signal_ends_all_members_at_once(counted, monkeypatch):
    from modularml.backends.torch_stacked import TorchStack

    real = TorchStack.step

    def step(self: Any, inputs: Any) -> Any:
        if len(counted) == 5:
            signal.raise_signal(signal.SIGINT)
        return real(self, inputs)

    monkeypatch.setattr(TorchStack, "step", step)
    own, states = world(), random_states()
    n_threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(own, seeds(3), True)
    assert threading.active_count() == n_threads
    np.testing.assert_equal(random_states(), states)


def test_large_models_are_not_stacked_by_themselves(counted, log, monkeypatch):
    monkeypatch.setattr("modularml.engine.stacked._FEWEST_STEPS", 10)
    own = world(SequentialMLP(n_layers=3, hidden_dim=600), n_epochs=1)
    work = Work("many", dict(QUIET))
    plan = own.execution_plan.all[0]
    with closing(work.outcomes(own, plan, seeds(2), stacked="auto")) as outcomes:
        assert all(isinstance(outcome, mml.Experiment) for _, outcome in outcomes)
    assert not counted
    assert "weights, more than 300,000" in log.text
