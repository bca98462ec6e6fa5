"""One immutable Arrow table of samples, and the ids of its rows."""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._typing import Array, IntArray
from modularml.data.columns import leaf_type, to_arrow, to_numpy
from modularml.data.schema import RAW, SAMPLE_UUIDS, SampleSchema
from modularml.errors import DataError

__all__ = ["SampleCollection", "id_texts"]

_versions = itertools.count()


class SampleCollection:
    """Rows of samples in one Arrow table; an edit gives a new collection.

    Parameters
    ----------
    table : pyarrow.Table
        Columns named ``domain.key.rep``, and optionally ``sample_uuids`` (16 bytes a row).
    schema : SampleSchema, optional
        Read from the table where it is not given.

    Raises
    ------
    DataError
        If a column is ragged, has nulls or is not named as above, or an id comes twice.
    """

    def __init__(self, table: pa.Table, schema: SampleSchema | None = None) -> None:
        arrays = [_one_array(table.column(i), name) for i, name in enumerate(table.column_names)]
        self.table: pa.Table = pa.Table.from_arrays(arrays, names=table.column_names)
        self.schema = schema or SampleSchema.from_arrow(self.table.schema)
        self.version = next(_versions)
        self._numpy: dict[str, Array] = {}
        self.tensors: dict[Any, Any] = {}
        if SAMPLE_UUIDS in self.table.column_names:
            _check_ids(self.table.column(SAMPLE_UUIDS).chunk(0) if len(self.table) else None)

    @property
    def n_samples(self) -> int:
        """Number of rows."""
        return int(self.table.num_rows)

    @property
    def names(self) -> list[str]:
        """Full names of all columns, the ids left out."""
        return list(self.schema.columns)

    def numpy(self, name: str) -> Array:
        """Return a whole column as a read-only array, without a copy where it holds numbers."""
        if name not in self._numpy:
            self.schema[name]
            self._numpy[name] = to_numpy(_one_array(self.table.column(name), name))
        return self._numpy[name]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the raw columns: names, types and values, in 32 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=16)
        for name, spec in self.schema.columns.items():
            if spec.rep == RAW:
                array = _one_array(self.table.column(name), name)
                digest.update(f"{name}:{array.type}:{len(array)};".encode())
                for block in _bytes_of(array):
                    digest.update(block)
        return digest.hexdigest()

    @cached_property
    def ids(self) -> NDArrayIds:
        """Ids of the rows, 128 bits each: as stored, else from the fingerprint and the row.

        Returns
        -------
        ndarray, shape (n_samples,), dtype V16
            The same data gives the same ids in every process.
        """
        if SAMPLE_UUIDS in self.table.column_names:
            stored = _one_array(self.table.column(SAMPLE_UUIDS), SAMPLE_UUIDS)
            return np.frombuffer(b"".join(stored.to_pylist()), dtype="V16")
        return _make_ids(self.fingerprint, self.n_samples)

    def with_columns(self, columns: Mapping[str, Array]) -> SampleCollection:
        """Return a collection with these columns added, or replaced where they are there."""
        table = self.table
        for name, values in columns.items():
            array = to_arrow(values, name)
            at = table.column_names.index(name) if name in table.column_names else -1
            table = (
                table.set_column(at, name, array) if at >= 0 else table.append_column(name, array)
            )
        return self._next(table)

    def without_columns(self, names: Sequence[str]) -> SampleCollection:
        """Return a collection that lacks these columns."""
        return self._next(self.table.drop_columns(list(names))) if names else self

    def take(self, rows: IntArray, names: Sequence[str]) -> SampleCollection:
        """Return a collection of these rows and columns, with their ids."""
        table = self.table.select(list(names)).take(pa.array(rows))
        ids = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), len(rows), [None, pa.py_buffer(self.ids[rows].tobytes())]
        )
        return SampleCollection(table.append_column(SAMPLE_UUIDS, ids))

    def _next(self, table: pa.Table) -> SampleCollection:
        new = SampleCollection(table)
        for kept in ("ids", "fingerprint"):  # raw columns never change
            if kept in self.__dict__:
                new.__dict__[kept] = self.__dict__[kept]
        return new


NDArrayIds = np.ndarray[Any, np.dtype[np.void]]


def id_texts(ids: NDArrayIds) -> Array:
    """Write ids as UUID text.

    Returns
    -------
    ndarray of str, shape (n,)
    """
    return np.array([str(uuid.UUID(bytes=raw.tobytes())) for raw in ids], dtype="<U36")


def id_from_text(text: Any) -> bytes:
    """Read an id from UUID text, a UUID, or its 16 bytes."""
    if isinstance(text, bytes | np.void):
        return bytes(text)
    try:
        return uuid.UUID(str(text)).bytes
    except ValueError:
        raise DataError(f"sample id must be UUID text, got {text!r}") from None


def _make_ids(fingerprint: str, n: int) -> NDArrayIds:
    seeds = np.frombuffer(bytes.fromhex(fingerprint), dtype="<u8")
    rows = np.arange(n, dtype=np.uint64)
    words = np.stack([_mix(rows + seeds[0]), _mix(rows + seeds[1])], axis=1).astype(">u8")
    words[:, 0] = (words[:, 0] & ~np.uint64(0xF000)) | np.uint64(0x8000)  # UUID version 8
    words[:, 1] = (words[:, 1] & np.uint64(2**62 - 1)) | np.uint64(2**63)  # RFC 9562 variant
    return words.view("V16")[:, 0]


def _mix(x: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Scramble 64-bit words one to one (SplitMix64: Steele, Lea & Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _one_array(column: pa.ChunkedArray, name: str) -> pa.Array:
    if column.num_chunks == 1:
        array = column.chunk(0)
        return array if name == SAMPLE_UUIDS else to_arrow(array, name)
    return to_arrow(column, name) if column.num_chunks else pa.array([], type=column.type)


def _bytes_of(array: pa.Array) -> list[Any]:
    if not pa.types.is_primitive(leaf_type(array.type)) or not len(array):
        batch = pa.RecordBatch.from_arrays([array], names=["x"])
        return [batch.serialize()]
    return [memoryview(np.ascontiguousarray(to_numpy(array)).reshape(-1).view(np.uint8))]


def _check_ids(ids: pa.Array | None) -> None:
    if ids is None:
        return
    if ids.type != pa.binary(16):
        raise DataError(f"sample_uuids must be 16 bytes a row, got {ids.type}")
    if len(ids.unique()) != len(ids):
        seen: set[bytes] = set()
        for row, value in enumerate(ids.to_pylist()):
            if value in seen:
                raise DataError(f"sample_uuids: row {row} repeats an earlier id; ids are unique")
            seen.add(value)
