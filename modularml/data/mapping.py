"""Columns larger than memory: written to files piece by piece, and mapped into memory."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Mapping
from typing import IO, Any

import pyarrow as pa

from modularml.data.columns import (
    is_plain,
    leaf_type,
    ragged_error,
    sample_shape,
    to_arrow,
    value_bytes,
    wrap,
)
from modularml.errors import DataError

__all__ = ["ColumnFile", "Maps", "release", "write_columns"]

Maps = Mapping[str, mmap.mmap]
"""The files of mapped columns, by name."""


class ColumnFile:
    """One column, written in pieces to a file that is gone once nobody reads it.

    Only numbers and times are written; text and truth values stay in memory.

    Parameters
    ----------
    key : str
        Name of the column, for messages.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._type: pa.DataType | None = None
        self._n = 0
        self._file: IO[bytes] | None = None
        self._parts: list[pa.Array] = []

    def add(self, values: Any) -> None:
        """Write the next samples.

        Raises
        ------
        DataError
            If they cannot be a column, or do not fit those before.
        """
        try:
            piece = to_arrow(values, self.key, copy=False)
        except DataError as error:
            where = f" (rows are counted from row {self._n:,} of the data)" if self._n else ""
            raise DataError(f"{error}{where}") from error
        self._type = self._type or piece.type
        if piece.type != self._type:
            raise self._misfit(piece.type)
        self._n += len(piece)
        if not is_plain(leaf_type(piece.type)):
            self._parts.append(piece)
            return
        self._file = self._file or tempfile.TemporaryFile(prefix="modularml-")  # noqa: SIM115
        self._file.write(value_bytes(piece).data)

    def finish(self) -> tuple[pa.Array, mmap.mmap | None]:
        """Return the column, and the map that it lies in."""
        if self._file is None:
            return pa.chunked_array(self._parts, type=self._type).combine_chunks(), None
        assert self._type is not None
        with self._file as file:
            file.flush()
            if not file.tell():
                return pa.array([], type=self._type), None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        leaf = leaf_type(self._type)
        n = len(mapped) * 8 // leaf.bit_width
        flat = pa.Array.from_buffers(leaf, n, [None, pa.py_buffer(mapped)])
        return wrap(flat, sample_shape(self._type)), mapped

    def _misfit(self, found: pa.DataType) -> DataError:
        assert self._type is not None
        first, other = sample_shape(self._type), sample_shape(found)
        if first != other:
            return ragged_error(self.key, first, self._n, other)
        return DataError(
            f"column {self.key!r} holds {self._type} at first and {found} from row {self._n} on; "
            "convert it to one type"
        )


def write_columns(
    pieces: Iterable[Mapping[str, Any]],
) -> tuple[dict[str, pa.Array], dict[str, Any]]:
    """Write columns that come in pieces, and map them.

    Returns
    -------
    columns : dict of str to pyarrow.Array
    maps : dict of str to mmap
        Of the columns that lie in a file.
    """
    files: dict[str, ColumnFile] = {}
    for piece in pieces:
        for name, values in piece.items():
            files.setdefault(name, ColumnFile(name)).add(values)
    done = {name: file.finish() for name, file in files.items()}
    maps = {name: mapped for name, (_, mapped) in done.items() if mapped is not None}
    return {name: array for name, (array, _) in done.items()}, maps


def release(maps: Iterable[mmap.mmap]) -> None:
    """Let go of the memory that reading maps took; the system reads the files again if need be."""
    for mapped in maps:
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED)
