"""Predicates on one column, and evaluation of conditions."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal, cast

import numpy as np

from modularml._typing import Array
from modularml.errors import ConfigError, DataError
from modularml.predicates.base import Predicate
from modularml.predicates.value_order import (
    Mask,
    by_meaning,
    column,
    compare,
    is_missing,
    is_null,
    member,
)


class _Comparison(Predicate):
    """A column compared with one value."""

    _ufunc: ClassVar[np.ufunc]

    def __init__(self, value: Any) -> None:
        _require_single(type(self).__name__, value)
        self.value = value

    def __call__(self, values: Array) -> Mask:
        """Compare each row with the value."""
        return compare(self._ufunc, values, self.value)


class EQ(_Comparison):
    """Hold where a value equals the given one; a missing value equals nothing.

    Examples
    --------
    >>> import numpy as np
    >>> EQ(2)(np.array([1, 2, 3])).tolist()
    [False, True, False]
    """

    _ufunc = np.equal


class NE(_Comparison):
    """Hold where a value differs from the given one, or is missing.

    Examples
    --------
    >>> import numpy as np
    >>> NE(2)(np.array([1, 2, 3])).tolist()
    [True, False, True]
    """

    _ufunc = np.not_equal


class LT(_Comparison):
    """Hold where a value is less than the given one.

    Examples
    --------
    >>> import numpy as np
    >>> LT(2)(np.array([1, 2, 3])).tolist()
    [True, False, False]
    """

    _ufunc = np.less


class LTE(_Comparison):
    """Hold where a value is at most the given one.

    Examples
    --------
    >>> import numpy as np
    >>> LTE(2)(np.array([1, 2, 3])).tolist()
    [True, True, False]
    """

    _ufunc = np.less_equal


class GT(_Comparison):
    """Hold where a value is greater than the given one.

    Examples
    --------
    >>> import numpy as np
    >>> GT(2)(np.array([1, 2, 3])).tolist()
    [False, False, True]
    """

    _ufunc = np.greater


class GTE(_Comparison):
    """Hold where a value is at least the given one.

    Examples
    --------
    >>> import numpy as np
    >>> GTE(2)(np.array([1, 2, 3])).tolist()
    [False, True, True]
    """

    _ufunc = np.greater_equal


class In(Predicate):
    """Hold where a value is among the given ones.

    Parameters
    ----------
    values : list, tuple, set or ndarray
        Values of the column's kind, none of them missing. May be empty.

    Examples
    --------
    >>> import numpy as np
    >>> In([1, 3])(np.array([1, 2, 3])).tolist()
    [True, False, True]
    """

    def __init__(self, values: Collection[Any]) -> None:
        if not _is_collection(values):
            raise ConfigError(
                f"{type(self).__name__} takes a list, tuple, set or array, got {values!r}; "
                "for one value use EQ or NE"
            )
        if any(map(is_missing, values)):
            raise ConfigError(
                f"{type(self).__name__} got a missing value among {values!r}; a missing value "
                "equals nothing, so leave it out and add `| IsNull()`"
            )
        self.values = values

    def __call__(self, values: Array) -> Mask:
        """Tell which rows are among the values."""
        return member(values, self.values)


class NotIn(In):
    """Hold where a value is not among the given ones, or is missing.

    Parameters
    ----------
    values : list, tuple, set or ndarray
        Values of the column's kind, none of them missing. May be empty.

    Examples
    --------
    >>> import numpy as np
    >>> NotIn([1, 3])(np.array([1, 2, 3])).tolist()
    [False, True, False]
    """

    def __call__(self, values: Array) -> Mask:
        """Tell which rows are not among the values."""
        return ~super().__call__(values)


class Between(Predicate):
    """Hold where a value lies between two bounds.

    Parameters
    ----------
    low, high : object
        Bounds in the column's unit, ``low`` not above ``high``.
    inclusive : {"both", "left", "right", "neither"}
        Which of the bounds belong to the range.

    Examples
    --------
    >>> import numpy as np
    >>> Between(2, 3)(np.array([1, 2, 3])).tolist()
    [False, True, True]
    """

    def __init__(
        self, low: Any, high: Any, inclusive: Literal["both", "left", "right", "neither"] = "both"
    ) -> None:
        _require_single("Between", low)
        _require_single("Between", high)
        first, last = low, high
        if isinstance(low, str) and isinstance(high, str):
            first, last = by_meaning(None, np.array([low, high], dtype=object), ConfigError)
        if type(first) is type(last) and first > last:
            raise ConfigError(f"low must not be above high, got low={low!r}, high={high!r}")
        self.low, self.high, self.inclusive = low, high, inclusive

    def __call__(self, values: Array) -> Mask:
        """Tell which rows lie between the bounds."""
        above = np.greater_equal if self.inclusive in ("both", "left") else np.greater
        below = np.less_equal if self.inclusive in ("both", "right") else np.less
        return compare(above, values, self.low) & compare(below, values, self.high)


class IsNull(Predicate):
    """Hold where a value is NaN, NaT or None.

    Examples
    --------
    >>> import numpy as np
    >>> IsNull()(np.array([1.0, np.nan, 3.0])).tolist()
    [False, True, False]
    """

    def __call__(self, values: Array) -> Mask:
        """Tell which rows are missing."""
        return is_null(column(values)[0])


def matches(condition: object, values: Array, *, column: str) -> Mask:
    """Tell which rows of a column meet a condition of any kind.

    Parameters
    ----------
    condition : Predicate, callable, collection or value
        A predicate or callable gets the whole column. A list, tuple, set or array means
        membership, any other value equality.
    values : ndarray, shape (n_samples, *shape)
        The column, one value (or array) a sample. Is not changed. May be empty.
    column : str
        Its name, for messages.

    Returns
    -------
    ndarray of bool, shape (n_samples,)

    Raises
    ------
    DataError
        If the condition does not suit the column, fails on it, or gives anything but one truth
        value a row; the message names the column.
    ConfigError
        If the condition itself makes no sense (a dict, None).

    Examples
    --------
    >>> import numpy as np
    >>> matches(["a", "b"], np.array(["a", "c", "b"]), column="cell").tolist()
    [True, False, True]
    """
    values = np.asarray(values)
    try:
        rule: Any = condition
        if not callable(rule):
            is_mask = np.ndim(rule) and np.asarray(rule).dtype.kind == "b" != values.dtype.kind
            if not _is_collection(rule):
                rule = EQ(rule)
            elif is_mask:
                raise ConfigError(
                    "an array of bool is read as a collection of values, not as a mask; "
                    "to take rows by a mask use take(np.flatnonzero(mask))"
                )
            else:
                rule = In(rule)
        mask = np.asarray(rule(values))
    except (DataError, ConfigError) as error:
        raise type(error)(f"column {column!r}: {error}") from error
    except Exception as error:
        raise DataError(
            f"column {column!r}: the condition {condition!r} failed on its array of shape "
            f"{values.shape} ({values.dtype}): {type(error).__name__}: {error}"
        ) from error
    if mask.dtype != bool or mask.shape != (len(values),):
        raise DataError(
            f"column {column!r}: the condition {condition!r} must give one truth value a row "
            f"(bool, shape ({len(values)},)), got {mask.dtype} of shape {mask.shape}"
        )
    return mask


def has_naive_times(condition: object) -> bool:
    """Tell whether a condition, or a predicate within, speaks of a time without a time zone."""
    if isinstance(condition, Predicate):
        return any(map(has_naive_times, vars(condition).values()))
    if isinstance(condition, str):
        try:
            condition = dt.datetime.fromisoformat(condition)
        except ValueError:
            return False
    if isinstance(condition, dt.datetime):
        return condition.tzinfo is None
    if _is_collection(condition):
        return any(map(has_naive_times, cast("Collection[Any]", condition)))
    return isinstance(condition, dt.date | np.datetime64)


def _is_collection(value: object) -> bool:
    if isinstance(value, str | bytes | Mapping):
        return False
    return np.ndim(value) > 0 if hasattr(value, "__array__") else isinstance(value, Collection)


def _require_single(where: str, value: object) -> None:
    if isinstance(value, Mapping):
        raise ConfigError(f"{where} takes one value, got a mapping: {value!r}")
    if _is_collection(value):
        raise ConfigError(f"{where} takes one value, got {value!r}; for several use In or NotIn")
    if is_missing(value):
        raise ConfigError(
            f"{where}({value!r}) would never hold, as a missing value equals nothing; use IsNull()"
        )
