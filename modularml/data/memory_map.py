"""Memory-mapped columns and rows, which may be larger than memory."""

from __future__ import annotations

import errno
import math
import mmap
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._typing import Array, IntArray
from modularml.data.arrow_columns import ragged_error, to_arrow
from modularml.data.arrow_types import (
    is_plain,
    leaf_type,
    sample_shape,
    to_numpy,
    value_bytes,
    wrap,
)
from modularml.errors import DataError

Maps = Mapping[str, mmap.mmap]
"""Memory maps of columns by name."""

ALIGNMENT = 64
"""Alignment of columns in bytes, as recommended by Arrow."""


@dataclass
class _Column:
    """A column being written; only numbers and times are stored in the file."""

    key: str
    type: pa.DataType
    start: int
    n_rows: int = 0
    n_bytes: int = 0
    parts: list[pa.Array] = field(default_factory=list)

    @property
    def in_file(self) -> bool:
        return is_plain(leaf_type(self.type))

    @property
    def row_bytes(self) -> int:
        return int(leaf_type(self.type).bit_width // 8 * math.prod(sample_shape(self.type)))

    def check(self, kind: pa.DataType) -> None:
        """Refuse samples of another type or shape than before."""
        first, other = sample_shape(self.type), sample_shape(kind)
        if first != other:
            raise ragged_error(self.key, first, self.n_rows, other)
        if kind != self.type:
            raise DataError(
                f"column {self.key!r} holds {self.type} up to row {self.n_rows - 1} and {kind} "
                "afterwards; convert it to one type"
            )

    def finish(self, mapped: mmap.mmap | None) -> pa.Array:
        """Return the written values as one array."""
        if not self.in_file or mapped is None:
            return pa.chunked_array(self.parts, type=self.type).combine_chunks()
        leaf, buffer = leaf_type(self.type), pa.py_buffer(mapped).slice(self.start, self.n_bytes)
        flat = pa.Array.from_buffers(leaf, self.n_bytes * 8 // leaf.bit_width, [None, buffer])
        return wrap(flat, sample_shape(self.type))


def write_columns(
    pieces: Iterable[Mapping[str, Any]], n_rows: int
) -> tuple[dict[str, pa.Array], dict[str, mmap.mmap]]:
    """Write columns piece by piece to a temporary file and map it into memory.

    Parameters
    ----------
    pieces : iterable of mapping of str to array-like
        At least one piece; all with the same columns.
    n_rows : int
        Total number of rows.

    Returns
    -------
    columns : dict of str to pyarrow.Array
    maps : dict of str to mmap
        Maps of the columns in the file, which is deleted when they are.

    Raises
    ------
    DataError
        If a piece does not match its column, and the message names column and row; or if the file
        does not fit on the disk.
    """
    columns: dict[str, _Column] = {}
    end, folder = 0, tempfile.gettempdir()
    with _enough_space(), tempfile.TemporaryFile(prefix="modularml-") as file:
        for piece in pieces:
            for name, values in piece.items():
                try:
                    array = to_arrow(values, name, copy=False)
                except DataError as error:
                    if name not in columns:
                        raise
                    before = f"(row numbers count from row {columns[name].n_rows} of the data)"
                    raise DataError(f"{error} {before}") from error
                column = columns.setdefault(name, _Column(name, array.type, end))
                column.check(array.type)
                if not column.in_file or not n_rows:
                    column.parts.append(array)
                else:
                    if column.start == end:
                        end += -(-column.row_bytes * n_rows // ALIGNMENT) * ALIGNMENT
                    file.seek(column.start + column.n_bytes)
                    column.n_bytes += file.write(value_bytes(array).data)
                column.n_rows += len(array)
            needed = end - sum(column.n_bytes for column in columns.values())
            if (free := shutil.disk_usage(folder).free) < needed:
                raise DataError(
                    f"columns larger than memory need {needed / 1e9:.2f} GB more in a temporary "
                    f"file, but {folder} has {free / 1e9:.2f} GB left; free some, or set TMPDIR to "
                    "a folder on a larger disk before Python starts"
                )
        file.truncate(end)
        mapped = mmap.mmap(file.fileno(), end, access=mmap.ACCESS_READ) if end else None
    arrays = {name: column.finish(mapped) for name, column in columns.items()}
    maps = {name: mapped for name, column in columns.items() if mapped and column.in_file}
    return arrays, maps


def release(maps: Iterable[mmap.mmap]) -> None:
    """Free memory used by maps; the system reads the files again when needed."""
    for mapped in set(maps):
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED)


@contextmanager
def _enough_space() -> Iterator[None]:
    """Refuse a file that another process left no space for."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DataError(
            f"columns larger than memory do not fit into a temporary file: {error.strerror} in "
            f"{tempfile.gettempdir()}; free some space, or set TMPDIR to a folder on a larger disk "
            "before Python starts"
        ) from error


READ_BYTES = 128 * 2**10
"""Bytes that the system is asked to read at a time; it may ignore what is beyond."""


@dataclass(frozen=True, eq=False)
class MappedRows:
    """Rows in a memory map.

    Parameters
    ----------
    values : ndarray, shape (n_rows, *shape)
        In the map, one row after the other.
    mapped : mmap
    """

    values: Array
    mapped: mmap.mmap

    def prefetch(self, rows: IntArray | slice) -> None:
        """Ask the system to read the pages of some rows, each once, in the order of the file."""
        if not hasattr(self.mapped, "madvise"):
            return
        for start, stop in self.spans(rows).tolist():
            for at in range(start, stop, READ_BYTES):
                self.mapped.madvise(mmap.MADV_WILLNEED, at, min(READ_BYTES, stop - at))

    def spans(self, rows: IntArray | slice) -> IntArray:
        """Return the bytes of the map, in whole pages, that contain some rows.

        Returns
        -------
        ndarray of int64, shape (n_spans, 2)
            Start and stop of each span, in order; the spans do not overlap.
        """
        width, n = self.values[:1].nbytes, len(self.values)
        if not width:
            return np.empty((0, 2), np.int64)
        unit = -(-width // mmap.PAGESIZE) * mmap.PAGESIZE  # a row is in one unit or in two
        first = self.values.ctypes.data - np.frombuffer(self.mapped, np.uint8).ctypes.data
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(n)
            ends = np.array([[first + start * width, first + stop * width + unit - 1]]) // unit
        else:
            is_read = np.zeros((first + n * width) // unit + 3, dtype=bool)
            is_read[(first + rows * width) // unit + 1] = True
            is_read[(first + rows * width + width - 1) // unit + 1] = True
            ends = np.flatnonzero(is_read[1:] != is_read[:-1]).reshape(-1, 2)
        spans: IntArray = np.minimum(ends * unit, len(self.mapped))
        return spans

    def release(self) -> None:
        """Free the memory of all rows; the system reads them again when needed."""
        release([self.mapped])


def write_rows(blocks: Iterable[Array], n_rows: int) -> MappedRows:
    """Write blocks of rows to a temporary file, which is deleted with the result.

    Parameters
    ----------
    blocks : iterable of ndarray, shape (n, *shape)
        At least one; all of one dtype.
    n_rows : int
        Total number of rows, at least 1.

    Raises
    ------
    DataError
        If the file does not fit on the disk.
    """
    arrays, maps = write_columns(({"rows": block} for block in blocks), n_rows)
    return MappedRows(to_numpy(arrays["rows"]), maps["rows"])
