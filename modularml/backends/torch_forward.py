"""Forward passes of torch with less around them.

Calling a module costs as much as the arithmetic of a small layer, and in a chain of layers there
are calls at every depth. Here the chain is taken apart once, and its layers are called in turn: the
same functions on the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modularml._optional import require

torch = require("torch", purpose="to train torch models")

__all__ = ["direct_forward"]

Call = Callable[[Any], Any]
Chain = tuple[Any, Mapping[str, Any], type, tuple[Any, ...]]
"""A chain of layers, its attributes, its class, and the modules that it holds."""


def direct_forward(module: Any) -> Call:
    """Return a function that does what calling a module does.

    Where somebody listens to a layer, has compiled the module or exchanged a layer since, the
    function calls the module.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    callable
        The module itself where it is no chain of layers.
    """
    hooks: list[Mapping[Any, Any]] = list(_EVERYWHERE)
    chains: list[Chain] = []
    calls = _taken_apart(module, hooks, chains)
    if not chains:
        return module  # type: ignore[no-any-return]
    own = vars(module)

    def forward(x: Any) -> Any:
        if any(hooks) or own.get("_compiled_call_impl") is not None:
            return module(x)
        for chain, of_chain, cls, layers in chains:
            if type(chain) is not cls or "forward" in of_chain:
                return module(x)
            if tuple(of_chain["_modules"].values()) != layers:
                return module(x)
        for call in calls:
            x = call(x)
        return x

    return forward


def _taken_apart(
    module: Any,
    hooks: list[Mapping[Any, Any]],
    chains: list[Chain],
) -> list[Call]:
    """Return the calls of a module's layers, and note its hooks and what each chain holds."""
    own, cls = vars(module), type(module)
    if own.get("_compiled_call_impl") is not None or any(name not in own for name in _HOOKS):
        return [module]
    if isinstance(module, torch.jit.ScriptModule) or cls.__call__ is not torch.nn.Module.__call__:
        return [module]
    hooks.extend(own[name] for name in _HOOKS)
    held = tuple(module._modules.values())
    is_chain = cls is torch.nn.Sequential
    if is_chain or getattr(cls.forward, "calls_its_layers", False):
        layers = held if is_chain else (module.layers,)  # what else is there is not called
        chains.append((module, own, cls, held))
        return [call for layer in layers for call in _taken_apart(layer, hooks, chains)]
    return [_call_of(module)]


def _call_of(layer: Any) -> Call:
    """Return the call of a layer; what is exchanged within it later is looked up each time."""
    cls = type(layer)
    own, held, linear = vars(layer), layer._parameters, torch.nn.functional.linear

    def call(x: Any) -> Any:
        return layer.forward(x)

    def call_linear(x: Any) -> Any:
        if type(layer) is not cls or "forward" in own:
            return layer(x)
        try:
            weight, bias = held["weight"], held["bias"]
        except KeyError:  # they are no parameters
            return layer(x)
        return linear(x, weight, bias)

    if cls is torch.nn.Linear:
        return call_linear
    return call if cls.__module__.startswith("torch.nn.modules.") else layer


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_EVERYWHERE = [getattr(torch.nn.modules.module, f"_global{name}") for name in _HOOKS]
