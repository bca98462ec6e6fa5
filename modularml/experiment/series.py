"""A small query object over named axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from modularml._optional import require
from modularml.errors import DataError, UnknownNameError
from modularml.plotting import series as draw_series

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AxisSeries"]

T = TypeVar("T")
Key = tuple[Any, ...]


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
        self._axes = tuple(axes)
        self._data = dict(data)
        self._kind = kind

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
        at = self._place(axis)
        return list(dict.fromkeys(key[at] for key in self._data))

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
        wanted = [(self._place(name), _collection(value)) for name, value in axis.items()]
        found = {k: v for k, v in self._data.items() if all(k[at] in of for at, of in wanted)}
        return AxisSeries(self._axes, found, self._kind)

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
        kept = [i for i, a in enumerate(self._axes) if a not in chosen]
        data = {tuple(key[i] for i in kept): value for key, value in self._data.items()}
        return AxisSeries([self._axes[i] for i in kept], data, self._kind)

    def one(self) -> T:
        """Return the only value there is.

        Raises
        ------
        DataError
            If there is none, or more than one.
        """
        if len(self._data) != 1:
            raise DataError(
                f"one() needs exactly one value, there are {len(self._data)}; narrow it with "
                f"where({', '.join(f'{a}=...' for a in self._axes)})"
            )
        return next(iter(self._data.values()))

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
            From the values along the axis to one value.
        """
        at = self._place(axis)
        groups: dict[Key, list[T]] = {}
        for key, value in self._data.items():
            groups.setdefault(key[:at] + key[at + 1 :], []).append(value)
        reduce = reducer if callable(reducer) else _reducer(reducer)
        kept = [a for a in self._axes if a != axis]
        return AxisSeries(kept, {k: reduce(v) for k, v in groups.items()}, self._kind)

    def keys(self) -> list[Key]:
        """Return the place of every value."""
        return list(self._data)

    def values(self) -> list[T]:
        """Return every value."""
        return list(self._data.values())

    def items(self) -> list[tuple[Key, T]]:
        """Return place and value of each."""
        return list(self._data.items())

    def to_pandas(self) -> pd.DataFrame:
        """Return one row a value: a column for each axis, and ``value``."""
        rows = [(*key, value) for key, value in self._data.items()]
        frame: pd.DataFrame = require("pandas").DataFrame(rows, columns=[*self._axes, "value"])
        return frame

    def plot(self, *, x: str | None = None, title: str = "", path: Any = None) -> Any:
        """Draw the values along an axis, one line for each place on the others.

        Parameters
        ----------
        x : str, optional
            Axis to draw along; the first one where none is given.
        title : str
        path : path-like, optional
            Where to save the figure.

        Returns
        -------
        matplotlib.figure.Figure
        """
        axis = x or self._axes[0]
        at = self._place(axis)
        lines: dict[str, tuple[list[Any], list[Any]]] = {}
        for key, value in self._data.items():
            name = ", ".join(str(part) for i, part in enumerate(key) if i != at) or self._kind
            xs, ys = lines.setdefault(name, ([], []))
            xs.append(key[at])
            ys.append(getattr(value, "value", value))
        return draw_series(lines, title=title, x=axis, path=path)

    def __getitem__(self, key: Any) -> T:
        key = key if isinstance(key, tuple) else (key,)
        if key not in self._data:
            raise UnknownNameError("place", key, map(str, self._data))
        return self._data[key]

    def __iter__(self) -> Iterator[T]:
        return iter(self._data.values())

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{a}: {n}" for a, n in zip(self._axes, self.shape, strict=True))
        return f"AxisSeries({len(self)} {self._kind}; {sizes})"

    def _repr_html_(self) -> str:
        return str(self.to_pandas().head(20).to_html(index=False))

    def _place(self, axis: str) -> int:
        if axis not in self._axes:
            raise UnknownNameError("axis", axis, self._axes)
        return self._axes.index(axis)

    def _end(self, place: int, sort_by: str | None) -> T:
        if not self._data:
            raise DataError("the series is empty; there is no first or last value")
        keys = list(self._data)
        if sort_by is not None:
            at = self._place(sort_by)
            keys.sort(key=lambda key: key[at])
        return self._data[keys[place]]


def _collection(value: Any) -> Any:
    return value if isinstance(value, list | tuple | set | range) else (value,)


def _reducer(name: str) -> Callable[[list[Any]], Any]:
    known: dict[str, Callable[[list[Any]], Any]] = {
        "mean": lambda v: sum(v) / len(v),
        "sum": sum,
        "min": min,
        "max": max,
        "first": lambda v: v[0],
        "last": lambda v: v[-1],
        "list": list,
    }
    if name not in known:
        raise UnknownNameError("reducer", name, known)
    return known[name]
