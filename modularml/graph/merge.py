"""Nodes that make one input of several."""

from __future__ import annotations

import enum
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, TypeAlias

import numpy as np

from modularml._typing import Shape
from modularml.backends import Backend, BackendAdapter, adapter_for, backend_of
from modularml.data.execution import Flow, Merged
from modularml.data.formats import DataFormat, convert_array
from modularml.data.references import ExperimentNodeReference
from modularml.errors import ConfigError, GraphError, ShapeError, UnknownNameError
from modularml.graph.node import ComputeNode, UpstreamLike, as_reference

__all__ = ["ConcatNode", "MergeNode", "MergeStrategy", "PadMode"]


class MergeStrategy(enum.Enum):
    """How values of several inputs become one, other than by concatenation."""

    FIRST = "first"
    LAST = "last"
    MEAN = "mean"


class PadMode(enum.Enum):
    """How shorter inputs are filled up."""

    CONSTANT = "constant"
    REFLECT = "reflect"
    REPLICATE = "replicate"
    CIRCULAR = "circular"


StrategyType: TypeAlias = int | str | MergeStrategy | ExperimentNodeReference


class MergeNode(ComputeNode):
    """A node without weights that merges the outputs of at least two others."""

    def _check_upstream(self, label: str, refs: Sequence[ExperimentNodeReference]) -> None:
        super()._check_upstream(label, refs)
        if len(refs) < 2:
            raise GraphError(f"merge node {label!r} needs at least 2 inputs, got {len(refs)}")

    @property
    def output_shape(self) -> Shape | None:
        """Shape of one sample coming out; None before the node is built."""
        return self._output_shape

    @abstractmethod
    def apply_merge(
        self,
        values: list[Any],
        *,
        includes_batch_dim: bool = True,
        fmt: DataFormat | None = None,
        domain: str = "features",
    ) -> Any:
        """Merge values of one domain."""

    @abstractmethod
    def strategy(self, domain: str) -> StrategyType:
        """Return how a domain is merged: an axis, a strategy, or one upstream."""

    def build_from(
        self, shapes: Sequence[Shape], wanted: Shape | None, *, force: bool = False
    ) -> Shape:
        """Check that the inputs can be merged and return the merged shape."""
        blank = [np.zeros((1, *shape)) for shape in shapes]
        try:
            merged = self.apply_merge(blank)
        except ShapeError as error:
            names = ", ".join(
                f"{ref.node_label}: {shape}"
                for ref, shape in zip(self.upstream_refs, shapes, strict=True)
            )
            raise ShapeError(f"node {self.label!r} cannot merge {names}: {error}") from error
        self._output_shape = tuple(merged.shape[1:])
        return self._output_shape

    def operation(self, adapter: BackendAdapter) -> Callable[..., Any]:
        """Return the merge as a function of a list of tensors."""
        return partial(self._merge_with, adapter, "features")

    def flow(self, domain: str, parts: Sequence[Flow]) -> Flow:
        """Merge what the upstreams have, or pick one of them."""
        if domain == "features":
            return Merged(tuple(parts), partial(self.apply_merge, domain=domain))
        how = self.strategy(domain)
        if isinstance(how, ExperimentNodeReference):
            return parts[self._place_of(how)]
        there = [part for part in parts if part is not None]
        if not there or how is MergeStrategy.FIRST:
            return there[0] if there else None
        if len(there) == 1 or how is MergeStrategy.LAST:
            return there[-1]
        return Merged(tuple(there), partial(self.apply_merge, domain=domain))

    def get_state(self) -> dict[str, Any]:
        """Return nothing: a merge node learns nothing."""
        return {}

    def _place_of(self, ref: ExperimentNodeReference) -> int:
        for place, mine in enumerate(self.upstream_refs):
            if ref.node_label == mine.node_label:
                return place
        raise UnknownNameError(
            f"upstream of {self.label!r}",
            ref.node_label,
            [r.node_label for r in self.upstream_refs],
        )

    @abstractmethod
    def _merge_with(self, adapter: BackendAdapter, domain: str, values: list[Any]) -> Any:
        """Merge tensors of one framework."""

    _output_shape: Shape | None = None


class ConcatNode(MergeNode):
    """Concatenate inputs along an axis, padding the others on request.

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
    node_id, register
        Used when a node is rebuilt.

    Raises
    ------
    GraphError
        If there are fewer than two inputs.
    """

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
        node_id: str | None = None,
        register: bool = True,
    ) -> None:
        if not isinstance(concat_axis, int) or isinstance(concat_axis, bool):
            raise ConfigError(f"concat_axis must be an int, got {concat_axis!r}")
        self.concat_axis, self.pad_inputs, self.pad_value = (
            concat_axis,
            pad_inputs,
            float(pad_value),
        )
        self.concat_axis_targets = _strategy("concat_axis_targets", concat_axis_targets, label)
        self.concat_axis_tags = _strategy("concat_axis_tags", concat_axis_tags, label)
        self.pad_mode = _enum("pad_mode", PadMode, pad_mode)
        super().__init__(label, upstream_refs, node_id=node_id, register=register)

    def set_upstream_refs(self, refs: Sequence[UpstreamLike]) -> None:
        """Read from something else from now on; targets of one input follow its place."""
        found = [as_reference(ref, self.context, self.label) for ref in refs]
        chosen = self.concat_axis_targets, self.concat_axis_tags
        self.concat_axis_targets, self.concat_axis_tags = (
            _followed(how, self._upstream_refs, found) for how in chosen
        )
        try:
            super().set_upstream_refs(found)
        except Exception:
            self.concat_axis_targets, self.concat_axis_tags = chosen
            raise

    def _check_upstream(self, label: str, refs: Sequence[ExperimentNodeReference]) -> None:
        super()._check_upstream(label, refs)
        labels = [ref.node_label for ref in refs]
        for how in (self.concat_axis_targets, self.concat_axis_tags):
            if isinstance(how, ExperimentNodeReference) and how.node_label not in labels:
                raise UnknownNameError(f"upstream of {label!r}", how.node_label, labels)

    @property
    def target_strategy(self) -> StrategyType:
        """How targets are merged."""
        return self.concat_axis_targets

    @property
    def tags_strategy(self) -> StrategyType:
        """How tags are merged."""
        return self.concat_axis_tags

    @property
    def target_axis(self) -> int:
        """Axis that targets are concatenated along; TypeError where they are not."""
        return _axis("target_strategy", self.concat_axis_targets)

    @property
    def tags_axis(self) -> int:
        """Axis that tags are concatenated along; TypeError where they are not."""
        return _axis("tags_strategy", self.concat_axis_tags)

    def strategy(self, domain: str) -> StrategyType:
        """Return how a domain is merged."""
        merged = {"targets": self.concat_axis_targets, "tags": self.concat_axis_tags}
        return merged.get(domain, self.concat_axis)

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
            Format of the result; that of the values where none is given.
        domain : {'features', 'targets', 'tags'}

        Raises
        ------
        ShapeError
            If the shapes do not fit and `pad_inputs` is false.
        """
        backend = backend_of(values[0])
        adapter = _NUMPY if backend is Backend.NONE else adapter_for(backend)
        if not includes_batch_dim:
            merged = self._merge_with(adapter, domain, [v[None] for v in values])[0]
        else:
            merged = self._merge_with(adapter, domain, values)
        return merged if fmt is None else convert_array(merged, fmt)

    def _merge_with(self, adapter: Any, domain: str, values: list[Any]) -> Any:
        how = self.strategy(domain)
        if how is MergeStrategy.MEAN:
            _check_equal(values)
            return adapter.mean(values)
        axis = _batch_axis(how, values)
        if self.pad_inputs:
            values = self._pad(adapter, values, axis)
        else:
            _check_fits(values, axis)
        return adapter.concat(values, axis)

    def _pad(self, adapter: Any, values: list[Any], axis: int) -> list[Any]:
        size = [0] + [max(v.shape[i] for v in values) for i in range(1, values[0].ndim)]
        padded = []
        for v in values:
            widths = [
                (0, 0) if i in (0, axis) else (0, size[i] - v.shape[i]) for i in range(v.ndim)
            ]
            padded.append(adapter.pad(v, widths, self.pad_mode.value, self.pad_value))
        return padded


class _Numpy:
    """The few operations of an adapter that merging needs, on arrays."""

    modes: ClassVar[dict[str, Any]] = {
        "reflect": "reflect",
        "replicate": "edge",
        "circular": "wrap",
    }

    def concat(self, values: Sequence[Any], axis: int) -> Any:
        return np.concatenate(values, axis=axis)

    def mean(self, values: Sequence[Any]) -> Any:
        return np.mean(values, axis=0)

    def pad(self, value: Any, widths: Sequence[tuple[int, int]], mode: str, fill: float) -> Any:
        if mode == "constant":
            return np.pad(value, widths, constant_values=fill)
        return np.pad(value, widths, mode=self.modes[mode])


_NUMPY = _Numpy()


def _batch_axis(how: Any, values: Sequence[Any]) -> int:
    """Return the axis with the batch counted, after checking that every value has it."""
    rank = values[0].ndim
    if len({v.ndim for v in values}) > 1:
        raise ShapeError(
            f"inputs have unlike numbers of axes: {[tuple(v.shape[1:]) for v in values]}"
        )
    axis = how + 1 if how >= 0 else rank + how
    if not 1 <= axis < rank:
        raise ShapeError(
            f"axis {how} is not there in samples of shape {tuple(values[0].shape[1:])}"
        )
    return int(axis)


def _check_fits(values: Sequence[Any], axis: int) -> None:
    rest = [tuple(n for i, n in enumerate(v.shape) if i not in (0, axis)) for v in values]
    if len(set(rest)) > 1:
        raise ShapeError(
            f"samples of shapes {[tuple(v.shape[1:]) for v in values]} differ outside axis "
            f"{axis - 1}; "
            "pass pad_inputs=True, or another concat_axis"
        )


def _check_equal(values: Sequence[Any]) -> None:
    if len({tuple(v.shape[1:]) for v in values}) > 1:
        raise ShapeError(f"a mean needs equal shapes, got {[tuple(v.shape[1:]) for v in values]}")


def _strategy(name: str, value: Any, label: str) -> StrategyType:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, MergeStrategy | ExperimentNodeReference):
        return value
    if isinstance(value, str):
        strategy: MergeStrategy = _enum(name, MergeStrategy, value)
        return strategy
    if hasattr(value, "node_id"):
        return as_reference(value, value.context, label)
    raise ConfigError(
        f"{name} must be an axis, 'first', 'last', 'mean' or a reference, got {value!r}"
    )


def _followed(
    how: StrategyType,
    before: Sequence[ExperimentNodeReference],
    after: Sequence[ExperimentNodeReference],
) -> StrategyType:
    """Return the input that stands where a chosen one stood, if that one is gone."""
    if not isinstance(how, ExperimentNodeReference) or len(before) != len(after):
        return how
    if any(ref.node_label == how.node_label for ref in after):
        return how
    places = [i for i, ref in enumerate(before) if ref.node_label == how.node_label]
    return after[places[0]] if places else how


def _enum(name: str, cls: Any, value: Any) -> Any:
    if isinstance(value, cls):
        return value
    names = [member.value for member in cls]
    if str(value).lower() not in names:
        raise UnknownNameError(name, value, names)
    return cls(str(value).lower())


def _axis(name: str, value: StrategyType) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}, not an axis")
    return value
