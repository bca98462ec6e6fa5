"""Tables of any kind to one collection: what stands behind the constructors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._optional import require
from modularml._typing import Array, Columns, IntArray
from modularml.data.collection import SampleCollection
from modularml.data.columns import to_arrow
from modularml.data.schema import DOMAINS, RAW, SAMPLE_UUIDS, check_keys
from modularml.data.selectors import as_list
from modularml.errors import DataError, UnknownNameError

__all__ = ["from_columns", "from_frame", "from_table", "read_csv", "read_parquet"]


def from_columns(
    data: Mapping[str, Any], features: Columns, targets: Columns, tags: Columns
) -> SampleCollection:
    """Build a collection from columns by key.

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
            arrays[f"{domain}.{key}.{RAW}"] = to_arrow(data[key], key)
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
    frame = require("narwhals").from_native(df, eager_only=True)
    wanted = as_list(features) + as_list(targets) + as_list(tags)
    groups, order = as_list(group_by), as_list(sort_by)
    for name in [*wanted, *groups, *order]:
        if name not in frame.columns:
            raise UnknownNameError("column", name, map(str, frame.columns))
    data = {name: frame[name].to_native() for name in wanted}
    if not groups:
        return from_columns(data, features, targets, tags)
    keys = [frame[name].to_numpy() for name in groups]
    rows, starts = _group_rows(keys, [frame[name].to_numpy() for name in order])
    length = _group_length(starts, len(rows), keys, rows, groups)
    tag_names = list(dict.fromkeys([*groups, *as_list(tags)]))
    taken = set(as_list(features)) | set(as_list(targets))
    tag_names = [name for name in tag_names if name not in taken]
    columns = {name: frame[name].to_numpy()[rows] for name in [*taken, *tag_names]}
    data = {name: columns[name].reshape(-1, length) for name in taken}
    data |= {name: _constant(columns[name].reshape(-1, length), name) for name in tag_names}
    return from_columns(data, features, targets, tag_names)


def from_table(
    table: pa.Table, features: Columns, targets: Columns, tags: Columns
) -> SampleCollection:
    """Build a collection from an Arrow table, whose columns are chosen by name."""
    data = {name: table.column(name) for name in table.column_names}
    return from_columns(data, features, targets, tags)


def read_csv(path: str | Path) -> pa.Table:
    """Read a CSV file into an Arrow table."""
    return require("pyarrow.csv").read_csv(_existing(path))


def read_parquet(path: str | Path, columns: Sequence[str]) -> pa.Table:
    """Read columns of a Parquet file, or of a folder of them, memory-mapped."""
    return require("pyarrow.parquet").read_table(
        _existing(path), columns=list(columns), memory_map=True
    )


def named(table: pa.Table) -> bool:
    """Tell whether columns are named ``domain.key.rep`` already."""
    return all(
        name == SAMPLE_UUIDS or (name.count(".") == 2 and name.split(".")[0] in DOMAINS)
        for name in table.column_names
    )


def _existing(path: str | Path) -> Path:
    if not Path(path).exists():
        raise DataError(f"there is no file {str(path)!r}")
    return Path(path)


def _check_lengths(lengths: Mapping[str, int]) -> None:
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key}: {n}" for key, n in lengths.items())
        raise DataError(f"columns differ in length ({shown}); give one value a sample in each")


def _group_rows(keys: list[Array], order: list[Array]) -> tuple[IntArray, IntArray]:
    """Return the rows sorted by group, and where each group starts."""
    codes = [np.unique(key, return_inverse=True)[1] for key in keys]
    ranks = [np.unique(key, return_inverse=True)[1] for key in order]
    rows = np.lexsort([*reversed(ranks), *reversed(codes)])
    changed = np.zeros(len(rows), dtype=bool)
    changed[:1] = True
    for code in codes:
        changed[1:] |= code[rows[1:]] != code[rows[:-1]]
    return rows, np.flatnonzero(changed)


def _group_length(
    starts: IntArray, n: int, keys: list[Array], rows: IntArray, names: list[str]
) -> int:
    lengths = np.diff([*starts, n])
    odd = np.flatnonzero(lengths != lengths[:1])
    if len(odd):

        def group(i: int) -> str:
            return ", ".join(f"{k}={v[rows[starts[i]]]}" for k, v in zip(names, keys, strict=True))

        raise DataError(
            f"groups differ in length: {group(0)} has {lengths[0]} rows, {group(int(odd[0]))} has "
            f"{lengths[odd[0]]}. Cut or pad them to one length first"
        )
    return int(lengths[0]) if len(lengths) else 1


def _constant(values: Array, name: str) -> Array:
    first = values[:, 0]
    odd = np.flatnonzero((values != first[:, None]).any(axis=1))
    if len(odd):
        raise DataError(
            f"tag {name!r} changes within group {odd[0]} ({values[odd[0], 0]!r} and others); "
            "make it a feature, or group by it too"
        )
    return first
