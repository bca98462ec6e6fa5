"""Tables of any kind to one collection: what stands behind the constructors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._optional import require
from modularml._typing import Array, Columns, IntArray
from modularml.data.collection import SampleCollection
from modularml.data.columns import to_arrow, to_numpy
from modularml.data.schema import DOMAINS, RAW, check_keys
from modularml.data.selectors import as_list
from modularml.errors import DataError, UnknownNameError

__all__ = ["from_columns", "from_frame", "from_table", "read_csv", "read_parquet"]


def from_columns(
    data: Mapping[str, Any],
    features: Columns,
    targets: Columns,
    tags: Columns,
    *,
    copy: bool = True,
) -> SampleCollection:
    """Build a collection from columns by key, whose arrays are copied unless nobody writes to them.

    Raises
    ------
    UnknownNameError
        If a key is not in the data; the closest are listed.
    DataError
        If columns differ in length, or one cannot be a column.
    """
    domains = dict(zip(DOMAINS, map(as_list, (features, targets, tags)), strict=True))
    check_keys(key for keys in domains.values() for key in keys)
    arrays: dict[str, pa.Array] = {}
    for domain, keys in domains.items():
        for key in keys:
            if key not in data:
                raise UnknownNameError("column", key, map(str, data))
            arrays[f"{domain}.{key}.{RAW}"] = to_arrow(data[key], key, copy=copy)
    _check_lengths({name.split(".")[1]: len(array) for name, array in arrays.items()})
    return SampleCollection(pa.table(arrays))


def from_frame(
    df: Any,
    features: Columns,
    targets: Columns,
    tags: Columns,
    *,
    group_by: Columns = None,
    sort_by: Columns = None,
) -> SampleCollection:
    """Build a collection from any frame that narwhals understands.

    With `group_by`, all rows of one group become one sample: features and targets become array
    columns, and tags, the group's own columns among them, stay scalars.

    Raises
    ------
    DataError
        If groups differ in length or a tag changes within a group; the group is named.
    """
    frame = _frame(df)
    wanted = as_list(features) + as_list(targets) + as_list(tags)
    groups, order = as_list(group_by), as_list(sort_by)
    for name in [*wanted, *groups, *order]:
        if name not in frame.columns:
            raise UnknownNameError("column", name, map(str, frame.columns))
    data = {name: frame[name].to_native() for name in dict.fromkeys([*wanted, *groups, *order])}
    if not groups:
        return from_columns(data, features, targets, tags)
    arrays = {name: to_numpy(to_arrow(values, name)) for name, values in data.items()}
    grouping = _Grouping.of(arrays, groups, order)
    inner = dict.fromkeys([*as_list(features), *as_list(targets)])
    outer = [name for name in dict.fromkeys([*groups, *as_list(tags)]) if name not in inner]
    data = {name: grouping.rows_of(arrays[name]) for name in inner}
    data |= {name: grouping.constant(name) for name in outer}
    return from_columns(data, features, targets, outer, copy=False)


def from_table(
    table: pa.Table, features: Columns, targets: Columns, tags: Columns
) -> SampleCollection:
    """Build a collection from an Arrow table, whose columns are chosen by name."""
    data = {name: table.column(name) for name in table.column_names}
    return from_columns(data, features, targets, tags)


def read_csv(path: str | Path) -> pa.Table:
    """Read a CSV file into an Arrow table."""
    csv = require("pyarrow.csv")
    with _readable(path, "CSV"):
        return csv.read_csv(path)


def read_parquet(path: str | Path, columns: Sequence[str]) -> pa.Table:
    """Read columns of a Parquet file, or of a folder of them, memory-mapped.

    Raises
    ------
    UnknownNameError
        If there is no such column; the closest are listed.
    """
    parquet = require("pyarrow.parquet")
    with _readable(path, "Parquet"):
        data = parquet.ParquetDataset(path, memory_map=True)
        for name in columns:
            if name not in data.schema.names:
                raise UnknownNameError("column", name, data.schema.names)
        return data.read(columns=list(dict.fromkeys(columns)))


@contextmanager
def _readable(path: str | Path, kind: str) -> Iterator[None]:
    if not Path(path).exists():
        raise DataError(f"there is no file {str(path)!r}")
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{str(path)!r} cannot be read as {kind}: {error}") from error


def _check_lengths(lengths: Mapping[str, int]) -> None:
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key}: {n}" for key, n in lengths.items())
        raise DataError(f"columns differ in length ({shown}); give one value a sample in each")


def _frame(df: Any) -> Any:
    try:
        return require("narwhals").from_native(df, eager_only=True)
    except TypeError as error:
        raise DataError(
            f"df must be a table in memory (pandas, polars, pyarrow), got a {type(df).__name__}; "
            "collect() a lazy one, and use from_dict for a dict of columns"
        ) from error


@dataclass(frozen=True)
class _Grouping:
    """Rows of a long table sorted by group, all groups of one length."""

    arrays: Mapping[str, Array]
    names: list[str]
    rows: IntArray
    length: int

    @classmethod
    def of(cls, arrays: Mapping[str, Array], names: list[str], order: list[str]) -> _Grouping:
        codes = _group_codes(arrays, names)
        counts = np.bincount(codes)
        small = codes.astype(np.min_scalar_type(len(counts)), copy=False)  # sorts faster
        if order:
            ranks = [_sortable(arrays[name], name) for name in reversed(order)]
            rows = np.lexsort([*ranks, small])
        else:
            rows = np.argsort(small, kind="stable")
        found = cls(arrays, names, rows, int(counts[0]) if len(counts) else 1)
        odd = np.flatnonzero(counts != found.length)
        if len(odd):
            first, other = rows[0], rows[counts[: odd[0]].sum()]
            raise DataError(
                f"groups differ in length: {found.group(first)} has {found.length} rows, "
                f"{found.group(other)} has {counts[odd[0]]}. Cut or pad them to one length first"
            )
        return found

    def rows_of(self, values: Array) -> Array:
        """Return the values of each group: ndarray, shape (n_groups, length, *shape)."""
        return values[self.rows].reshape(-1, self.length, *values.shape[1:])

    def constant(self, name: str) -> Array:
        """Return the one value of each group: ndarray, shape (n_groups,)."""
        values, starts = self.arrays[name], self.rows[:: self.length]
        first = values[starts]
        if name in self.names:
            return first
        codes = self.rows_of(_rank(values, name))
        odd = np.flatnonzero((codes != codes[:, :1]).any(axis=1))
        if len(odd):
            raise DataError(
                f"tag {name!r} changes within the group {self.group(starts[odd[0]])}; make it a "
                "feature, or group by it too"
            )
        return first

    def group(self, row: int) -> str:
        """Write the group of a row for people."""
        keys = ((name, self.arrays[name][row : row + 1].tolist()[0]) for name in self.names)
        return ", ".join(f"{name}={value!r}" for name, value in keys)


def _group_codes(arrays: Mapping[str, Array], names: list[str]) -> IntArray:
    """Return the number of each row's group, from 0 in the sorted order of the keys."""
    codes = np.zeros(len(arrays[names[0]]), dtype=np.int64)
    for i, name in enumerate(names):
        own = _rank(arrays[name], name)
        if len(own) and own.min() < 0:
            raise DataError(
                f"column {name!r} is missing in row {own.argmin()}, so that row has no group; drop "
                "such rows, or fill them"
            )
        codes = codes * (own.max(initial=0) + 1) + own if i else own
        if i:
            codes = require("pandas").factorize(codes, sort=True)[0]
    return codes


def _sortable(values: Array, name: str) -> Array:
    return values if values.ndim == 1 and values.dtype.kind != "O" else _rank(values, name)


def _rank(values: Array, name: str) -> IntArray:
    """Return the place of each value in sorted order, equal ones alike; -1 for missing ones."""
    if values.ndim > 1:
        raise DataError(
            f"column {name!r} holds arrays; rows are grouped and sorted by single values"
        )
    codes: IntArray = require("pandas").factorize(values, sort=True)[0]
    return codes
