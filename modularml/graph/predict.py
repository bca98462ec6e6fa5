"""Outputs of a graph for any rows, in the target's own units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from modularml._typing import Array
from modularml.data import FeatureSet, FeatureSetView
from modularml.data.batch import as_numpy
from modularml.data.columns import in_shape, to_arrow, to_numpy
from modularml.data.execution import Leaf
from modularml.data.formats import convert_array, stack
from modularml.data.frames import as_columns
from modularml.data.schema import RAW
from modularml.data.sources import check_lengths
from modularml.errors import ConfigError, DataError, GraphError, NotFittedError, ScalerError
from modularml.graph.casting import check_cast
from modularml.graph.inputs import stacked
from modularml.graph.labels import decoded
from modularml.graph.plan import InputSlot
from modularml.graph.running import GraphRunning
from modularml.graph.units import check_clear, invert_leaf, needs_rows, scaled_target

__all__ = ["predict"]

ROWS = 8192


def predict(
    graph: GraphRunning,
    data: Any,
    *,
    node: Any,
    batch_size: int | None,
    unscale: bool,
    fmt: str,
    decode: bool = False,
) -> Any:
    """Return outputs for rows of a FeatureSet, a view, a frame, a dict or an array.

    See `ModelGraph.predict`.
    """
    if not graph.is_built:
        raise NotFittedError("the graph has not been built; train it, or call graph.build()")
    wanted: list[Any] = list(graph.tail_nodes.values()) if node is None else [graph.get_node(node)]
    plan, step = graph.plan((), training=False, active_nodes=wanted)
    reader = _Reader(data)
    n = reader.n_rows
    size = ROWS if batch_size is None else batch_size
    if not isinstance(size, Integral) or size < 1:
        raise ConfigError(f"batch_size must be an int of at least 1 or None, got {batch_size!r}")
    places = {name: i for i, (name, _) in enumerate(plan.layout.outputs)}
    reader.check([slot.source.ref.resolve() for slot in plan.slots])
    columns = [reader.column(slot) for slot in plan.slots]
    parts: list[list[Any]] = []
    with plan.modes():
        for at in range(0, max(n, 1), size):
            tensors = [
                slot.adapter.from_numpy(read(at, at + size), dtype=slot.dtype, device=slot.device)
                for read, slot in zip(columns, plan.slots, strict=True)
            ]
            outs = step(tensors)[1]
            parts.append([as_numpy(outs[places[w.node_id]]) for w in wanted])
    found = {
        w.label: _finished(
            plan.layout.flows, w, [p[i] for p in parts], reader, unscale, fmt, decode
        )
        for i, w in enumerate(wanted)
    }
    return next(iter(found.values())) if len(found) == 1 else found


def _finished(
    flows: Mapping[Any, Any],
    node: Any,
    parts: list[Array],
    reader: _Reader,
    unscale: bool,
    fmt: str,
    decode: bool,
) -> Any:
    values = np.concatenate(parts)
    if decode:
        own = flows[node.node_id, "targets"]
        targets = flows.get((node.node_id, "truth"), own)
        return convert_array(decoded(node.label, targets, values)[:, None], fmt)
    leaf = None
    if unscale:
        check_clear(flows, node.node_id, node.label)
        leaf = scaled_target(flows[node.node_id, "outputs"])
    if leaf is not None:
        values = invert_leaf(leaf, values, reader.ids(leaf) if needs_rows(leaf) else None)
    return convert_array(values, fmt)


class _Reader:
    """Columns for the slots of a plan, from whatever the user gave."""

    def __init__(self, data: Any) -> None:
        self.view = _as_view(data)
        self.source = None if self.view is None else self.view.source
        self.raw = None if self.view is not None else _as_columns(data)
        self.n_rows = len(self.view) if self.view is not None else _length(self.raw or {})

    def check(self, read: Sequence[FeatureSet]) -> None:
        """Refuse rows of one set of the graph where others are read too."""
        others = [fs.label for fs in read if fs is not self.source]
        if others and len(others) < len(read):
            raise DataError(
                f"rows of {self.source.label!r} alone cannot be predicted: the graph reads "  # type: ignore[union-attr]
                f"{others} too; pass a frame with all columns, or run an EvalPhase"
            )

    def column(self, slot: InputSlot) -> Callable[[int, int], Array]:
        """Return the function from first and last place to those rows of the slot's columns."""
        fs: FeatureSet = slot.source.ref.resolve()
        # what another set calls transformed was scaled by its own scalers, not by those of `fs`
        fits = fs is self.source or all(name.endswith(f".{RAW}") for name in slot.columns)
        if (
            self.view is not None
            and fits
            and self.view.collection.schema.columns.keys() >= set(slot.columns)
        ):
            table, rows = self.view.collection, self.view.valid_indices
            return lambda start, stop: stacked(table, slot, rows[start:stop])
        columns = self._transformed(fs, slot.columns)
        for name, values in columns.items():
            check_cast(slot.adapter, slot.dtype, values, name)
        whole = stack(columns)
        return lambda start, stop: whole[start:stop]

    def ids(self, leaf: Leaf) -> Any:
        """Return sample ids, where the rows are known ones."""
        if self.view is None or self.source is not leaf.source.ref.resolve():
            raise ScalerError(
                "the scaler of the targets needs facts of each row to be inverted, and these "
                "rows are "
                "new; pass unscale=False"
            )
        return self.view.get_sample_uuids()

    def _transformed(self, fs: FeatureSet, names: tuple[str, ...]) -> dict[str, Array]:
        keys = [name.split(".")[1] for name in names]
        needed = {k: self._raw(k, keys, fs) for k in _with_partners(fs, keys)}
        newest = fs.transform_new(needed)
        return {
            name: needed[key] if name.endswith(f".{RAW}") else newest[key]
            for name, key in zip(names, keys, strict=True)
        }

    def _raw(self, key: str, keys: list[str], fs: FeatureSet) -> Array:
        if self.view is not None:
            known: Array = self.view.column(f"features.{key}.{RAW}")
            return known
        raw = self.raw or {}
        if "" in raw:  # a bare array: the columns in order, stacked on axis 1
            return _unstacked(raw[""], key, keys, fs)
        if key not in raw:
            raise DataError(
                f"data lacks the column {key!r}, which the graph reads; it has {sorted(raw)}"
            )
        return in_shape(raw[key], fs.collection.schema[f"features.{key}.{RAW}"].shape)


def _as_view(data: Any) -> FeatureSetView | None:
    if isinstance(data, FeatureSet):
        return data.to_view()
    return data if isinstance(data, FeatureSetView) else None


def _as_columns(data: Any) -> dict[str, Array]:
    if isinstance(data, np.ndarray):
        return {"": data}
    found = as_columns(data, "data must be a FeatureSet, a view, a frame, a dict or an array")
    return {key: to_numpy(to_arrow(values, key)) for key, values in found.items()}


def _length(columns: Mapping[str, Array]) -> int:
    lengths = {key: len(values) for key, values in columns.items()}
    check_lengths(lengths)
    return next(iter(lengths.values()), 0)


def _with_partners(fs: FeatureSet, keys: list[str]) -> list[str]:
    """Return the keys and those that were scaled together with them."""
    found = dict.fromkeys(keys)
    for record in fs.scaler_records:
        if record.domain == "features" and set(record.keys) & set(found):
            found.update(dict.fromkeys(record.keys))
    return list(found)


def _unstacked(values: Array, key: str, keys: list[str], fs: FeatureSet) -> Array:
    shape = fs.collection.schema[f"features.{key}.{RAW}"].shape
    if key not in keys:
        raise GraphError(f"a bare array lacks the column {key!r}; give a dict or a frame")
    if len(keys) == 1 and values.shape[1:] == shape:
        return values
    if values.shape[1:] != (len(keys), *shape):
        raise DataError(
            f"an array of the columns {keys} must have shape {('n', len(keys), *shape)}, got "
            f"{values.shape}"
        )
    column: Array = values[:, keys.index(key)]
    return column
