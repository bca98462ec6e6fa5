"""The function node and its registry."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from modularml._registry import Registry
from modularml._typing import Shape
from modularml.backends import Backend, BackendAdapter, adapter_for
from modularml.errors import ConfigError, GraphError, ShapeError
from modularml.graph.merge import MergeNode, StrategyType
from modularml.graph.node import UpstreamLike

__all__ = ["FunctionNode", "function_registry"]

function_registry: Registry[Callable[..., Any]] = Registry(
    "function",
    {
        "multiply": operator.mul,
        "subtract": operator.sub,
        "divide": operator.truediv,
        "negative": operator.neg,
        "absolute": operator.abs,
    },
)
"""Functions that a `FunctionNode` accepts by name; add your own with ``register(name, fn)``."""


_ROWS = 7  # of a trial call: a number unlikely to fit by chance


class FunctionNode(MergeNode):
    """Apply a function to the outputs of one or more nodes.

    Parameters
    ----------
    label : str
    upstream_refs : FeatureSet, reference, node or label, or a list of them
        What the function gets, by position.
    function : str or callable
        A name in `function_registry`, or a function at the top level of a module. It is called with
        tensors of the framework of the neighbouring nodes, batch axis first, and returns one tensor
        with as many rows. Inputs of shapes ``(n,)`` and ``(n, 1)`` both come as ``(n, 1)``.
        Gradients pass through it.
    function_kwargs : dict, optional
        Passed at each call.
    target_strategy, tags_strategy, node_id, register
        As of `MergeNode`.

    Raises
    ------
    UnknownNameError
        If no such function is registered.
    ShapeError
        In ``build()``, if the function does not accept the shapes of its inputs.

    Examples
    --------
    >>> import numpy as np
    >>> from modularml import FeatureSet, FunctionNode, ModelGraph, ModelNode
    >>> from modularml.models.torch import SequentialMLP
    >>> fs = FeatureSet.from_dict("rows", {"x": np.zeros(5), "y": np.zeros(5)}, "x", "y")
    >>> net = ModelNode("net", SequentialMLP(output_shape=(3,)), fs)
    >>> square = FunctionNode("square", net, lambda x: x * x)
    >>> ModelGraph([net, square]).build()
    >>> square.output_shape
    (3,)
    """

    min_upstream_refs = 1

    def __init__(
        self,
        label: str,
        upstream_refs: UpstreamLike | list[UpstreamLike],
        function: str | Callable[..., Any],
        *,
        function_kwargs: dict[str, Any] | None = None,
        target_strategy: StrategyType = "first",
        tags_strategy: StrategyType = "first",
        node_id: str | None = None,
        register: bool = True,
    ) -> None:
        if not isinstance(function, str) and not callable(function):
            raise ConfigError(f"function must be a name or a callable, got {function!r}")
        self.function, self.function_kwargs = function, function_kwargs
        fn = function_registry[function] if isinstance(function, str) else function
        self._fn: Callable[..., Any] = partial(fn, **(function_kwargs or {}))
        super().__init__(
            label,
            list(upstream_refs) if isinstance(upstream_refs, list | tuple) else [upstream_refs],
            target_strategy=target_strategy,
            tags_strategy=tags_strategy,
            node_id=node_id,
            register=register,
        )

    @property
    def function_name(self) -> str:
        """Display name of the function."""
        fn = self.function
        return fn if isinstance(fn, str) else getattr(fn, "__name__", type(fn).__name__)

    def merge_features(self, adapter: Any, values: list[Any]) -> Any:
        """Call the function; arrays are converted to tensors of the node's framework."""
        if not isinstance(adapter, BackendAdapter):
            own = adapter_for(self._framework())
            return own.to_numpy(self._fn(*_aligned(own, [own.from_numpy(v) for v in values])))
        return self._fn(*_aligned(adapter, values))

    def operation(self, adapter: BackendAdapter) -> Callable[..., Any]:
        """Return the function, taking a list of tensors."""
        fn = self._fn
        return lambda values: fn(*_aligned(adapter, values))

    def _framework(self) -> Backend:
        if self.framework is None:
            raise GraphError(
                f"node {self.label!r} has no model before or after it, so its framework is not "
                "known; build a graph that contains it first"
            )
        return self.framework

    def _shape_of(self, shapes: Sequence[Shape]) -> Shape:
        adapter = adapter_for(self._framework())
        blank = [adapter.zeros((_ROWS, *shape), adapter.input_dtype(None)) for shape in shapes]
        name = self.function_name
        try:
            with adapter.no_grad():
                out = self._fn(*_aligned(adapter, blank))
        except Exception as error:
            raise ShapeError(f"function {name!r} cannot take these shapes: {error}") from error
        shape = tuple(getattr(out, "shape", ()))
        if not isinstance(out, type(blank[0])) or shape[:1] != (_ROWS,):
            raise ShapeError(
                f"function {name!r} must return one {type(blank[0]).__name__} with one row per "
                f"sample, got a {type(out).__name__} of shape {shape} for {_ROWS} samples; keep "
                "axis 0 and the framework of its inputs"
            )
        return shape[1:]


def _aligned(adapter: BackendAdapter, values: Sequence[Any]) -> Sequence[Any]:
    """Return tensors in one shape if their shapes differ only by axes of length 1.

    Shapes ``(n,)`` and ``(n, 1)`` would broadcast to ``(n, n)``.
    """
    shapes = [tuple(v.shape[1:]) for v in values]
    if len(set(shapes)) < 2 or len({tuple(n for n in s if n != 1) for s in shapes}) > 1:
        return values
    longest = max(shapes, key=len)
    return [adapter.reshape(v, longest) for v in values]
