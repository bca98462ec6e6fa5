"""Series of values over named axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, Self, TypeVar

import numpy as np
import pandas as pd

from modularml._typing import Array, IntArray
from modularml.errors import DataError, UnknownNameError
from modularml.viz.curves import series as draw_series

T = TypeVar("T")
Key = tuple[Any, ...]


class Number(float):
    """A float that has its value as an attribute, too, as the records have that it was made of.

    Reduced losses also have `trainable` and `auxiliary`, reduced in the same way.
    """

    trainable: float
    auxiliary: float

    @property
    def value(self) -> float:
        """The number itself."""
        return float(self)


class Values(Generic[T]):
    """Values that are computed on access.

    Parameters
    ----------
    make : callable
        Maps positions (ndarray of int) to a list of values.
    places : ndarray of int64, shape (n,)
        Positions of the values.
    numbers : ndarray, optional
        All values as numbers, if they are numbers.
    parts : mapping of str to ndarray, optional
        Numbers beside them, reduced with them: attributes of the reduced value.
    """

    def __init__(
        self,
        make: Callable[[IntArray], list[T]],
        places: IntArray,
        numbers: Array | None = None,
        parts: Mapping[str, Array] | None = None,
    ) -> None:
        self._make, self._places, self._numbers = make, places, numbers
        self._parts = parts or {}

    @classmethod
    def of(cls, values: Iterable[T]) -> Values[T]:
        """Wrap existing values."""
        stored = np.fromiter(values, dtype=object)
        return cls(lambda places: stored[places].tolist(), np.arange(len(stored)))

    def take(self, rows: Any) -> Values[T]:
        """Return a selection of the values."""
        return Values(self._make, self._places[rows], self._numbers, self._parts)

    def tolist(self) -> list[T]:
        """Return all values."""
        return self._make(self._places)

    @property
    def numbers(self) -> Array | None:
        """All values as numbers; None if one is not a number."""
        if self._numbers is not None:
            return np.asarray(self._numbers[self._places])
        numbers = [getattr(value, "value", value) for value in self.tolist()]
        if all(isinstance(v, int | float | np.number) for v in numbers):
            return np.array(numbers)
        return None

    @property
    def parts(self) -> dict[str, Array]:
        """Parts of the values as numbers, by name; empty unless the values are losses."""
        if self._numbers is not None:
            return {name: part[self._places] for name, part in self._parts.items()}
        values: list[Any] = self.tolist()
        if not values or not all(hasattr(value, "trainable") for value in values):
            return {}
        return {n: np.array([getattr(v, n) for v in values]) for n in ("trainable", "auxiliary")}

    def __len__(self) -> int:
        return len(self._places)


class AxisSeries(Generic[T]):
    """Values over named axes, such as (epoch, batch, label).

    Parameters
    ----------
    axes : iterable of str
    data : mapping of tuple to value
        One key element per axis, in the order of `axes`.
    kind : str
        Name of the values, for ``repr``.

    Examples
    --------
    >>> series = AxisSeries(("epoch", "name"), {(0, "a"): 1.0, (1, "a"): 0.5})
    >>> series.where(epoch=1).one()
    0.5
    """

    def __init__(self, axes: Iterable[str], data: Mapping[Key, T], kind: str = "values") -> None:
        self._axes, self._kind = tuple(axes), kind
        keys = list(data)
        self._columns = [_column([key[i] for key in keys]) for i in range(len(self._axes))]
        self._values: Values[T] = Values.of(data.values())
        self._short: Mapping[str, Mapping[str, str]] = {}

    @classmethod
    def from_columns(
        cls, columns: Mapping[str, Array], values: Values[T], kind: str = "values"
    ) -> Self:
        """Create a series from one column per axis; rows must be distinct."""
        new = cls(columns, {}, kind)
        new._columns, new._values = list(columns.values()), values
        return new

    def known_as(self, short: Mapping[str, Mapping[str, str]]) -> Self:
        """Let values on axes be selected by short names, too, which this returns the series with.

        Parameters
        ----------
        short : mapping of str to mapping of str to str
            For an axis, values by short name. A value that is equal to a short name comes first.
        """
        self._short = short
        return self

    @property
    def short_names(self) -> Mapping[str, Mapping[str, str]]:
        """Short names of values on axes; see `known_as`."""
        return self._short

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes."""
        return self._axes

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of distinct values on each axis."""
        return tuple(len(self.axis_values(axis)) for axis in self._axes)

    def axis_values(self, axis: str) -> list[Any]:
        """Return the distinct values on an axis, in order of appearance."""
        return list(dict.fromkeys(self._columns[self._axis_index(axis)].tolist()))

    def axes_values(self) -> dict[str, list[Any]]:
        """Return the distinct values on every axis."""
        return {axis: self.axis_values(axis) for axis in self._axes}

    def where(self, **axis: Any) -> AxisSeries[T]:
        """Select by values on axes, each one value or several; keep the axes.

        Raises
        ------
        UnknownNameError
            If there is no such axis.
        """
        selected = np.ones(len(self), dtype=bool)
        for name, selection in axis.items():
            column = self._columns[self._axis_index(name)]
            several = isinstance(selection, list | tuple | set | range)
            values: list[Any] = list(selection) if several else [selection]
            if short := self._short.get(name):
                known = set(self.axis_values(name))
                values = [v if v in known else short.get(v, v) for v in values]
            if column.dtype == object:
                matches: Any = (key in values for key in column)
                selected &= np.fromiter(matches, dtype=bool, count=len(column))
                continue
            numbers: list[Any] = [v for v in values if isinstance(v, int | float | np.number)]
            selected &= column == numbers[0] if len(numbers) == 1 else np.isin(column, numbers)
        return self._take(np.flatnonzero(selected))

    def at(self, **axis: Any) -> T:
        """Return the single value at a position.

        Raises
        ------
        DataError
            If there is none, or more than one.
        """
        return self.where(**axis).one()

    def select(self, **axis: Any) -> AxisSeries[T]:
        """Select one value on each of some axes, and drop these axes."""
        return self.where(**axis).squeeze(*axis)

    def squeeze(self, *axes: str) -> AxisSeries[T]:
        """Drop axes with a single value: those named, or all such axes."""
        chosen = axes or tuple(a for a in self._axes if len(self.axis_values(a)) == 1)
        for axis in chosen:
            if len(self.axis_values(axis)) > 1:
                raise DataError(
                    f"axis {axis!r} has {len(self.axis_values(axis))} values; choose one with "
                    "where()"
                )
        remaining = {a: c for a, c in self._named().items() if a not in chosen}
        return self.from_columns(remaining, self._values, self._kind).known_as(self._short)

    def one(self) -> T:
        """Return the only value.

        Raises
        ------
        DataError
            If there is none, or more than one.
        """
        if not len(self):
            raise DataError(
                "one() needs exactly one value, and the series is empty: nothing matched. See "
                "axes_values() of the series that it was selected from"
            )
        if len(self) != 1:
            raise DataError(
                f"one() needs exactly one value, there are {len(self)}; narrow it with "
                f"where({', '.join(f'{a}=...' for a in self._axes)})"
            )
        return self.values()[0]

    def first(self, sort_by: str | None = None) -> T:
        """Return the first value, in order of appearance or along an axis."""
        return self._end(0, sort_by)

    def last(self, sort_by: str | None = None) -> T:
        """Return the last value, in order of appearance or along an axis."""
        return self._end(-1, sort_by)

    def collapse(
        self, axis: str, reducer: str | Callable[[list[T]], Any] = "mean"
    ) -> AxisSeries[Any]:
        """Reduce over an axis.

        Parameters
        ----------
        axis : str
        reducer : {'mean', 'sum', 'min', 'max', 'first', 'last', 'list'} or callable
            Maps the values along the axis to one value; for losses, ``mean``, ``sum``, ``min``
            and ``max`` reduce the numbers, and their trainable and auxiliary parts.
        """
        self._axis_index(axis)
        remaining = {a: c for a, c in self._named().items() if a != axis}
        codes = np.zeros(len(self), dtype=np.int64)  # of equal keys, by first appearance
        for column in remaining.values():
            own = pd.factorize(column, use_na_sentinel=False)[0]
            codes = pd.factorize(codes * (own.max(initial=0) + 1) + own)[0]
        order = np.argsort(codes, kind="stable")
        starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
        columns = {a: c[order[starts]] for a, c in remaining.items()}
        reduced = _reduce(self._values.take(order), starts, reducer)
        return self.from_columns(columns, reduced, self._kind).known_as(self._short)

    def keys(self) -> list[Key]:
        """Return the key of every value."""
        if not self._columns:
            return [()] * len(self)
        return list(zip(*(column.tolist() for column in self._columns), strict=True))

    def values(self) -> list[T]:
        """Return every value."""
        return self._values.tolist()

    def items(self) -> list[tuple[Key, T]]:
        """Return the key and value pairs."""
        return list(zip(self.keys(), self.values(), strict=True))

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per value: a column per axis, and ``value`` (loss numbers)."""
        numbers = self._values.numbers
        value = np.fromiter(self.values(), dtype=object) if numbers is None else numbers
        return pd.DataFrame({**self._named(), "value": value})

    def plot(self, *, x: str | None = None, title: str = "", path: Any = None) -> Any:
        """Plot the values along an axis, one line per combination of the others.

        Parameters
        ----------
        x : str, optional
            Axis to plot along; by default ``epoch`` or ``batch`` if they have several values,
            else the first axis.
        title : str
        path : path-like, optional
            Where to save the figure.

        Returns
        -------
        matplotlib.figure.Figure
        """
        candidates = [
            a for a in ("epoch", "batch") if a in self._axes and len(self.axis_values(a)) > 1
        ]
        axis = x or [*candidates, *self._axes][0]
        i = self._axis_index(axis)
        lines: dict[str, tuple[list[Any], list[Any]]] = {}
        for key, value in self.items():
            named = [(a, part) for a, part in zip(self._axes, key, strict=True) if a != axis]
            parts = [p if isinstance(p, str) else f"{a} {p}" for a, p in named if p is not None]
            xs, ys = lines.setdefault(", ".join(parts) or self._kind, ([], []))
            xs.append(key[i])
            ys.append(getattr(value, "value", value))
        return draw_series(lines, title=title, x=axis, path=path)

    def __getitem__(self, key: Any) -> T:
        key = key if isinstance(key, tuple) else (key,)
        selected = self.where(**dict(zip(self._axes, ([k] for k in key), strict=False)))
        if len(key) != len(self._axes) or not len(selected):
            raise UnknownNameError("place", key, map(str, self.keys()[:100]))
        return selected.one()

    def __iter__(self) -> Iterator[T]:
        return iter(self.values())

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{a}: {n}" for a, n in zip(self._axes, self.shape, strict=True))
        return f"AxisSeries({len(self)} {self._kind}; {sizes})"

    def _repr_html_(self) -> str:
        return str(self._take(np.arange(min(20, len(self)))).to_pandas().to_html(index=False))

    def _named(self) -> dict[str, Array]:
        return dict(zip(self._axes, self._columns, strict=True))

    def _take(self, rows: IntArray) -> AxisSeries[T]:
        columns = {a: c[rows] for a, c in self._named().items()}
        taken = self.from_columns(columns, self._values.take(rows), self._kind)
        return taken.known_as(self._short)

    def _axis_index(self, axis: str) -> int:
        if axis not in self._axes:
            raise UnknownNameError("axis", axis, self._axes)
        return self._axes.index(axis)

    def _end(self, i: int, sort_by: str | None) -> T:
        if not len(self):
            raise DataError("the series is empty; there is no first or last value")
        if sort_by is not None:
            column = self._columns[self._axis_index(sort_by)]
            i = int(np.argsort(column, kind="stable")[i])
        return self._values.take([i]).tolist()[0]


def _column(keys: list[Any]) -> Array:
    if keys and all(type(key) is int for key in keys):
        return np.array(keys, dtype=np.int64)
    return np.fromiter(keys, dtype=object)


_UFUNCS = {"mean": np.add, "sum": np.add, "min": np.minimum, "max": np.maximum}
_REDUCERS: dict[str, Callable[[list[Any]], Any]] = {
    "mean": lambda v: sum(v) / len(v),
    "sum": sum,
    "min": min,
    "max": max,
    "first": lambda v: v[0],
    "last": lambda v: v[-1],
    "list": list,
}


def _reduce(values: Values[Any], starts: IntArray, reducer: Any) -> Values[Any]:
    """Reduce each group of values to one."""
    if not callable(reducer) and reducer not in _REDUCERS:
        raise UnknownNameError("reducer", reducer, _REDUCERS)
    numbers = values.numbers if not callable(reducer) and reducer in _UFUNCS else None
    if numbers is not None and len(starts):
        by_part = {"": numbers, **values.parts}
        reduced = {n: _UFUNCS[reducer].reduceat(part, starts) for n, part in by_part.items()}
        if reducer == "mean":
            counts = np.diff(starts, append=len(numbers))
            reduced = {name: part / counts for name, part in reduced.items()}
        return Values.of(_numbers(*(part.tolist() for part in reduced.values())))
    reduce = reducer if callable(reducer) else _REDUCERS[reducer]
    all_values = values.tolist()
    ends = [*starts[1:], len(all_values)]
    return Values.of(reduce(all_values[a:b]) for a, b in zip(starts, ends, strict=True))


def _numbers(values: list[Any], *parts: list[float]) -> list[Any]:
    """Return floats with their value, and the parts of losses, as attributes; integers stay."""
    numbers = [Number(value) if isinstance(value, float) else value for value in values]
    for number, *of_loss in zip(numbers, *parts, strict=True) if parts else ():
        number.trainable, number.auxiliary = of_loss
    return numbers
