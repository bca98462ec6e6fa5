"""A small query object over named axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.errors import DataError, UnknownNameError
from modularml.viz.curves import series as draw_series

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AxisSeries", "Values"]

T = TypeVar("T")
Key = tuple[Any, ...]


class Values(Sequence[T]):
    """Values that are made when somebody asks for them.

    Parameters
    ----------
    make : callable
        From places (ndarray of int) to a list of values.
    places : ndarray of int64, shape (n,)
    numbers : ndarray, optional
        The value of each place as a number, where it is one.
    """

    def __init__(
        self, make: Callable[[IntArray], list[T]], places: IntArray, numbers: Array | None = None
    ) -> None:
        self._make, self._places, self._numbers = make, places, numbers

    @classmethod
    def of(cls, values: Iterable[T]) -> Values[T]:
        """Hold values that are there already."""
        held = np.fromiter(values, dtype=object)
        return cls(lambda places: held[places].tolist(), np.arange(len(held)))

    def take(self, rows: Any) -> Values[T]:
        """Return some of them."""
        return Values(self._make, self._places[rows], self._numbers)

    def tolist(self) -> list[T]:
        """Return all of them."""
        return self._make(self._places)

    @property
    def numbers(self) -> Array | None:
        """All of them as numbers; None where one is not."""
        if self._numbers is not None:
            return np.asarray(self._numbers[self._places])
        found = [getattr(value, "value", value) for value in self]
        if all(isinstance(v, int | float | np.number) for v in found):
            return np.array(found)
        return None

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Values[T]: ...
    def __getitem__(self, place: int | slice) -> T | Values[T]:
        if isinstance(place, slice):
            return self.take(place)
        return self._make(self._places[[place]])[0]

    def __iter__(self) -> Iterator[T]:
        return iter(self.tolist())


class AxisSeries(Generic[T]):
    """Values by place on named axes, such as (epoch, batch, label).

    Parameters
    ----------
    axes : iterable of str
    data : mapping of tuple to value
        One key element an axis, in the order of `axes`.
    kind : str
        What a value is, for ``repr``.

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

    @classmethod
    def from_columns(
        cls, columns: Mapping[str, Array], values: Values[T], kind: str = "values"
    ) -> Self:
        """Make one of a column for each axis, no two rows of them alike."""
        new = cls(columns, {}, kind)
        new._columns, new._values = list(columns.values()), values
        return new

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes."""
        return self._axes

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of distinct places on each axis."""
        return tuple(len(self.axis_values(axis)) for axis in self._axes)

    def axis_values(self, axis: str) -> list[Any]:
        """Return the distinct places on an axis, in order of appearance."""
        return list(dict.fromkeys(self._columns[self._place(axis)].tolist()))

    def axes_values(self) -> dict[str, list[Any]]:
        """Return the distinct places on every axis."""
        return {axis: self.axis_values(axis) for axis in self._axes}

    def where(self, **axis: Any) -> AxisSeries[T]:
        """Return the part where axes have these values, or one of them; the axes stay.

        Raises
        ------
        UnknownNameError
            If there is no such axis.
        """
        found = np.ones(len(self), dtype=bool)
        for name, wanted in axis.items():
            found &= _is_in(self._columns[self._place(name)], wanted)
        return self._take(np.flatnonzero(found))

    def at(self, **axis: Any) -> T:
        """Return the one value at this place.

        Raises
        ------
        DataError
            If there is none, or more than one.
        """
        return self.where(**axis).one()

    def select(self, **axis: Any) -> AxisSeries[T]:
        """Return the part where axes have one value each, without these axes."""
        return self.where(**axis).squeeze(*axis)

    def squeeze(self, *axes: str) -> AxisSeries[T]:
        """Drop axes with one place: those named, or all such axes."""
        chosen = axes or tuple(a for a in self._axes if len(self.axis_values(a)) == 1)
        for axis in chosen:
            if len(self.axis_values(axis)) > 1:
                raise DataError(
                    f"axis {axis!r} has {len(self.axis_values(axis))} places; choose one with "
                    "where()"
                )
        kept = {a: c for a, c in self._named().items() if a not in chosen}
        return self.from_columns(kept, self._values, self._kind)

    def one(self) -> T:
        """Return the only value there is.

        Raises
        ------
        DataError
            If there is none, or more than one.
        """
        if len(self) != 1:
            raise DataError(
                f"one() needs exactly one value, there are {len(self)}; narrow it with "
                f"where({', '.join(f'{a}=...' for a in self._axes)})"
            )
        return self._values[0]

    def first(self, sort_by: str | None = None) -> T:
        """Return the first value, in order of appearance or along an axis."""
        return self._end(0, sort_by)

    def last(self, sort_by: str | None = None) -> T:
        """Return the last value, in order of appearance or along an axis."""
        return self._end(-1, sort_by)

    def collapse(
        self, axis: str, reducer: str | Callable[[list[T]], Any] = "mean"
    ) -> AxisSeries[Any]:
        """Reduce an axis away.

        Parameters
        ----------
        axis : str
        reducer : {'mean', 'sum', 'min', 'max', 'first', 'last', 'list'} or callable
            From the values along the axis to one value; of losses, ``mean``, ``sum``, ``min``
            and ``max`` reduce the numbers.
        """
        self._place(axis)
        kept = {a: c for a, c in self._named().items() if a != axis}
        order, starts = _runs(list(kept.values()), len(self))
        columns = {a: c[order[starts]] for a, c in kept.items()}
        values = self._values.take(order)
        reduced = _reduce(values, starts, reducer)
        return self.from_columns(columns, reduced, self._kind)

    def keys(self) -> list[Key]:
        """Return the place of every value."""
        if not self._columns:
            return [()] * len(self)
        return list(zip(*(column.tolist() for column in self._columns), strict=True))

    def values(self) -> list[T]:
        """Return every value."""
        return self._values.tolist()

    def items(self) -> list[tuple[Key, T]]:
        """Return place and value of each."""
        return list(zip(self.keys(), self.values(), strict=True))

    def to_pandas(self) -> pd.DataFrame:
        """Return one row a value: a column for each axis, and ``value`` (a number, of losses)."""
        numbers = self._values.numbers
        value = np.fromiter(self._values, dtype=object) if numbers is None else numbers
        frame: pd.DataFrame = require("pandas").DataFrame({**self._named(), "value": value})
        return frame

    def plot(self, *, x: str | None = None, title: str = "", path: Any = None) -> Any:
        """Draw the values along an axis, one line for each place on the others.

        Parameters
        ----------
        x : str, optional
            Axis to draw along; ``epoch`` or ``batch``, where they have several places, or else
            the first one, where none is given.
        title : str
        path : path-like, optional
            Where to save the figure.

        Returns
        -------
        matplotlib.figure.Figure
        """
        long = [a for a in ("epoch", "batch") if a in self._axes and len(self.axis_values(a)) > 1]
        axis = x or [*long, *self._axes][0]
        at = self._place(axis)
        lines: dict[str, tuple[list[Any], list[Any]]] = {}
        for key, value in self.items():
            named = [(a, part) for a, part in zip(self._axes, key, strict=True) if a != axis]
            parts = [p if isinstance(p, str) else f"{a} {p}" for a, p in named if p is not None]
            xs, ys = lines.setdefault(", ".join(parts) or self._kind, ([], []))
            xs.append(key[at])
            ys.append(getattr(value, "value", value))
        return draw_series(lines, title=title, x=axis, path=path)

    def __getitem__(self, key: Any) -> T:
        key = key if isinstance(key, tuple) else (key,)
        found = self.where(**dict(zip(self._axes, ([k] for k in key), strict=False)))
        if len(key) != len(self._axes) or not len(found):
            raise UnknownNameError("place", key, map(str, self.keys()[:100]))
        return found.one()

    def __iter__(self) -> Iterator[T]:
        return iter(self._values)

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
        return self.from_columns(columns, self._values.take(rows), self._kind)

    def _place(self, axis: str) -> int:
        if axis not in self._axes:
            raise UnknownNameError("axis", axis, self._axes)
        return self._axes.index(axis)

    def _end(self, place: int, sort_by: str | None) -> T:
        if not len(self):
            raise DataError("the series is empty; there is no first or last value")
        if sort_by is not None:
            column = self._columns[self._place(sort_by)]
            place = int(np.argsort(column, kind="stable")[place])
        return self._values[place if place >= 0 else len(self) - 1]


def _column(places: list[Any]) -> Array:
    if places and all(type(place) is int for place in places):
        return np.array(places, dtype=np.int64)
    return np.fromiter(places, dtype=object)


def _is_in(column: Array, wanted: Any) -> Any:
    among = wanted if isinstance(wanted, list | tuple | set | range) else (wanted,)
    if column.dtype == object:
        return np.fromiter((place in among for place in column), dtype=bool, count=len(column))
    numbers: list[Any] = [w for w in among if isinstance(w, int | float | np.number)]
    return np.isin(column, numbers)


def _runs(columns: list[Array], n: int) -> tuple[IntArray, IntArray]:
    """Return an order that puts rows with equal places side by side, and where runs start.

    Runs follow one another in order of appearance.
    """
    codes = np.zeros(n, dtype=np.int64)
    for column in columns:
        own = require("pandas").factorize(column, use_na_sentinel=False)[0]
        codes = require("pandas").factorize(codes * (own.max(initial=0) + 1) + own)[0]
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    return order, starts


_UFUNCS = {"mean": np.add, "sum": np.add, "min": np.minimum, "max": np.maximum}
_PICKS: dict[str, Callable[[list[Any]], Any]] = {
    "mean": lambda v: sum(v) / len(v),
    "sum": sum,
    "min": min,
    "max": max,
    "first": lambda v: v[0],
    "last": lambda v: v[-1],
    "list": list,
}


def _reduce(values: Values[Any], starts: IntArray, reducer: Any) -> Values[Any]:
    """Reduce each run of values to one."""
    if not callable(reducer) and reducer not in _PICKS:
        raise UnknownNameError("reducer", reducer, _PICKS)
    numbers = values.numbers if not callable(reducer) and reducer in _UFUNCS else None
    if numbers is not None and len(starts):
        reduced = _UFUNCS[reducer].reduceat(numbers, starts)
        if reducer == "mean":
            reduced = reduced / np.diff(starts, append=len(numbers))
        return Values.of(reduced.tolist())
    reduce = reducer if callable(reducer) else _PICKS[reducer]
    every = values.tolist()
    ends = [*starts[1:], len(every)]
    return Values.of(reduce(every[a:b]) for a, b in zip(starts, ends, strict=True))
