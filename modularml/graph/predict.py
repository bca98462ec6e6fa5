"""Outputs of a graph for any rows, in the target's own units."""

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
    """Return outputs for rows of a FeatureSet, a view, a frame, a dict or an array.

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
    wanted: list[Any] = list(graph.tail_nodes.values()) if node is None else [graph.get_node(node)]
    plan, step = graph.plan((), training=False, active_nodes=wanted)
    sets = {slot.source.ref.resolve(): None for slot in plan.slots}
    read_together = {slot.columns for slot in plan.slots}
    if isinstance(data, np.ndarray) and len(read_together) > 1:
        raise DataError(
            f"a bare array does not say which of its columns are {sorted(read_together)}, as "
            "inputs of the graph read them apart; give a frame, a dict of columns or a FeatureSet"
        )
    readers, lead = _readers(data, list(sets), graph._running(wanted))
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
            parts.append([as_numpy(outs[places[w.node_id]]) for w in wanted])
    beside = _facts(readers, lead) if tags else {}
    found = {}
    for i, w in enumerate(wanted):
        made = [p[i] for p in parts]
        values = _values(plan.layout.lineages, w, made, readers, lead, unscale, decode)
        if form in ARRAY_FORMATS:
            found[w.label] = convert_array(values, form)
            continue
        named = _named(plan.layout.lineages, w, values, decode)
        facts = {k if k not in named else f"tags.{k}": own for k, own in beside.items()}
        found[w.label] = table = convert({**facts, **named}, form)
        if form is DataFormat.PANDAS and lead.index is not None:
            found[w.label] = table.set_axis(lead.index, axis=0)
        elif form is DataFormat.PANDAS and "sample_uuid" in facts:
            found[w.label] = table.set_index("sample_uuid")
    return next(iter(found.values())) if len(found) == 1 else found


def _values(
    lineages: Mapping[Any, Any],
    node: Any,
    parts: list[Array],
    readers: Mapping[str, _Reader],
    lead: _Reader,
    unscale: bool,
    decode: bool,
) -> Array:
    """Return a node's outputs in the units of its targets, or the labels of its classes."""
    values = np.concatenate(parts)
    if decode:
        return decoded(node.label, _truth(lineages, node), values)[:, None]
    leaf = None
    if unscale:
        check_clear(lineages, node.node_id, node.label)
        leaf = scaled_target(lineages[node.node_id, "outputs"])
    if leaf is None:
        return values
    reader = readers.get(leaf.source.ref.node_label, lead)
    return invert_leaf(leaf, values, reader.ids(leaf) if needs_rows(leaf) else None)


def _truth(lineages: Mapping[Any, Any], node: Any) -> Any:
    return lineages.get((node.node_id, "truth")) or lineages.get((node.node_id, "targets"))


def _named(lineages: Mapping[Any, Any], node: Any, values: Array, decode: bool) -> dict[str, Array]:
    """Return the columns of a node's outputs, by the names of its targets or classes."""
    values = values[:, None] if values.ndim == 1 else values
    truth = _truth(lineages, node)
    own = lineages.get((node.node_id, "outputs")) or lineages.get((node.node_id, "truth"))
    own = truth if decode else own
    names = [column.split(".")[1] for part in source_columns_of(own) for column in part.columns]
    width = values.shape[1]
    method = getattr(node.model, "method", "") if hasattr(node, "model") else ""
    if width > 1 and (classes := score_names(truth, width, method=method)) is not None:
        names = classes
    elif len(names) == 1 and width > 1:
        names = [f"{names[0]}_{i}" for i in range(width)]
    if len(set(names)) != width:
        names = [f"column_{i}" for i in range(width)]
    return {name: values[:, i] for i, name in enumerate(names)}


def _facts(readers: Mapping[str, _Reader], lead: _Reader) -> dict[str, Array]:
    """Return the ids of rows, where these are known, and their tags."""
    found: dict[str, Array] = {}
    if lead.view is not None:
        found["sample_uuid"] = lead.view.get_sample_uuids()
    for label, reader in readers.items():
        for key, values in reader.tags(label).items():
            found.setdefault(
                key if key not in found or reader is lead else f"{label}.{key}", values
            )
    return found


def _readers(
    data: Any, sets: Sequence[FeatureSet], nodes: Sequence[Any]
) -> tuple[dict[str, _Reader], _Reader]:
    """Return what gives the rows of each set, side by side, and that which leads.

    Sets that were not given are looked up in the context, all their rows.

    Raises
    ------
    DataError
        If nothing tells which of their rows belong to those that were given.
    """
    by_label = {str(fs.label): fs for fs in sets}
    given = _given(data, by_label)
    if given is None or (len(given) == len(by_label) == 1):
        whole = _Reader(data if given is None else next(iter(given.values())))
        return dict.fromkeys(by_label, whole), whole
    readers = {label: _Reader(rows) for label, rows in given.items()}
    others = [label for label in by_label if label not in given]
    known = next((r.view for r in readers.values() if r.view is not None), None)
    readers |= {label: _Reader(_looked_up(by_label[label], known)) for label in others}
    meetings = meetings_of(nodes, ())
    sources = list(dict.fromkeys(s for m in meetings for s in m.sources))
    labels = list(readers)
    targets = {s.ref.node_label for s in sources if s.ref.targets} & given.keys()
    tables = [r.table(label, label in targets) for label, r in readers.items()]
    of = {s: labels.index(s.ref.node_label) for s in sources}
    try:
        joined = join(tables, links_of(meetings, tables, of), who="predict: ")
    except DataError as error:
        if not others:
            raise
        raise DataError(
            f"rows of {list(given)} alone cannot be predicted, as the graph reads {others} too: "
            f"{error}. Pass rows of all sets, such as predict({{'{labels[0]}': ..., "
            f"'{labels[-1]}': ...}})"
        ) from error
    found = {
        label: readers[label].taken(rows) for label, rows in zip(labels, joined.rows, strict=True)
    }
    return found, found[labels[joined.lead]]


def _given(data: Any, sets: Mapping[str, FeatureSet]) -> dict[str, Any] | None:
    """Return rows by label of their set; None where one table holds the columns of all."""
    tables = (Mapping, FeatureSet, FeatureSetView)
    if isinstance(data, Mapping) and data and set(map(str, data)) <= sets.keys():
        rows = {str(label): own for label, own in data.items()}
        if all(isinstance(own, tables) or hasattr(own, "columns") for own in rows.values()):
            return rows
    view = _as_view(data)
    if view is not None:
        return {str(view.source.label): view} if view.source in sets.values() else None
    return None


def _looked_up(fs: FeatureSet, known: FeatureSetView | None) -> FeatureSetView:
    """Return the rows of a set that are those samples, where it has them all, or else all."""
    whole = fs.to_view()
    if known is None:
        return whole
    same = known.take_intersection(whole)
    if len(same) < len(known) or not len(known):
        return whole
    return whole.take_sample_uuids(known.get_sample_uuids())


class _Reader:
    """Columns for the slots of a plan, from whatever the user gave."""

    def __init__(self, data: Any, index: Any = None) -> None:
        self.view = _as_view(data)
        self.source = None if self.view is None else self.view.source
        self.raw = None if self.view is not None else _as_columns(data)
        self.n_rows = len(self.view) if self.view is not None else _length(self.raw or {})
        own = getattr(data, "index", None)
        self.index = own if index is None and isinstance(own, require("pandas").Index) else index

    def table(self, label: str, is_sample: bool) -> Table:
        """Return the rows as a table to be joined."""
        if self.view is not None:
            return table_of(self.view, is_sample=is_sample, label=label)
        raw = self.raw or {}
        if "" in raw:
            raise DataError(f"rows of {label!r} are an array; give a frame or a dict of columns")
        return Table(
            label,
            self.n_rows,
            is_sample,
            lambda name: to_arrow(raw[name], name) if name in raw else None,
        )

    def taken(self, rows: Array) -> _Reader:
        """Return some of the rows, in the order asked."""
        if self.view is not None:
            return _Reader(self.view.take(rows))
        index = None if self.index is None else self.index[rows]
        return _Reader({key: values[rows] for key, values in (self.raw or {}).items()}, index)

    def tags(self, label: str) -> dict[str, Array]:
        """Return the tags of the rows, by key, as far as they were given."""
        if self.view is not None:
            own: dict[str, Array] = self.view.get_tags() if self.view.get_tag_keys() else {}
            return own
        fs: Any = ExperimentContext.get_active().get_node(label=label)
        keys = [name for name in fs.get_tag_keys(False, False) if name in (self.raw or {})]
        return {key: (self.raw or {})[key] for key in keys}

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
        if slot.shape is not None:
            whole = whole.reshape(len(whole), *slot.shape)
        return lambda start, stop: whole[start:stop]

    def ids(self, leaf: SourceColumns) -> Any:
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
