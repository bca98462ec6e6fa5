"""Optimizers by name, class and factory, and their state."""

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.errors import (
    BackendNotSupportedError,
    ConfigError,
    OptimizerNotSetError,
    UnknownNameError,
)
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    by_hand,
    experiment,
    featureset,
    graph_of,
    mlp,
    train,
    train_phase,
    twin,
    weights,
)


def two_groups(params):
    """Weights and biases apart, biases first."""
    params = list(params)
    biases = [p for p in params if p.ndim == 1]
    others = [p for p in params if p.ndim > 1]
    return torch.optim.Adam([{"params": biases, "lr": 0.1}, {"params": others, "lr": 0.01}])


class TestConstruction:
    def test_names(self):
        for name in ("adam", "Adam", "ADAM"):
            assert mm.Optimizer(name, backend="torch").cls is torch.optim.Adam
        assert mm.Optimizer(torch.optim.SGD).backend is mm.Backend.TORCH
        assert mm.Optimizer("sgd").backend is None

    def test_unknown_name(self):
        with pytest.raises(UnknownNameError, match="adam"):
            mm.Optimizer("adamm", backend="torch")
        x, y = arrays(n=10)
        with pytest.raises(UnknownNameError, match="adam"):
            graph_of(featureset(x, y), mlp(), "adamm").build()

    def test_bad_arguments(self):
        for limit in ("1", True, [1.0]):
            with pytest.raises(ConfigError, match="clip_norm must be a"):
                mm.Optimizer("sgd", clip_norm=limit)
        with pytest.raises(ConfigError, match="exactly one"):
            mm.Optimizer()
        with pytest.raises(ConfigError, match="exactly one"):
            mm.Optimizer("adam", factory=two_groups)
        with pytest.raises(TypeError, match="factory"):
            mm.Optimizer(torch.optim.Adam([nn.Parameter(torch.ones(1))]))
        with pytest.raises(ConfigError, match="belongs to torch"):
            mm.Optimizer(torch.optim.Adam, backend="tensorflow")
        bad = mm.Optimizer("adam", opt_kwargs={"learning_rate": 1}, backend="torch")
        with pytest.raises(ConfigError, match="learning_rate"):
            bad.build(parameters=[nn.Parameter(torch.ones(1))])
        negative = mm.Optimizer("adam", opt_kwargs={"lr": -1.0}, backend="torch")
        with pytest.raises(ConfigError, match="learning rate"):
            negative.build(parameters=[nn.Parameter(torch.ones(1))])

    def test_one_that_needs_a_closure(self):
        x, y = arrays(n=10)
        with pytest.raises(BackendNotSupportedError, match="LBFGS"):
            graph_of(featureset(x, y), mlp(), "lbfgs").build()

    def test_build(self):
        opt = mm.Optimizer("adam")
        with pytest.raises(ConfigError, match="backend"):
            opt.build(parameters=[nn.Parameter(torch.ones(1))])
        with pytest.raises(OptimizerNotSetError, match="build"):
            opt.step()
        with pytest.raises(ConfigError, match="parameters"):
            opt.build(backend="torch", parameters=[])
        opt.build(backend="torch", parameters=[nn.Parameter(torch.ones(1))])
        assert opt.is_built
        with pytest.raises(OptimizerNotSetError, match="force_rebuild"):
            opt.build(parameters=[nn.Parameter(torch.ones(1))])
        with pytest.raises(BackendNotSupportedError):
            opt.step(grads=[1])

    def test_step(self):
        p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        opt = mm.Optimizer("adam", opt_kwargs={"lr": 0.1}, backend="torch")
        opt.build(parameters=[p])
        plain = torch.optim.Adam([q], lr=0.1)
        for k in range(3):
            p.grad, q.grad = torch.full((3,), k - 0.5), torch.full((3,), k - 0.5)
            opt.step()
            plain.step()
        torch.testing.assert_close(p, q)

    def test_fused_is_used_unless_refused(self):
        p = [nn.Parameter(torch.ones(3))]
        opt = mm.Optimizer("adam", backend="torch")
        opt.build(parameters=p)
        assert opt.instance.param_groups[0]["fused"] is True
        no = mm.Optimizer("adam", opt_kwargs={"fused": False}, backend="torch")
        no.build(parameters=p)
        assert no.instance.param_groups[0]["fused"] is False

    def test_config_round_trip(self):
        for made in (
            mm.Optimizer("adam", opt_kwargs={"lr": 0.5, "betas": (0.8, 0.9)}),
            mm.Optimizer(torch.optim.SGD, opt_kwargs={"lr": 0.5}),
            mm.Optimizer.from_factory(two_groups, backend="torch"),
        ):
            again = mm.Optimizer.from_config(made.get_config())
            assert again == made
            assert (again.name, again.kwargs) == (made.name, made.kwargs)
            assert not again.is_built


class TestState:
    @pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
    def test_stop_and_resume_equals_never_stopped(self, name):
        x, y = arrays(n=40)
        kwargs = {"lr": 0.01, **({"momentum": 0.9} if name == "sgd" else {})}
        graph = graph_of(featureset(x, y), mlp(), name, **kwargs)
        exp = experiment()
        exp.run_phase(train_phase(graph, label="one"), **QUIET)
        state = graph.get_state()
        exp.run_phase(train_phase(graph, label="two"), **QUIET)
        want = graph.get_state()
        exp.run_phase(train_phase(graph, label="three", batch_size=7), **QUIET)
        graph.set_state(state)
        exp.run_phase(train_phase(graph, label="four"), **QUIET)
        assert_same_state(graph.get_state(), want)

    def test_state_before_build_waits(self):
        p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        first = mm.Optimizer("adam", backend="torch")
        first.build(parameters={"w": p})
        p.grad = torch.ones(3)
        first.step()
        second = mm.Optimizer("adam", backend="torch")
        second.set_state(first.get_state())
        assert not second.is_built
        second.build(parameters={"w": q})
        assert_same_state(second.get_state(), first.get_state())

    def test_state_of_other_parameters_is_refused(self):
        first = mm.Optimizer("adam", backend="torch")
        p = nn.Parameter(torch.ones(3))
        first.build(parameters={"w": p})
        p.grad = torch.ones(3)
        first.step()
        second = mm.Optimizer("adam", backend="torch")
        second.build(parameters={"v": nn.Parameter(torch.ones(3))})
        with pytest.raises(ConfigError, match="other parameters"):
            second.set_state(first.get_state())

    def test_state_is_a_copy(self):
        p = nn.Parameter(torch.ones(3))
        opt = mm.Optimizer("adam", backend="torch")
        opt.build(parameters={"w": p})
        p.grad = torch.ones(3)
        opt.step()
        state = opt.get_state()
        kept = state["moments"]["w"]["exp_avg"].copy()
        opt.step()
        np.testing.assert_array_equal(state["moments"]["w"]["exp_avg"], kept)

    def test_moments_go_by_name_whatever_the_order_of_groups(self):
        x, y = arrays(n=40)
        mine = mlp()
        node = mm.ModelNode("net", mine, featureset(x, y))
        graph = mm.ModelGraph([node], mm.Optimizer.from_factory(two_groups, backend="torch"))
        train(graph)
        moments = graph.optimizer.get_state()["moments"]
        for name, p in mine.named_parameters():
            found = moments[f"net.{name}"]["exp_avg"]
            np.testing.assert_array_equal(found, graph.optimizer.instance.state[p]["exp_avg"])


def assert_same_state(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_state(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_state(x, y)
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


class TestInGraphs:
    def test_factory_with_several_groups(self):
        x, y = arrays(n=40)
        mine = mlp()
        theirs = twin(mine)
        node = mm.ModelNode("net", mine, featureset(x, y))
        graph = mm.ModelGraph([node], mm.Optimizer.from_factory(two_groups, backend="torch"))
        train(graph, n_epochs=2)
        by_hand(theirs, two_groups, x, y)
        assert_equal_weights(mine, theirs, atol=1e-5)

    def test_learning_rate_changed_by_a_callback(self):
        class Halve(mm.callbacks.Callback):
            def on_epoch_end(self, *, phase, **facts):
                for group in phase.graph().optimizer.instance.param_groups:
                    group["lr"] *= 0.5

        x, y = arrays(n=40)
        mine = mlp()
        theirs = twin(mine)
        graph = graph_of(featureset(x, y), mine, "adam", lr=0.1)
        train(graph, n_epochs=3, callbacks=[Halve()])
        plain = torch.optim.Adam(theirs.parameters(), lr=0.1)
        for _ in range(3):
            by_hand(theirs, lambda _: plain, x, y, epochs=1)
            plain.param_groups[0]["lr"] *= 0.5
        assert_equal_weights(mine, theirs, atol=1e-5)

    def test_learning_rate_scheduler_of_torch(self):
        class Schedule(mm.callbacks.Callback):
            def on_phase_start(self, *, phase, **facts):
                opt = phase.graph().optimizer.instance
                self.scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)

            def on_epoch_end(self, **facts):
                self.scheduler.step()

        x, y = arrays(n=40)
        graph = graph_of(featureset(x, y), mlp(), "adam", lr=0.1)
        exp = experiment()
        for label in ("one", "two"):
            phase = train_phase(graph, label=label, n_epochs=2, callbacks=[Schedule()])
            exp.run_phase(phase, **QUIET)
        assert graph.optimizer.instance.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**4)

    def test_one_optimizer_for_two_nodes_is_refused(self):
        x, y = arrays(n=20)
        fs = featureset(x, y)
        opt = mm.Optimizer("sgd", opt_kwargs={"lr": 0.1})
        nodes = [mm.ModelNode("a", mlp(), fs, opt), mm.ModelNode("b", mlp(), fs, opt)]
        with pytest.raises(OptimizerNotSetError, match=r"'b'.*own"):
            mm.ModelGraph(nodes).build()

    def test_one_optimizer_for_two_graphs_is_refused(self):
        x, y = arrays(n=20)
        opt = mm.Optimizer("adam")
        with mm.ExperimentContext().activate():
            mm.ModelGraph([mm.ModelNode("a", mlp(), featureset(x, y))], opt).build()
        with mm.ExperimentContext().activate():
            second = mm.ModelGraph([mm.ModelNode("a", mlp(), featureset(x, y))], opt)
            with pytest.raises(OptimizerNotSetError, match="its own optimizer"):
                second.build()

    def test_reset_then_trains_with_fresh_moments(self):
        x, y = arrays(n=40)
        mine = mlp()
        graph = graph_of(featureset(x, y), mine, "adam", lr=0.01)
        exp = experiment()
        phase = train_phase(graph)
        exp.run_phase(phase, **QUIET)
        theirs = twin(mine)
        graph.optimizer.reset()
        exp.run_phase(phase, **QUIET)
        by_hand(theirs, lambda p: torch.optim.Adam(p, lr=0.01), x, y, epochs=1)
        assert_equal_weights(mine, theirs, atol=1e-5)

    def test_new_weights_of_a_node_with_its_own_optimizer(self):
        x, y = arrays(n=40)
        opt = mm.Optimizer("adam", opt_kwargs={"lr": 0.01})
        mine = mlp()
        node = mm.ModelNode("net", mine, featureset(x, y), opt)
        graph = mm.ModelGraph([node])
        exp = experiment()
        phase = train_phase(graph)
        exp.run_phase(phase, **QUIET)
        before = weights(mine)
        node.reset_weights(seed=3)
        assert not torch.equal(mine[0].weight, before["0.weight"])
        theirs = twin(mine)
        exp.run_phase(phase, **QUIET)
        by_hand(theirs, lambda p: torch.optim.Adam(p, lr=0.01), x, y, epochs=1)
        assert_equal_weights(mine, theirs, atol=1e-5)
        assert opt.get_state()["moments"]["0.weight"]["step"] == 3
        node.reset_weights(seed=3)
        first = weights(mine)
        node.reset_weights(seed=3)
        assert_equal_weights(first, mine)

    def test_a_parameter_switched_on_after_build_learns(self):
        x, y = arrays(n=40)
        mine = mlp()
        mine[0].weight.requires_grad_(False)
        graph = graph_of(featureset(x, y), mine, "adam", lr=0.01)
        exp = experiment()
        exp.run_phase(train_phase(graph, label="one"), **QUIET)
        mine[0].weight.requires_grad_(True)
        before = weights(mine)
        exp.run_phase(train_phase(graph, label="two"), **QUIET)
        assert not torch.equal(before["0.weight"], mine[0].weight)
        moments = graph.optimizer.get_state()["moments"]
        assert moments["net.0.weight"]["step"] == 3
        assert moments["net.0.bias"]["step"] == 6
