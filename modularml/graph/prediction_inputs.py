"""Rows to predict, as columns for the inputs of a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml.context import ExperimentContext
from modularml.data.arrow_types import in_shape
from modularml.data.featureset import FeatureSet
from modularml.data.featureset_scaling import newest_of
from modularml.data.formats import stack
from modularml.data.lineage import SourceColumns
from modularml.data.samples import in_steps
from modularml.data.schema import RAW
from modularml.data.selectors import select_one
from modularml.data.table_join import Table, join, table_of
from modularml.data.view import FeatureSetView
from modularml.errors import DataError, GraphError, ScalerError, UnknownNameError
from modularml.graph.calling import check_cast
from modularml.graph.framework_segment import InputSlot
from modularml.graph.input_tensors import stacked
from modularml.graph.lineage import RawColumns
from modularml.graph.row_matching import links_of, meetings_of


def row_columns(readers: Mapping[str, RowReader], lead: RowReader) -> dict[str, Array]:
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


def readers_of(
    data: Any, sets: Sequence[FeatureSet], nodes: Sequence[Any]
) -> tuple[dict[str, RowReader], RowReader]:
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
        reader = RowReader(data if passed is None else next(iter(passed.values())))
        return dict.fromkeys(by_label, reader), reader
    readers = {label: RowReader(rows) for label, rows in passed.items()}
    missing = [label for label in by_label if label not in passed]
    reference_view = next((r.view for r in readers.values() if r.view is not None), None)
    for label in missing:  # the rows for the same samples, or all if some lack
        rows = by_label[label].to_view()
        if reference_view is not None and len(reference_view):
            same = reference_view.take_intersection(rows)
            if len(same) >= len(reference_view):
                rows = rows.take_sample_uuids(reference_view.get_sample_uuids())
        readers[label] = RowReader(rows)
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


class RowReader:
    """Reads columns for the slots of a plan from the user's data."""

    def __init__(self, data: Any, index: Any = None) -> None:
        self.view = _as_view(data)
        self.source = None if self.view is None else self.view.source
        self.raw = RawColumns({})  # empty for a view
        if self.view is None:
            self.raw = data if isinstance(data, RawColumns) else RawColumns.of(data)
        self.n_rows = self.raw.n_rows if self.view is None else len(self.view)
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
        raw = self.raw
        if "" in raw:
            raise DataError(f"rows of {label!r} are an array; pass a frame or a dict of columns")
        return Table(
            label, self.n_rows, is_sample, lambda name: raw.arrow(name) if name in raw else None
        )

    def taken(self, rows: Array) -> RowReader:
        """Return a reader of selected rows, in that order."""
        if self.view is not None:
            return RowReader(self.view.take(rows))
        index = None if self.index is None else self.index[rows]
        return RowReader(self.raw.taken(rows), index)

    def tags(self, label: str) -> dict[str, Array]:
        """Return the available tags of the rows, by key."""
        if self.view is not None:
            own: dict[str, Array] = self.view.get_tags() if self.view.get_tag_keys() else {}
            return own
        fs: Any = ExperimentContext.get_active().get_node(label=label)
        keys = [name for name in fs.get_tag_keys(False, False) if name in self.raw]
        return {key: self.raw.with_missing(key) for key in keys}

    def named(self, name: str) -> Array | None:
        """Return a column by its key or full name; None if there is none.

        Missing values of a table's columns are NaN in floats, else None.
        """
        if self.view is None:
            keys = [part for part in (name, *name.split(".")[1:2]) if part in self.raw]
            return self.raw.with_missing(keys[0]) if keys else None
        try:
            full_name = select_one(self.view.collection.schema, name)
        except UnknownNameError:
            return None
        column: Array = self.view.column(full_name)
        return column

    def has(self, name: str) -> bool:
        """Return whether the rows have a column, by its full name."""
        if self.view is not None:
            return name in self.view.collection.schema.columns
        return name.split(".")[1] in self.raw

    @property
    def column_names(self) -> list[str]:
        """Names of the columns of the rows."""
        if self.view is not None:
            return list(self.view.collection.schema.columns)
        return list(self.raw)

    def values(self, fs: FeatureSet, names: tuple[str, ...]) -> Array:
        """Return columns of a FeatureSet for all rows, shape (n, n_columns, ...).

        Missing values of raw columns of a table are NaN in floats, else None.
        """
        if self.view is not None and self._stores(fs, names):
            table, rows = self.view.collection, self.view.valid_indices
            return stack({name: table.numpy(name)[rows] for name in names})
        is_table = self.view is None and "" not in self.raw
        if is_table and all(name.endswith(f".{RAW}") for name in names):
            schema, raw = fs.collection.schema, self.raw
            columns = {name: raw.with_missing(name.split(".")[1]) for name in names}
            return stack({n: in_shape(values, schema[n].shape) for n, values in columns.items()})
        return stack(self._transformed(fs, names))

    def mask(self, fs: FeatureSet, names: tuple[str, ...]) -> Array | None:
        """Return which elements of columns are data; None if none is padded.

        Returns
        -------
        ndarray of bool, shape (n, n_columns, *shape), or None
        """
        schema = fs.collection.schema
        masks = {name: mask for name in names if (mask := schema.mask_of(name)) is not None}
        if not masks:
            return None
        if missing := [mask for mask in masks.values() if not self.has(mask)]:
            raise DataError(
                f"data lacks {missing}, the mask of padded targets; add it, as without it padding "
                "would count"
            )
        parts = []
        for name in names:
            holds = self.values(fs, (masks[name],))[:, 0] if name in masks else np.array(True)
            parts.append(in_steps(holds.astype(bool), (self.n_rows, *schema[name].shape)))
        return np.stack(parts, axis=1)

    def _stores(self, fs: FeatureSet, names: tuple[str, ...]) -> bool:
        """Return whether a view has these columns as the FeatureSet would compute them."""
        # transformed columns of another FeatureSet were scaled by its scalers, not by those of `fs`
        same_scaling = fs is self.source or all(name.endswith(f".{RAW}") for name in names)
        return self.view is not None and same_scaling and all(map(self.has, names))

    def column(self, slot: InputSlot) -> Callable[[int, int], Array]:
        """Return a function that reads rows ``start:stop`` of the slot's columns."""
        fs: FeatureSet = slot.source.ref.resolve()
        if self.view is not None and self._stores(fs, slot.columns):
            table, rows = self.view.collection, self.view.valid_indices
            return lambda start, stop: stacked(table, slot, rows[start:stop])
        columns = self._transformed(fs, slot.columns)
        stacked_columns = stack(columns)
        _check_casts(slot, columns, stacked_columns)
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

    def raw_columns(self, fs: FeatureSet, names: Iterable[str]) -> dict[str, Array]:
        """Return the raw columns, by key, that columns of a FeatureSet are computed from."""
        keys = [name.split(".")[1] for name in names]
        partners = list(keys)  # and the keys scaled together with them
        for record in fs.scaler_records:
            if set(record.keys) & set(partners):
                partners = list(dict.fromkeys([*partners, *record.keys]))
        if "" in self.raw and partners == keys and len(keys) > 1:
            raw = fs.collection.schema.raw
            for key in {raw[k].shape: k for k in keys if k in raw}.values():
                _unstacked(self.raw[""], key, keys, fs)  # checks the shape
            needed = dict(zip(keys, np.moveaxis(self.raw[""], 1, 0), strict=True))
        else:
            needed = self._raw(partners, keys, fs)
        masks = fs.collection.schema.masks
        for mask in {masks[key] for key in needed if key in masks}:
            domain = fs.collection.schema.domain_of(mask)
            if self.view is not None and f"{domain}.{mask}.{RAW}" in self.view.collection.names:
                needed[mask] = self.view.column(f"{domain}.{mask}.{RAW}")
            elif mask in self.raw:
                needed[mask] = self.raw[mask]
        for name in {n for r in fs.scaler_records if set(r.keys) & set(needed) for n in r.per}:
            key = name.split(".")[1]
            needed = self._raw([key], keys, fs) | needed
        return needed

    def _transformed(self, fs: FeatureSet, names: tuple[str, ...]) -> dict[str, Array]:
        needed = self.raw_columns(fs, names)
        bare = self.raw[""].dtype if "" in self.raw else None
        is_read = bare is None or (bare.kind in "iuf" and bare.isnative)
        newest = newest_of(fs, needed) if is_read else fs.transform_new(needed)
        keys = [name.split(".")[1] for name in names]
        return {
            name: needed[key] if name.endswith(f".{RAW}") else newest[key]
            for name, key in zip(names, keys, strict=True)
        }

    def _raw(self, wanted: Sequence[str], keys: list[str], fs: FeatureSet) -> dict[str, Array]:
        """Return raw columns by key."""
        schema = fs.collection.schema
        if self.view is not None:
            return {key: self.view.column(schema.raw[key].name) for key in wanted}
        raw = self.raw
        if "" in raw:  # a bare array: the columns in order, stacked on axis 1
            return {key: _unstacked(raw[""], key, keys, fs) for key in wanted}
        columns, masks, specs = dict[str, Array](), set(schema.masks.values()), schema.raw
        if missing := [key for key in wanted if key not in raw]:
            known = list(raw)
            near = get_close_matches(missing[0], known, n=3) or sorted(known)[:10]
            shown = ", ".join(map(repr, missing[:10])) + ", ..." * (len(missing) > 10)
            raise DataError(
                f"data lacks the column{'s' * (len(missing) > 1)} {shown}, which the graph reads; "
                f"it has {len(known)} "
                f"columns, such as {near}. Rename columns that have another name"
            ).with_code("MML-506")
        for key in wanted:
            spec, values = specs[key], raw[key]
            if values.ndim > 1 or spec.shape:
                values = in_shape(values, spec.shape)
            holds, wanted_kind = KINDS.get(values.dtype.kind), KINDS.get(spec.dtype.kind)
            if holds != wanted_kind and len(values):
                raise DataError(
                    f"column {key!r} holds {holds}, such as {values.ravel()[0]!r}, but "
                    f"{wanted_kind} in the FeatureSet that the graph was built for; convert it"
                )
            columns[key] = values.astype(bool) if key in masks else values
        return columns


KINDS = {
    **dict.fromkeys("biuf", "numbers"),
    **dict.fromkeys("OUSTa", "text"),
    **dict.fromkeys("mM", "times"),
}
"""What columns hold, by the kind of their dtype."""


def _as_view(data: Any) -> FeatureSetView | None:
    if isinstance(data, FeatureSet):
        return data.to_view()
    return data if isinstance(data, FeatureSetView) else None


def _check_casts(slot: InputSlot, columns: Mapping[str, Array], together: Array) -> None:
    """Refuse columns that change in the cast; see `check_cast`."""
    if len({values.dtype for values in columns.values()}) == 1:
        try:
            check_cast(slot.adapter, slot.dtype, together, "")
        except DataError:  # it is named below
            pass
        else:
            return
    for name, values in columns.items():
        check_cast(slot.adapter, slot.dtype, values, name)


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
