"""Pairs of splits, and rows that both hold."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np

from modularml._typing import Array, IntArray
from modularml.audit.likeness import hashes
from modularml.data.ids import IdArray, scramble
from modularml.data.schema import RAW
from modularml.splitters import BaseSplitter
from modularml.splitters.folds import FoldSplitter

if TYPE_CHECKING:
    from modularml.data.featureset import FeatureSet

__all__ = ["Pair", "content_words", "id_words", "is_testing", "is_training", "pairs_of", "shared"]


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


Mask = np.ndarray[Any, np.dtype[np.bool_]]
_TESTING = re.compile("test|val|dev|hold|exam|check|eval|final|unseen|blind|score|verif|probe")
_Call = tuple[tuple[str, ...], str | None, BaseSplitter | None]
_Apart = tuple[str, str, BaseSplitter | None, str | None]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two splits that should have nothing in common: names and rows, the training side first."""

    names: tuple[str, str]
    train: IntArray
    test: IntArray
    in_train: Mask
    splitter: BaseSplitter | None = None  # that made both
    origin: str | None = None  # split that both were cut from

    @property
    def severity(self) -> str:
        """Error where the first is for training by its name, else warning."""
        return "error" if is_training(self.names[0]) else "warning"

    @property
    def shared(self) -> IntArray:
        """Rows that are in both."""
        return self.test[self.in_train[self.test]]

    @property
    def may_share(self) -> bool:
        """Whether both are for training."""
        return is_training(self.names[1])


def pairs_of(fs: FeatureSet) -> list[Pair]:
    """Return all pairs of splits that should have nothing in common.

    Left out are two splits for training, sides of different folds, a split and what was cut from
    it, splits of two calls that divide the same rows in two ways, and a part of a split that is
    not named for testing, where another split is left to test on.
    """
    rows = {name: view.valid_indices for name, view in fs.splits.items()}

    def mask(names: Sequence[str]) -> Mask:
        found = np.zeros(len(fs), dtype=bool)
        for name in names:
            found[rows[name]] = True
        return found

    def divide_alike(one: Sequence[str], other: Sequence[str]) -> bool:
        a, b = mask(one), mask(other)
        half = min(a.sum(), b.sum()) / 2
        return len(one) > 1 and len(other) > 1 and bool((a & b).sum() > half)

    def is_part(name: str) -> bool:
        wholes = [k for k in rows if len(rows[k]) > len(rows[name]) and mask([k])[rows[name]].all()]
        apart = [k for w in wholes for k in rows if len(rows[k]) and not mask([w])[rows[k]].any()]
        return not is_testing(name) and bool(apart)

    calls: list[_Call] = [(r.names, r.source, r.splitter) for r in fs.split_records]
    made = {name for names, *_ in calls for name in names}
    calls.append((tuple(k for k in rows if k not in made and not is_part(k)), None, None))
    found: list[_Apart] = [
        (*pair, s, source) for names, source, s in calls for pair in _within(names, s)
    ]
    for (one, source, _), (other, its, _) in combinations(calls, 2):
        if source == its and not divide_alike(one, other):
            found += [(a, b, None, source) for a, b in product(one, other)]
    pairs = []
    for one_name, other_name, splitter, source in found:
        a, b = sorted((one_name, other_name), key=is_training, reverse=True)
        pairs.append(Pair((a, b), rows[a], rows[b], mask([a]), splitter, source))
    return [pair for pair in pairs if not pair.may_share]


def is_testing(name: str) -> bool:
    """Tell whether a split is for testing or validation, by its name."""
    return bool(_TESTING.search(name.lower()))


def is_training(name: str) -> bool:
    """Tell whether a split is for training, by its name."""
    return bool(re.search("train|(^|[^a-z])fit", name.lower()))


def _within(names: Sequence[str], splitter: BaseSplitter | None) -> list[tuple[str, str]]:
    if isinstance(splitter, FoldSplitter):
        return list(zip(names[::2], names[1::2], strict=True))
    return list(combinations(names, 2))
