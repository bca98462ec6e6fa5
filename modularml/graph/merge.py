"""The base class of nodes without weights, which merge several inputs into one output."""

from __future__ import annotations

import enum
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, TypeAlias

import numpy as np

from modularml._typing import Columns, Shape
from modularml.backends import Backend, BackendAdapter, adapter_for, backend_of
from modularml.data.formats import DataFormat, convert_array
from modularml.data.lineage import ColumnLineage, MergedColumns
from modularml.data.references import ExperimentNodeReference
from modularml.errors import ConfigError, GraphError, ShapeError, UnknownNameError
from modularml.graph.calling import call_directly, of_one_framework
from modularml.graph.node import ComputeNode, UpstreamLike, as_reference


class MergeStrategy(enum.Enum):
    """How values of several inputs are merged, other than by concatenation."""

    FIRST = "first"
    LAST = "last"
    MEAN = "mean"


StrategyType: TypeAlias = int | str | MergeStrategy | ExperimentNodeReference


class MergeNode(ComputeNode):
    """A node without weights that merges several inputs into one output.

    Parameters
    ----------
    label : str
    upstream_refs : list of FeatureSet, reference, node or label
    target_strategy, tags_strategy : int, {'first', 'last', 'mean'} or reference
        How targets and tags are merged: along an axis, by a strategy, or taken from one input.
    align_on : str or list of str, optional
        Key columns by whose values rows of several FeatureSets are matched, one to one or many to
        one; ``"sample_uuids"`` stands for the row ids, ``"position"`` for the row numbers. By
        default the references name the keys (``fs.reference(on=...)``), or the FeatureSets hold the
        same samples.
    strict : bool
        Whether a row without a match is an error; otherwise such rows are dropped, with a warning
        that counts them.
    node_id, register
        Used when a node is rebuilt.

    Raises
    ------
    GraphError
        If there are fewer inputs than `min_upstream_refs`.
    """

    min_upstream_refs: ClassVar[int] = 2
    strategy_names: ClassVar[tuple[str, str]] = ("target_strategy", "tags_strategy")
    _output_shape: Shape | None = None
    _input_shapes: Sequence[Shape | None] = ()

    def __init__(
        self,
        label: str,
        upstream_refs: list[UpstreamLike],
        *,
        target_strategy: StrategyType = "first",
        tags_strategy: StrategyType = "first",
        align_on: Columns = None,
        strict: bool = False,
        node_id: str | None = None,
        register: bool = True,
    ) -> None:
        self.align_on, self.strict = align_on, strict
        targets, tags = self.strategy_names
        self._strategies = {
            "targets": _strategy(targets, target_strategy, label),
            "tags": _strategy(tags, tags_strategy, label),
        }
        super().__init__(label, upstream_refs, node_id=node_id, register=register)

    @property
    def target_strategy(self) -> StrategyType:
        """How targets are merged."""
        return self._strategies["targets"]

    @property
    def tags_strategy(self) -> StrategyType:
        """How tags are merged."""
        return self._strategies["tags"]

    @property
    def target_axis(self) -> int:
        """Axis along which targets are concatenated; TypeError if they are not."""
        return _axis("target_strategy", self.target_strategy)

    @property
    def tags_axis(self) -> int:
        """Axis along which tags are concatenated; TypeError if they are not."""
        return _axis("tags_strategy", self.tags_strategy)

    @property
    def output_shape(self) -> Shape | None:
        """Shape of one output sample; None before the node is built."""
        return self._output_shape

    @property
    def input_shapes(self) -> list[Shape | None]:
        """Shape of one sample of each input, in order; None if not known yet."""
        return list(self._input_shapes) or [None] * len(self._upstream_refs)

    def forward_single(self, batch: Any) -> Any:
        """Merge samples, batches or arrays as the graph does, with gradients.

        Parameters
        ----------
        batch : Batch, RoleData, SampleData, tensor or ndarray, or a list of one kind of them
            One per input; row ``i`` of each is the same sample.

        Returns
        -------
        Batch, RoleData, SampleData or tensor
            Of the same kind as the inputs; in the framework of the node, if a graph has built it.

        Raises
        ------
        GraphError
            If their number is not that of the node's inputs.
        DataError
            If the inputs hold different samples.
        """
        values = list(batch) if isinstance(batch, list | tuple) else [batch]
        if len(values) != len(self._upstream_refs):
            names = [ref.node_label for ref in self._upstream_refs]
            raise GraphError(
                f"node {self.label!r} reads {names}, got {len(values)} input(s); pass a list with "
                "one per input"
            )
        return call_directly(self, values, lambda v: self.apply_merge(of_one_framework(self, v)))

    __call__ = forward_single

    def set_upstream_refs(self, refs: Sequence[UpstreamLike]) -> None:
        """Replace the inputs; targets taken from one input then come from its replacement."""
        new_refs = [as_reference(ref, self.context, self.label) for ref in refs]
        strategies, labels = self._strategies, [ref.node_label for ref in self._upstream_refs]
        self._strategies = dict(strategies)
        for domain, how in strategies.items():
            if not isinstance(how, ExperimentNodeReference) or how.node_label not in labels:
                continue
            kept = any(ref.node_label == how.node_label for ref in new_refs)
            if not kept and len(labels) == len(new_refs):
                self._strategies[domain] = new_refs[labels.index(how.node_label)]
        try:
            super().set_upstream_refs(new_refs)
        except Exception:
            self._strategies = strategies
            raise

    def apply_merge(
        self,
        values: list[Any],
        *,
        includes_batch_dim: bool = True,
        fmt: DataFormat | None = None,
        domain: str = "features",
    ) -> Any:
        """Merge values of one domain.

        Parameters
        ----------
        values : list of tensor or ndarray
            All of one framework.
        includes_batch_dim : bool
            Whether axis 0 is the batch.
        fmt : DataFormat, optional
            Format of the result; by default that of the values.
        domain : {'features', 'targets', 'tags'}

        Raises
        ------
        ShapeError
            If the shapes do not fit.
        """
        backend = backend_of(values[0])
        adapter = adapter_for(Backend.SCIKIT if backend is Backend.NONE else backend)
        if not includes_batch_dim:
            values = [v[None] for v in values]
        if domain == "features":
            merged = self.merge_features(adapter, values)
        elif self._strategies[domain] is MergeStrategy.MEAN:
            check_equal(values)
            merged = adapter.mean(values)
        else:
            merged = self._concatenated(adapter, values, self._strategies[domain])
        merged = merged if includes_batch_dim else merged[0]
        return merged if fmt is None else convert_array(merged, fmt)

    @abstractmethod
    def merge_features(self, adapter: Any, values: list[Any]) -> Any:
        """Merge the input tensors into one."""

    def build_from(
        self, shapes: Sequence[Shape | None], wanted: Shape | None, *, force: bool = False
    ) -> Shape | None:
        """Check that the inputs can be merged and return the merged shape."""
        known_shapes, self._input_shapes = [shape for shape in shapes if shape is not None], shapes
        try:
            self._output_shape = (
                self._shape_of(known_shapes) if len(known_shapes) == len(shapes) else None
            )
        except ShapeError as error:
            names = ", ".join(
                f"{ref.node_label}: {shape}"
                for ref, shape in zip(self.upstream_refs, shapes, strict=True)
            )
            raise ShapeError(f"node {self.label!r} cannot merge {names}: {error}") from error
        return self._output_shape

    def operation(self, adapter: BackendAdapter) -> Callable[..., Any]:
        """Return the merge as a function of a list of tensors."""
        return partial(self.merge_features, adapter)

    def flow(self, domain: str, parts: Sequence[ColumnLineage]) -> ColumnLineage:
        """Return the merged lineage of the inputs, or that of one of them."""
        if domain == "features":
            return MergedColumns(tuple(parts), partial(self.apply_merge, domain=domain))
        strategy = self._strategies[domain]
        if isinstance(strategy, ExperimentNodeReference):
            labels = [ref.node_label for ref in self.upstream_refs]
            return parts[labels.index(strategy.node_label)]
        available = [part for part in parts if part is not None]
        if not available or strategy is MergeStrategy.FIRST:
            return available[0] if available else None
        if len(available) == 1 or strategy is MergeStrategy.LAST:
            return available[-1]
        return MergedColumns(tuple(available), partial(self.apply_merge, domain=domain))

    def get_state(self) -> dict[str, Any]:
        """Return an empty dict, as a merge node learns nothing."""
        return {}

    # -- internals ----------------------------------------------------------------------------

    def _shape_of(self, shapes: Sequence[Shape]) -> Shape:
        return tuple(self.apply_merge([np.zeros((1, *shape)) for shape in shapes]).shape[1:])

    def _concatenated(self, adapter: Any, values: list[Any], how: Any) -> Any:
        axis = batch_axis(how, values)
        check_fits(values, axis)
        return adapter.concat(values, axis)

    def _check_upstream(self, label: str, refs: Sequence[ExperimentNodeReference]) -> None:
        super()._check_upstream(label, refs)
        if len(refs) < self.min_upstream_refs:
            raise GraphError(
                f"merge node {label!r} needs at least {self.min_upstream_refs} inputs, got "
                f"{len(refs)}"
            )
        labels = [ref.node_label for ref in refs]
        for strategy in self._strategies.values():
            if isinstance(strategy, ExperimentNodeReference) and strategy.node_label not in labels:
                raise UnknownNameError(f"upstream of {label!r}", strategy.node_label, labels)


def batch_axis(how: Any, values: Sequence[Any]) -> int:
    """Return the axis counted with the batch axis, which every value must have."""
    rank = values[0].ndim
    if len({v.ndim for v in values}) > 1:
        raise ShapeError(
            f"inputs differ in their number of axes: {[tuple(v.shape[1:]) for v in values]}; "
            "ConcatNode(..., flatten=True) flattens each first"
        )
    axis = how + 1 if how >= 0 else rank + how
    if not 1 <= axis < rank:
        raise ShapeError(
            f"axis {how} does not exist in samples of shape {tuple(values[0].shape[1:])}"
        )
    return int(axis)


def check_fits(values: Sequence[Any], axis: int) -> None:
    """Refuse values whose shapes differ outside an axis."""
    rest = [tuple(n for i, n in enumerate(v.shape) if i not in (0, axis)) for v in values]
    if len(set(rest)) > 1:
        raise ShapeError(
            f"samples of shapes {[tuple(v.shape[1:]) for v in values]} differ outside axis "
            f"{axis - 1}; "
            "pass pad_inputs=True, or another concat_axis"
        )


def check_equal(values: Sequence[Any]) -> None:
    """Refuse values whose shapes differ."""
    first = values[0].shape[1:]
    if any(v.shape[1:] != first for v in values):
        raise ShapeError(
            f"samples must have equal shapes, got {[tuple(v.shape[1:]) for v in values]}"
        )


def side_by_side(adapter: Any, values: Sequence[Any]) -> Any:
    """Return samples flattened into rows, concatenated over inputs."""
    rows = [adapter.reshape(v, (math.prod(tuple(v.shape)[1:]),)) for v in values]
    return adapter.concat(rows, 1) if len(rows) > 1 else rows[0]


def one_of(name: str, cls: Any, value: Any) -> Any:
    """Return the member of an enum by name."""
    if isinstance(value, cls):
        return value
    names = [member.value for member in cls]
    if str(value).lower() not in names:
        raise UnknownNameError(name, value, names)
    return cls(str(value).lower())


def _strategy(name: str, value: Any, label: str) -> StrategyType:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, MergeStrategy | ExperimentNodeReference):
        return value
    if isinstance(value, str):
        strategy: MergeStrategy = one_of(name, MergeStrategy, value)
        return strategy
    if hasattr(value, "node_id"):
        return as_reference(value, value.context, label)
    raise ConfigError(
        f"{name} must be an axis, 'first', 'last', 'mean' or a reference, got {value!r}"
    )


def _axis(name: str, value: StrategyType) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}, not an axis")
    return value
