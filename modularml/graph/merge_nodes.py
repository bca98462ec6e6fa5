"""Nodes that merge or reshape: concatenation, elementwise sums and means, flattening."""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import add
from typing import Any, ClassVar

from modularml._registry import Registry
from modularml._typing import Columns, Shape
from modularml.backends import Backend, BackendAdapter, adapter_for
from modularml.errors import ConfigError, GraphError, ShapeError
from modularml.graph.merge import (
    MergeNode,
    StrategyType,
    batch_axis,
    check_equal,
    one_of,
    side_by_side,
)
from modularml.graph.node import UpstreamLike


class FlattenNode(MergeNode):
    """Flatten each sample into one row; columns of different shapes are concatenated.

    Parameters
    ----------
    label : str
    upstream_ref : FeatureSet, FeatureSetReference, node or label
    node_id, register
        Used when a node is rebuilt.

    Examples
    --------
    >>> import numpy as np
    >>> from modularml import FeatureSet, FlattenNode
    >>> rows = {"curve": np.zeros((5, 9)), "mass": np.zeros(5), "y": np.zeros(5)}
    >>> fs = FeatureSet.from_dict("curves", rows, ["curve", "mass"], "y")
    >>> node = FlattenNode("flat", fs)
    """

    min_upstream_refs: ClassVar[int] = 1
    max_upstream_refs = 1

    def __init__(
        self,
        label: str,
        upstream_ref: UpstreamLike,
        *,
        node_id: str | None = None,
        register: bool = True,
    ) -> None:
        super().__init__(label, [upstream_ref], node_id=node_id, register=register)

    @property
    def upstream_ref(self) -> Any:
        """Reference to the input of this node."""
        return self._upstream_refs[0]

    @property
    def reads_flat(self) -> bool:
        """Whether columns of different shapes are concatenated into one row."""
        return True

    def merge_features(self, adapter: Any, values: list[Any]) -> Any:
        """Return samples as rows of numbers."""
        return side_by_side(adapter, values)


class SumNode(MergeNode):
    """Add inputs of equal shape; see `MergeNode` for the arguments.

    Raises
    ------
    GraphError
        If there are fewer than two inputs.
    ShapeError
        In ``build()``, if the inputs differ in shape.

    Examples
    --------
    >>> import numpy as np
    >>> from modularml import FeatureSet, ModelGraph, ModelNode, SumNode
    >>> from modularml.models.torch import SequentialMLP
    >>> fs = FeatureSet.from_dict("rows", {"x": np.zeros(5), "y": np.zeros(5)}, "x", "y")
    >>> parts = [ModelNode(name, SequentialMLP(output_shape=(3,)), fs) for name in ("a", "b")]
    >>> total = SumNode("total", parts)
    >>> ModelGraph([*parts, total], register=False).build()
    >>> total.output_shape
    (3,)
    """

    def merge_features(self, adapter: Any, values: list[Any]) -> Any:
        """Add tensors."""
        check_equal(values)
        return reduce(add, values)


class MeanNode(SumNode):
    """Average inputs of equal shape, element by element; see `SumNode`.

    Examples
    --------
    >>> import numpy as np
    >>> from modularml import FeatureSet, MeanNode, ModelGraph, ModelNode
    >>> from modularml.models.torch import SequentialMLP
    >>> fs = FeatureSet.from_dict("values", {"x": np.zeros(5), "y": np.zeros(5)}, "x", "y")
    >>> members = [ModelNode(name, SequentialMLP(output_shape=(3,)), fs) for name in ("m", "n")]
    >>> mean = MeanNode("mean", members)
    >>> ModelGraph([*members, mean], register=False).build()
    >>> mean.output_shape
    (3,)
    """

    def merge_features(self, adapter: Any, values: list[Any]) -> Any:
        """Average tensors."""
        return super().merge_features(adapter, values) / len(values)


class PadMode(enum.Enum):
    """How shorter inputs are padded."""

    CONSTANT = "constant"
    REFLECT = "reflect"
    REPLICATE = "replicate"
    CIRCULAR = "circular"


class ConcatNode(MergeNode):
    """Concatenate inputs along an axis; other axes can be padded.

    Parameters
    ----------
    label : str
    upstream_refs : list of FeatureSet, reference, node or label
        At least two, in the order of concatenation.
    concat_axis : int
        Axis of a sample, the batch axis not counted: 0 is the first, -1 the last.
    concat_axis_targets, concat_axis_tags : int, {'first', 'last', 'mean'} or reference
        How targets and tags are merged: along an axis, by a strategy, or those of one upstream.
    pad_inputs : bool
        Whether axes other than `concat_axis` may differ in size; shorter ones are padded at
        their end.
    pad_mode : {'constant', 'reflect', 'replicate', 'circular'}
    pad_value : float
        For ``constant``.
    flatten : bool
        Whether samples of each input are flattened first, so that inputs of any shape fit;
        `concat_axis` must then be 0.
    align_on, strict
        How rows of several FeatureSets are matched; see `MergeNode`.
    node_id, register
        Used when a node is rebuilt.

    Raises
    ------
    GraphError
        If there are fewer than two inputs.
    ConfigError
        If `flatten` is combined with padding or another axis than 0.

    Examples
    --------
    >>> import numpy as np
    >>> from modularml import ConcatNode, FeatureSet, ModelGraph, ModelNode
    >>> from modularml.models.torch import SequentialMLP
    >>> rows = {"curve": np.zeros((5, 9)), "mass": np.zeros(5), "y": np.zeros(5)}
    >>> fs = FeatureSet.from_dict("cells", rows, ["curve", "mass"], "y")
    >>> shape = SequentialMLP(output_shape=(4,))
    >>> left = ModelNode("left", shape, fs.reference(features="curve"))
    >>> right = ModelNode("right", SequentialMLP(output_shape=(2,)), fs.reference(features="mass"))
    >>> both = ConcatNode("both", [left, right])
    >>> ModelGraph([left, right, both], register=False).build()
    >>> both.output_shape
    (6,)
    """

    strategy_names: ClassVar[tuple[str, str]] = ("concat_axis_targets", "concat_axis_tags")

    def __init__(
        self,
        label: str,
        upstream_refs: list[UpstreamLike],
        concat_axis: int = 0,
        *,
        concat_axis_targets: StrategyType = -1,
        concat_axis_tags: StrategyType = -1,
        pad_inputs: bool = False,
        pad_mode: str | PadMode = "constant",
        pad_value: float = 0.0,
        flatten: bool = False,
        align_on: Columns = None,
        strict: bool = False,
        node_id: str | None = None,
        register: bool = True,
    ) -> None:
        if not isinstance(concat_axis, int) or isinstance(concat_axis, bool):
            raise ConfigError(f"concat_axis must be an int, got {concat_axis!r}")
        if flatten and (pad_inputs or concat_axis not in (0, -1)):
            raise ConfigError(
                "flatten=True flattens samples, which need neither padding nor another axis; "
                f"omit pad_inputs and concat_axis, got {pad_inputs!r} and {concat_axis!r}"
            )
        self.concat_axis, self.pad_inputs, self.flatten = concat_axis, pad_inputs, flatten
        self.pad_value = float(pad_value)
        self.pad_mode = one_of("pad_mode", PadMode, pad_mode)
        super().__init__(
            label,
            upstream_refs,
            target_strategy=concat_axis_targets,
            tags_strategy=concat_axis_tags,
            align_on=align_on,
            strict=strict,
            node_id=node_id,
            register=register,
        )

    @property
    def reads_flat(self) -> bool:
        """Whether columns of different shapes are concatenated into one row."""
        return self.flatten

    @property
    def concat_axis_targets(self) -> StrategyType:
        """How targets are merged."""
        return self.target_strategy

    @property
    def concat_axis_tags(self) -> StrategyType:
        """How tags are merged."""
        return self.tags_strategy

    def merge_features(self, adapter: Any, values: list[Any]) -> Any:
        """Concatenate tensors along `concat_axis`, or flattened."""
        if self.flatten:
            return side_by_side(adapter, values)
        return self._concatenated(adapter, values, self.concat_axis)

    def _concatenated(self, adapter: Any, values: list[Any], how: Any) -> Any:
        if self.pad_inputs:
            axis, given, values = batch_axis(how, values), values, []
            size = [0] + [max(v.shape[i] for v in given) for i in range(1, given[0].ndim)]
            for v in given:
                widths = [
                    (0, 0) if i in (0, axis) else (0, size[i] - v.shape[i]) for i in range(v.ndim)
                ]
                values.append(adapter.pad(v, widths, self.pad_mode.value, self.pad_value))
        return super()._concatenated(adapter, values, how)


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
