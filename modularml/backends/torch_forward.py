"""Fast forward passes of torch modules.

Calling a module costs as much as the arithmetic of a small layer, and a chain of layers has calls
at every depth. Here the chain is flattened once, and its layers are called in turn: the same
functions on the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modularml._optional import require
from modularml._private.torch import (
    COMPILED_CALL,
    global_hooks,
    hooks_of,
    layers_of,
    may_be_flattened,
    parameters_of,
)

torch = require("torch", purpose="to train torch models")

__all__ = ["direct_forward"]

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
