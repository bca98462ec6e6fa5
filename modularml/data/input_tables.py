"""Columns by name of tables from any library, read lazily."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import filter as matching
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from modularml._optional import loaded, require
from modularml.data.arrow_columns import to_arrow
from modularml.data.arrow_types import to_numpy
from modularml.data.formats import stack
from modularml.data.selectors import as_list
from modularml.data.table_files import natural
from modularml.errors import DataError, UnknownNameError, expect

Rename: TypeAlias = Mapping[Any, str] | Callable[[Any], str] | None
Stack: TypeAlias = Mapping[str, str | Sequence[str]] | None


class TableColumns(Mapping[str, Any]):
    """Columns of a table by name, read on access.

    Parameters
    ----------
    names : sequence of str
        In order; a repeated name must not be selected.
    read : callable
        Returns the column at a position.
    n_rows : int, optional
        Length of all columns, if they have one length.
    """

    def __init__(
        self, names: Sequence[str], read: Callable[[int], Any], n_rows: int | None = None
    ) -> None:
        self.names, self._read, self.n_rows = list(names), read, n_rows
        self._places: dict[str, int] = {}
        self._repeated: set[str] = set()
        for place, name in enumerate(self.names):
            if self._places.setdefault(name, place) != place:
                self._repeated.add(name)

    def __getitem__(self, name: str) -> Any:
        return self._read(self.place(name))

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def place(self, name: str) -> int:
        """Return the position of a column; DataError if its name is repeated."""
        if name in self._repeated:
            raise DataError(
                f"column {name!r} occurs {self.names.count(name)} times in the table; drop or "
                "rename all but one"
            )
        return self._places[name]

    def renamed(self, rename: Rename) -> TableColumns:
        """Return the same columns under other names.

        Parameters
        ----------
        rename : mapping or callable, optional
            From the current name to the new one. A mapping leaves other columns unchanged.

        Raises
        ------
        UnknownNameError
            If a mapping contains an unknown column.
        """
        if rename is None:
            return self
        if isinstance(rename, Mapping):
            new_names = {column_name(old): new for old, new in rename.items()}
            for old in new_names:
                if old not in self._places:
                    raise UnknownNameError("column", old, self._places, "it is a key of rename=")
            names = [new_names.get(name, name) for name in self.names]
        else:
            call = expect("rename", rename, Callable, "a mapping or a callable")  # type: ignore[arg-type]
            names = [call(name) for name in self.names]
        for name in names:
            expect("rename", name, str, "a mapping or callable that returns names as text")
        return TableColumns(names, self._read, self.n_rows)

    def stacked(self, stacks: Stack) -> Mapping[str, Any]:
        """Return the columns, some of them stacked into array columns.

        Parameters
        ----------
        stacks : mapping of str to str or list of str, optional
            Maps a new name to a pattern such as ``"v*"``, whose columns are in natural order
            (``v2`` before ``v10``), or to a list of names and patterns.

        Raises
        ------
        UnknownNameError
            If a pattern matches no column.
        DataError
            If the table has a column of the new name.
        """
        arrays = {
            key: stack({name: to_numpy(to_arrow(self[name], name)) for name in parts})
            for key, parts in self.stack_parts(stacks).items()
        }
        return ChainMap(arrays, self) if arrays else self  # type: ignore[arg-type]

    def stack_parts(self, stacks: Stack) -> dict[str, list[str]]:
        """Return the columns of each stack in order; errors as for `stacked`."""
        found = dict[str, list[str]]()
        expect("stack", stacks or {}, Mapping, "a mapping of a name to a pattern")
        for key, patterns in (stacks or {}).items():
            if key in self:
                raise DataError(
                    f"stack makes a column {key!r}, but the table already has one; choose another "
                    "name, or rename the column"
                )
            found[key] = []
            for pattern in as_list(patterns):
                names = sorted(matching(self._places, pattern), key=natural)
                if not names:
                    raise UnknownNameError(
                        "column", pattern, self._places, f"it is a pattern in stack[{key!r}]"
                    )
                found[key] += names
        return found


def check_stacks(
    first: Mapping[str, list[str]], own: Mapping[str, list[str]], path: str, first_path: str
) -> None:
    """Refuse array columns whose elements have other names in another file."""
    for key, names in own.items():
        if names != first[key]:
            other = [n for n in names if n not in first[key]] or names
            lacks = [n for n in first[key] if n not in names]
            raise DataError(
                f"stack={{{key!r}: ...}} finds other columns in {path!r} than in "
                f"{first_path!r}: {other[:3]} instead of {(lacks or first[key])[:3]} "
                f"({len(names)} and {len(first[key])} columns); make the names equal"
            )


def as_columns(data: Any, allowed: str = "data must be a frame or a dict") -> TableColumns:
    """Return the columns of a mapping, an eager frame or a list of records by name.

    Named levels of a pandas index are columns too. The Series of a mapping must have the same
    index labels; rows in another order are reordered to match the first Series.

    Raises
    ------
    DataError
        If `data` is not a table, or the indexes of its Series differ.
    """
    if isinstance(data, Mapping):
        names = [column_name(key) for key in data]
        return TableColumns(names, _aligned(names, list(data.values())).__getitem__)
    pandas = loaded("pandas")
    if pandas is not None and isinstance(data, pandas.DataFrame):
        return _of_pandas(data)
    if isinstance(data, pa.Table | pa.RecordBatch):
        return TableColumns(data.schema.names, data.column, data.num_rows)
    if isinstance(data, np.ndarray) and data.dtype.names:
        return TableColumns(data.dtype.names, lambda i: data[data.dtype.names[i]])
    if isinstance(data, list) and data and all(isinstance(row, Mapping) for row in data):
        keys = list(dict.fromkeys(key for row in data for key in row))
        return as_columns({key: [row.get(key) for row in data] for key in keys})
    try:
        frame = require("narwhals").from_native(data, eager_only=True)
    except TypeError as error:
        raise DataError(
            f"{allowed}, got a {type(data).__name__}"
            + ("; collect() a lazy frame first" if hasattr(data, "collect") else "")
        ) from error
    return TableColumns(frame.columns, lambda i: frame[frame.columns[i]].to_native(), len(frame))


def column_name(name: Any) -> str:
    """Return the name of a column as text; the levels of a MultiIndex are joined by ``_``."""
    if isinstance(name, tuple):
        return "_".join(str(part) for part in name if str(part))
    return str(name)


def column_names(names: Any) -> list[str]:
    """Return one or several column names, including numbers and tuples, as text."""
    if names is None:
        return []
    if isinstance(names, str | tuple) or not hasattr(names, "__iter__"):
        return [column_name(names)]
    return [column_name(name) for name in names]


def _of_pandas(frame: Any) -> TableColumns:
    names = list(map(column_name, frame.columns.tolist()))
    levels = [
        (i, name)
        for i, name in enumerate(frame.index.names)
        if name is not None and name not in names
    ]

    numbers: dict[int, Any] = {}  # the numeric columns of a wide frame by position, read at once
    if len(names) > len(frame):
        places: dict[Any, list[int]] = {}
        for place, dtype in enumerate(frame.dtypes.tolist()):
            if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
                places.setdefault(dtype, []).append(place)
        for own in places.values():
            part = frame if len(own) == frame.shape[1] else frame.iloc[:, own]
            numbers |= zip(own, np.ascontiguousarray(part.to_numpy().T), strict=True)

    def read(place: int) -> Any:
        if place in numbers:
            return numbers[place]
        if place < len(names):
            return frame.iloc[:, place]
        return frame.index.get_level_values(levels[place - len(names)][0]).to_series()

    return TableColumns([*names, *(column_name(name) for _, name in levels)], read, len(frame))


def _aligned(names: Sequence[str], columns: list[Any]) -> list[Any]:
    """Reorder pandas Series and DataFrames to the index of the first of them."""
    pandas = loaded("pandas")
    if pandas is None:
        return columns
    kinds = (pandas.Series, pandas.DataFrame)
    series = [i for i, values in enumerate(columns) if isinstance(values, kinds)]
    for i in series:
        first, index = columns[series[0]].index, columns[i].index
        if index.equals(first) or len(index) != len(first):  # lengths are checked later, by key
            continue
        if not (first.is_unique and index.is_unique and index.isin(first).all()):
            raise DataError(
                f"the Series {names[series[0]]!r} and {names[i]!r} have different indexes, so "
                "their rows cannot be matched; put them into one DataFrame, or pass arrays "
                "(to_numpy())"
            )
        columns[i] = columns[i].reindex(first)
    return columns
