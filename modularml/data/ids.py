"""Row ids of 128 bits, displayed as UUID text, and positions of rows."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modularml._typing import Array, IntArray
from modularml.errors import DataError

IdArray = np.ndarray[Any, np.dtype[np.void]]


def id_array(ids: IdArray) -> pa.Array:
    """Return ids as an Arrow array of 16 bytes each."""
    buffer = pa.py_buffer(np.ascontiguousarray(ids).view(np.uint8))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(ids), [None, buffer])


def id_texts(ids: IdArray) -> Array:
    """Format ids as UUID text.

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
        If a value is none of these; the message names the first.
    """
    values = texts.tolist() if isinstance(texts, np.ndarray) else list(texts)
    if all(isinstance(text, str) and len(text) == 36 for text in values):
        digits = "".join(values).replace("-", "")
        if len(digits) == 32 * len(values):
            try:
                return np.frombuffer(bytes.fromhex(digits), dtype="V16")
            except ValueError:
                pass  # the slow path below finds which one it is
    found = []
    for value in values:
        try:
            is_bytes = isinstance(value, bytes) and len(value) == 16
            found.append(value if is_bytes else uuid.UUID(str(value)).bytes)
        except ValueError:
            raise DataError(f"a sample id must be UUID text, got {value!r}") from None
    return np.frombuffer(b"".join(found), dtype="V16")


def positions_of(wanted: pa.Array, ids: pa.Array) -> IntArray:
    """Return the position of each id among others, -1 if it is absent; so of other keys."""
    positions = pc.index_in(wanted, value_set=ids, skip_nulls=True)
    return pc.fill_null(positions, -1).to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def as_positions(indices: Any) -> IntArray:
    """Return positions of rows as one array of integers.

    Raises
    ------
    DataError
        If they are not integers or not one-dimensional.
    """
    rows = np.asarray(indices)
    if rows.size and rows.dtype.kind not in "iu":
        raise DataError(f"indices must be integers, got {rows.dtype}; use filter() for conditions")
    if rows.ndim > 1:
        raise DataError(f"indices must be one-dimensional, got shape {rows.shape}")
    return rows.astype(np.int64, copy=False).reshape(-1)


def as_slice(rows: IntArray | slice) -> IntArray | slice:
    """Return consecutive rows as a slice, which is cheaper to gather."""
    if isinstance(rows, slice):
        return rows
    n, block = len(rows), 16384  # small enough to stay in the cache
    if not n or rows[-1] - rows[0] != n - 1:
        return rows
    for at in range(0, n - 1, block):
        part = rows[at : at + block + 1]
        if not (part[1:] - part[:-1] == 1).all():
            return rows
    return slice(int(rows[0]), int(rows[0]) + n)


def make_ids(fingerprint: str, n: int) -> IdArray:
    """Return ids of `n` rows, derived from the fingerprint of the data alone."""
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


def check_ids(column: pa.ChunkedArray) -> None:
    """Refuse ids that are missing, of another type or not unique."""
    if column.type != pa.binary(16):
        raise DataError(
            f"sample_uuids must be 16 bytes per row (binary(16) in Arrow), got {column.type}"
        )
    if column.null_count:
        raise DataError(f"sample_uuids has {column.null_count} missing value(s); drop the column")
    if len(column.unique()) < len(column):
        first: dict[bytes, int] = {}
        for row, value in enumerate(column.to_pylist()):
            if first.setdefault(value, row) < row:
                raise DataError(
                    f"sample_uuids: row {row} has the same id as row {first[value]}; select "
                    "each row only once"
                )
