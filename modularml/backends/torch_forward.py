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
    chains: list[tuple[Mapping[str, Any], tuple[Any, ...]]] = []
    calls = _taken_apart(module, hooks, chains)
    if not chains:
        return module  # type: ignore[no-any-return]
    own = vars(module)

    def forward(x: Any) -> Any:
        if any(hooks) or own.get("_compiled_call_impl") is not None:
            return module(x)
        for held, layers in chains:
            if tuple(held.values()) != layers:
                return module(x)
        for call in calls:
            x = call(x)
        return x

    return forward


def _taken_apart(
    module: Any,
    hooks: list[Mapping[Any, Any]],
    chains: list[tuple[Mapping[str, Any], tuple[Any, ...]]],
) -> list[Call]:
    """Return the calls of a module's layers, and note its hooks and what each chain holds."""
    own = vars(module)
    if own.get("_compiled_call_impl") is not None or any(name not in own for name in _HOOKS):
        return [module]
    hooks.extend(own[name] for name in _HOOKS)
    is_chain = type(module) is torch.nn.Sequential
    if is_chain or getattr(type(module).forward, "calls_its_layers", False):
        layers = tuple(module._modules.values())
        chains.append((module._modules, layers))
        return [call for layer in layers for call in _taken_apart(layer, hooks, chains)]
    return [_call_of(module)]


def _call_of(layer: Any) -> Call:
    cls = type(layer)
    if cls is torch.nn.Linear:
        linear, held = torch.nn.functional.linear, layer._parameters
        return lambda x: linear(x, held["weight"], held["bias"])
    call: Call = layer.forward if cls.__module__.startswith("torch.nn.modules.") else layer
    return call


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_EVERYWHERE = [getattr(torch.nn.modules.module, f"_global{name}") for name in _HOOKS]
