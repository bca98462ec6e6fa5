"""Pairs of splits that must be disjoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np

from modularml._typing import IntArray
from modularml.splitters import BaseSplitter
from modularml.splitters.folds import FoldSplitter

if TYPE_CHECKING:
    from modularml.data.featureset import FeatureSet

__all__ = ["Pair", "is_testing", "is_training", "pairs_of"]

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
