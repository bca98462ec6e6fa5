"""The direct fused steps against torch's own optimizers, step by step."""

import copy
import warnings

import pytest
import torch
from torch import nn

from modularml.backends.torch import adapter
from modularml.backends.torch_fused_optimizers import _Direct, direct_step

CASES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    ("SGD", {"lr": 0.1, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-5}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01, "amsgrad": True}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True}),
]


class Pair:
    """Equal parameters under our step and under torch's plain one."""

    def __init__(self, name, kwargs, shapes=((4, 3), (3,), (2, 2))):
        torch.manual_seed(0)
        self.mine = [nn.Parameter(torch.randn(s)) for s in shapes]
        self.theirs = [nn.Parameter(p.detach().clone()) for p in self.mine]
        cls = getattr(torch.optim, name)
        self.optimizer = adapter.make_optimizer(cls, self.mine, kwargs)
        self.plain = cls(self.theirs, **kwargs, fused=False, foreach=False)
        self.step = direct_step(self.optimizer)
        self.generator = torch.Generator().manual_seed(1)

    def go(self, without=()):
        for i, (p, q) in enumerate(zip(self.mine, self.theirs, strict=True)):
            grad = torch.randn(p.shape, generator=self.generator)
            p.grad, q.grad = (None, None) if i in without else (grad, grad.clone())
        self.step()
        self.plain.step()

    def check(self):
        for p, q in zip(self.mine, self.theirs, strict=True):
            torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)
        mine, theirs = self.optimizer.state_dict(), self.plain.state_dict()
        assert mine["state"].keys() == theirs["state"].keys()
        for i, state in theirs["state"].items():
            for name, value in state.items():
                if value is None:
                    assert mine["state"][i][name] is None
                else:
                    torch.testing.assert_close(mine["state"][i][name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.private("torch's kernels are called directly")
@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_torchs_kernel_is_called(name, kwargs):
    assert isinstance(Pair(name, kwargs).step, _Direct)


@pytest.mark.parametrize(("name", "kwargs"), CASES)
class TestAgainstTorch:
    def test_each_step(self, name, kwargs):
        pair = Pair(name, kwargs)
        for _ in range(6):
            pair.go()
            pair.check()

    def test_learning_rate_changed_midway(self, name, kwargs):
        pair = Pair(name, kwargs)
        for lr in (0.1, 0.1, 0.02, 0.02, 0.3):
            for optimizer in (pair.optimizer, pair.plain):
                optimizer.param_groups[0]["lr"] = lr
            pair.go()
            pair.check()

    def test_parameters_without_gradient_in_some_steps(self, name, kwargs):
        pair = Pair(name, kwargs)
        for without in ((1,), (), (0, 1), (), (), (2,), (0, 1, 2), ()):
            pair.go(without)
            pair.check()

    def test_parameters_that_get_their_first_gradient_late(self, name, kwargs):
        pair = Pair(name, kwargs)
        for without in ((1, 2), (1, 2), (1, 2), (2,), (2,), (), ()):
            pair.go(without)
            pair.check()

    def test_state_loaded_midway(self, name, kwargs):
        pair = Pair(name, kwargs)
        for _ in range(3):
            pair.go()
        kept = copy.deepcopy(pair.optimizer.state_dict())
        theirs = copy.deepcopy(pair.plain.state_dict())
        for _ in range(3):
            pair.go()
        kept["param_groups"][0]["lr"] = theirs["param_groups"][0]["lr"] = 0.03
        pair.optimizer.load_state_dict(kept)
        pair.plain.load_state_dict(theirs)
        for _ in range(3):
            pair.go()
            pair.check()

    def test_state_cleared_midway(self, name, kwargs):
        pair = Pair(name, kwargs)
        for _ in range(3):
            pair.go()
        pair.optimizer.state.clear()
        pair.plain.state.clear()
        for _ in range(3):
            pair.go()
            pair.check()

    def test_several_groups(self, name, kwargs):
        torch.manual_seed(0)
        mine = [nn.Parameter(torch.randn(3)) for _ in range(4)]
        theirs = [nn.Parameter(p.detach().clone()) for p in mine]
        cls = getattr(torch.optim, name)

        def make(ps):
            groups = [{"params": ps[:1], "lr": 0.5}, {"params": ps[1:], "weight_decay": 0.2}]
            return cls(groups, **kwargs)

        ours, plain = make(mine), make(theirs)
        step = direct_step(ours)
        for k in range(5):
            for p, q in zip(mine, theirs, strict=True):
                p.grad, q.grad = torch.full((3,), float(k)), torch.full((3,), float(k))
            step()
            plain.step()
            for p, q in zip(mine, theirs, strict=True):
                torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)


def test_momentum_switched_on_midway():
    pair = Pair("SGD", {"lr": 0.1})
    for step in range(6):
        if step == 3:
            for optimizer in (pair.optimizer, pair.plain):
                optimizer.param_groups[0]["momentum"] = 0.9
        pair.go()
        pair.check()


def test_group_added_midway():
    pair = Pair("Adam", {"lr": 0.1})
    pair.go()
    pair.go()
    for params, optimizer in ((pair.mine, pair.optimizer), (pair.theirs, pair.plain)):
        params.append(nn.Parameter(torch.ones(2)))
        optimizer.add_param_group({"params": [params[-1]], "lr": 0.5})
    for _ in range(3):
        pair.go()
        pair.check()


def test_hooks_are_called():
    pair = Pair("Adam", {})
    pair.go()
    pair.go()
    called = []
    pair.optimizer.register_step_post_hook(lambda *a: called.append(1))
    pair.go()
    pair.go()
    pair.check()
    assert called == [1, 1]


def test_learning_rate_scheduler_sees_the_steps():
    pair = Pair("Adam", {"lr": 0.1})
    pair.go()
    pair.go()
    pair.plain.step()
    scheduler = torch.optim.lr_scheduler.StepLR(pair.optimizer, 1, gamma=0.5)
    pair.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()
    assert pair.optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_no_to_the_fused_kernel_is_honoured(name):
    params = [nn.Parameter(torch.ones(2))]
    cls = getattr(torch.optim, name)
    optimizer = adapter.make_optimizer(cls, params, {"lr": 0.1, "fused": False})
    assert optimizer.param_groups[0]["fused"] is False
    assert not isinstance(direct_step(optimizer), _Direct)
    other = adapter.make_optimizer(cls, params, {"lr": 0.1, "foreach": True})
    assert not other.param_groups[0].get("fused")
    assert not isinstance(direct_step(other), _Direct)


def test_other_optimizers_step_by_themselves():
    params = [nn.Parameter(torch.ones(2))]
    for cls in (torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam):
        optimizer = adapter.make_optimizer(cls, params, {"lr": 0.1})
        assert not isinstance(direct_step(optimizer), _Direct)

    class Own(torch.optim.Adam):
        pass

    assert not isinstance(direct_step(Own(params)), _Direct)


def test_sparse_gradients():
    torch.manual_seed(0)
    mine = nn.Embedding(6, 3, sparse=True)
    theirs = copy.deepcopy(mine)
    ours = adapter.make_optimizer(torch.optim.SGD, list(mine.parameters()), {"lr": 0.1})
    plain = torch.optim.SGD(theirs.parameters(), lr=0.1)
    step = direct_step(ours)
    for _ in range(3):
        for module in (mine, theirs):
            module.weight.grad = None
            module(torch.tensor([1, 4])).square().sum().backward()
        step()
        plain.step()
        assert torch.equal(mine.weight, theirs.weight)


def test_double_precision():
    with_double = [nn.Parameter(torch.ones(3, dtype=torch.float64))]
    plain = [nn.Parameter(torch.ones(3, dtype=torch.float64))]
    ours = adapter.make_optimizer(torch.optim.Adam, with_double, {"lr": 0.1})
    theirs = torch.optim.Adam(plain, lr=0.1)
    step = direct_step(ours)
    for k in range(4):
        with_double[0].grad = torch.full((3,), k - 1.5, dtype=torch.float64)
        plain[0].grad = with_double[0].grad.clone()
        step()
        theirs.step()
    torch.testing.assert_close(with_double[0], plain[0], atol=1e-12, rtol=0)
