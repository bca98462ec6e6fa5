"""Prediction: outputs of a graph for any rows, in the units of the targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml.context import ExperimentContext
from modularml.data import FeatureSet, FeatureSetView
from modularml.data.arrow_types import in_shape, to_numpy
from modularml.data.batch import as_numpy
from modularml.data.columns import to_arrow
from modularml.data.formats import ARRAY_FORMATS, DataFormat, convert, convert_array, stack
from modularml.data.frames import as_columns
from modularml.data.joining import Table, join, table_of
from modularml.data.lineage import SourceColumns
from modularml.data.schema import RAW
from modularml.data.sources import check_lengths
from modularml.errors import ConfigError, DataError, GraphError, NotFittedError, ScalerError
from modularml.graph.casting import check_cast
from modularml.graph.inputs import stacked
from modularml.graph.inverse_scaling import check_clear, invert_leaf, needs_rows, scaled_target
from modularml.graph.labels import decoded, score_names
from modularml.graph.lineage import source_columns_of
from modularml.graph.plan import InputSlot
from modularml.graph.relations import links_of, meetings_of
from modularml.graph.running import GraphRunning

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
    tags: bool = False,
) -> Any:
    """Return a graph's outputs for a FeatureSet, view, frame, dict or array.

    See `ModelGraph.predict`.
    """
    form = DataFormat.from_value(fmt)
    if tags and form in ARRAY_FORMATS:
        raise ConfigError(
            f"tags=True needs a format with named columns, such as fmt='pandas', 'polars', 'arrow' "
            f"or 'dict', got fmt={form.value!r}"
        )
    if not graph.is_built:
        raise NotFittedError("the graph has not been built; train it, or call graph.build()")
    nodes: list[Any] = list(graph.tail_nodes.values()) if node is None else [graph.get_node(node)]
    plan, step = graph.plan((), training=False, active_nodes=nodes)
    sets = {slot.source.ref.resolve(): None for slot in plan.slots}
    column_groups = {slot.columns for slot in plan.slots}
    if isinstance(data, np.ndarray) and len(column_groups) > 1:
        raise DataError(
            "a bare array has no column names, and inputs of the graph read "
            f"{sorted(column_groups)} separately; pass a frame, a dict of columns or a FeatureSet"
        )
    readers, lead = _readers(data, list(sets), graph._running(nodes))
    n = lead.n_rows
    size = ROWS if batch_size is None else batch_size
    if not isinstance(size, Integral) or size < 1:
        raise ConfigError(f"batch_size must be an int of at least 1 or None, got {batch_size!r}")
    places = {name: i for i, (name, _) in enumerate(plan.layout.outputs)}
    columns = [readers[slot.source.ref.node_label].column(slot) for slot in plan.slots]
    parts: list[list[Any]] = []
    with plan.modes():
        for at in range(0, max(n, 1), size):
            tensors = [
                slot.adapter.from_numpy(read(at, at + size), dtype=slot.dtype, device=slot.device)
                for read, slot in zip(columns, plan.slots, strict=True)
            ]
            outs = step(tensors)[1]
            parts.append([as_numpy(outs[places[target.node_id]]) for target in nodes])
    row_columns = _row_columns(readers, lead) if tags else {}
    outputs = {}
    for i, target in enumerate(nodes):
        chunks = [p[i] for p in parts]
        values = _values(plan.layout.lineages, target, chunks, readers, lead, unscale, decode)
        if form in ARRAY_FORMATS:
            outputs[target.label] = convert_array(values, form)
            continue
        columns_of = _named(plan.layout.lineages, target, values, decode)
        before = {
            k if k not in columns_of else f"tags.{k}": column for k, column in row_columns.items()
        }
        outputs[target.label] = table = convert({**before, **columns_of}, form)
        if form is DataFormat.PANDAS and lead.index is not None:
            outputs[target.label] = table.set_axis(lead.index, axis=0)
        elif form is DataFormat.PANDAS and "sample_uuid" in before:
            outputs[target.label] = table.set_index("sample_uuid")
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def _values(
    lineages: Mapping[Any, Any],
    node: Any,
    parts: list[Array],
    readers: Mapping[str, _Reader],
    lead: _Reader,
    unscale: bool,
    decode: bool,
) -> Array:
    """Return a node's outputs in the units of its targets, or class labels."""
    values = np.concatenate(parts)
    values = values[:, None] if values.ndim == 1 else values  # as targets are, so none broadcast
    if decode:
        return decoded(node.label, _compared_targets(lineages, node), values)[:, None]
    leaf = None
    if unscale:
        check_clear(lineages, node.node_id, node.label)
        leaf = scaled_target(lineages[node.node_id, "outputs"])
    if leaf is None:
        return values
    reader = readers.get(leaf.source.ref.node_label, lead)
    return invert_leaf(leaf, values, reader.ids(leaf) if needs_rows(leaf) else None)


def _compared_targets(lineages: Mapping[Any, Any], node: Any) -> Any:
    return lineages.get((node.node_id, "truth")) or lineages.get((node.node_id, "targets"))


def _named(lineages: Mapping[Any, Any], node: Any, values: Array, decode: bool) -> dict[str, Array]:
    """Return the columns of a node's outputs, named after its targets or classes."""
    values = values[:, None] if values.ndim == 1 else values
    truth = _compared_targets(lineages, node)
    predicted = lineages.get((node.node_id, "outputs")) or lineages.get((node.node_id, "truth"))
    predicted = truth if decode else predicted
    names = [
        column.split(".")[1] for part in source_columns_of(predicted) for column in part.columns
    ]
    width = values.shape[1]
    method = getattr(node.model, "method", "") if hasattr(node, "model") else ""
    if width > 1 and (classes := score_names(truth, width, method=method)) is not None:
        names = classes
    elif len(names) == 1 and width > 1:
        names = [f"{names[0]}_{i}" for i in range(width)]
    if len(set(names)) != width:
        names = [f"column_{i}" for i in range(width)]
    return {name: values[:, i] for i, name in enumerate(names)}


def _row_columns(readers: Mapping[str, _Reader], lead: _Reader) -> dict[str, Array]:
    """Return the ids of rows, if known, and their tags."""
    columns: dict[str, Array] = {}
    if lead.view is not None:
        columns["sample_uuid"] = lead.view.get_sample_uuids()
    for label, reader in readers.items():
        for key, values in reader.tags(label).items():
            columns.setdefault(
                key if key not in columns or reader is lead else f"{label}.{key}", values
            )
    return columns


def _readers(
    data: Any, sets: Sequence[FeatureSet], nodes: Sequence[Any]
) -> tuple[dict[str, _Reader], _Reader]:
    """Return a reader of aligned rows for each FeatureSet, and the leading one.

    FeatureSets that were not passed are looked up in the context, with all rows.

    Raises
    ------
    DataError
        If no key relates their rows to those passed.
    """
    by_label = {str(fs.label): fs for fs in sets}
    passed = _rows_by_label(data, by_label)
    if passed is None or (len(passed) == len(by_label) == 1):
        reader = _Reader(data if passed is None else next(iter(passed.values())))
        return dict.fromkeys(by_label, reader), reader
    readers = {label: _Reader(rows) for label, rows in passed.items()}
    missing = [label for label in by_label if label not in passed]
    reference_view = next((r.view for r in readers.values() if r.view is not None), None)
    readers |= {
        label: _Reader(_matching_rows(by_label[label], reference_view)) for label in missing
    }
    meetings = meetings_of(nodes, ())
    sources = list(dict.fromkeys(s for m in meetings for s in m.sources))
    labels = list(readers)
    targets = {s.ref.node_label for s in sources if s.ref.targets} & passed.keys()
    tables = [r.table(label, label in targets) for label, r in readers.items()]
    table_of_source = {s: labels.index(s.ref.node_label) for s in sources}
    try:
        joined = join(tables, links_of(meetings, tables, table_of_source), who="predict: ")
    except DataError as error:
        if not missing:
            raise
        raise DataError(
            f"rows of {list(passed)} alone are not enough, as the graph also reads {missing}: "
            f"{error}. Pass rows of all FeatureSets, such as "
            f"predict({{'{labels[0]}': ..., '{labels[-1]}': ...}})"
        ) from error
    aligned = {
        label: readers[label].taken(rows) for label, rows in zip(labels, joined.rows, strict=True)
    }
    return aligned, aligned[labels[joined.lead]]


def _rows_by_label(data: Any, sets: Mapping[str, FeatureSet]) -> dict[str, Any] | None:
    """Return rows by FeatureSet label; None if one table holds all columns."""
    tables = (Mapping, FeatureSet, FeatureSetView)
    if isinstance(data, Mapping) and data and set(map(str, data)) <= sets.keys():
        rows = {str(label): table for label, table in data.items()}
        if all(isinstance(table, tables) or hasattr(table, "columns") for table in rows.values()):
            return rows
    view = _as_view(data)
    if view is not None:
        return {str(view.source.label): view} if view.source in sets.values() else None
    return None


def _matching_rows(fs: FeatureSet, reference_view: FeatureSetView | None) -> FeatureSetView:
    """Return the rows of a FeatureSet for the same samples, or all if some lack."""
    all_rows = fs.to_view()
    if reference_view is None:
        return all_rows
    same = reference_view.take_intersection(all_rows)
    if len(same) < len(reference_view) or not len(reference_view):
        return all_rows
    return all_rows.take_sample_uuids(reference_view.get_sample_uuids())


class _Reader:
    """Reads columns for the slots of a plan from the user's data."""

    def __init__(self, data: Any, index: Any = None) -> None:
        self.view = _as_view(data)
        self.source = None if self.view is None else self.view.source
        self.raw = None if self.view is not None else _as_columns(data)
        lengths = {key: len(values) for key, values in (self.raw or {}).items()}
        check_lengths(lengths)
        self.n_rows = next(iter(lengths.values()), 0) if self.view is None else len(self.view)
        frame_index = getattr(data, "index", None)
        self.index = (
            frame_index
            if index is None and isinstance(frame_index, require("pandas").Index)
            else index
        )

    def table(self, label: str, is_sample: bool) -> Table:
        """Return the rows as a table to be joined."""
        if self.view is not None:
            return table_of(self.view, is_sample=is_sample, label=label)
        raw = self.raw or {}
        if "" in raw:
            raise DataError(f"rows of {label!r} are an array; pass a frame or a dict of columns")
        return Table(
            label,
            self.n_rows,
            is_sample,
            lambda name: to_arrow(raw[name], name) if name in raw else None,
        )

    def taken(self, rows: Array) -> _Reader:
        """Return a reader of selected rows, in that order."""
        if self.view is not None:
            return _Reader(self.view.take(rows))
        index = None if self.index is None else self.index[rows]
        return _Reader({key: values[rows] for key, values in (self.raw or {}).items()}, index)

    def tags(self, label: str) -> dict[str, Array]:
        """Return the available tags of the rows, by key."""
        if self.view is not None:
            own: dict[str, Array] = self.view.get_tags() if self.view.get_tag_keys() else {}
            return own
        fs: Any = ExperimentContext.get_active().get_node(label=label)
        keys = [name for name in fs.get_tag_keys(False, False) if name in (self.raw or {})]
        return {key: (self.raw or {})[key] for key in keys}

    def column(self, slot: InputSlot) -> Callable[[int, int], Array]:
        """Return a function that reads rows ``start:stop`` of the slot's columns."""
        fs: FeatureSet = slot.source.ref.resolve()
        # transformed columns of another FeatureSet were scaled by its scalers, not by those of `fs`
        same_scaling = fs is self.source or all(name.endswith(f".{RAW}") for name in slot.columns)
        if (
            self.view is not None
            and same_scaling
            and self.view.collection.schema.columns.keys() >= set(slot.columns)
        ):
            table, rows = self.view.collection, self.view.valid_indices
            return lambda start, stop: stacked(table, slot, rows[start:stop])
        columns = self._transformed(fs, slot.columns)
        for name, values in columns.items():
            check_cast(slot.adapter, slot.dtype, values, name)
        stacked_columns = stack(columns)
        if slot.shape is not None:
            stacked_columns = stacked_columns.reshape(len(stacked_columns), *slot.shape)
        return lambda start, stop: stacked_columns[start:stop]

    def ids(self, leaf: SourceColumns) -> Any:
        """Return sample ids; ScalerError for rows that are not in the FeatureSet."""
        if self.view is None or self.source is not leaf.source.ref.resolve():
            raise ScalerError(
                "inverting the scaler of the targets needs other values of each row, and these "
                "rows are new; pass unscale=False"
            )
        return self.view.get_sample_uuids()

    def _transformed(self, fs: FeatureSet, names: tuple[str, ...]) -> dict[str, Array]:
        keys = [name.split(".")[1] for name in names]
        needed = {k: self._raw(k, keys, fs) for k in _with_partners(fs, keys)}
        masks = fs.collection.schema.masks
        for mask in {masks[key] for key in needed if key in masks}:
            domain = fs.collection.schema.domain_of(mask)
            if self.view is not None and f"{domain}.{mask}.{RAW}" in self.view.collection.names:
                needed[mask] = self.view.column(f"{domain}.{mask}.{RAW}")
            elif mask in (self.raw or {}):
                needed[mask] = (self.raw or {})[mask]
        newest = fs.transform_new(needed)
        return {
            name: needed[key] if name.endswith(f".{RAW}") else newest[key]
            for name, key in zip(names, keys, strict=True)
        }

    def _raw(self, key: str, keys: list[str], fs: FeatureSet) -> Array:
        schema = fs.collection.schema
        name = f"{schema.domain_of(key)}.{key}.{RAW}"
        if self.view is not None:
            known: Array = self.view.column(name)
            return known
        raw = self.raw or {}
        if "" in raw:  # a bare array: the columns in order, stacked on axis 1
            return _unstacked(raw[""], key, keys, fs)
        if key not in raw:
            raise DataError(
                f"data lacks the column {key!r}, which the graph reads; it has {sorted(raw)}"
            )
        values = in_shape(raw[key], schema[name].shape)
        return values.astype(bool) if key in schema.masks.values() else values


def _as_view(data: Any) -> FeatureSetView | None:
    if isinstance(data, FeatureSet):
        return data.to_view()
    return data if isinstance(data, FeatureSetView) else None


def _as_columns(data: Any) -> dict[str, Array]:
    if isinstance(data, np.ndarray):
        return {"": data}
    columns = as_columns(data, "data must be a FeatureSet, a view, a frame, a dict or an array")
    return {key: to_numpy(to_arrow(values, key)) for key, values in columns.items()}


def _with_partners(fs: FeatureSet, keys: list[str]) -> list[str]:
    """Return the keys and those scaled together with them."""
    partners = dict.fromkeys(keys)
    for record in fs.scaler_records:
        if record.domain == "features" and set(record.keys) & set(partners):
            partners.update(dict.fromkeys(record.keys))
    return list(partners)


def _unstacked(values: Array, key: str, keys: list[str], fs: FeatureSet) -> Array:
    shape = fs.collection.schema[f"features.{key}.{RAW}"].shape
    if key not in keys:
        raise GraphError(f"a bare array lacks the column {key!r}; pass a dict or a frame")
    if len(keys) == 1 and values.shape[1:] == shape:
        return values
    if values.shape[1:] != (len(keys), *shape):
        raise DataError(
            f"an array of the columns {keys} must have shape {('n', len(keys), *shape)}, got "
            f"{values.shape}"
        )
    column: Array = values[:, keys.index(key)]
    return column
