"""Windows of series, with the place that each was cut from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._arguments import at_least
from modularml._typing import Array, Columns, IntArray
from modularml._warning import warn
from modularml.data.arrow_types import to_numpy
from modularml.data.collection import SampleCollection
from modularml.data.columns import to_arrow
from modularml.data.ids import id_texts
from modularml.data.schema import RAW, ColumnSpec, description_of
from modularml.data.selectors import as_list, newest, select, select_one
from modularml.data.sources import MASK, fill_value, from_columns, ordered_rows
from modularml.errors import ConfigError, DataError

__all__ = ["raw_columns", "windows_of"]

SOURCE, START, STOP, SERIES = "window_source", "window_start", "window_stop", "window_series"
_TARGETS = ("series", "last", "window")


@dataclass(frozen=True)
class _Series:
    """Steps of all series, one series after another.

    Parameters
    ----------
    steps : ndarray of int64, shape (n_steps,) or None
        Row of the table of each step; None if each row of the table is a series of `width` steps.
    offsets, counts : ndarray of int64, shape (n_series,)
        First step of each series, and the number of its steps.
    rows : ndarray of int64, shape (n_rows,)
        Rows of the table.
    width : int
        Steps of a row.
    keys : list of str
        Columns that identify a series, if a row is one step.
    """

    steps: IntArray | None
    offsets: IntArray
    counts: IntArray
    rows: IntArray
    width: int = 1
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Places:
    """Windows: series, first step within it, and number of steps, each of shape (n_windows,)."""

    series: IntArray
    starts: IntArray
    counts: IntArray


def windows_of(
    collection: SampleCollection,
    rows: IntArray,
    names: Sequence[str],
    columns: Columns,
    *,
    length: int,
    step: int | None = None,
    series: Columns = None,
    order: str | None = None,
    pad: Any = None,
    target: str = "series",
    keep_together: bool = True,
) -> SampleCollection:
    """Cut windows from columns of rows of a table; see `FeatureSet.windows`.

    Targets and tags among `names`, which are full names of columns, are carried.
    """
    for name, value in {"length": length, "step": 1 if step is None else step}.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ConfigError(f"{name} must be a whole number of steps, got {value!r}")
    at_least(1, ConfigError, length=length, step=step)
    if target not in _TARGETS:
        raise ConfigError(f"target must be one of {_TARGETS}, got {target!r}")
    schema = collection.schema
    specs = [schema[name] for name in raw_columns(collection, names, columns, "windows")]
    mask = _mask_of(specs)
    if series is None and order is None:
        cut = _of_arrays(collection, rows, specs, mask)
    else:
        cut = _of_rows(collection, rows, series, order)
    places = _places(collection, cut, length, length if step is None else step, pad)
    places, holds = _holding(collection, cut, places, length, mask)
    data, marks = _source_tags(collection, cut, places, keep_together)
    domains: dict[str, list[str]] = {"features": [], "targets": [], "tags": [*data]}
    for spec in specs:
        data[spec.key] = _windowed(collection, cut, places, spec, length, pad)
        domains[spec.domain].append(spec.key)
    padded = [spec.key for spec in specs]
    for spec in _carried(collection, names, specs, data, cut.keys):
        is_window = spec.domain == "targets" and target == "window" and _is_per_step(cut, spec)
        if is_window:
            data[spec.key] = _windowed(collection, cut, places, spec, length, pad)
            padded.append(spec.key)
        else:
            data[spec.key] = _of_window(collection, cut, places, spec, target)
        domains["tags" if spec.key in cut.keys else spec.domain].append(spec.key)
    masks: str | dict[str, str] | None = None
    if holds is not None:
        data[mask or MASK] = holds
        masks = dict.fromkeys(padded, mask or MASK)
    made = from_columns(data, *domains.values(), copy=False, mask=masks, sequences=True)
    return _described(made, collection, marks)


def raw_columns(
    collection: SampleCollection, names: Sequence[str], columns: Columns, use: str
) -> list[str]:
    """Select raw columns; refuse scaled ones unless ``key.raw`` is selected.

    Raises
    ------
    DataError
        If a column has a newer representation than the raw one, which would be lost.
    """
    chosen = select(collection.schema, names, columns)
    for name in chosen:
        if not name.endswith(f".{RAW}"):
            key = collection.schema[name].key
            raise DataError(
                f"column {key!r} is scaled, and {use} are made of raw values; select "
                f"{f'{key}.{RAW}'!r} and scale the result, or undo the scaler first"
            )
    return chosen


def _mask_of(specs: Sequence[ColumnSpec]) -> str | None:
    masks = {spec.mask for spec in specs}
    if len(masks) > 1:
        raise DataError(
            f"columns {[s.key for s in specs]} have different masks {sorted(map(str, masks))}, so "
            "their windows would differ; call windows() for each"
        )
    return masks.pop()


def _of_arrays(
    collection: SampleCollection, rows: IntArray, specs: Sequence[ColumnSpec], mask: str | None
) -> _Series:
    """Return series that are one array per row."""
    for spec in specs:
        if not spec.shape:
            raise DataError(
                f"column {spec.key!r} holds one value per row; name the columns of each series "
                "with series= and its order with order=, or select array columns"
            )
    widths = {spec.key: spec.shape[0] for spec in specs}
    if len(set(widths.values())) > 1:
        raise DataError(f"columns differ in the length of their series: {widths}")
    width = next(iter(widths.values()))
    counts = np.full(len(rows), width)
    if mask is not None:
        holds = collection.numpy(str(collection.schema.mask_of(specs[0].name)))[rows]
        if holds.ndim > 2:
            raise DataError(f"mask {mask!r} has more than one axis, so steps are not padded alone")
        counts = width - holds[:, ::-1].argmax(axis=1)
    return _Series(None, np.arange(len(rows)) * width, counts, rows, width)


def _of_rows(
    collection: SampleCollection, rows: IntArray, series: Columns, order: str | None
) -> _Series:
    """Return series whose steps are rows."""
    schema = collection.schema
    if schema.window_keys("start"):
        raise DataError(
            "these rows are windows; cut windows from array columns, without series= and order=, "
            "or from the series itself"
        )
    names = {key: select_one(schema, key) for key in [*as_list(series), *as_list(order)]}
    arrays = {key: collection.numpy(name)[rows] for key, name in names.items()}
    keys = [schema[names[key]].key for key in as_list(series)]
    groups = as_list(series) or [SERIES]
    arrays.setdefault(groups[0], np.zeros(len(rows), dtype=np.int64))
    if order is not None and len(missing := _missing(arrays[order])):
        raise DataError(f"column {order!r} has no value in row {missing[0]}; drop these rows")
    ordered, counts = ordered_rows(arrays, groups, as_list(order))
    _warn_of_ties(arrays[order][ordered] if order else None, counts, order, keys)
    offsets = np.cumsum(counts) - counts
    return _Series(rows[ordered], offsets, counts, rows, 1, tuple(keys))


def _warn_of_ties(
    times: Array | None, counts: IntArray, order: str | None, keys: Sequence[str]
) -> None:
    """Warn of steps of a series with one time, as of two series that are read as one."""
    if times is None or len(times) < 2:
        return
    tied = times[1:] == times[:-1]
    tied[np.cumsum(counts)[:-1] - 1] = False
    if tied.any():
        of = f"series={list(keys)}" if keys else "the one series, as series= is not given"
        warn(
            f"{int(tied.sum())} of {len(times)} rows have the same {order!r} as the row before in "
            f"{of}; they keep the order of the table. If these are several series, add the "
            "columns that tell them apart to series="
        )


def _missing(values: Any) -> IntArray:
    kind = values.dtype.kind
    if kind not in "fmM":
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.isnan(values) if kind == "f" else np.isnat(values))


def _places(
    collection: SampleCollection, cut: _Series, length: int, step: int, pad: Any
) -> _Places:
    """Return all windows; a series shorter than one gets one padded window."""
    short = np.flatnonzero(cut.counts < length)
    if len(short) and pad is None:
        first = int(short[0])
        row = int(cut.rows[first] if cut.steps is None else cut.steps[cut.offsets[first]])
        values = {k: collection.numpy(select_one(collection.schema, k))[row] for k in cut.keys}
        name = ", ".join(f"{k}={v!r}" for k, v in values.items()) or f"row {first}"
        raise DataError(
            f"length={length} is longer than {len(short)} of {len(cut.counts)} series: {name} has "
            f"{cut.counts[first]} steps. Pass pad= (such as pad=0.0) to pad them and add a mask, "
            "lower length, or drop these series"
        )
    n = np.where(cut.counts < length, 1, (cut.counts - length) // step + 1)
    series = np.repeat(np.arange(len(n)), n)
    starts = (np.arange(len(series)) - np.repeat(np.cumsum(n) - n, n)) * step
    return _Places(series, starts, np.minimum(cut.counts[series] - starts, length))


def _holding(
    collection: SampleCollection, cut: _Series, places: _Places, length: int, mask: str | None
) -> tuple[_Places, Any]:
    """Return the windows with data, and which of their steps are data; None for all steps."""
    holds = np.arange(length) < places.counts[:, None]
    if mask is not None and cut.steps is None:
        name = f"{collection.schema.domain_of(mask)}.{mask}.{RAW}"
        steps = np.minimum(places.starts[:, None] + np.arange(length), cut.width - 1)
        holds &= collection.numpy(name)[cut.rows[places.series][:, None], steps]
    full = holds.any(axis=1)
    places = _Places(places.series[full], places.starts[full], places.counts[full])
    return places, None if holds.all() else holds[full]


def _source_tags(
    collection: SampleCollection, cut: _Series, places: _Places, keep_together: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tags that say where each window was cut, and their marks by key."""
    schema, starts = collection.schema, places.starts
    together = "series" if keep_together else "loose_series"
    if cut.steps is not None:
        rows = cut.steps[cut.offsets[places.series] + starts]
        named = {} if cut.keys else {SERIES: np.zeros(len(starts), dtype=np.int64)}
        marks = dict.fromkeys(cut.keys or (SERIES,), together)
    else:
        rows, named = cut.rows[places.series], dict[str, Any]()
        marks = {SOURCE: together}
    ids: Any = id_texts(collection.ids[rows])
    if before := schema.window_keys("start"):  # windows of windows are windows of the series
        starts = starts + collection.numpy(f"tags.{before[0]}.{RAW}")[rows]
        ids = collection.numpy(f"tags.{SOURCE}.{RAW}")[rows]
        inherited = schema.window_keys("series", "loose_series")
        marks = dict.fromkeys(inherited, together)
    tags = {SOURCE: ids, START: starts, STOP: starts + places.counts, **named}
    return tags, {SOURCE: "source", START: "start", STOP: "stop", **marks}


def _windowed(
    collection: SampleCollection,
    cut: _Series,
    places: _Places,
    spec: ColumnSpec,
    length: int,
    pad: Any,
) -> Any:
    """Return a column of windows, shape (n_windows, length, ...)."""
    steps = np.minimum(np.arange(length), places.counts[:, None] - 1)
    taken = _steps(collection, cut, spec.name, (places.starts[:, None] + steps), places)
    windows = pa.FixedSizeListArray.from_arrays(taken, length)
    if (places.counts == length).all():
        return windows
    values = to_numpy(to_arrow(windows, spec.key)).copy()
    values[np.arange(length) >= places.counts[:, None]] = fill_value(pad, spec.key, values.dtype)
    return values


def _steps(
    collection: SampleCollection, cut: _Series, name: str, steps: IntArray, places: _Places
) -> pa.Array:
    """Return values of steps, counted within the series of each window, in one Arrow array."""
    offsets = cut.offsets[places.series].reshape(-1, *[1] * (steps.ndim - 1))
    flat = (offsets + steps).ravel()
    array = collection.array(name)
    if cut.steps is not None:
        return array.take(pa.array(cut.steps[flat]))
    rows, within = np.divmod(flat, cut.width)
    return array.flatten().take(pa.array(cut.rows[rows] * cut.width + within))


def _carried(
    collection: SampleCollection,
    names: Sequence[str],
    specs: Sequence[ColumnSpec],
    taken: dict[str, Any],
    series: Sequence[str],
) -> list[ColumnSpec]:
    """Return the raw targets, tags and columns of series that are carried over to windows."""
    schema = collection.schema
    own = {spec.key for spec in specs} | set(taken) | set(schema.masks.values())
    every = newest(schema, [*names, *(select_one(schema, key) for key in series)])
    chosen = [
        s for s in map(schema.__getitem__, every) if s.domain != "features" or s.key in series
    ]
    keys = [s.key for s in chosen if s.key not in own]
    if not keys:
        return []
    return [schema[name] for name in raw_columns(collection, every, keys, "windows")]


def _is_per_step(cut: _Series, spec: ColumnSpec) -> bool:
    return cut.steps is not None or spec.shape[:1] == (cut.width,)


def _of_window(
    collection: SampleCollection, cut: _Series, places: _Places, spec: ColumnSpec, target: str
) -> Any:
    """Return a target or tag of each window: of its last step, or of its series."""
    if not _is_per_step(cut, spec):
        return collection.array(spec.name).take(pa.array(cut.rows[places.series]))
    if spec.domain == "targets" and target == "series":
        if cut.steps is None:
            raise DataError(
                f"target {spec.key!r} has one value per step; pass target='last' for its value at "
                "the last step of each window, or target='window' for a sequence"
            )
        _check_constant(collection, cut, spec)
    return _steps(collection, cut, spec.name, places.starts + places.counts - 1, places)


def _check_constant(collection: SampleCollection, cut: _Series, spec: ColumnSpec) -> None:
    """Refuse a target that changes within a series."""
    values = collection.numpy(spec.name)[cut.steps]
    first = values[np.repeat(cut.offsets, cut.counts)]
    changes = (values != first) & ((values == values) | (first == first))  # noqa: PLR0124
    if changes.any():
        raise DataError(
            f"target {spec.key!r} changes within a series; pass target='last' for its value at "
            "the last row of each window, or target='window' for a sequence"
        )


def _described(
    made: SampleCollection, source: SampleCollection, marks: dict[str, str]
) -> SampleCollection:
    """Return windows with the kinds and units of the source, and marks of tags of the place."""
    known = {s.key: s for s in source.schema.columns.values() if s.rep == RAW}
    described: dict[str, dict[str, Any]] = {}
    for name, spec in made.schema.columns.items():
        old = known.get(spec.key)
        description = description_of(spec)
        if old is not None:
            kept = "elements" if old.shape == spec.shape else "kind"
            description |= {"unit": old.unit, "kind": old.kind, kept: getattr(old, kept)}
        described[name] = {**description, "window": marks.get(spec.key)}
    return made.with_descriptions(described)
