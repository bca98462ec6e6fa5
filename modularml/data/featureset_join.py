"""Columns of one table joined to the rows of another, by key or by the last time before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modularml._optional import require
from modularml._typing import Array, Columns, IntArray
from modularml._warning import warn
from modularml.data.arrow_columns import to_arrow
from modularml.data.arrow_types import is_plain
from modularml.data.collection import SampleCollection
from modularml.data.schema import RAW, check_keys, description_of, with_metadata
from modularml.data.selectors import as_list
from modularml.data.split_records import DroppedRows
from modularml.data.table_join import Link, Table, link_by, table_of
from modularml.data.windowing import raw_columns
from modularml.errors import ConfigError, DataError, UnknownNameError

JoinKey: TypeAlias = str | Sequence[str] | Mapping[str, str] | None
"""Columns that both tables share, or the column of the other table by that of this one."""


def join(
    self: Any,
    other: Any,
    on: JoinKey = None,
    *,
    asof: JoinKey = None,
    tolerance: Any = None,
    columns: Columns = None,
    rename: Mapping[str, str] | None = None,
    missing: str = "drop",
    label: str | None = None,
    register: bool = True,
) -> Any:
    """Add the columns of another set to these rows, in a new FeatureSet.

    Rows keep their order, ids and scalers, and each has at most one match. Splits are not
    copied, so join before splitting.

    Parameters
    ----------
    other : FeatureSet or FeatureSetView
    on : str, list of str, or dict, optional
        Columns whose values are equal in both; a dict maps the column of this set to that of
        `other`. Without `asof`, values must not repeat in `other`.
    asof : str or dict, optional
        Column of times or numbers: the match is the last row of `other` (with equal values of
        `on`, if given) whose value is not greater. Rows need not be sorted; of equal values in
        `other`, the last row counts.
    tolerance : number or str, optional
        Greatest distance in `asof`, inclusive: a number, or a duration such as ``"7D"``.
    columns : str or list of str, optional
        Columns of `other` to add, by default all but those of `on`; their domain, kind, unit,
        element names and masks are kept.
    rename : dict, optional
        New keys of columns of `other`.
    missing : {'drop', 'nan', 'error'}
        Rows without a match are dropped with a warning and a recorded reason (see `drop`),
        have NaN in float columns, or are refused.
    label : str, optional
        Label of the new set, by default both labels joined by ``_``.
    register : bool
        Whether the new set joins the active experiment.

    Returns
    -------
    FeatureSet

    Raises
    ------
    ConfigError
        If an argument is invalid.
    DataError
        If no row has a match, values of `on` repeat in `other`, they cannot be compared, both
        sets have a column of one name, or a column of `other` is scaled.

    Examples
    --------
    >>> from modularml import FeatureSet
    >>> rows = FeatureSet.from_dict(
    ...     "rows", {"v": [1.0, 2.0], "m": ["b", "a"]}, "v", [], "m", register=False
    ... )
    >>> facts = FeatureSet.from_dict(
    ...     "facts", {"m": ["a", "b"], "age": [7, 9]}, "age", [], "m", register=False
    ... )
    >>> rows.join(facts, "m", register=False).get_features()["age"].tolist()
    [9, 7]
    """
    if not hasattr(other, "to_view"):
        raise ConfigError(
            f"other must be a FeatureSet or a view of one, got {type(other).__name__}"
        )
    if missing not in ("drop", "nan", "error"):
        raise ConfigError(f"missing must be 'drop', 'nan' or 'error', got {missing!r}")
    keys, times = _pairs("on", on), _pairs("asof", asof)
    if (not keys and not times) or len(times) > 1:
        raise ConfigError(
            "join needs on=, the columns whose values are equal, or asof=, one column of times or "
            f"both; got on={on!r} and asof={asof!r}"
        )
    if tolerance is not None and not times:
        raise ConfigError(f"tolerance={tolerance!r} applies to asof=, which is missing")
    left, right = self.to_view(), other.to_view()
    tables = [table_of(left), table_of(right)]
    link = _linked(tables, keys) if keys else None
    if times:
        matches = _last_before(link, _linked(tables, times), tolerance)
    elif link is not None:
        if link.repeats(1):  # which would multiply rows
            values = link.keys[1].drop_null()
            n = len(values) - len(pc.unique(values))
            raise DataError(
                f"values of {link.on} repeat in {right.source.label!r} ({n} of {len(right)} rows "
                "have one of an earlier row), so the join would multiply rows of "
                f"{left.source.label!r}; select one row per value, join on more columns, or take "
                "the last row before each with asof="
            )
        matches = link.find(0)
    how = " and ".join(x for x in (f"on={on!r}" * bool(keys), f"asof={asof!r}" * bool(times)) if x)
    names = _right_columns(left, right, columns, {**keys, **times}, set(keys.values()), rename)
    rows, dropped = _matched(matches, left, right, how, missing)
    collection = _combined(left, right, rows, matches[rows], names)
    new = left.take(rows).to_featureset(label or f"{self._name}_{other._name}", register=register)
    return new._with_joined(collection, dropped)


def _pairs(argument: str, key: JoinKey) -> dict[str, str]:
    """Return columns of the right table by those of the left."""
    if isinstance(key, Mapping):
        return dict(key)
    names = as_list(key)
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{argument} must be names of columns, got {key!r}")
    return {name: name for name in names}


def _linked(tables: Sequence[Table], columns: Mapping[str, str]) -> Link:
    """Link two tables by the columns of the right one for those of the left."""
    left, right = list(columns), list(columns.values())
    return link_by(tables, (0, 1), (left[0], right[0]) if len(left) == 1 else (left, right))


def _last_before(link: Link | None, time: Link, tolerance: Any) -> IntArray:
    """Return the last row of the right table at or before each row of the left; -1 for none."""
    a, b = (_numbers(keys, time.on) for keys in time.keys)
    codes = np.zeros(len(a) + len(b), dtype=np.int64)
    if link is not None:  # equal keys of both tables as equal numbers
        both = pa.concat_arrays(list(link.keys)).dictionary_encode()
        codes = pc.fill_null(both.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    tables = []
    for values, own, keys in zip((a, b), np.split(codes, [len(a)]), time.keys, strict=True):
        valid = np.flatnonzero((own >= 0) & keys.is_valid().to_numpy(zero_copy_only=False))
        present = values[valid]  # sorted as integers, which is quicker, and only if need be
        present = present.view(np.int64) if present.dtype.kind in "mM" else present
        is_sorted = bool((present[1:] >= present[:-1]).all())
        order = valid if is_sorted else valid[np.argsort(present, kind="stable")]
        columns = {"time": values[order], "code": own[order], "row": order}
        tables.append(require("pandas").DataFrame(columns))
    matched = require("pandas").merge_asof(*tables, on="time", by=None if link is None else "code")
    rows = np.full(len(a), -1)
    rows[matched["row_x"]] = matched["row_y"].fillna(-1).astype(np.int64)
    if tolerance is not None and len(b):
        known = rows >= 0
        rows[known & ~_is_near(a, b[rows], known, tolerance, time.on)] = -1
    return rows


def _numbers(keys: pa.Array, on: str) -> Array:
    """Return times or numbers as a numpy array; missing ones have any value."""
    if pa.types.is_date(keys.type):
        keys = keys.cast(pa.timestamp("s"))
    if not is_plain(keys.type):
        raise DataError(f"asof={on} must hold numbers or times, got {keys.type}; convert it")
    values: Array = pc.fill_null(keys, pa.scalar(0, pa.int64()).cast(keys.type)).to_numpy()
    return values


def _is_near(a: Array, b: Array, known: Array, tolerance: Any, on: str) -> Array:
    """Return where `a` is at most `tolerance` after `b`."""
    limit = tolerance
    if a.dtype.kind in "mM":
        message = f"tolerance must be a duration such as '7D' for asof={on}, got {tolerance!r}"
        if isinstance(tolerance, int | float):
            raise ConfigError(message)
        try:
            limit = require("pandas").Timedelta(tolerance).value
        except (ValueError, TypeError) as error:
            raise ConfigError(message) from error
        unit, count = np.datetime_data(a.dtype)
        limit //= count * {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[unit]
        a, b = a.astype(np.int64), b.astype(np.int64)
    elif isinstance(tolerance, bool) or not isinstance(tolerance, int | float | np.number):
        raise ConfigError(f"tolerance must be a number for asof={on}, got {tolerance!r}")
    if not limit >= 0:
        raise ConfigError(f"tolerance must be at least 0, got {tolerance!r}")
    if a.dtype.kind in "iu":  # exact for any two integers, the first being the greater
        a, b = a.astype(np.uint64), b.astype(np.uint64)
    near: Array = np.where(known, a - b, 0) <= limit
    return near


def _matched(
    matches: IntArray, left: Any, right: Any, how: str, missing: str
) -> tuple[IntArray, DroppedRows | None]:
    """Return the rows that are kept, and those that are left out."""
    lacks, names = matches < 0, (left.source.label, right.source.label)
    text = f"{int(lacks.sum())} of {len(matches)} rows of {names[0]!r} have no match in"
    if lacks.all():
        raise DataError(
            f"none of the {len(matches)} rows of {names[0]!r} has a match in {names[1]!r} with "
            f"{how}; compare the values of these columns"
        )
    if not lacks.any() or missing == "nan":
        return np.arange(len(matches)), None
    if missing == "error":
        raise DataError(f"{text} {names[1]!r} with {how}, but missing='error'")
    warn(f"{text} {names[1]!r} with {how} and are dropped; pass missing='nan' to keep them")
    out = DroppedRows(
        f"no match in {names[1]} with {how}", left.collection.ids[left._rows()[lacks]]
    )
    return np.flatnonzero(~lacks), out


def _right_columns(
    left: Any,
    right: Any,
    columns: Columns,
    keys: Mapping[str, str],
    equal: set[str],
    rename: Mapping[str, str] | None,
) -> dict[str, str]:
    """Return the raw columns that are joined: new key by full name."""
    schema, renamed = right.collection.schema, dict(rename or {})
    excluded = equal | {new for old, new in keys.items() if old == new}
    if columns is None:
        specs = (schema[name] for name in right.column_names)
        every = dict.fromkeys(s.key for s in specs if s.window is None)
        columns = [key for key in every if key not in excluded]
    if not columns:
        raise DataError(f"{right.source.label!r} has no column to join besides {sorted(excluded)}")
    names = schema.with_masks(raw_columns(right.collection, right.column_names, columns, "joins"))
    known = {schema[name].key for name in names}
    for old in renamed:
        if old not in known:
            raise UnknownNameError("column", old, known, "it is a key of rename=")
    new_keys = {name: renamed.get(schema[name].key, schema[name].key) for name in names}
    check_keys(new_keys.values())
    taken = {left.collection.schema[name].key for name in left.column_names}
    if both := [key for key in new_keys.values() if key in taken]:
        raise DataError(
            f"both {left.source.label!r} and {right.source.label!r} have the columns {both}; pass "
            f"rename={{{both[0]!r}: '{both[0]}_2'}}, or select others with columns="
        )
    return new_keys


def _combined(
    left: Any, right: Any, rows: IntArray, matches: IntArray, names: Mapping[str, str]
) -> SampleCollection:
    """Return the left rows with the matching values of right columns."""
    part = left.collection.part(left._rows()[rows], left.column_names)
    table, masks = part.table, dict(part.schema.masks)
    source, source_rows = right.collection, right._rows()
    lacks = matches < 0
    descriptions: dict[str, dict[str, Any]] = {}
    for name, key in names.items():
        spec = source.schema[name]
        if lacks.any() and spec.dtype.kind != "f":
            raise DataError(
                f"column {spec.key!r} of {right.source.label!r} holds {spec.dtype}, which has no "
                "NaN for rows without a match; select float columns with columns=, or pass "
                "missing='drop'"
            )
        values = source.array(name).take(pa.array(source_rows[np.maximum(matches, 0)]))
        if lacks.any():
            filled = source.numpy(name)[source_rows[np.maximum(matches, 0)]]
            filled[lacks] = np.nan
            values = to_arrow(filled, spec.key, copy=False)
        new = f"{spec.domain}.{key}.{RAW}"
        table = table.append_column(new, values)
        descriptions[new] = {**description_of(spec), "window": None}
        if spec.mask is not None:
            masks[key] = names[str(source.schema.mask_of(name))]
    schema = with_metadata(table.schema, descriptions)
    joined: SampleCollection = part.extended(
        pa.Table.from_arrays(table.columns, schema=schema), masks
    )
    return joined
