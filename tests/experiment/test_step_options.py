"""Clipping, accumulation, precision, schedules and compiling: equal to loops written by hand."""

import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.callbacks import EvalLossMetric, Evaluation, MetricCallback
from modularml.errors import (
    ConfigError,
    MetricNotLoggedError,
    NonFiniteLossError,
    UnknownNameError,
)
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    eval_phase,
    experiment,
    featureset,
    mlp,
    mse,
    slices,
    train,
    train_phase,
    twin,
)

SGD = {"lr": 0.05, "momentum": 0.9}


def graph(module, x, y, opt="sgd", **kwargs):
    """Return a graph of one node whose optimizer has extras."""
    opt_kwargs = kwargs.pop("opt_kwargs", SGD if opt == "sgd" else {"lr": 0.01})
    optimizer = mm.Optimizer(opt, opt_kwargs=opt_kwargs, **kwargs)
    return mm.ModelGraph([mm.ModelNode("net", module, featureset(x, y))], optimizer)


def loop(module, optimizer, x, y, *, epochs=2, clip=None, every=None, batch=None, accumulate=1):
    """Train as people write it: accumulate, clip, step, schedule."""
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    parts = list(slices(len(x), 16))
    for _ in range(epochs):
        for first in range(0, len(parts), accumulate):
            group = parts[first : first + accumulate]
            optimizer.zero_grad()
            rows = sum(len(x[part]) for part in group)
            for part in group:
                (nn.functional.mse_loss(module(x[part]), y[part]) * len(x[part]) / rows).backward()
            if clip is not None:
                clip(module.parameters())
            optimizer.step()
            if batch is not None:
                batch.step()
        if every is not None:
            every.step()


@pytest.mark.parametrize("opt", ["sgd", "adam"])
@pytest.mark.parametrize(
    ("limits", "clip"),
    [
        ({"clip_norm": 0.5}, lambda p: nn.utils.clip_grad_norm_(p, 0.5)),
        ({"clip_value": 0.1}, lambda p: nn.utils.clip_grad_value_(p, 0.1)),
    ],
    ids=["norm", "value"],
)
def test_clipping(opt, limits, clip):
    x, y = arrays(n=50)
    mine = mlp()
    hand = twin(mine)
    made = graph(mine, x, 5 * y, opt, **limits)
    train(made, n_epochs=2)
    cls = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[opt]
    loop(hand, cls(hand.parameters(), **made.optimizer.kwargs), x, 5 * y, clip=clip)
    assert_equal_weights(mine, hand, atol=1e-6)


@pytest.mark.parametrize("limits", [{"clip_norm": 0.05}, {"clip_value": 0.02}])
def test_sparse_gradients_are_clipped_as_dense_ones(limits):
    class Table(nn.Module):
        def __init__(self, sparse):
            super().__init__()
            self.table = nn.Embedding(5, 1, sparse=sparse)
            nn.init.zeros_(self.table.weight)

        def forward(self, x):
            return self.table(x.long()).reshape(len(x), 1)

    found = []
    for sparse in (True, False):
        with mm.ExperimentContext().activate():
            ids = np.arange(40) % 5
            fs = mm.FeatureSet.from_dict("d", {"i": ids, "y": (ids**2).astype("f4")}, "i", "y")
            optimizer = mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}, **limits)
            module = Table(sparse)
            made = mm.ModelGraph([mm.ModelNode("net", module, fs)], optimizer)
            train(made, n_epochs=2, on_nonfinite="skip")
            found.append(module.table.weight.detach())
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(*found)


def test_clipping_when_stepped_by_hand():
    p = nn.Parameter(torch.zeros(4))
    opt = mm.Optimizer("sgd", opt_kwargs={"lr": 1.0}, backend="torch", clip_norm=1.0)
    opt.build(parameters=[p])
    p.grad = torch.full((4,), 10.0)
    opt.step()
    assert float(p.detach().norm()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("accumulate", [2, 3, 7])
@pytest.mark.parametrize("opt", ["sgd", "adam"])
def test_accumulation_is_the_gradient_of_the_mean(opt, accumulate):
    x, y = arrays(n=55)  # batches of 16, 16, 16 and 7
    mine = mlp()
    hand, large = twin(mine), twin(mine)
    made = graph(mine, x, y, opt, clip_norm=1.0)
    train(made, n_epochs=2, accumulate=accumulate)
    cls = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[opt]
    clip = lambda p: nn.utils.clip_grad_norm_(p, 1.0)  # noqa: E731
    optimizer = cls(hand.parameters(), **made.optimizer.kwargs)
    loop(hand, optimizer, x, y, clip=clip, accumulate=accumulate)
    assert_equal_weights(mine, hand, atol=1e-6)
    with mm.ExperimentContext().activate():  # one batch of all those rows is the same
        train(graph(large, x, y, opt, clip_norm=1.0), n_epochs=2, batch_size=16 * accumulate)
    assert_equal_weights(mine, large, atol=1e-6)


def test_accumulation_survives_an_interrupted_epoch():
    class Interrupt(mm.callbacks.Callback):
        def on_batch_end(self, *, exec_ctx, **facts):
            if exec_ctx.batch_idx == 0:
                raise KeyboardInterrupt

    x, y = arrays(n=64)
    mine = mlp()
    hand = twin(mine)
    made = graph(mine, x, y)
    exp = experiment()
    with pytest.raises(KeyboardInterrupt):
        exp.run_phase(train_phase(made, label="a", accumulate=2, callbacks=[Interrupt()]), **QUIET)
    exp.run_phase(train_phase(made, label="b", accumulate=2, n_epochs=2), **QUIET)
    loop(hand, torch.optim.SGD(hand.parameters(), **SGD), x, y, accumulate=2)
    assert_equal_weights(mine, hand, atol=1e-6)


class TestPrecision:
    def test_bf16(self):
        x, y = arrays(n=48)
        mine = mlp()
        hand = twin(mine)
        results = train(graph(mine, x, y), n_epochs=2, precision="bf16")
        optimizer = torch.optim.SGD(hand.parameters(), **SGD)
        for _ in range(2):
            for part in slices(48, 16):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    out = hand(torch.as_tensor(x[part]))
                    value = nn.functional.mse_loss(out, torch.as_tensor(y[part]))
                value.backward()
                optimizer.step()
        assert_equal_weights(mine, hand, atol=1e-6)
        assert mine[0].weight.dtype is torch.float32
        out = results.tensors("net", "outputs", fmt="np").at(epoch=0, batch=0)
        assert out.dtype == np.float32

    def test_fp16_scales_the_loss(self):
        x, y = arrays(n=48)
        mine = mlp()
        hand = twin(mine)
        train(graph(mine, x, y, clip_norm=1.0), n_epochs=2, precision="fp16")
        optimizer, scaler = torch.optim.SGD(hand.parameters(), **SGD), torch.amp.GradScaler("cpu")
        for _ in range(2):
            for part in slices(48, 16):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.float16):
                    out = hand(torch.as_tensor(x[part]))
                    value = nn.functional.mse_loss(out, torch.as_tensor(y[part]))
                scaler.scale(value).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(hand.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
        assert_equal_weights(mine, hand, atol=1e-6)

    def test_the_scale_of_fp16_goes_on(self):
        x, y = arrays(n=48)
        made = graph(mlp(), x, 1e4 * y)
        train(made, n_epochs=2, precision="fp16")  # gradients are too large: the scale goes down
        state = made.optimizer.get_state()
        assert state["scale"]["scale"] < torch.amp.GradScaler("cpu").get_scale()
        with mm.ExperimentContext().activate():
            other = graph(mlp(), x, y)
            other.build()
            other.optimizer.set_state(state)
            assert other.optimizer.get_state()["scale"] == state["scale"]
            train(other, n_epochs=1, precision="fp16")
            assert other.optimizer.get_state()["scale"]["_growth_tracker"] > 0


class TestSchedules:
    @pytest.mark.parametrize(
        ("name", "cls", "kwargs", "every"),
        [
            ("cosine", torch.optim.lr_scheduler.CosineAnnealingLR, {"T_max": 5}, "epoch"),
            ("step_lr", torch.optim.lr_scheduler.StepLR, {"step_size": 2}, "epoch"),
            (
                torch.optim.lr_scheduler.OneCycleLR,
                torch.optim.lr_scheduler.OneCycleLR,
                {"max_lr": 0.1, "total_steps": 20},
                "batch",
            ),
        ],
        ids=["cosine", "step", "one-cycle"],
    )
    @pytest.mark.parametrize("opt", ["sgd", "adam"])
    def test_equal_to_torch(self, name, cls, kwargs, every, opt):
        x, y = arrays(n=60)
        mine = mlp()
        hand = twin(mine)
        schedule = mm.LRSchedule(name, schedule_kwargs=kwargs, every=every)
        made = graph(mine, x, y, opt, schedule=schedule)
        train(made, n_epochs=4)
        maker = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[opt]
        optimizer = maker(hand.parameters(), **made.optimizer.kwargs)
        own = cls(optimizer, **kwargs)
        loop(hand, optimizer, x, y, epochs=4, **{"every" if every == "epoch" else "batch": own})
        assert_equal_weights(mine, hand, atol=1e-6)
        assert list(made.optimizer.learning_rates.values()) == own.get_last_lr()

    @pytest.mark.parametrize("every", ["epoch", "batch"])
    def test_stop_and_resume_equals_never_stopped(self, every, tmp_path):
        x, y = arrays(n=40)

        def world():
            model = mm.models.torch.SequentialMLP(hidden_dim=4)
            how = mm.LRSchedule("cosine", schedule_kwargs={"T_max": 9}, every=every)
            return graph(model, x, y, "adam", schedule=how)

        first = world()
        first.build()
        first.get_node("net").reset_weights(seed=1)
        exp = experiment()
        exp.run_phase(train_phase(first, label="one", n_epochs=2), **QUIET)
        path = first.save_checkpoint(tmp_path / "at2")
        exp.run_phase(train_phase(first, label="two", n_epochs=2), **QUIET)
        with mm.ExperimentContext().activate():
            second = world()
            second.restore_checkpoint(path)
            experiment("b").run_phase(train_phase(second, label="two", n_epochs=2), **QUIET)
        assert second.get_node("net").model.same_weights(first.get_node("net").model)
        assert second.optimizer.learning_rates == first.optimizer.learning_rates

    def test_plateau_watches_a_metric(self):
        x, y = arrays(n=40)
        made = graph(
            mlp(),
            x,
            y,
            schedule=mm.LRSchedule(
                "plateau",
                schedule_kwargs={"patience": 0, "threshold": 1e9, "threshold_mode": "abs"},
                monitor="val_loss",
            ),
        )
        watch = Evaluation(
            eval_phase=eval_phase(made), metrics=[EvalLossMetric(loss=mse(), name="val_loss")]
        )
        train(made, n_epochs=3, callbacks=[watch])
        assert made.optimizer.learning_rates == {"default": pytest.approx(0.05 * 0.1**2)}
        with pytest.raises(MetricNotLoggedError, match="val_loss"):
            train(made, label="alone")

    @pytest.mark.parametrize("mode", [None, "min", "max"])
    def test_plateau_knows_which_values_are_better(self, mode):
        x, y = arrays(n=40)
        values = [0.1, 0.2, 0.3, 0.4]
        log = MetricCallback("val_r2", lambda exec_ctx, **facts: values[exec_ctx.epoch_idx])
        kwargs = {"patience": 0, "factor": 0.5} | ({} if mode is None else {"mode": mode})
        schedule = mm.LRSchedule("plateau", schedule_kwargs=kwargs, monitor="val_r2")
        made = graph(mlp(), x, y, schedule=schedule)
        told = {None: "so mode='max' is used", "min": "and it is used as given"}.get(mode)
        with nullcontext() if told is None else pytest.warns(UserWarning, match=told):
            train(made, n_epochs=4, callbacks=[log])
        rate = 0.05 * (0.5**3 if mode == "min" else 1)
        assert made.optimizer.learning_rates == {"default": pytest.approx(rate)}
        assert made.optimizer.scheduler.best == (0.1 if mode == "min" else 0.4)

    def test_a_schedule_of_a_node_waits_until_the_node_learns(self):
        x, y = arrays(n=40)
        own = [mm.Optimizer("sgd", opt_kwargs=SGD, schedule=_halve) for _ in range(2)]
        first = mm.ModelNode("enc", mlp(out=4), featureset(x, y), own[0])
        head = mm.ModelNode("net", mlp(d=4), first, own[1])
        made = mm.ModelGraph([first, head])
        first.freeze()
        exp = experiment()
        exp.run_phase(train_phase(made, label="one", n_epochs=2), **QUIET)
        rates = [o.learning_rates["default"] for o in own]
        assert rates == pytest.approx([0.05, 0.05 / 4])

    def test_errors(self):
        p = [nn.Parameter(torch.ones(1))]

        def build(schedule):
            mm.Optimizer("sgd", backend="torch", schedule=schedule).build(parameters=p)

        with pytest.raises(UnknownNameError, match="cosine"):
            build("cosin")
        with pytest.raises(ConfigError, match="T_0"):
            build("CosineAnnealingWarmRestarts")
        with pytest.raises(ConfigError, match="max_lr"):  # its length is that of the phase
            build("OneCycleLR")
        with pytest.raises(ConfigError, match="T_mux"):
            build(mm.LRSchedule("cosine", schedule_kwargs={"T_mux": 3}))
        with pytest.raises(ConfigError, match="monitor"):
            build("plateau")
        with pytest.raises(ConfigError, match="omit"):
            build(mm.LRSchedule("step", schedule_kwargs={"step_size": 1}, monitor="val_loss"))
        with pytest.raises(ConfigError, match="every"):
            mm.LRSchedule("step", every="week")
        with pytest.raises(ConfigError, match="callable"):
            mm.LRSchedule(3)


def _halve(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


class TestGroups:
    def test_rates_of_their_own(self):
        x, y = arrays(n=50)
        enc, head = mlp(out=4, seed=1), mlp(d=4, seed=2)
        hand = nn.Sequential(twin(enc), twin(head))
        first = mm.ModelNode("enc", enc, featureset(x, y))
        groups = {"enc": {"lr": 0.001}, "enc.2": {"lr": 0.01, "weight_decay": 0.1}}
        opt = mm.Optimizer("adam", opt_kwargs={"lr": 0.1}, groups=groups)
        made = mm.ModelGraph([first, mm.ModelNode("net", head, first)], opt)
        train(made, n_epochs=2)
        parts = [
            {"params": hand[1].parameters()},
            {"params": hand[0][0].parameters(), "lr": 0.001},
            {"params": hand[0][2].parameters(), "lr": 0.01, "weight_decay": 0.1},
        ]
        loop(hand, torch.optim.Adam(parts, lr=0.1), x, y)
        assert_equal_weights(enc, hand[0], atol=1e-6)
        assert_equal_weights(head, hand[1], atol=1e-6)
        assert opt.learning_rates == {"default": 0.1, "enc": 0.001, "enc.2": 0.01}
        again = mm.Optimizer.from_config(opt.get_config())
        assert again == opt
        state = made.get_state()
        made.set_state(state)
        assert opt.learning_rates == {"default": 0.1, "enc": 0.001, "enc.2": 0.01}

    def test_errors(self):
        x, y = arrays(n=20)
        with pytest.raises(UnknownNameError, match="net"):
            graph(mlp(), x, y, groups={"nett": {"lr": 1.0}}).build()
        with pytest.raises(ConfigError, match="factory"):
            mm.Optimizer(factory=_halve, groups={})
        with pytest.raises(ConfigError, match="clip_norm"):
            mm.Optimizer("sgd", clip_norm=-1)


class TestNotFinite:
    def world(self):
        x, y = arrays(n=48)
        y = y.copy()
        y[20] = 1e30  # whose square is infinite, in the second of three batches
        mine = mlp()
        return x, y, mine, graph(mine, x, y)

    def test_skip_leaves_the_batch_out(self):
        x, y, mine, made = self.world()
        hand = twin(mine)
        with pytest.warns(UserWarning, match="1 of 3 batches"):
            results = train(made, on_nonfinite="skip")
        keep = np.r_[0:16, 32:48]
        loop(hand, torch.optim.SGD(hand.parameters(), **SGD), x[keep], y[keep], epochs=1)
        assert_equal_weights(mine, hand, atol=1e-6)
        assert np.isfinite(results.to_pandas()["train_loss"][0])

    def test_stop_ends_the_phase(self):
        x, y, mine, made = self.world()
        hand = twin(mine)
        with pytest.warns(UserWarning, match="batch 1"):
            results = train(made, n_epochs=3, on_nonfinite="stop")
        loop(hand, torch.optim.SGD(hand.parameters(), **SGD), x[:16], y[:16], epochs=1)
        assert_equal_weights(mine, hand, atol=1e-6)
        assert results.n_epochs == 1

    def test_raise_is_the_default(self):
        made = self.world()[-1]
        with pytest.raises(NonFiniteLossError, match="batch 1"):
            train(made)

    def test_gradients_that_overflow(self):
        class Cliff(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x

            @staticmethod
            def backward(ctx, grad):
                return grad * float("inf")

        def loss(out, target):
            return (Cliff.apply(out) - target) ** 2

        x, y = arrays(n=32)
        mine = mlp()
        before = twin(mine)
        applied = mm.AppliedLoss(mm.Loss(loss), "net", ["outputs", "targets"])
        made = graph(mine, x, y, clip_norm=1.0)
        with pytest.raises(NonFiniteLossError, match="gradient"):
            train(made, [applied])
        train(made, [applied], label="again", on_nonfinite="skip")
        assert_equal_weights(mine, before)


class TestCompile:
    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
    def test_equal_to_uncompiled(self):
        x, y = arrays(n=40)
        mine = mlp()
        hand = twin(mine)
        train(graph(mine, x, y), n_epochs=2, compile=True)
        loop(hand, torch.optim.SGD(hand.parameters(), **SGD), x, y)
        assert_equal_weights(mine, hand, atol=1e-5)

    def test_no_compiler(self, monkeypatch, caplog):
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CXX", raising=False)
        x, y = arrays(n=40)
        mine = mlp()
        hand = twin(mine)
        train(graph(mine, x, y), n_epochs=2, compile=True)
        assert caplog.text.count("it needs a C++ compiler, and none of g++") == 1
        loop(hand, torch.optim.SGD(hand.parameters(), **SGD), x, y)
        assert_equal_weights(mine, hand)


def test_arguments_are_checked_and_kept():
    x, y = arrays(n=20)
    made = graph(mlp(), x, y)
    for name, bad in [
        ("accumulate", 0),
        ("precision", "fp8"),
        ("on_nonfinite", "ignore"),
        ("compile", 1),
    ]:
        with pytest.raises(ConfigError, match=name):
            train_phase(made, **{name: bad})
    phase = train_phase(made, accumulate=3, precision="bf16", on_nonfinite="skip")
    again = mm.TrainPhase.from_config(phase.get_config())
    assert again.step_options() == phase.step_options()


class TestWeightedRows:
    def world(self):
        x, y = arrays(n=55)
        w = np.linspace(0.1, 2.0, 55).astype(np.float32)
        mine = mlp()
        fs = featureset(x, y, w=w)
        optimizer = mm.Optimizer("sgd", opt_kwargs=SGD)
        made = mm.ModelGraph([mm.ModelNode("net", mine, fs)], optimizer)
        return x, y, w, mine, made

    def test_accumulation_is_the_gradient_of_the_weighted_mean(self):
        x, y, w, mine, made = self.world()
        hand = twin(mine)
        train(made, [mse(sample_weight="w")], accumulate=2, n_epochs=2)
        optimizer = torch.optim.SGD(hand.parameters(), **SGD)
        for _ in range(2):
            for rows in (slice(0, 32), slice(32, 55)):
                optimizer.zero_grad()
                each = (hand(torch.as_tensor(x[rows])) - torch.as_tensor(y[rows])) ** 2
                weight = torch.as_tensor(w[rows])[:, None]
                ((each * weight).sum() / weight.sum()).backward()
                optimizer.step()
        assert_equal_weights(mine, hand, atol=1e-6)

    def test_losses_weighed_in_unlike_ways_cannot_be_put_together(self):
        *_, made = self.world()
        losses = [mse(sample_weight="w"), mse(label="plain")]
        with pytest.raises(ConfigError, match="differently"):
            train(made, losses, accumulate=2)
