"""Windows of series, with the place that each was cut from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._arguments import at_least
from modularml._typing import Columns, IntArray
from modularml._warning import warn
from modularml.data.arrow_columns import to_arrow
from modularml.data.arrow_types import to_numpy
from modularml.data.collection import SampleCollection
from modularml.data.collection_building import MASK, fill_value, from_columns, ordered_rows
from modularml.data.ids import id_texts
from modularml.data.schema import RAW, ColumnSpec, description_of
from modularml.data.selectors import as_list, newest, select, select_one
from modularml.errors import ConfigError, DataError

SOURCE, START, STOP, SERIES = "window_source", "window_start", "window_stop", "window_series"
_TARGETS = ("series", "last", "window")


@dataclass(frozen=True)
class _Series:
    """Steps of all series of a table, one series after another.

    Parameters
    ----------
    table : SampleCollection
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

    table: SampleCollection
    steps: IntArray | None
    offsets: IntArray
    counts: IntArray
    rows: IntArray
    width: int = 1
    keys: tuple[str, ...] = ()

    def is_per_step(self, spec: ColumnSpec) -> bool:
        return self.steps is not None or spec.shape[:1] == (self.width,)


@dataclass(frozen=True)
class _Windows:
    """Windows of `length` steps; those with fewer `counts` are filled with `pad`.

    `series`, `starts` and `counts`, each of shape (n_windows,), are the series of a window, its
    first step within it, and the number of its steps.
    """

    cut: _Series
    length: int
    pad: Any
    series: IntArray
    starts: IntArray
    counts: IntArray

    def column(self, spec: ColumnSpec) -> Any:
        """Return a column of windows, shape (n_windows, length, ...)."""
        steps = np.minimum(np.arange(self.length), self.counts[:, None] - 1)
        taken = self._steps(spec.name, self.starts[:, None] + steps)
        windows = pa.FixedSizeListArray.from_arrays(taken, self.length)
        lacks = np.arange(self.length) >= self.counts[:, None]
        if not lacks.any():
            return windows
        values = to_numpy(to_arrow(windows, spec.key)).copy()
        values[lacks] = fill_value(self.pad, spec.key, values.dtype)
        return values

    def single(self, spec: ColumnSpec, target: str) -> Any:
        """Return a target or tag of each window: of its last step, or of its series."""
        cut = self.cut
        if not cut.is_per_step(spec):
            return cut.table.array(spec.name).take(pa.array(cut.rows[self.series]))
        if spec.domain == "targets" and target == "series":
            if cut.steps is None:
                raise DataError(
                    f"target {spec.key!r} has one value per step; pass target='last' for its value "
                    "at the last step of each window, or target='window' for a sequence"
                )
            values = cut.table.numpy(spec.name)[cut.steps]
            first = values[np.repeat(cut.offsets, cut.counts)]
            changes = (values != first) & ((values == values) | (first == first))  # noqa: PLR0124
            if changes.any():
                raise DataError(
                    f"target {spec.key!r} changes within a series; pass target='last' for its "
                    "value at the last row of each window, or target='window' for a sequence"
                )
        return self._steps(spec.name, self.starts + self.counts - 1)

    def _steps(self, name: str, steps: IntArray) -> pa.Array:
        """Return values of steps, counted within the series of each window, in one Arrow array."""
        cut = self.cut
        offsets = cut.offsets[self.series].reshape(-1, *[1] * (steps.ndim - 1))
        flat = (offsets + steps).ravel()
        array = cut.table.array(name)
        if cut.steps is not None:
            return array.take(pa.array(cut.steps[flat]))
        rows, within = np.divmod(flat, cut.width)
        return array.flatten().take(pa.array(cut.rows[rows] * cut.width + within))


def windows(
    self: Any,
    columns: Columns,
    *,
    length: int,
    step: int | None = None,
    series: Columns = None,
    order: str | None = None,
    pad: Any = None,
    target: str = "series",
    keep_together: bool = True,
    label: str | None = None,
    register: bool = True,
) -> Any:
    """Cut windows from series into a new FeatureSet, one window per sample.

    Parameters
    ----------
    columns : str or list of str
        Array columns with one series per sample, or columns with one step per row if `series`
        or `order` is given. Their raw values are cut.
    length : int
        Steps of a window.
    step : int, optional
        Steps between the starts of two windows; by default `length`, so that windows do not
        overlap. Steps after the last whole window of a series are left out.
    series : str or list of str, optional
        Columns whose equal values make one series of rows. They become tags.
    order : str, optional
        Column that orders the rows of a series; by default their order in the table.
    pad : scalar or mapping of str to scalar, optional
        Fill value for a series shorter than `length`, which becomes one padded window with a
        mask; a mapping gives one for each column. None refuses such series.
    target : {'series', 'last', 'window'}
        What becomes of targets with one value per step: they are refused unless constant
        within a series, or have the value of the window's last step, or become windows too.
        Targets of whole series are carried unchanged.
    keep_together : bool
        Whether splits and folds without `group_by` keep the windows of one series together.
    label : str, optional
        Label of the new set, by default that of this set with ``_windows``.
    register : bool
        Whether the new set joins the active experiment.

    Returns
    -------
    FeatureSet
        Windows of shape ``(length, *shape)``. Tags have the value of the series or of the last
        step. The tags ``window_source`` (id of the sample, or of the first row),
        ``window_start`` and ``window_stop`` (steps within the series, 0-based, the second
        exclusive) say where each window was cut.

    Raises
    ------
    ConfigError
        If `length`, `step` or `target` is invalid.
    DataError
        If a series is shorter than `length` without `pad`, columns differ in their steps, or a
        column is scaled.

    Examples
    --------
    >>> from modularml import FeatureSet
    >>> fs = FeatureSet.from_dict(
    ...     "runs", {"v": [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], "y": [0, 1]}, "v", "y",
    ...     register=False,
    ... )
    >>> fs.windows("v", length=3, step=2, register=False).get_features()["v"].tolist()
    [[1, 2, 3], [3, 4, 5], [6, 7, 8], [8, 9, 10]]
    """
    for name, value in {"length": length, "step": 1 if step is None else step}.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ConfigError(f"{name} must be a whole number of steps, got {value!r}")
    at_least(1, ConfigError, length=length, step=step)
    if target not in _TARGETS:
        raise ConfigError(f"target must be one of {_TARGETS}, got {target!r}")
    table, rows, names = self.collection, self._rows(), self.column_names
    specs = [table.schema[name] for name in raw_columns(table, names, columns, "windows")]
    masks = {spec.mask for spec in specs}
    if len(masks) > 1:
        raise DataError(
            f"columns {[s.key for s in specs]} have different masks {sorted(map(str, masks))}, so "
            "their windows would differ; call windows() for each"
        )
    mask = masks.pop()
    if series is None and order is None:
        cut = _of_arrays(table, rows, specs, mask)
    else:
        cut = _of_rows(table, rows, series, order)
    windows, holds = _cut_windows(cut, length, length if step is None else step, pad, mask)
    data, marks = _source_tags(windows, keep_together)
    domains: dict[str, list[str]] = {"features": [], "targets": [], "tags": [*data]}
    padded = []
    for spec in [*specs, *_carried(table, names, specs, data, cut.keys)]:
        is_target = spec.domain == "targets" and target == "window" and cut.is_per_step(spec)
        if spec in specs or is_target:
            data[spec.key] = windows.column(spec)
            padded.append(spec.key)
        else:
            data[spec.key] = windows.single(spec, target)
        is_tag = spec not in specs and spec.key in cut.keys
        domains["tags" if is_tag else spec.domain].append(spec.key)
    if holds is not None:
        data[mask or MASK] = holds
    new = from_columns(
        data,
        *domains.values(),
        copy=False,
        mask=None if holds is None else dict.fromkeys(padded, mask or MASK),
        sequences=True,
    )
    described: dict[str, dict[str, Any]] = {}
    for name, spec in new.schema.columns.items():  # as in this set, with marks of where
        old, description = table.schema.raw.get(spec.key), description_of(spec)
        if old is not None:
            kept = "elements" if old.shape == spec.shape else "kind"
            description |= {"unit": old.unit, "kind": old.kind, kept: getattr(old, kept)}
        described[name] = {**description, "window": marks.get(spec.key)}
    new = new.with_descriptions(described)
    return type(self._source())(label or f"{self._name}_windows", new, register=register)


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


def _of_arrays(
    table: SampleCollection, rows: IntArray, specs: Sequence[ColumnSpec], mask: str | None
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
        holds = table.numpy(str(table.schema.mask_of(specs[0].name)))[rows]
        if holds.ndim > 2:
            raise DataError(f"mask {mask!r} has more than one axis, so steps are not padded alone")
        counts = width - holds[:, ::-1].argmax(axis=1)
    return _Series(table, None, np.arange(len(rows)) * width, counts, rows, width)


def _of_rows(
    table: SampleCollection, rows: IntArray, series: Columns, order: str | None
) -> _Series:
    """Return series whose steps are rows."""
    schema = table.schema
    if schema.window_keys("start"):
        raise DataError(
            "these rows are windows; cut windows from array columns, without series= and order=, "
            "or from the series itself"
        )
    names = {key: select_one(schema, key) for key in [*as_list(series), *as_list(order)]}
    arrays = {key: table.numpy(name)[rows] for key, name in names.items()}
    keys = [schema[names[key]].key for key in as_list(series)]
    groups = as_list(series) or [SERIES]
    arrays.setdefault(groups[0], np.zeros(len(rows), dtype=np.int64))
    if order is not None and arrays[order].dtype.kind in "fmM":
        missing = np.flatnonzero(arrays[order] != arrays[order])
        if len(missing):
            raise DataError(f"column {order!r} has no value in row {missing[0]}; drop these rows")
    ordered, counts = ordered_rows(arrays, groups, as_list(order))
    if order is not None and len(rows) > 1:
        times = arrays[order][ordered]
        tied = times[1:] == times[:-1]
        tied[np.cumsum(counts)[:-1] - 1] = False
        if tied.any():  # as of two series that are read as one
            of = f"series={list(keys)}" if keys else "the one series, as series= is not given"
            warn(
                f"{int(tied.sum())} of {len(times)} rows have the same {order!r} as the row before "
                f"in {of}; they keep the order of the table. If these are several series, add the "
                "columns that tell them apart to series="
            )
    return _Series(table, rows[ordered], np.cumsum(counts) - counts, counts, rows, 1, tuple(keys))


def _cut_windows(
    cut: _Series, length: int, step: int, pad: Any, mask: str | None
) -> tuple[_Windows, Any]:
    """Return the windows with data, and which of their steps are data; None for all steps.

    A series shorter than one window gets one that is padded.
    """
    table = cut.table
    short = np.flatnonzero(cut.counts < length)
    if len(short) and pad is None:
        first = int(short[0])
        row = int(cut.rows[first] if cut.steps is None else cut.steps[cut.offsets[first]])
        values = {k: table.numpy(select_one(table.schema, k))[row] for k in cut.keys}
        name = ", ".join(f"{k}={v!r}" for k, v in values.items()) or f"row {first}"
        raise DataError(
            f"length={length} is longer than {len(short)} of {len(cut.counts)} series: {name} has "
            f"{cut.counts[first]} steps. Pass pad= (such as pad=0.0) to pad them and add a mask, "
            "lower length, or drop these series"
        )
    n = np.where(cut.counts < length, 1, (cut.counts - length) // step + 1)
    series = np.repeat(np.arange(len(n)), n)
    starts = (np.arange(len(series)) - np.repeat(np.cumsum(n) - n, n)) * step
    counts = np.minimum(cut.counts[series] - starts, length)
    holds = np.arange(length) < counts[:, None]
    if mask is not None and cut.steps is None:
        steps = np.minimum(starts[:, None] + np.arange(length), cut.width - 1)
        is_data = table.numpy(f"{table.schema.domain_of(mask)}.{mask}.{RAW}")
        holds &= is_data[cut.rows[series][:, None], steps]
    full = holds.any(axis=1)
    windows = _Windows(cut, length, pad, series[full], starts[full], counts[full])
    return windows, None if holds.all() else holds[full]


def _source_tags(windows: _Windows, keep_together: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tags that say where each window was cut, and their marks by key."""
    cut, starts = windows.cut, windows.starts
    schema = cut.table.schema
    together = "series" if keep_together else "loose_series"
    named = dict[str, Any]()
    if cut.steps is not None:
        rows = cut.steps[cut.offsets[windows.series] + starts]
        if not cut.keys:
            named[SERIES] = np.zeros(len(starts), dtype=np.int64)
        marks = dict.fromkeys(cut.keys or (SERIES,), together)
    else:
        rows, marks = cut.rows[windows.series], {SOURCE: together}
    ids: Any = id_texts(cut.table.ids[rows])
    if before := schema.window_keys("start"):  # windows of windows are windows of the series
        starts = starts + cut.table.numpy(f"tags.{before[0]}.{RAW}")[rows]
        ids = cut.table.numpy(f"tags.{SOURCE}.{RAW}")[rows]
        marks = dict.fromkeys(schema.window_keys("series", "loose_series"), together)
    tags = {SOURCE: ids, START: starts, STOP: starts + windows.counts, **named}
    return tags, {SOURCE: "source", START: "start", STOP: "stop", **marks}


def _carried(
    table: SampleCollection,
    names: Sequence[str],
    specs: Sequence[ColumnSpec],
    taken: Iterable[str],
    series: Sequence[str],
) -> list[ColumnSpec]:
    """Return the raw targets, tags and columns of series that are carried over to windows."""
    schema = table.schema
    own = {spec.key for spec in specs} | set(taken) | set(schema.masks.values())
    every = newest(schema, [*names, *(select_one(schema, key) for key in series)])
    chosen = [
        s for s in map(schema.__getitem__, every) if s.domain != "features" or s.key in series
    ]
    keys = [s.key for s in chosen if s.key not in own]
    return [schema[n] for n in raw_columns(table, every, keys, "windows")] if keys else []
