"""Comparison and order of values of any dtype."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modularml._optional import require
from modularml._typing import Array
from modularml.errors import DataError


def by_meaning(name: str | None, values: Array, error: type[Exception]) -> Array:
    """Return values that sort by what they mean.

    Parameters
    ----------
    name : str or None
        Of the column, for messages; None where the caller adds it.
    values : ndarray, shape (n,)
        Not changed.
    error : type of Exception
        What is raised.

    Returns
    -------
    ndarray, shape (n,)
        Text of numbers as numbers, text of ISO 8601 dates as times in UTC; missing values are NaN
        and NaT there. Other text comes back as it is where its order is beyond doubt: it holds no
        digits, or one number each, written with as many digits, between the same words.

    Raises
    ------
    Exception
        Of the type `error`, if text holds digits in another way, such as ``13/01/2024``.
    """
    if values.dtype.kind not in "OUS":
        return values
    pandas = require("pandas")
    missing = pandas.isna(values)
    texts = [v for v in values[~missing].tolist() if isinstance(v, str)]
    plain = all(not re.search(r"\d", text) for text in texts)
    if plain or len(texts) < (~missing).sum():
        return values
    for read, options in (
        (pandas.to_numeric, {}),
        (pandas.to_datetime, {"format": "ISO8601", "utc": True}),
    ):
        try:
            found = read(pandas.Series(texts), **options)
        except (ValueError, TypeError, OverflowError):
            continue
        found = found.dt.tz_localize(None) if options else found
        if missing.any():
            found = pandas.Series(found.to_numpy(), np.flatnonzero(~missing))
            found = found.reindex(range(len(values)))
        return np.asarray(found)
    frames = {re.sub(r"\d", "0", text) for text in texts}
    if len(frames) == 1 and len(re.findall("0+", next(iter(frames)))) == 1:
        return values
    odd = next(text for text in texts if re.search(r"\d", text))
    holder = "it" if name is None else f"column {name!r}"
    raise error(
        f"{holder} holds text such as {odd!r}, whose order as text may not be the one that it "
        "means; make it numbers or dates first, such as with pandas.to_datetime(column, "
        "format='%d/%m/%Y') or pandas.to_numeric"
    )


Mask: TypeAlias = NDArray[np.bool_]

NUMBERS, TEXT, TIMES, DURATIONS, NOTHING = "numbers", "text", "times", "durations", "nothing"

KIND_OF_DTYPE = {
    **dict.fromkeys("biuf", NUMBERS),
    **dict.fromkeys("UT", TEXT),
    "M": TIMES,
    "m": DURATIONS,
    "S": "bytes",
    "c": "complex numbers",
}
KIND_OF_OBJECTS = {  # what pandas infers of an array of Python objects
    "string": TEXT,
    **dict.fromkeys(["integer", "floating", "mixed-integer-float", "boolean", "decimal"], NUMBERS),
    **dict.fromkeys(["datetime64", "datetime", "date"], TIMES),
    **dict.fromkeys(["timedelta64", "timedelta"], DURATIONS),
    "bytes": "bytes",
    "empty": NOTHING,
}


def compare(ufunc: np.ufunc, values: Array, other: object) -> Mask:
    """Compare each value of a column with one value, or with a second column.

    Parameters
    ----------
    ufunc : numpy.ufunc
        ``np.equal``, ``np.less`` and their like.
    values : ndarray, shape (n_samples,)
        A missing value equals nothing and is neither less nor greater than anything. Numbers and
        ISO 8601 dates that are held as text are in the order that they mean.
    other : object
        A value, or an ndarray of shape (n_samples,). Beside a column of times, text such as
        ``"2024-01-31T12:00"`` is read as a time; times with a zone are compared in UTC.

    Returns
    -------
    ndarray of bool, shape (n_samples,)

    Raises
    ------
    DataError
        If the two are of unlike kinds, or the samples are arrays.
    """
    left, kind = column(values)
    if isinstance(other, np.ndarray) and other.ndim:
        right, other_kind = column(other)
    else:
        right, other_kind = _single(other, kind)
    if kind == other_kind == TEXT and ufunc not in (np.equal, np.not_equal):
        texts = right if isinstance(right, np.ndarray) else np.array([right], dtype=object)
        left = by_meaning(None, left, DataError)
        kind = KIND_OF_DTYPE.get(left.dtype.kind, TEXT)
        if kind != TEXT:
            texts = by_meaning(None, texts, DataError)
            other_kind = KIND_OF_DTYPE.get(texts.dtype.kind, TEXT)
            right = texts if isinstance(right, np.ndarray) else texts[0]
    if NOTHING in (kind, other_kind):
        return np.full(len(left), ufunc is np.not_equal)
    _require_alike(kind, other_kind, other)
    if not (left.dtype.hasobject or getattr(right, "dtype", left.dtype).hasobject):
        return np.asarray(ufunc(left, right))
    if not isinstance(right, np.ndarray):
        value, right = right, np.empty((), dtype=object)
        right[()] = value  # numpy would drop NUL characters at the end of a string
    if ufunc in (np.equal, np.not_equal) and not right.ndim:
        with contextlib.suppress(TypeError):  # which pandas' NA raises
            return np.asarray(ufunc(left, right))
    present = ~is_null(left)
    if right.ndim:
        present &= ~is_null(right)
    out = np.full(len(left), ufunc is np.not_equal)
    try:
        ufunc(left, right, out=out, where=present, dtype=object, casting="unsafe")
    except TypeError as error:
        raise DataError(f"its values cannot be compared as asked: {error}") from error
    return out


def member(values: Array, items: Iterable[Any]) -> Mask:
    """Tell which values of a column are among some items.

    Parameters
    ----------
    values : ndarray, shape (n_samples,)
        A missing value is among no items.
    items : iterable
        Values of the column's kind. May be empty.

    Returns
    -------
    ndarray of bool, shape (n_samples,)

    Raises
    ------
    DataError
        If an item is of another kind than the column, or the samples are arrays.
    """
    left, kind = column(values)
    pool = []
    for item in items:
        value, item_kind = _single(item, kind)
        _require_alike(kind, item_kind, item)
        pool.append(value)
    if kind == NOTHING or not pool:
        return np.zeros(len(left), dtype=bool)
    if left.dtype.kind in "OUT":  # numpy would sort or loop, pandas hashes
        found = require("pandas").Series(left, dtype=object).isin(pool).to_numpy(dtype=bool)
        return np.asarray(found & ~is_null(left))
    if left.dtype.kind == "f":
        return np.isin(left, np.array([float(value) for value in pool]).astype(left.dtype))
    if left.dtype.kind in "iu":
        bounds = np.iinfo(left.dtype)
        whole = [int(value) for value in pool if value == value // 1]
        return np.isin(
            left, np.array([v for v in whole if bounds.min <= v <= bounds.max], left.dtype)
        )
    return np.isin(left, np.array(pool))


def column(values: Array) -> tuple[Array, str]:
    """Return a column in a form that numpy compares, and the kind of what it holds.

    Raises
    ------
    DataError
        If the samples are arrays.
    """
    if values.ndim != 1:
        raise DataError(
            f"each sample is an array of shape {values.shape[1:]}, and this condition is about "
            "single values; give a callable that takes the whole array and returns one truth "
            f"value a row, such as lambda v: v.max(axis={tuple(range(1, values.ndim))}) > 3"
        )
    if not values.dtype.hasobject or values.dtype.kind == "T":
        return values, KIND_OF_DTYPE.get(values.dtype.kind, str(values.dtype))
    pandas = require("pandas")
    kind = KIND_OF_OBJECTS.get(pandas.api.types.infer_dtype(values, skipna=True), "objects")
    if kind == TIMES:
        return pandas.to_datetime(values, utc=True).tz_localize(None).to_numpy(), kind
    if kind == DURATIONS:
        return pandas.to_timedelta(values).to_numpy(), kind
    return values, kind


def is_null(values: Array) -> Mask:
    """Tell which values of a column are NaN, NaT or None."""
    if values.dtype.kind in "fc":
        return np.isnan(values)
    if values.dtype.kind in "mM":
        return np.isnat(values)
    if values.dtype.kind in "OT":
        return np.asarray(require("pandas").isna(values.astype(object)))
    return np.zeros(len(values), dtype=bool)


def is_missing(value: Any) -> bool:
    """Tell whether one value is None, NaN, NaT or pandas' NA."""
    if value is None or type(value).__name__ == "NAType":
        return True
    return np.ndim(value) == 0 and bool(value != value)  # noqa: PLR0124


def _single(value: Any, beside: str) -> tuple[Any, str]:
    """Return one value in a form that numpy compares, and its kind."""
    if isinstance(value, np.ndarray):
        value = value[()]
    if isinstance(value, dt.date | np.datetime64):
        return _as_time(value), TIMES
    if isinstance(value, dt.timedelta):
        return np.timedelta64(value), DURATIONS
    if isinstance(value, np.floating):  # no wider than the column, as Python's floats are
        value = float(value)
    if isinstance(value, int | Decimal):
        return value, NUMBERS
    if isinstance(value, str) and beside == TIMES:
        return _as_time(value), TIMES
    kind = np.asarray(value).dtype.kind if np.ndim(value) == 0 else "O"
    return value, KIND_OF_DTYPE.get(kind, type(value).__name__)


def _as_time(value: str | dt.date | np.datetime64) -> np.datetime64:
    if isinstance(value, str) and re.search(r"[0-9](?:Z|[+-][0-9]{2}:?[0-9]{2})$", value[10:]):
        value = dt.datetime.fromisoformat(value)
    if isinstance(value, dt.datetime) and value.tzinfo is not None:
        value = value.astimezone(dt.UTC).replace(tzinfo=None)
    try:
        return np.datetime64(value)
    except ValueError as error:
        raise DataError(f"{value!r} is no time; write it like '2024-01-31T12:00'") from error


def _require_alike(kind: str, other_kind: str, other: object) -> None:
    if kind != other_kind and NOTHING != kind != "objects":
        what = "a column" if isinstance(other, np.ndarray) and other.ndim else repr(other)
        raise DataError(
            f"it holds {kind} and cannot be compared with {what} ({other_kind}); "
            f"compare {kind} with {kind}"
        )
