"""Chains of layers that are called without the calls in between."""

from __future__ import annotations

import copy

import pytest
import torch

from modularml.backends.torch_fused_optimizers import direct_forward
from modularml.models.torch import SequentialCNN, SequentialMLP

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def chain() -> torch.nn.Module:
    inner = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Dropout(0.5))
    return torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.ReLU(), inner, torch.nn.Linear(6, 1, bias=False)
    )


def mlp() -> torch.nn.Module:
    model = SequentialMLP(dropout=0.2)
    model.build((4,), (1,))
    return model


@pytest.mark.parametrize("make", [chain, mlp])
@pytest.mark.parametrize("training", [True, False])
def test_gives_what_the_module_gives_bit_for_bit(make, training):
    module = make().train(training)
    direct = direct_forward(module)
    torch.manual_seed(1)
    want = module(X)
    torch.manual_seed(1)
    assert torch.equal(direct(X), want)


@pytest.mark.private("it is not public what a call of a module does")
@pytest.mark.parametrize("make", [chain, mlp])
def test_the_module_itself_is_not_called(make):
    module = make()
    assert direct_forward(module) is not module


def test_gradients_are_the_same():
    module = chain().eval()
    grads = []
    for call in (module, direct_forward(module)):
        module.zero_grad()
        call(X).square().mean().backward()
        grads.append([p.grad.clone() for p in module.parameters()])
    assert all(map(torch.equal, *grads))


def test_cnn_is_taken_apart_too():
    model = SequentialCNN()
    model.build((1, 32), (2,))
    x = torch.randn(3, 1, 32)
    assert torch.equal(direct_forward(model.eval())(x), model(x))


@pytest.mark.parametrize(
    ("register", "n_calls"),
    [
        (lambda m, hook: m[2][1].register_forward_hook(hook), 1),
        (lambda m, hook: m[0].register_forward_pre_hook(hook), 1),
        (lambda m, hook: m.register_forward_hook(hook), 1),
        (lambda m, hook: torch.nn.modules.module.register_module_forward_hook(hook), 8),
    ],
    ids=["inner layer", "first layer", "module", "all modules"],
)
def test_who_listens_to_a_layer_is_told(register, n_calls):
    module = chain().eval()
    direct, told = direct_forward(module), []
    handle = register(module, lambda *args: told.append(args[0]))
    direct(X)
    handle.remove()
    direct(X)
    assert len(told) == n_calls


def test_a_layer_that_was_exchanged_is_called():
    module = chain().eval()
    direct = direct_forward(module)
    module[2][0] = torch.nn.Identity()
    assert torch.equal(direct(X), module(X))
    module[0].weight = torch.nn.Parameter(torch.zeros(6, 4))
    assert torch.equal(direct(X), module(X))


def test_own_forward_and_weight_norm_are_respected():
    class Twice(SequentialMLP):
        def forward(self, x):
            return 2 * super().forward(x)

    model = Twice()
    model.build((4,), (1,))
    assert direct_forward(model) is model
    normed = torch.nn.Sequential(torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 2)))
    assert torch.equal(direct_forward(normed)(X), normed(X))
    old = copy.deepcopy(chain()).eval()
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(old[0])
    assert torch.equal(direct_forward(old)(X), old(X))


def test_a_module_compiled_later_is_called_as_such():
    module = chain().eval()
    direct = direct_forward(module)
    module._compiled_call_impl = lambda *args: "compiled"
    assert direct(X) == "compiled"


class Tripled(torch.nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


def double(module):
    before = module.forward
    module.forward = lambda x: 2 * before(x)


def weigh_by_a_tensor(module):
    weight = module.weight.detach() * 2
    del module.weight
    module.weight = weight


CHANGES = {
    "forward of the chain": double,
    "forward of a chain within": lambda m: double(m[2]),
    "forward of a Linear": lambda m: double(m[0]),
    "forward of a Tanh": lambda m: double(m[2][1]),
    "parametrized weight": lambda m: torch.nn.utils.parametrizations.spectral_norm(m[0]),
    "weight that is no parameter": lambda m: weigh_by_a_tensor(m[0]),
    "class of a layer": lambda m: setattr(m[0], "__class__", Tripled),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
def test_what_was_changed_on_a_module_is_done(change, early):
    module = chain().eval()
    plain = module(X)
    if early:
        change(module)
    direct = direct_forward(module)
    if not early:
        direct(X)
        change(module)
    assert torch.equal(direct(X), module(X))
    assert not torch.equal(direct(X), plain)


def test_a_model_calls_none_of_its_modules_but_its_layers():
    class WithHead(SequentialMLP):
        def make_layers(self, input_shape, output_shape):
            super().make_layers(input_shape, output_shape)
            self.head = torch.nn.Linear(1, 3)

    class Doubled(SequentialMLP):
        def __call__(self, x):
            return 2 * super().__call__(x)

    for cls in (WithHead, Doubled):
        model = cls()
        model.build((4,), (1,))
        assert torch.equal(direct_forward(model.eval())(X), model(X))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # from torch 2.14 on
def test_scripted_modules_are_called():
    scripted = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()))
    module = torch.nn.Sequential(scripted, torch.nn.Linear(4, 1))
    assert direct_forward(scripted) is scripted
    assert torch.equal(direct_forward(module)(X), module(X))
