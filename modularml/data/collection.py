"""One immutable Arrow table of samples, and the ids of its rows."""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.data.columns import to_arrow, to_numpy
from modularml.data.schema import RAW, SAMPLE_UUIDS, SampleSchema
from modularml.errors import DataError

__all__ = [
    "IdArray",
    "SampleCollection",
    "id_array",
    "id_texts",
    "ids_from_texts",
    "scramble",
]

IdArray = np.ndarray[Any, np.dtype[np.void]]

_versions = itertools.count()


class SampleCollection:
    """Rows of samples in one Arrow table; an edit gives a new collection.

    Parameters
    ----------
    table : pyarrow.Table
        Columns named ``domain.key.rep``, and optionally ``sample_uuids`` (16 bytes a row).
    schema : SampleSchema, optional
        What the columns should be; read from the table where it is not given.

    Raises
    ------
    DataError
        If a column is ragged, has nulls or is not named as above, if it is not what the schema
        says, or if an id comes twice.
    """

    def __init__(self, table: pa.Table, schema: SampleSchema | None = None) -> None:
        names = table.column_names
        arrays = [_one_array(table.column(i), name) for i, name in enumerate(names)]
        self._set(pa.Table.from_arrays(arrays, names=names))
        if schema is not None and dict(schema.columns) != dict(self.schema.columns):
            raise DataError(_differences(schema, self.schema))
        if SAMPLE_UUIDS in names:
            _check_ids(self.table.column(SAMPLE_UUIDS))

    def _set(self, table: pa.Table) -> None:
        self.table: pa.Table = table
        self.schema = SampleSchema.from_arrow(table.schema)
        self.version = next(_versions)
        self._numpy: dict[str, Array] = {}
        self._codes: dict[str, IntArray] = {}
        self.tensors: dict[Any, Any] = {}

    @property
    def n_samples(self) -> int:
        """Number of rows."""
        return int(self.table.num_rows)

    @property
    def names(self) -> list[str]:
        """Full names of all columns, the ids left out."""
        return list(self.schema.columns)

    def array(self, name: str) -> pa.Array:
        """Return a whole column as one Arrow array."""
        self.schema[name]
        return self.table.column(name).chunk(0)

    def numpy(self, name: str) -> Array:
        """Return a whole column as a read-only array, without a copy where it holds numbers."""
        if name not in self._numpy:
            self._numpy[name] = to_numpy(self.array(name))
        return self._numpy[name]

    def codes(self, name: str) -> IntArray:
        """Return the values of a scalar column as numbers from 0, in sorted order.

        Returns
        -------
        ndarray of int64, shape (n_samples,)
            Equal where the values are equal; missing ones (NaN, NaT) are one value.

        Raises
        ------
        DataError
            If the samples of the column are arrays.
        """
        if name not in self._codes:
            values = self.numpy(name)
            if values.ndim > 1:
                raise DataError(
                    f"column {name!r} holds arrays of shape {values.shape[1:]}; rows are grouped "
                    "by single values only"
                )
            factorize = require("pandas").factorize
            codes = factorize(values, sort=True, use_na_sentinel=False)[0]
            self._codes[name] = codes.astype(np.int64, copy=False)
        return self._codes[name]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the raw columns: names, types and values, in 32 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=16)
        for name, spec in self.schema.columns.items():
            if spec.rep == RAW:
                array = self.array(name)
                digest.update(f"{name}:{array.type}:{len(array)};".encode())
                for block in _blocks(array):
                    digest.update(np.ascontiguousarray(block).view(np.uint8).data)
        return digest.hexdigest()

    @cached_property
    def ids(self) -> IdArray:
        """Ids of the rows, 128 bits each: as stored, else from the fingerprint and the row.

        Returns
        -------
        ndarray, shape (n_samples,), dtype V16
            The same data gives the same ids in every process.
        """
        if SAMPLE_UUIDS not in self.table.column_names:
            return _make_ids(self.fingerprint, self.n_samples)
        stored = self.table.column(SAMPLE_UUIDS).chunk(0)
        if not len(stored):
            return np.empty(0, dtype="V16")
        return np.frombuffer(stored.buffers()[1], dtype="V16")[stored.offset :][: len(stored)]

    def with_columns(self, columns: Mapping[str, Array]) -> SampleCollection:
        """Return a collection with these columns added, or replaced where they are there.

        The arrays are not copied where they are contiguous; nobody may write to them later.
        """
        arrays = dict(zip(self.table.column_names, self.table.columns, strict=True))
        arrays |= {name: to_arrow(values, name, copy=False) for name, values in columns.items()}
        return self._next(pa.table(arrays))

    def without_columns(self, names: Sequence[str]) -> SampleCollection:
        """Return a collection that lacks these columns."""
        gone = set(names)
        if not gone:
            return self
        kept = [i for i, name in enumerate(self.table.column_names) if name not in gone]
        return self._next(self.table.select(kept))

    def take(self, rows: IntArray, names: Sequence[str]) -> pa.Table:
        """Return a table of these rows and columns, with the ids behind."""
        table = self.table.select(list(names)).take(pa.array(rows))
        return table.append_column(SAMPLE_UUIDS, id_array(self.ids[rows]))

    def _next(self, table: pa.Table) -> SampleCollection:
        """Return a collection of a table with the same rows, whose columns are sound."""
        new = SampleCollection.__new__(SampleCollection)
        new._set(table)
        for kept in ("ids", "fingerprint"):  # raw columns never change
            if kept in self.__dict__:
                new.__dict__[kept] = self.__dict__[kept]
        return new


def id_array(ids: IdArray) -> pa.Array:
    """Return ids as an Arrow array of 16 bytes each."""
    buffer = pa.py_buffer(np.ascontiguousarray(ids).view(np.uint8))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(ids), [None, buffer])


def id_texts(ids: IdArray) -> Array:
    """Write ids as UUID text.

    Returns
    -------
    ndarray of str, shape (n,)
    """
    digits = np.frombuffer(ids.tobytes().hex().encode("ascii"), dtype=np.uint8).reshape(-1, 32)
    text = np.full((len(ids), 36), ord("-"), dtype=np.uint8)
    for start, stop in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)):
        dashes = (start >= 8) + (start >= 12) + (start >= 16) + (start >= 20)
        text[:, start + dashes : stop + dashes] = digits[:, start:stop]
    return text.view("S36")[:, 0].astype("<U36")


def ids_from_texts(texts: Iterable[Any]) -> IdArray:
    """Read ids from UUID texts, UUIDs, or their 16 bytes.

    Raises
    ------
    DataError
        If one is neither; the first is named.
    """
    given = texts.tolist() if isinstance(texts, np.ndarray) else list(texts)
    if all(isinstance(text, str) and len(text) == 36 for text in given):
        digits = "".join(given).replace("-", "")
        if len(digits) == 32 * len(given):
            try:
                return np.frombuffer(bytes.fromhex(digits), dtype="V16")
            except ValueError:
                pass  # the slow way finds out which one it is
    return np.frombuffer(b"".join(map(_id_bytes, given)), dtype="V16")


def _id_bytes(value: Any) -> bytes:
    if isinstance(value, bytes) and len(value) == 16:
        return value
    try:
        return uuid.UUID(str(value)).bytes
    except ValueError:
        raise DataError(f"a sample id must be UUID text, got {value!r}") from None


def _make_ids(fingerprint: str, n: int) -> IdArray:
    seeds = np.frombuffer(bytes.fromhex(fingerprint), dtype="<u8")
    rows = np.arange(n, dtype=np.uint64)
    words = np.stack([scramble(rows + seeds[0]), scramble(rows + seeds[1])], axis=1).astype(">u8")
    words[:, 0] = (words[:, 0] & ~np.uint64(0xF000)) | np.uint64(0x8000)  # UUID version 8
    words[:, 1] = (words[:, 1] & np.uint64(2**62 - 1)) | np.uint64(2**63)  # RFC 9562 variant
    return words.view("V16")[:, 0]


def scramble(x: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Scramble 64-bit words one to one (SplitMix64: Steele, Lea & Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _one_array(column: pa.ChunkedArray, name: str) -> pa.Array:
    if name == SAMPLE_UUIDS:
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return to_arrow(column, name)


def _blocks(array: pa.Array) -> Iterator[Array]:
    """Yield what an array holds, byte for byte, however it is laid out in memory."""
    while pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    if not len(array):
        return
    buffers, start, stop = array.buffers(), array.offset, array.offset + len(array)
    if pa.types.is_boolean(array.type):
        yield to_numpy(array)
    elif pa.types.is_string(array.type) or pa.types.is_binary(array.type):
        offsets = np.frombuffer(buffers[1], dtype=np.int32)[start : stop + 1]
        yield np.diff(offsets)
        if buffers[2] is not None:
            yield np.frombuffer(buffers[2], dtype=np.uint8)[offsets[0] : offsets[-1]]
    else:
        width = array.type.bit_width // 8
        yield np.frombuffer(buffers[1], dtype=np.uint8)[start * width : stop * width]


def _check_ids(column: pa.ChunkedArray) -> None:
    if column.type != pa.binary(16):
        raise DataError(
            f"sample_uuids must be 16 bytes a row (binary(16) in Arrow), got {column.type}"
        )
    if column.null_count:
        raise DataError(f"sample_uuids has {column.null_count} missing value(s); drop the column")
    if len(column.unique()) < len(column):
        first: dict[bytes, int] = {}
        for row, value in enumerate(column.to_pylist()):
            if first.setdefault(value, row) < row:
                raise DataError(
                    f"sample_uuids: row {row} has the id of row {first[value]}; take each row once"
                )


def _differences(wanted: SampleSchema, found: SampleSchema) -> str:
    names = dict.fromkeys([*wanted.columns, *found.columns])
    odd = [n for n in names if wanted.columns.get(n) != found.columns.get(n)]
    return f"table and schema differ in name, shape or dtype of: {', '.join(odd[:5])}"
