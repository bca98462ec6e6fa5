"""An immutable Arrow table of samples with row ids."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.data.arrow_columns import to_arrow
from modularml.data.arrow_types import is_category, leaf_type, numpy_dtype, to_numpy, value_bytes
from modularml.data.formats import stack
from modularml.data.ids import IdArray, check_ids, id_array, ids_from_texts, make_ids
from modularml.data.memory_map import Maps, release, write_columns
from modularml.data.schema import RAW, SAMPLE_UUIDS, SampleSchema, description_of, with_metadata
from modularml.errors import DataError, expect

BLOCK_BYTES = 16 * 2**20
"""Bytes of memory-mapped columns processed at a time."""

MAPPED_ROWS = 512
"""Rows gathered from a memory map at a time; each may load 64 kB of the file."""

DENSE = 4
"""If at least one row of so many is gathered, more are at a time: they share the loaded pages."""

_versions = itertools.count()


class SampleCollection:
    """Samples in one Arrow table; an edit returns a new collection.

    Parameters
    ----------
    table : pyarrow.Table
        Columns named ``domain.key.rep``, and optionally ``sample_uuids`` (16 bytes per row).
    schema : SampleSchema, optional
        Expected columns; read from the table by default.
    maps : mapping of str to mmap, optional
        Memory-mapped columns, which may be larger than memory.
    masks : mapping of str to str, optional
        Key of the mask of each padded column, by its own key.

    Raises
    ------
    DataError
        If a column is ragged, has nulls, is not named as above or differs from the schema, or if an
        id is repeated.
    """

    def __init__(
        self,
        table: pa.Table,
        schema: SampleSchema | None = None,
        *,
        maps: Maps | None = None,
        masks: Mapping[str, str] | None = None,
    ) -> None:
        names = table.column_names
        arrays: list[pa.Array] = []
        for name, column in zip(names, table.columns, strict=True):
            is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            if name != SAMPLE_UUIDS:
                arrays.append(to_arrow(column, name))
            elif is_text:
                arrays.append(id_array(ids_from_texts(column.to_pylist())))
            else:
                arrays.append(
                    column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
                )
        fields = [
            pa.field(f.name, a.type, metadata=f.metadata)
            for f, a in zip(table.schema, arrays, strict=True)
        ]
        categories = {
            f.name: {"kind": "category"}
            for f, a in zip(table.schema, arrays, strict=True)
            if is_category(f) and numpy_dtype(a.type).kind in "biuO"
        }
        typed = with_metadata(pa.schema(fields), categories)
        self._set(pa.Table.from_arrays(arrays, schema=typed), maps or {}, masks)
        if schema is not None and dict(schema.columns) != dict(self.schema.columns):
            known, read = schema.columns, self.schema.columns
            different = [n for n in {**known, **read} if known.get(n) != read.get(n)]
            raise DataError(
                f"table and schema differ in name, shape or dtype of: {', '.join(different[:5])}"
            )
        if SAMPLE_UUIDS in names:
            check_ids(self.table.column(SAMPLE_UUIDS))

    n_absent = 0
    """Number of rows omitted from the file this was loaded from; see `without_rows`."""

    def _set(
        self,
        table: pa.Table,
        maps: Maps,
        masks: Mapping[str, str] | None,
        schema: SampleSchema | None = None,
    ) -> None:
        self.table: pa.Table = table
        self.maps = {name: maps[name] for name in table.column_names if name in maps}
        self.schema = schema or SampleSchema.from_arrow(table.schema, masks)
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
        """Full names of all columns except the ids."""
        return list(self.schema.columns)

    def array(self, name: str) -> pa.Array:
        """Return a whole column as one Arrow array."""
        self.schema[name]
        self.check_rows()
        return self.table.column(name).chunk(0)

    def zone(self, name: str) -> str | None:
        """Return the time zone of a column; None without times or for naive times."""
        return getattr(leaf_type(self.array(name).type), "tz", None)

    def numpy(self, name: str) -> Array:
        """Return a whole column as a read-only array; numbers are not copied."""
        if name not in self._numpy:
            self._numpy[name] = to_numpy(self.array(name))
        return self._numpy[name]

    def mask(self, name: str) -> Array | None:
        """Return where a column holds data, as bool per step; None for everywhere."""
        mask = self.schema.mask_of(name)
        return None if mask is None else self.numpy(mask)

    def codes(self, name: str) -> IntArray:
        """Return the values of a scalar column as codes from 0, in sorted order.

        Returns
        -------
        ndarray of int64, shape (n_samples,)
            Equal values have equal codes; missing values (NaN, NaT) share one.

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
                    content = np.ascontiguousarray(block).view(np.uint8)
                    for at in range(0, len(content), BLOCK_BYTES):
                        digest.update(content[at : at + BLOCK_BYTES].data)
                        release(self.maps.values())
        return digest.hexdigest()

    @cached_property
    def ids(self) -> IdArray:
        """Row ids of 128 bits: as stored, else derived from fingerprint and row number.

        Returns
        -------
        ndarray, shape (n_samples,), dtype V16
            The same data gives the same ids in every process.
        """
        self.check_rows()
        if SAMPLE_UUIDS not in self.table.column_names:
            return make_ids(self.fingerprint, self.n_samples)
        stored = self.table.column(SAMPLE_UUIDS).chunk(0)
        if not len(stored):
            return np.empty(0, dtype="V16")
        return np.frombuffer(stored.buffers()[1], dtype="V16")[stored.offset :][: len(stored)]

    def with_columns(self, columns: Mapping[str, Array]) -> SampleCollection:
        """Return a collection with these columns added or replaced.

        Contiguous arrays are not copied and must not be modified later.
        """
        arrays = {name: to_arrow(values, name, copy=False) for name, values in columns.items()}
        return self._with(arrays, {})

    def with_computed(
        self, names: Sequence[str], compute: Callable[[dict[str, Array], int], dict[str, Array]]
    ) -> SampleCollection:
        """Return a collection with columns computed row by row from others.

        Memory-mapped columns are processed piece by piece, and the results are mapped too.

        Parameters
        ----------
        names : sequence of str
            Full names of the columns passed to `compute`.
        compute : callable
            Takes arrays by full name and the number of their first row; returns arrays by full
            name.
        """
        sources = {name: self.numpy(name) for name in names}
        if not self.is_mapped(names):
            return self.with_columns(compute(sources, 0))
        size = block_rows(sources)

        def pieces() -> Iterator[dict[str, Array]]:
            for at in range(0, self.n_samples, size):
                piece = {name: values[at : at + size] for name, values in sources.items()}
                yield compute(piece, at)
                release(self.maps.values())

        return self._with(*write_columns(pieces(), self.n_samples))

    def with_descriptions(self, descriptions: Mapping[str, Mapping[str, Any]]) -> SampleCollection:
        """Return a collection with with_metadata columns: kind, unit, elements by full name."""
        schema = with_metadata(self.table.schema, descriptions)
        return self._next(pa.Table.from_arrays(self.table.columns, schema=schema))

    def described(self, by_field: Mapping[str, Mapping[str, Any] | None]) -> SampleCollection:
        """Return a collection with descriptions of raw columns, by field and key."""
        descriptions = dict[str, dict[str, Any]]()
        for field, by_key in by_field.items():
            argument = "element_names" if field == "elements" else field
            for key, value in expect(argument, by_key or {}, Mapping, "a mapping by key").items():
                if field != "elements":
                    expect(argument, value, str, f"text for each key, such as {{{key!r}: ...}}")
                spec = self.schema[f"{self.schema.domain_of(key)}.{key}.{RAW}"]
                own = descriptions.setdefault(spec.name, description_of(spec))
                own[field] = list(map(str, value)) if field == "elements" else value
        return self.with_descriptions(descriptions)

    def without_columns(self, names: Sequence[str]) -> SampleCollection:
        """Return a collection without these columns."""
        dropped = set(names)
        if not dropped:
            return self
        remaining = [n for n in self.table.column_names if n not in dropped]
        known = {n: spec for n, spec in self.schema.columns.items() if n not in dropped}
        schema = None if self.schema.masks else SampleSchema(known)
        return self._next(self.table.select(remaining), schema=schema)

    def without_rows(self, n_rows: int | None = None, fingerprint: str = "") -> SampleCollection:
        """Return the names and types of the columns without any rows.

        Parameters
        ----------
        n_rows, fingerprint : int and str, optional
            Number and fingerprint of the omitted rows; those of this collection by default.
        """
        fields = [pa.field(f.name, f.type, metadata=f.metadata) for f in self.table.schema]
        new = SampleCollection(pa.schema(fields).empty_table(), masks=self.schema.masks)
        new.n_absent = (self.n_absent or self.n_samples) if n_rows is None else n_rows
        new.__dict__["fingerprint"] = fingerprint or self.fingerprint
        return new

    def check_rows(self) -> None:
        """Raise an error if the rows were omitted.

        Raises
        ------
        DataError
            If the collection was saved without its rows.
        """
        if self.n_absent:
            raise DataError(
                f"the {self.n_absent} rows are missing, because the file was saved without them; "
                "restore them with attach(fs), where fs holds the same rows"
            )

    def take(self, rows: IntArray, names: Sequence[str]) -> pa.Table:
        """Return a table of these rows and columns, with the ids as its last column."""
        self.check_rows()
        table = self.table.select(list(names)).take(pa.array(rows))
        return table.append_column(SAMPLE_UUIDS, id_array(self.ids[rows]))

    def part(self, rows: IntArray, names: Sequence[str]) -> SampleCollection:
        """Return a collection of these rows and columns, and of the masks of the columns."""
        table = self.take(rows, self.schema.with_masks(names))
        if not (rows[1:] > rows[:-1]).all() and np.bincount(rows, minlength=1).max() > 1:
            check_ids(table.column(SAMPLE_UUIDS))
        new = SampleCollection.__new__(SampleCollection)  # values and other ids have been checked
        new._set(table, {}, self.schema.masks)
        return new

    def extended(self, table: pa.Table, masks: Mapping[str, str]) -> SampleCollection:
        """Return a collection of a table with the same rows and ids, and more valid columns."""
        new = SampleCollection.__new__(SampleCollection)
        new._set(table, self.maps, masks)
        return new

    def is_mapped(self, names: Iterable[str]) -> bool:
        """Check whether any of these columns is memory-mapped."""
        return not self.maps.keys().isdisjoint(names)

    def gather(self, names: Sequence[str], rows: IntArray | slice | None) -> Array:
        """Stack columns for all or some rows; little of mapped columns stays in memory.

        Returns
        -------
        ndarray, shape (n, n_columns, *shape)
        """
        columns = {name: self.numpy(name) for name in names}
        if isinstance(rows, slice):
            out = stack({name: values[rows] for name, values in columns.items()})
            release(self.maps[name] for name in names if name in self.maps)
            return out
        if rows is None or not self.is_mapped(names):
            return stack(columns, rows)
        order = np.argsort(rows, kind="stable")  # each page of a file is read once
        is_dense = len(rows) and rows[order[-1]] - rows[order[0]] < DENSE * len(rows)
        dense = block_rows(columns) // (4 * DENSE) if is_dense else 0
        size = max(MAPPED_ROWS, dense)
        out = stack({name: values[:0] for name, values in columns.items()})
        out = np.empty((len(rows), *out.shape[1:]), dtype=out.dtype)
        for i, (name, values) in enumerate(columns.items()):
            for at in range(0, len(rows), size):
                part = order[at : at + size]
                out[part, i] = values[rows[part]]
                release([self.maps[name]] if name in self.maps else [])
        return out

    def blocks(self, names: Sequence[str], rows: IntArray | None) -> Iterator[Array] | None:
        """Return stacked rows of mapped columns block by block; None if none is mapped."""
        if not self.is_mapped(names):
            return None
        n = self.n_samples if rows is None else len(rows)
        size = block_rows({name: self.numpy(name) for name in names})
        parts = (slice(at, min(at + size, n)) for at in range(0, n, size))
        return (self.gather(names, part if rows is None else rows[part]) for part in parts)

    def _with(self, arrays: Mapping[str, pa.Array], maps: Maps) -> SampleCollection:
        columns = dict(zip(self.table.column_names, self.table.columns, strict=True))
        fields = {field.name: field for field in self.table.schema}
        fields |= {name: pa.field(name, array.type) for name, array in arrays.items()}
        other_maps = {name: m for name, m in self.maps.items() if name not in arrays}
        table = pa.table({**columns, **arrays}, schema=pa.schema(fields.values()))
        return self._next(table, {**other_maps, **maps})

    def _next(
        self, table: pa.Table, maps: Maps | None = None, schema: SampleSchema | None = None
    ) -> SampleCollection:
        """Return a collection of a table that has the same rows and valid columns."""
        new = SampleCollection.__new__(SampleCollection)
        new._set(table, self.maps if maps is None else maps, self.schema.masks, schema)
        new.n_absent = self.n_absent
        for name in ("ids", "fingerprint"):  # raw columns never change
            if name in self.__dict__:
                new.__dict__[name] = self.__dict__[name]
        return new


def block_rows(columns: Mapping[str, Array]) -> int:
    """Return the number of rows that make a block of `BLOCK_BYTES`."""
    width = sum(values[:1].nbytes for values in columns.values())
    return max(1, BLOCK_BYTES // max(1, width))


def _blocks(array: pa.Array) -> Iterator[Array]:
    """Yield the contents of an array as bytes that do not depend on its memory layout."""
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
    elif pa.types.is_floating(array.type) and np.isnan(values := to_numpy(array)).any():
        yield np.where(
            np.isnan(values), values.dtype.type(np.nan), values
        )  # one bit pattern for NaN
    else:
        yield value_bytes(array)
