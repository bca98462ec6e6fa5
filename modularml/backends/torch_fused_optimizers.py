"""Fast optimizer steps of torch.

``optimizer.step()`` rebuilds its lists at each call, which costs more than the arithmetic of a
small model. Here the lists are built once and torch's fused kernel is called on them: the same
kernel on the same tensors of the optimizer's state, so ``state_dict`` stays valid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from modularml._optional import require
from modularml._private.torch import (
    COMPILED_CALL,
    FUSED_KERNELS,
    first_step,
    for_each,
    global_hooks,
    hooks_of,
    late_step,
    layers_of,
    mark_stepped,
    may_be_flattened,
    parameters_of,
    step_hooks,
)

torch = require("torch", purpose="to train torch models")


Call = Callable[[Any], Any]
Chain = tuple[Any, Mapping[str, Any], type, Mapping[str, Any], tuple[Any, ...]]
"""A chain of layers, its attributes, its class, its submodules by name, and as they were."""


def direct_forward(module: Any) -> Call:
    """Return a function equivalent to calling a module.

    If a layer has hooks, or the module was compiled or a layer replaced since, the function calls
    the module.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    callable
        The module itself if it is not a chain of layers.
    """
    hooks = global_hooks()
    chains: list[Chain] = []
    calls = _flattened(module, hooks, chains)
    if not chains:
        return module  # type: ignore[no-any-return]
    attributes = vars(module)

    def forward(x: Any) -> Any:
        if any(hooks) or attributes.get(COMPILED_CALL) is not None:
            return module(x)
        for chain, chain_attributes, cls, layers, before in chains:
            if type(chain) is not cls or "forward" in chain_attributes:
                return module(x)
            if tuple(layers.values()) != before:
                return module(x)
        for call in calls:
            x = call(x)
        return x

    return forward


def _flattened(
    module: Any,
    hooks: list[Mapping[Any, Any]],
    chains: list[Chain],
) -> list[Call]:
    """Return the calls of a module's layers, and record its hooks and chains."""
    cls = type(module)
    is_scripted = isinstance(module, torch.jit.ScriptModule)
    if is_scripted or cls.__call__ is not torch.nn.Module.__call__ or not may_be_flattened(module):
        return [module]
    hooks.extend(hooks_of(module))
    layers = layers_of(module)
    children = tuple(layers.values())
    is_chain = cls is torch.nn.Sequential
    if is_chain or getattr(cls.forward, "calls_its_layers", False):
        chains.append((module, vars(module), cls, layers, children))
        called = children if is_chain else (module.layers,)  # other submodules are not called
        return [call for layer in called for call in _flattened(layer, hooks, chains)]
    return [_call_of(module)]


def _call_of(layer: Any) -> Call:
    """Return the call of a layer, which looks up its parameters each time."""
    cls = type(layer)
    attributes, parameters, linear = vars(layer), parameters_of(layer), torch.nn.functional.linear

    def call(x: Any) -> Any:
        return layer.forward(x)

    def call_linear(x: Any) -> Any:
        if type(layer) is not cls or "forward" in attributes:
            return layer(x)
        try:
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # not parameters
            return layer(x)
        return linear(x, weight, bias)

    if cls is torch.nn.Linear:
        return call_linear
    return call if cls.__module__.startswith("torch.nn.modules.") else layer


_STATES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
_ONE = torch.tensor(1.0)  # a Python 1 would be converted at every step
_add = for_each("add_")


def direct_step(optimizer: Any) -> Callable[[], Any]:
    """Return a function equivalent to ``optimizer.step()``.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer

    Returns
    -------
    callable
        The optimizer's own ``step`` if its kernel is not supported here.
    """
    kernel = _KERNELS.get(type(optimizer))
    if kernel is not None and _is_plain(optimizer):
        return _Direct(optimizer, kernel)
    return late_step(optimizer)


def kernel_of_all(optimizers: Sequence[Any]) -> Callable[[Any, list[Any]], None] | None:
    """Return the fused kernel that updates the weights of all optimizers; None without one.

    Its arguments are a `StackedRun` and the gradients. It is for optimizers whose states exist.
    """
    kernel = _KERNELS.get(type(optimizers[0]))
    if kernel is None or any(type(o) is not type(optimizers[0]) for o in optimizers):
        return None
    plain = all(_is_plain(o) and not any(step_hooks(o)) for o in optimizers)
    return kernel if plain else None


def has_states(optimizer: Any) -> bool:
    """Return whether an optimizer keeps states, which its first step creates."""
    is_sgd = isinstance(optimizer, torch.optim.SGD)
    return not is_sgd or any(group["momentum"] for group in optimizer.param_groups)


class StackedRun:
    """Members with equal settings: their weights and states, stacked.

    Parameters
    ----------
    hyper : dict
        Settings as in a parameter group.
    params : list of tensor
        Of shape (members, ...).
    states : mapping of str to list of tensor
        By name, such as ``exp_avg``; one per weight, of shape (members, ...).
    """

    def __init__(
        self, hyper: dict[str, Any], params: list[Any], states: Mapping[str, list[Any]]
    ) -> None:
        self.hyper, self.params = hyper, params
        self.state = {name: list(states.get(name, ())) for name in _STATES}
        counts = states.get("step", ())
        self.steps = [count[0] for count in counts]  # the kernel reads and counts one
        self._others = [count[1:] for count in counts if len(count) > 1]

    def count(self) -> None:
        """Count a step for the members that the kernel does not count for."""
        if self._others:
            _add(self._others, _ONE, alpha=1.0)


class _Direct:
    """Calls the fused kernel on cached lists."""

    def __init__(self, optimizer: Any, kernel: Callable[..., None]) -> None:
        self.optimizer, self.kernel = optimizer, kernel
        self.before, self.after = step_hooks(optimizer)
        self.groups: list[_Group] = []

    def __call__(self) -> None:
        optimizer = self.optimizer
        param_groups = optimizer.param_groups
        if len(self.groups) != len(param_groups) or self.before or self.after:
            return self._rebuild()
        lists = []
        for group, param_group in zip(self.groups, param_groups, strict=True):
            grads = group.gradients(optimizer, param_group)
            if grads is None:
                return self._rebuild()
            lists.append(grads)
        mark_stepped(optimizer)
        with torch.no_grad():
            for group, grads in zip(self.groups, lists, strict=True):
                if grads:
                    self.kernel(group, grads)
        return None

    def _rebuild(self) -> None:
        """Call the optimizer's own step, which creates its state, and rebuild the lists."""
        first_step(self.optimizer)
        groups = [
            _Group(self.optimizer, param_group) for param_group in self.optimizer.param_groups
        ]
        sparse = any(p.grad.is_sparse for group in groups for p in group.params)
        self.groups = [] if sparse else groups


class _Group:
    """Parameters of one group that have gradients, and their state, as flat lists."""

    __slots__ = ("hyper", "others", "params", "state", "steps", "with_momentum")

    def __init__(self, optimizer: Any, group: dict[str, Any]) -> None:
        self.hyper = group
        self.params = [p for p in group["params"] if p.grad is not None]
        self.others = [p for p in group["params"] if p.grad is None]
        states = [optimizer.state[p] for p in self.params if p in optimizer.state]
        self.state = {n: [s[n] for s in states if s.get(n) is not None] for n in _STATES}
        self.steps = [s["step"] for s in states if "step" in s]
        self.with_momentum = bool(group.get("momentum"))

    def gradients(self, optimizer: Any, param_group: dict[str, Any]) -> list[Any] | None:
        """Return the gradients; None if the lists are outdated (a state may have been loaded)."""
        if (
            param_group is not self.hyper
            or bool(param_group.get("momentum")) is not self.with_momentum
        ):
            return None
        for p in self.others:
            if p.grad is not None:
                return None
        grads: list[Any] = []
        for p in self.params:
            if p.grad is None:
                return None
            grads.append(p.grad)
        state = optimizer.state.get(self.params[0], {}) if grads else {}
        for name, tensors in self.state.items():
            if tensors and state.get(name) is not tensors[0]:
                return None
        return grads


def _adam(kernel: Any, group: _Group, grads: list[Any]) -> None:
    hyper, state = group.hyper, group.state
    beta1, beta2 = hyper["betas"]
    _add(group.steps, _ONE, alpha=1.0)
    kernel(
        group.params,
        grads,
        state["exp_avg"],
        state["exp_avg_sq"],
        state["max_exp_avg_sq"],
        group.steps,
        lr=hyper["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=hyper["weight_decay"],
        eps=hyper["eps"],
        amsgrad=hyper["amsgrad"],
        maximize=hyper["maximize"],
    )


def _sgd(kernel: Any, group: _Group, grads: list[Any]) -> None:
    hyper = group.hyper
    kernel(
        group.params,
        grads,
        group.state["momentum_buffer"],
        weight_decay=hyper["weight_decay"],
        momentum=hyper["momentum"],
        lr=hyper["lr"],
        dampening=hyper["dampening"],
        nesterov=hyper["nesterov"],
        maximize=hyper["maximize"],
        is_first_step=False,
    )


_KERNELS: dict[type, Callable[[_Group, list[Any]], None]] = {
    cls: partial(_sgd if cls is torch.optim.SGD else _adam, kernel)
    for cls, kernel in FUSED_KERNELS.items()
}


def _is_plain(optimizer: Any) -> bool:
    """Return whether the fused kernel applies: one dtype, on the host, plain options."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    one_dtype = {p.dtype for p in params} in ({torch.float32}, {torch.float64})
    if not one_dtype or any(p.device.type != "cpu" for p in params):
        return False
    others = ["foreach", "capturable", "differentiable"]
    others += [] if isinstance(optimizer, torch.optim.AdamW) else ["decoupled_weight_decay"]
    return all(
        group.get("fused") is not False
        and isinstance(group["lr"], float | int)
        and not any(group.get(name) for name in others)
        for group in optimizer.param_groups
    )
