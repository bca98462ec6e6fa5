"""Columns larger than memory: written to a file piece by piece, and mapped into memory."""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from modularml.data.arrow_types import is_plain, leaf_type, sample_shape, value_bytes, wrap
from modularml.data.columns import ragged_error, to_arrow
from modularml.errors import DataError

__all__ = ["Maps", "release", "write_columns"]

Maps = Mapping[str, mmap.mmap]
"""The files of mapped columns, by name."""

ALIGNMENT = 64
"""Columns start at multiples of so many bytes, as Arrow recommends."""


@dataclass
class _Column:
    """A column that is being written; what is no number or time is kept in memory."""

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

    def check(self, found: pa.DataType) -> None:
        """Refuse samples that do not fit those before."""
        first, other = sample_shape(self.type), sample_shape(found)
        if first != other:
            raise ragged_error(self.key, first, self.n_rows, other)
        if found != self.type:
            raise DataError(
                f"column {self.key!r} holds {self.type} at first and {found} from row "
                f"{self.n_rows} on; convert it to one type"
            )

    def finish(self, mapped: mmap.mmap | None) -> pa.Array:
        """Return all that was written as one array."""
        if not self.in_file or mapped is None:
            return pa.chunked_array(self.parts, type=self.type).combine_chunks()
        leaf, buffer = leaf_type(self.type), pa.py_buffer(mapped).slice(self.start, self.n_bytes)
        flat = pa.Array.from_buffers(leaf, self.n_bytes * 8 // leaf.bit_width, [None, buffer])
        return wrap(flat, sample_shape(self.type))


def write_columns(
    pieces: Iterable[Mapping[str, Any]], n_rows: int
) -> tuple[dict[str, pa.Array], dict[str, mmap.mmap]]:
    """Write columns that come in pieces to one temporary file, and map it.

    Parameters
    ----------
    pieces : iterable of mapping of str to array-like
        The same columns each time; at least one piece.
    n_rows : int
        Rows of all pieces.

    Returns
    -------
    columns : dict of str to pyarrow.Array
    maps : dict of str to mmap
        Of the columns that lie in the file, which is gone once nobody holds it.

    Raises
    ------
    DataError
        If a piece cannot be part of its column; column and row are named.
    """
    columns: dict[str, _Column] = {}
    end = 0
    with tempfile.TemporaryFile(prefix="modularml-") as file:
        for piece in pieces:
            for name, values in piece.items():
                array = _read(values, name, columns.get(name))
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
        file.truncate(end)
        mapped = mmap.mmap(file.fileno(), end, access=mmap.ACCESS_READ) if end else None
    found = {name: column.finish(mapped) for name, column in columns.items()}
    maps = {name: mapped for name, column in columns.items() if mapped and column.in_file}
    return found, maps


def release(maps: Iterable[mmap.mmap]) -> None:
    """Let go of the memory that reading maps took; the system reads the files again if need be."""
    for mapped in set(maps):
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED)


def _read(values: Any, key: str, column: _Column | None) -> pa.Array:
    try:
        return to_arrow(values, key, copy=False)
    except DataError as error:
        if column is None:
            raise
        raise DataError(
            f"{error} (rows are counted from row {column.n_rows} of the data)"
        ) from error
