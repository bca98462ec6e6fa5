"""A plan is made anew when what it was compiled from has changed."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import modularml as mm
from modularml.callbacks import Callback
from modularml.errors import ConfigError, UnknownNameError
from tests.worlds import (
    QUIET,
    AtEpoch,
    arrays,
    assert_equal_weights,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    slices,
    train_phase,
    twin,
)


def loop(module, optimizer, x, y, epochs, loss=F.mse_loss):
    """Train as people write it."""
    for _ in range(epochs):
        for part in slices(len(x), 16):
            optimizer.zero_grad()
            loss(module(x[part]), y[part]).backward()
            optimizer.step()


def lora(module):
    """Freeze a linear layer and put a low-rank adapter beside it, in place."""

    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base.requires_grad_(False)
            self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 8, bias=False)
            with torch.no_grad():
                self.down.weight.fill_(0.1)
                self.up.weight.fill_(0.2)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    module[0] = Adapted(module[0])


def exchange(module):
    module[2] = nn.Linear(8, 1)
    nn.init.constant_(module[2].weight, 0.1)
    nn.init.zeros_(module[2].bias)


def weight_norm(module):
    nn.utils.parametrizations.weight_norm(module[0])


CHANGES = {
    "freeze": lambda m: m[0].requires_grad_(False),
    "exchange": exchange,
    "weight_norm": weight_norm,
    "adapter": lora,
    "activation": lambda m: m.__setitem__(1, nn.ReLU()),
}


class TestTorch:
    @pytest.mark.parametrize("where", ["between runs", "in a callback"])
    @pytest.mark.parametrize("change", CHANGES)
    def test_what_a_model_becomes_is_trained(self, change, where):
        x, y = arrays()
        module = mlp()
        hand = twin(module)
        graph = graph_of(featureset(x, y), module, "adam", lr=0.05)
        edit = CHANGES[change]
        if where == "in a callback":
            callback = AtEpoch(2, lambda: edit(module))
            experiment().run_phase(train_phase(graph, n_epochs=4, callbacks=[callback]), **QUIET)
        else:
            run, phase = experiment(), train_phase(graph, n_epochs=2)
            run.run_phase(phase, **QUIET)
            edit(module)
            run.run_phase(phase, **QUIET)
        xs, ys = torch.tensor(x), torch.tensor(y)
        optimizer = torch.optim.Adam(hand.parameters(), lr=0.05)
        loop(hand, optimizer, xs, ys, 2)
        before = set(hand.parameters())
        edit(hand)
        if new := [p for p in hand.parameters() if p not in before and p.requires_grad]:
            optimizer.add_param_group({"params": new})
        loop(hand, optimizer, xs, ys, 2)
        assert_equal_weights(hand, module, atol=1e-6)

    def test_what_is_unfrozen_in_the_course_of_a_phase_learns(self):
        x, y = arrays()
        module = mlp()
        module[0].requires_grad_(False)
        hand = twin(module)
        graph = graph_of(featureset(x, y), module, "adam", lr=0.05)
        thaw = AtEpoch(1, lambda: module[0].requires_grad_(True))
        experiment().run_phase(train_phase(graph, n_epochs=3, callbacks=[thaw]), **QUIET)
        optimizer = torch.optim.Adam(hand.parameters(), lr=0.05)
        loop(hand, optimizer, torch.tensor(x), torch.tensor(y), 1)
        hand[0].requires_grad_(True)
        loop(hand, optimizer, torch.tensor(x), torch.tensor(y), 2)
        assert_equal_weights(hand, module, atol=1e-7)

    def test_moments_survive_a_switch_off_and_on(self):
        x, y = arrays()
        module = mlp()
        hand = twin(module)
        graph = graph_of(featureset(x, y), module, "adam", lr=0.05)
        off = AtEpoch(1, lambda: module[0].requires_grad_(False))
        on = AtEpoch(2, lambda: module[0].requires_grad_(True))
        on._label = "on"
        experiment().run_phase(train_phase(graph, n_epochs=3, callbacks=[off, on]), **QUIET)
        optimizer = torch.optim.Adam(hand.parameters(), lr=0.05)
        for switch in (True, False, True):
            hand[0].requires_grad_(switch)
            loop(hand, optimizer, torch.tensor(x), torch.tensor(y), 1)
        assert_equal_weights(hand, module, atol=1e-7)

    def test_double_precision_from_the_second_run_on(self):
        x, y = arrays()
        module = mlp()
        graph = graph_of(featureset(x.astype(np.float64), y.astype(np.float64)), module, "adam")
        run, phase = experiment(), train_phase(graph)
        run.run_phase(phase, **QUIET)
        module.double()
        hand = twin(module)
        moments = copy.deepcopy(graph.optimizer.instance.state_dict())
        run.run_phase(phase, **QUIET)
        optimizer = torch.optim.Adam(hand.parameters(), lr=1e-3)
        optimizer.load_state_dict(moments)
        loop(hand, optimizer, torch.tensor(x).double(), torch.tensor(y).double(), 1)
        assert module[0].weight.dtype is torch.float64
        assert_equal_weights(hand, module, atol=1e-12)

    def test_each_node_with_an_optimizer_of_its_own(self):
        x, y = arrays()
        first, second = mlp(out=3), nn.Linear(3, 1)
        fs = featureset(x, y)
        own = [mm.Optimizer("adam", opt_kwargs={"lr": 0.05}) for _ in "ab"]
        a = mm.ModelNode("enc", first, fs, own[0])
        b = mm.ModelNode("net", second, a, own[1])
        graph = mm.ModelGraph([a, b])
        graph.build()
        losses = [
            mse(),
            mm.AppliedLoss(mm.Loss("mse"), on="enc", inputs=["outputs", "y"], label="e"),
        ]
        losses = losses[:1]
        graph.freeze(["enc"])
        run, phase = experiment(), train_phase(graph, n_epochs=1)
        run.run_phase(phase, **QUIET)
        second.bias.requires_grad_(False)
        bias, weight = second.bias.clone(), second.weight.clone()
        nn.utils.parametrizations.weight_norm(second)
        run.run_phase(phase, **QUIET)
        assert torch.equal(second.bias, bias)
        assert not torch.equal(second.weight, weight)
        assert second.parametrizations.weight.original0.grad is not None

    def test_a_plan_is_used_again_as_long_as_nothing_changes(self):
        x, y = arrays()
        graph = graph_of(featureset(x, y), mlp(), "adam")
        losses = [mse()]
        plan, step = graph.plan(losses, training=True)
        instance = graph.optimizer.instance
        step([torch.zeros(4, 6), torch.zeros(4, 1)])
        assert graph.plan(losses, training=True)[0] is plan
        assert graph.optimizer.instance is instance


class TestFrozenOutputs:
    """The outputs of a frozen part are those of its weights as they are."""

    def worlds(self):
        x, y = arrays(n=40)
        teacher, student = mlp(seed=1), mlp(seed=2)
        fs = featureset(x, y)
        t, s = mm.ModelNode("t", teacher, fs), mm.ModelNode("net", student, fs)
        graph = mm.ModelGraph([t, s], mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}))
        graph.build()
        graph.freeze(["t"])
        loss = mm.AppliedLoss(mm.Loss("mse"), on="net", inputs=["outputs", "t.outputs"])
        return torch.tensor(x), teacher, student, graph, loss

    @pytest.mark.parametrize("how", ["in place", "data", "assigned"])
    @pytest.mark.parametrize("hook", ["on_epoch_start", "on_batch_start", "on_batch_end"])
    def test_a_mean_teacher(self, hook, how):
        x, teacher, student, graph, loss = self.worlds()
        hand_t, hand_s = twin(teacher), twin(student)

        def update(t, s):
            for mine, theirs in zip(t.parameters(), s.parameters(), strict=True):
                if how == "in place":
                    with torch.no_grad():
                        mine.mul_(0.9).add_(theirs, alpha=0.1)
                elif how == "data":
                    mine.data.mul_(0.9).add_(theirs.data, alpha=0.1)
                else:
                    mine.data = mine.data * 0.9 + theirs.data * 0.1

        callback = Callback("mean teacher")
        setattr(callback, hook, lambda **facts: update(teacher, student))
        phase = train_phase(graph, [loss], n_epochs=3, callbacks=[callback])
        experiment().run_phase(phase, **QUIET)
        optimizer = torch.optim.SGD(hand_s.parameters(), lr=0.1)
        for _ in range(3):
            if hook == "on_epoch_start":
                update(hand_t, hand_s)
            for part in slices(len(x), 16):
                if hook == "on_batch_start":
                    update(hand_t, hand_s)
                optimizer.zero_grad()
                F.mse_loss(hand_s(x[part]), hand_t(x[part]).detach()).backward()
                optimizer.step()
                if hook == "on_batch_end":
                    update(hand_t, hand_s)
        assert_equal_weights(hand_s, student, atol=1e-6)
        assert_equal_weights(hand_t, teacher, atol=1e-6)

    def test_by_hand_they_follow_each_step(self):
        x, teacher, _, graph, loss = self.worlds()
        phase = train_phase(graph, [loss])
        for ctx in phase.iter_execution(show_training_progress=False):
            teacher[2].bias.data.add_(1.0)
            graph.train_step(ctx, [loss])
            rows = slice(16 * ctx.batch_idx, 16 * ctx.batch_idx + 16)
            torch.testing.assert_close(ctx.output(graph.get_node("t").node_id), teacher(x[rows]))

    def test_a_layer_exchanged_within_it(self):
        x, teacher, _, graph, loss = self.worlds()
        change = AtEpoch(1, lambda: teacher.__setitem__(1, nn.ReLU()))
        phase = train_phase(graph, [loss], n_epochs=2, batch_size=40, callbacks=[change])
        results = experiment().run_phase(phase, **QUIET)
        out = results.tensors("t", "outputs", fmt="np").at(epoch=1, batch=0)
        np.testing.assert_allclose(out, teacher(x).detach(), atol=1e-6)

    def test_they_are_computed_once_as_long_as_it_stays(self):
        _, teacher, _, graph, loss = self.worlds()
        calls = []
        teacher[1].register_forward_hook(lambda *a: calls.append(1))
        experiment().run_phase(train_phase(graph, [loss], n_epochs=5), **QUIET)
        assert len(calls) == 4  # three to see that they are repeatable, one for all rows


class TestLosses:
    def test_arguments_changed_after_build(self):
        x, y = arrays()
        module = mlp()
        hand = twin(module)
        graph = graph_of(featureset(x, 5 * y), module)
        loss = mm.Loss("huber", loss_kwargs={"delta": 0.1})
        applied = mm.AppliedLoss(loss, on="net", inputs=["outputs", "targets"])
        run, phase = experiment(), train_phase(graph, [applied])
        run.run_phase(phase, **QUIET)
        loss.loss_kwargs["delta"] = 2.0
        run.run_phase(phase, **QUIET)
        optimizer = torch.optim.SGD(hand.parameters(), lr=0.05)
        for delta in (0.1, 2.0):
            own = nn.HuberLoss(delta=delta)
            loop(hand, optimizer, torch.tensor(x), torch.tensor(5 * y), 1, own)
        assert_equal_weights(hand, module, atol=1e-6)

    def test_class_weights_changed_in_place(self):
        loss = mm.Loss("cross_entropy", loss_kwargs={"weight": torch.ones(2)}, backend="torch")
        before = loss.signature()
        assert loss.signature() == before
        loss.loss_kwargs["weight"][0] = 3.0
        assert loss.signature() != before


class TestOptimizers:
    def test_arguments_changed_after_build(self):
        x, y = arrays()
        module = mlp()
        hand = twin(module)
        graph = graph_of(featureset(x, y), module, "adam", lr=0.05)
        run, phase = experiment(), train_phase(graph)
        run.run_phase(phase, **QUIET)
        graph.optimizer.opt_kwargs["lr"] = 0.002
        graph.optimizer.opt_kwargs["weight_decay"] = 0.1
        run.run_phase(phase, **QUIET)
        optimizer = torch.optim.Adam(hand.parameters(), lr=0.05)
        loop(hand, optimizer, torch.tensor(x), torch.tensor(y), 1)
        optimizer.param_groups[0].update(lr=0.002, weight_decay=0.1)
        loop(hand, optimizer, torch.tensor(x), torch.tensor(y), 1)
        assert_equal_weights(hand, module, atol=1e-7)

    def test_a_rate_that_a_schedule_sets_is_not_changed_in_silence(self):
        x, y = arrays()
        optimizer = mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}, schedule="exponential")
        optimizer.schedule = mm.LRSchedule("exponential", schedule_kwargs={"gamma": 0.5})
        graph = mm.ModelGraph([mm.ModelNode("net", mlp(), featureset(x, y))], optimizer)
        run, phase = experiment(), train_phase(graph, n_epochs=2)
        run.run_phase(phase, **QUIET)
        optimizer.opt_kwargs["lr"] = 0.4
        with pytest.raises(ConfigError, match="schedule sets the rates"):
            run.run_phase(phase, **QUIET)
        optimizer.schedule = None
        run.run_phase(phase, **QUIET)
        assert optimizer.learning_rates == {"default": 0.4}

    def test_a_schedule_goes_on_when_parameters_are_taken_up(self):
        x, y = arrays()
        module = mlp()
        module[0].requires_grad_(False)
        schedule = mm.LRSchedule("exponential", schedule_kwargs={"gamma": 0.5})
        optimizer = mm.Optimizer(
            "sgd", opt_kwargs={"lr": 0.1}, schedule=schedule, groups={"net.0": {"lr": 0.01}}
        )
        graph = mm.ModelGraph([mm.ModelNode("net", module, featureset(x, y))], optimizer)
        thaw = AtEpoch(1, lambda: module[0].requires_grad_(True))
        before = module[0].weight.clone()
        experiment().run_phase(train_phase(graph, n_epochs=2, callbacks=[thaw]), **QUIET)
        assert not torch.equal(module[0].weight, before)
        assert optimizer.learning_rates == pytest.approx({"default": 0.025, "net.0": 0.0025})

    def test_a_group_of_no_part_is_refused(self):
        x, y = arrays()
        optimizer = mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}, groups={"net.9": {"lr": 0.01}})
        graph = mm.ModelGraph([mm.ModelNode("net", mlp(), featureset(x, y))], optimizer)
        with pytest.raises(UnknownNameError, match=r"net\.2"):
            graph.build()
