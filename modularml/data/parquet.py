"""Reading Parquet files into columns of one type without loss."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from modularml._optional import require
from modularml.data.arrow_types import is_category
from modularml.data.collection import SampleCollection
from modularml.data.collection_building import from_columns
from modularml.data.input_tables import Rename, Stack, TableColumns, check_stacks, column_names
from modularml.data.memory_map import Maps, write_columns
from modularml.data.table_files import (
    FilePaths,
    cast_column,
    check_file_names,
    common_type,
    file_stem,
    files_of,
    readable,
    taken_error,
)
from modularml.errors import ConfigError, UnknownNameError

MAP_FROM = 2**29
"""Size in bytes from which columns are memory-mapped instead of read into memory."""

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
"""Folder names that an integer represents exactly."""

_MISSING = "__HIVE_DEFAULT_PARTITION__"
"""Folder name of rows whose key has no value."""

PIECE_BYTES = 16 * 2**20
PIECE_ROWS = 8192
"""Maximum rows of a piece: repeated values take more memory than in the file."""


def from_parquet(
    paths: FilePaths,
    features: Any,
    targets: Any,
    tags: Any,
    *,
    rename: Rename = None,
    stack: Stack = None,
    file_as: str | None = None,
    mask: str | Mapping[str, str] | None = None,
    in_memory: bool | None = None,
) -> SampleCollection:
    """Build a collection from columns of Parquet files; see `FeatureSet.from_parquet`."""
    if stack is not None and in_memory is False:
        raise ConfigError("stack needs in_memory=True; or store the array column in the files")
    files = _open_files(paths, file_as)
    table = TableColumns(files[0].names, files[0].names.__getitem__).renamed(rename)
    for file in files if stack else ():
        own = TableColumns(file.names, file.names.__getitem__).renamed(rename).stack_parts(stack)
        check_stacks(table.stack_parts(stack), own, file.path, files[0].path)
    tag_keys = list(dict.fromkeys([*column_names(tags), *column_names(file_as)]))
    masks = [mask] if isinstance(mask, str) else (mask or {}).values()
    wanted = dict.fromkeys([*column_names(features), *column_names(targets), *tag_keys, *masks])
    for key in wanted:
        if key not in table and key not in (stack or ()):
            raise UnknownNameError("column", key, [*table, *(stack or ())])
    read = {key: table[key] for key in (table if stack else wanted)}
    types = {
        key: common_type(key, {file.path: file.type_of(name) for file in files})
        for key, name in read.items()
    }
    categorical = {name for file in files for name in file.categories}
    categories = [key for key, name in read.items() if name in categorical]
    if in_memory is None:
        in_memory = stack is not None or sum(file.n_bytes for file in files) < MAP_FROM
    data: Mapping[str, Any]
    maps: Maps = {}
    elements = dict[str, list[str]]()
    if in_memory:
        parts, whole = [file.whole(read, types) for file in files], []
        for key in read:
            chunks = [c for part in parts for c in getattr(part[key], "chunks", [part[key]])]
            whole.append(pa.chunked_array(chunks, types[key]))
        columns = TableColumns(list(read), whole.__getitem__)
        data, elements = columns.stacked(stack), columns.stack_parts(stack)
    else:
        pieces = (piece for file in files for piece in file.pieces(read, types))
        data, maps = write_columns(pieces, sum(file.metadata.num_rows for file in files))
    return from_columns(
        data,
        features,
        targets,
        tag_keys,
        copy=False,
        maps=maps,
        mask=mask,
        categories=categories,
        elements=elements,
    )


@dataclass(frozen=True)
class _ParquetFile:
    """One file, with columns derived from its folders and its name."""

    path: str
    schema: pa.Schema
    metadata: Any
    constant: Mapping[str, pa.Scalar]

    @property
    def names(self) -> list[str]:
        return [*self.schema.names, *self.constant]

    @property
    def row_bytes(self) -> int:
        """Bytes of an unpacked row."""
        groups = map(self.metadata.row_group, range(self.metadata.num_row_groups))
        total = sum(group.total_byte_size for group in groups)
        return int(total // max(1, self.metadata.num_rows))

    @property
    def n_bytes(self) -> int:
        return self.row_bytes * int(self.metadata.num_rows)

    @property
    def categories(self) -> set[str]:
        """Categorical columns; for numbers only the metadata of pandas tells."""
        columns = (self.schema.pandas_metadata or {}).get("columns", ())
        names = {str(c.get("name")) for c in columns if c.get("pandas_type") == "categorical"}
        return names | {field.name for field in self.schema if is_category(field)}

    def type_of(self, name: str) -> pa.DataType:
        if name in self.constant:
            return self.constant[name].type
        if name not in self.schema.names:
            raise UnknownNameError(f"column of {self.path!r}", name, self.names)
        return self.schema.types[self.schema.names.index(name)]

    def whole(self, read: Mapping[str, str], types: Mapping[str, pa.DataType]) -> dict[str, Any]:
        """Return columns by their new names, cast to the common types."""
        open_file = require("pyarrow.parquet").ParquetFile
        with readable(self.path, "Parquet"), open_file(self.path, memory_map=True) as file:
            return self._cast(file.read(columns=self._stored(read)), read, types)

    def pieces(
        self, read: Mapping[str, str], types: Mapping[str, pa.DataType]
    ) -> Iterator[dict[str, Any]]:
        """Yield the columns piece by piece, at least once."""
        size = max(1, min(PIECE_ROWS, PIECE_BYTES // max(1, self.row_bytes)))
        open_file = require("pyarrow.parquet").ParquetFile
        buffered = {"buffer_size": 2**20, "pre_buffer": False}  # do not load whole row groups
        with readable(self.path, "Parquet"), open_file(self.path, **buffered) as file:
            names = self._stored(read)
            if not self.metadata.num_rows:
                yield self._cast(file.read(columns=names), read, types)
            for batch in file.iter_batches(size, columns=names, use_threads=False):
                yield self._cast(batch, read, types)

    def _stored(self, read: Mapping[str, str]) -> list[str]:
        return list(dict.fromkeys(name for name in read.values() if name not in self.constant))

    def _cast(
        self, rows: Any, read: Mapping[str, str], types: Mapping[str, pa.DataType]
    ) -> dict[str, Any]:
        columns = dict[str, Any]()
        for key, name in read.items():
            if name in self.constant:
                values = pa.repeat(self.constant[name], rows.num_rows)
            else:
                values = rows.column(name)
            columns[key] = cast_column(values, types[key], key, self.path)
        return columns


def _open_files(paths: FilePaths, file_as: str | None) -> list[_ParquetFile]:
    """Read the footers of files; each folder named ``key=value`` adds a column."""
    folders = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    files, values = files_of(paths, (".parquet", ".pq")), dict[str, dict[Path, str | None]]()
    check_file_names(files, file_as)
    for path in files:
        root = next((folder for folder in folders if folder in path.parents), path.parent)
        for part in path.relative_to(root).parts[:-1]:
            key, equals, value = part.partition("=")
            if equals:
                values.setdefault(key, {})[path] = None if value == _MISSING else unquote(value)
    numbers = {
        k for k, of in values.items() if all(_INTEGER.fullmatch(v or "0") for v in of.values())
    }
    opened = []
    for path in files:
        with readable(path, "Parquet"), require("pyarrow.parquet").ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
        if file_as is not None and file_as in schema.names:
            raise taken_error(path, file_as)
        folder_values = {key: of[path] for key, of in values.items() if path in of}
        texts = folder_values | ({file_as: file_stem(path)} if file_as else {})
        constant = {
            key: pa.scalar(text if text is None or key not in numbers else int(text))
            for key, text in texts.items()
            if key not in schema.names
        }
        opened.append(_ParquetFile(str(path), schema, metadata, constant))
    return opened
