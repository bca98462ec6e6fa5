"""Identity of rows by id or content."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from modularml._typing import Array, IntArray
from modularml.audit.likeness import hashes
from modularml.data.ids import IdArray, scramble
from modularml.data.schema import RAW

if TYPE_CHECKING:
    from modularml.data.featureset import FeatureSet

__all__ = ["content_words", "id_words", "shared"]


def id_words(ids: IdArray, key: int = 0) -> Array:
    """Hash sample ids to 64 bits with a key.

    Parameters
    ----------
    ids : ndarray, shape (n,), dtype V16

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    words = np.frombuffer(ids.tobytes(), dtype="<u8").reshape(-1, 2)
    return scramble(scramble(words[:, 0] ^ np.uint64(key)) ^ words[:, 1])


def content_words(fs: FeatureSet, rows: IntArray, key: int = 0) -> Array:
    """Hash what rows hold in their raw features and targets to 64 bits, with a key.

    Floats count as in float32, columns by their key, so that order and type of columns do not
    matter. Text counts by its characters.

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    total = np.zeros(len(rows), dtype=np.uint64)
    for spec in fs.collection.schema.columns.values():
        if spec.domain == "tags" or spec.rep != RAW:
            continue
        values = fs.collection.gather([spec.name], rows)[:, 0]
        if values.dtype.kind == "O":
            texts, place = np.unique(values.astype(str), return_inverse=True)
            coded = np.array([_text_word(str(text)) for text in texts.ravel()], dtype=np.uint64)
            values = coded[place].view(np.int64)
        elif values.dtype.kind in "biu":
            values = values.astype(np.float64)
        word = np.uint64(key) ^ _text_word(f"{spec.domain}.{spec.key}")
        total += scramble(hashes(values) ^ word) if len(rows) else total
    return scramble(total ^ np.uint64(key))


def shared(fs: FeatureSet, rows: IntArray, other: FeatureSet, others: IntArray) -> IntArray:
    """Return which of `rows` are among `others` of the same or another set.

    In another set they are the same by id, or by all that they hold.
    """
    if fs is other:
        seen = np.zeros(len(fs), dtype=bool)
        seen[others] = True
        return rows[seen[rows]]
    mine, theirs = id_words(fs.collection.ids[rows]), id_words(other.collection.ids[others])
    same = np.isin(mine, theirs)
    keys = [
        {s.key for s in f.collection.schema.columns.values() if s.domain != "tags"}
        for f in (fs, other)
    ]
    if keys[0] == keys[1]:
        same |= np.isin(content_words(fs, rows), content_words(other, others))
    return rows[same]


def _text_word(text: str) -> np.uint64:
    return np.uint64(
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    )
