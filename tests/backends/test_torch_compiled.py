"""Compiled losses and gradients, held against the plain step on the same batches.

Most tests call what is traced without compiling it, which takes seconds for each.
"""

import copy
import shutil
import signal

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.backends import torch_compiled
from modularml.callbacks import Callback
from modularml.errors import NonFiniteLossError
from tests.worlds import QUIET, arrays, bindings, featureset, mlp, mse

N, BATCH, EPOCHS = 90, 16, 3  # 6 batches, the last of 10 rows
FULL = EPOCHS * (N // BATCH)  # batches that are compiled
PLAIN = "but the plain step runs: "


class Calls(list):
    """Rows of the batches that went through a compiled function; one call raises a signal."""

    signal_at = None

    def append(self, n):
        super().append(n)
        if len(self) == self.signal_at:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def calls(monkeypatch):
    """Call what is traced, uncompiled; checks of it are not counted."""
    found, original = Calls(), torch_compiled._Total.backward

    def backward(total):
        found.append(1)
        original(total)

    monkeypatch.setattr(torch_compiled, "_inductor", lambda module, arguments: module)
    monkeypatch.setattr(torch_compiled._Total, "backward", backward)
    return found


class Epochs(Callback):
    """Calls a function with the number of each epoch, before it."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def on_epoch_start(self, *, exec_ctx, **facts):
        self.function(exec_ctx.epoch_idx)


class Looks(Callback):
    """Looks at each batch."""

    def on_batch_end(self, **facts):
        pass


def world(module, *, rows=None, optimizer=None, losses=None, folder=None, **kwargs):
    """An experiment of one phase, in a context of its own; one with a folder can resume."""
    with mm.ExperimentContext().activate():
        node = mm.ModelNode("net", module, featureset(*(rows or arrays(n=N))))
        made = mm.ModelGraph([node], optimizer or mm.Optimizer("adam", opt_kwargs={"lr": 0.01}))
        made.build()
        sampler = mm.SimpleSampler(batch_size=BATCH, shuffle=True, seed=0)
        kwargs = {"losses": [mse()] if losses is None else losses, "n_epochs": EPOCHS, **kwargs}
        phase = mm.TrainPhase("train", input_sources=bindings(made, sampler), **kwargs)
        exp = mm.Experiment.from_active_context("exp", audit="off")
        exp.execution_plan.add_phase(phase)
    if folder is not None:
        exp.set_checkpointing(mm.Checkpointing(mode="disk", save_on="phase_end", directory=folder))
    return exp


def trained(module, **kwargs):
    """Train a copy of a module, or what a function makes; return losses, outputs and state."""
    torch.manual_seed(0)
    mine = copy.deepcopy(module) if isinstance(module, nn.Module) else module()
    exp = world(mine, **kwargs)
    torch.manual_seed(1)
    return facts_of(exp.run(**QUIET)["train"], mine)


def facts_of(results, module):
    losses = [
        v
        for e in range(EPOCHS)
        for v in results.metrics().where(name="train_loss", epoch=e).values()
    ]
    outputs = [t.float().numpy() for t in results.tensors("net", "outputs").values()]
    return np.array(losses), np.concatenate(outputs), module.state_dict()


def assert_same(one, other, atol=1e-5):
    for a, b in zip(one[:2], other[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)
    for name, value in one[2].items():
        torch.testing.assert_close(other[2][name], value, rtol=1e-5, atol=atol)


def assert_equal_to_plain(module, calls, n=FULL, options=dict):
    """Train plainly and compiled, with so many compiled batches, and compare."""
    plain = trained(module, **options())
    assert not calls
    own = trained(module, compile=True, **options())
    assert len(calls) == n
    assert_same(plain, own)


class Embedded(nn.Module):
    def __init__(self, sparse=False):
        super().__init__()
        self.rows, self.head = nn.Embedding(9, 4, sparse=sparse), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.rows((x.abs() * 2).long().clamp(max=8)).mean(dim=1))


class Tied(nn.Module):
    """A layer that is called twice, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.layer, self.head, self.other = nn.Linear(6, 6), nn.Linear(6, 1), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.layer(torch.tanh(self.layer(x))))


def layers(*more):
    return nn.Sequential(nn.Linear(6, 8), *more, nn.Linear(8, 1))


class Image(nn.Module):
    """A convolution whose weights are not laid out in the order of their axes."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, (1, 2)), nn.Linear(8, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.head(self.conv(x.reshape(-1, 2, 1, 3)).flatten(1))


MODELS = {
    "mlp": mlp,
    "dropout": lambda: layers(nn.Dropout(0.3), nn.ReLU(), nn.Dropout(0.1)),
    "batchnorm": lambda: layers(nn.BatchNorm1d(8), nn.ReLU(inplace=True)),
    "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 1)),
    "embedding": Embedded,
    "tied": Tied,
    "channels last": Image,
    "double": lambda: mlp().double(),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_have_the_losses_outputs_weights_and_buffers_of_the_plain_step(kind, calls):
    torch.manual_seed(0)
    assert_equal_to_plain(MODELS[kind](), calls)


def rate(**kwargs):
    return mm.Optimizer("sgd", opt_kwargs={"lr": 0.1, "momentum": 0.9}, **kwargs)


OPTIONS = {
    "clip norm": lambda: {"optimizer": rate(clip_norm=0.1)},
    "clip value": lambda: {"optimizer": rate(clip_value=0.05)},
    "rate by batch": lambda: {
        "optimizer": rate(
            schedule=mm.LRSchedule("ExponentialLR", schedule_kwargs={"gamma": 0.9}, every="batch")
        )
    },
    "rate by epoch": lambda: {
        "optimizer": rate(schedule=mm.LRSchedule("ExponentialLR", schedule_kwargs={"gamma": 0.5}))
    },
    "accumulate": lambda: {"accumulate": 4},
    "rmsprop": lambda: {"optimizer": mm.Optimizer("rmsprop")},
    "limit": lambda: {"limit_batches": 5},
    "two losses": lambda: {
        "losses": [mse(), mm.AppliedLoss(mm.Loss("l1"), "net", ["outputs", "targets"], weight=0.3)]
    },
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_of_a_step_are_honoured(kind, calls):
    assert_equal_to_plain(layers(nn.Dropout(0.2)), calls, options=OPTIONS[kind])


class Summed(nn.Module):
    """With two weights that the loss adds up, so that both have one gradient."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 1)
        self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.layer(x)


def assert_gradients_are_apart(calls):
    """Clipping by norm changes each gradient in place."""

    def run(*, compiles):
        mine.load_state_dict(start)

        def loss(outputs, targets):
            return ((outputs - targets) ** 2).mean() + ((mine.a + mine.b - 9) ** 2).sum()

        applied = mm.AppliedLoss(mm.Loss(loss, over="sample"), "net", ["outputs", "targets"])
        exp = world(mine, compile=compiles, losses=[applied], optimizer=rate(clip_norm=0.1))
        losses, outputs, state = facts_of(exp.run(**QUIET)["train"], mine)
        return losses, outputs, copy.deepcopy(state)

    torch.manual_seed(0)
    mine = Summed()
    start = copy.deepcopy(mine.state_dict())
    plain, own = run(compiles=False), run(compiles=True)
    assert len(calls) == FULL
    assert_same(plain, own)


def test_gradients_that_share_memory_are_clipped_once(calls):
    assert_gradients_are_apart(calls)


class Pooled(nn.Module):
    """The mean of an encoding over the steps that hold data, shape (n, 5, 2) -> (n, 1)."""

    def __init__(self):
        super().__init__()
        self.steps, self.head = nn.Linear(2, 4), nn.Linear(4, 1)

    def forward(self, x, mask):
        steps = torch.tanh(self.steps(x[:, 0])) * mask[..., None]
        return self.head(steps.sum(dim=1) / mask.sum(dim=1, keepdim=True))


def graph_with_everything():
    """A frozen, a masked and a plain encoder, merged; weights of samples; two optimizers."""
    rng = np.random.default_rng(0)
    x, y = arrays(n=N)
    mask = np.arange(5) < rng.integers(1, 6, N)[:, None]
    seq = rng.normal(size=(N, 5, 2)).astype(np.float32) * mask[..., None]
    w = np.linspace(0.1, 2.0, N)
    torch.manual_seed(0)
    columns = {"x": x, "seq": seq, "y": y[:, 0], "mask": mask, "w": w}
    fs = mm.FeatureSet.from_dict("s", columns, ["x", "seq"], "y", ["mask", "w"], mask="mask")
    own = {"optimizer": mm.Optimizer("sgd", opt_kwargs={"lr": 0.05})}
    x_ref, seq_ref = (fs.reference(features=key, targets="y") for key in ("x", "seq"))
    a = mm.ModelNode("a", nn.Sequential(nn.Flatten(), nn.Linear(6, 4)), x_ref)
    b = mm.ModelNode("b", Pooled(), seq_ref, mask_as="mask", **own)
    both = mm.ConcatNode("both", [a, b], concat_axis=0, concat_axis_targets="first")
    adam = mm.Optimizer("adam", opt_kwargs={"lr": 0.01})
    head = mm.ModelNode("net", nn.Linear(5, 1), both, optimizer=adam)
    made = mm.ModelGraph([a, b, both, head])
    made.build()
    made.freeze(["a"])
    return made, [a, b, head]


def test_a_graph_with_frozen_nodes_masks_weights_and_several_optimizers(calls):
    runs = []
    for compiles in (False, True):
        with mm.ExperimentContext().activate():
            made, nodes = graph_with_everything()
            sampler = mm.SimpleSampler(batch_size=BATCH, shuffle=True, seed=0)
            phase = mm.TrainPhase(
                "train",
                input_sources=bindings(made, sampler),
                losses=[mse(sample_weight="w")],
                n_epochs=EPOCHS,
                compile=compiles,
            )
            exp = mm.Experiment.from_active_context("exp", audit="off")
            results = exp.run_phase(phase, **QUIET)
        state = {f"{n.label}.{k}": v for n in nodes for k, v in n.model.state_dict().items()}
        runs.append((*facts_of(results, nodes[0].model)[:2], state))
    assert len(calls) == FULL
    assert_same(*runs)


def test_class_weights_count_as_in_the_plain_step(calls):
    x, _ = arrays(n=N)
    rows = x, (x.sum(axis=1) > 0).astype(np.int64)

    def options(class_weight):
        loss = mm.Loss("cross_entropy")
        weighted = mm.AppliedLoss(loss, "net", ["outputs", "targets"], class_weight=class_weight)
        return {"rows": rows, "losses": [weighted]}

    module = nn.Sequential(nn.Linear(x.shape[1], 8), nn.ReLU(), nn.Linear(8, 2))
    assert_equal_to_plain(module, calls, options=lambda: options({0: 1.0, 1: 3.0}))
    unweighted, weighted = (trained(module, **options(w)) for w in (None, {0: 1.0, 1: 3.0}))
    assert not np.allclose(unweighted[0], weighted[0])


def poisoned(row):
    x, y = arrays(n=N)
    y[row] = np.nan
    return x, y


def test_a_loss_that_is_not_finite_is_raised_before_the_weights_change(calls):
    states = []
    for compiles in (False, True):
        mine = mlp()
        exp = world(mine, rows=poisoned(7), compile=compiles)
        with pytest.raises(NonFiniteLossError) as error:
            exp.run(**QUIET)
        states.append((str(error.value), mine.state_dict()))
    assert states[0][0] == states[1][0]
    for name, value in states[0][1].items():
        torch.testing.assert_close(states[1][1][name], value)


@pytest.mark.filterwarnings("ignore:.*had a loss that is not finite")
def test_such_a_batch_is_skipped_where_that_is_asked_for(calls):
    options = {"rows": poisoned(7), "on_nonfinite": "skip"}
    plain, own = (trained(mlp(), compile=c, **options) for c in (False, True))
    assert len(calls) in range(FULL - EPOCHS, FULL)  # the row may be in a short batch
    assert np.isnan(own[0]).sum() == EPOCHS
    assert_same(plain, own)


class Steers(nn.Module):
    """Reads a number from a tensor in each step."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x):
        out = self.layer(x)
        return out * 2 if float(out.detach().sum()) > 0 else out


class Counts(Steers):
    """Counts its calls."""

    n = 0

    def forward(self, x):
        self.n += 1
        return self.layer(x) * (1 + self.n)


class Remembers(Steers):
    """Keeps a mean of its outputs, which is missing at first."""

    def __init__(self):
        super().__init__()
        self.mean = None

    def forward(self, x):
        out = self.layer(x)
        now = out.detach().mean()
        self.mean = now if self.mean is None else (self.mean + now) / 2
        return out - self.mean


class OutsideTorch(Steers):
    """Computes from rows or weights with numpy, which no trace sees."""

    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, x):
        values = x if self.of == "rows" else self.layer.weight
        return self.layer(x) * float(np.abs(values.detach().numpy()).mean())


def hooked(on):
    module = mlp()
    if on == "weight":
        module[0].weight.register_post_accumulate_grad_hook(lambda p: None)
    else:
        module[0].register_forward_hook(lambda *facts: None)
    return module


REFUSED = {
    "a number": (Steers, {}, "reads a number from a tensor"),
    "rows in numpy": (lambda: OutsideTorch("rows"), {}, "other losses"),
    "weights in numpy": (lambda: OutsideTorch("weights"), {}, "other losses"),
    "a count": (Counts, {}, "changes its own attributes"),
    "a mean": (Remembers, {}, "changes its own attributes"),
    "a hook": (lambda: hooked("layer"), {}, "has hooks"),
    "a hook of a weight": (lambda: hooked("weight"), {}, "has hooks"),
    "sparse": (
        lambda: Embedded(sparse=True),
        {"optimizer": lambda: mm.Optimizer("sgd", opt_kwargs={"lr": 0.1})},
        "sparse",
    ),
    "lstm": (lambda: Last(nn.LSTM(6, 4, batch_first=True)), {}, "LSTM"),
    "precision": (mlp, {"precision": lambda: "bf16"}, "precision='bf16'"),
    "callback": (mlp, {"callbacks": lambda: [Looks()]}, "Looks looks at each batch"),
}


class Last(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.head = inner, nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.inner(x[:, None])[0][:, -1])


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_compiled_runs_plainly_and_says_so_once(kind, calls, caplog):
    make, options, reason = REFUSED[kind]
    plain, own = (
        trained(make, compile=c, **{k: v() for k, v in options.items()}) for c in (False, True)
    )
    assert not calls
    assert_same(plain, own, atol=0)
    assert caplog.text.count(PLAIN) == 1
    assert reason in caplog.text.split(PLAIN)[1]


SCALE = 1.0


class Scaled(nn.Module):
    """Reads an attribute, a global and a tensor, which callbacks change."""

    def __init__(self):
        super().__init__()
        self.layer, self.factor, self.shift = nn.Linear(6, 1), 1.0, torch.zeros(1)

    def forward(self, x):
        return self.layer(x) * self.factor * SCALE + self.shift


@pytest.mark.parametrize("what", ["factor", "global", "tensor", "frozen"])
def test_what_changes_between_epochs_is_seen(what, calls, monkeypatch):
    def run(*, compiles):
        mine = Scaled()
        monkeypatch.setattr(f"{__name__}.SCALE", 1.0)

        def change(epoch):
            if epoch == 1 and what == "factor":
                mine.factor = 3.0
            elif epoch == 1 and what == "global":
                monkeypatch.setattr(f"{__name__}.SCALE", 2.0)
            elif epoch == 1 and what == "tensor":
                mine.shift = torch.ones(1)
            elif epoch == 1:
                mine.layer.bias.requires_grad_(False)

        mine.load_state_dict(start)
        exp = world(mine, compile=compiles, callbacks=[Epochs(change)])
        return facts_of(exp.run(**QUIET)["train"], mine)

    start = Scaled().state_dict()
    plain, own = run(compiles=False), run(compiles=True)
    assert len(calls) == FULL
    assert_same(plain, own)


def test_a_run_that_is_stopped_within_an_epoch_resumes_to_the_same_bits(calls, tmp_path):
    def states(at=None):
        """Train, interrupted where the call is the `at`-th, in the second epoch."""
        mine, folder = copy.deepcopy(module), None if at is None else tmp_path / str(at)
        exp = world(mine, compile=True, folder=folder)
        torch.manual_seed(1)
        if at is not None:
            del calls[:]
            calls.signal_at = FULL // EPOCHS + at
            with pytest.raises(KeyboardInterrupt):
                exp.run(**QUIET)
            calls.signal_at, mine = None, copy.deepcopy(module)
            world(mine, compile=True, folder=folder).run(resume="auto", **QUIET)
            assert len(calls) == FULL
        else:
            exp.run(**QUIET)
        return mine.state_dict()

    torch.manual_seed(0)
    module = layers(nn.BatchNorm1d(8), nn.Dropout(0.3))
    whole = states()
    for at in (1, 4, 5):  # after the fifth, only the short batch is left
        for name, value in states(at).items():
            assert torch.equal(whole[name], value), (at, name)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_by_torch(monkeypatch):
    found = []
    original = torch_compiled._Total.backward
    monkeypatch.setattr(
        torch_compiled._Total, "backward", lambda total: (found.append(1), original(total))
    )
    torch.manual_seed(0)
    module = layers(nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU())
    assert_equal_to_plain(module, found, options=OPTIONS["clip norm"])
    del found[:]
    assert_gradients_are_apart(found)
