"""Rows in memory-mapped files, of which windows are read in any order."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from modularml._typing import Array, IntArray
from modularml.data.arrow_types import to_numpy
from modularml.data.mapping import release, write_columns

__all__ = ["MappedRows", "write_rows"]

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
