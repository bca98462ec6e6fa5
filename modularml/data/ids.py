"""Row ids of 128 bits, displayed as UUID text."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._typing import Array
from modularml.errors import DataError

__all__ = [
    "IdArray",
    "check_ids",
    "id_array",
    "id_texts",
    "ids_from_texts",
    "make_ids",
    "scramble",
]

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
    return np.frombuffer(b"".join(map(_id_bytes, values)), dtype="V16")


def _id_bytes(value: Any) -> bytes:
    if isinstance(value, bytes) and len(value) == 16:
        return value
    try:
        return uuid.UUID(str(value)).bytes
    except ValueError:
        raise DataError(f"a sample id must be UUID text, got {value!r}") from None


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
