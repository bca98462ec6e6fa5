"""Which splits must have nothing in common."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np

from modularml._typing import IntArray
from modularml.splitters import BaseSplitter
from modularml.splitters.folds import FoldSplitter

if TYPE_CHECKING:
    from modularml.data.featureset import FeatureSet

__all__ = ["Pair", "pairs_of"]

_TRAINING = re.compile(r"train|(^|[^a-z])fit")
_TESTING = re.compile(r"val|test|dev|hold")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two splits that a model should not see both of; the training side first.

    Parameters
    ----------
    names : tuple of str
    train, test : ndarray of int64
        Rows of the FeatureSet.
    n : int
        How many rows the FeatureSet has.
    splitter : BaseSplitter, optional
        What made both.
    origin : str, optional
        The split that both were cut from.
    """

    names: tuple[str, str]
    train: IntArray
    test: IntArray
    n: int
    splitter: BaseSplitter | None = None
    origin: str | None = None

    @property
    def severity(self) -> str:
        """Error where the first is for training by its name, else warning."""
        return "error" if is_training(self.names[0]) else "warning"

    @cached_property
    def shared(self) -> IntArray:
        """Rows that are in both."""
        return self.test[self.in_train[self.test]]

    @cached_property
    def in_train(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """One truth value a row of the FeatureSet."""
        return _mask(self.n, self.train)


@dataclass(frozen=True, eq=False)
class _Scheme:
    """Splits that one call made, or one that was added by hand."""

    names: tuple[str, ...]
    source: str | None = None
    splitter: BaseSplitter | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """Return the names that must be apart: both sides of each fold, else all."""
        if isinstance(self.splitter, FoldSplitter):
            return list(zip(self.names[::2], self.names[1::2], strict=True))
        return list(combinations(self.names, 2))


def pairs_of(fs: FeatureSet) -> list[Pair]:
    """Return all pairs of splits that should have nothing in common.

    Left out are two splits for training, sides of different folds, a split and what was cut from
    it or is a part of it (but for a part of the training rows that is named for testing), and
    splits of two calls that divide the same rows in two ways.
    """
    rows = {name: fs[name].valid_indices for name in fs.available_splits}
    schemes = [_Scheme(r.names, r.source, r.splitter) for r in fs.split_records]
    schemes += _by_hand(rows, {name for scheme in schemes for name in scheme.names}, len(fs))
    found = []
    for scheme in schemes:
        found += [_pair(rows, a, b, len(fs), scheme) for a, b in scheme.pairs()]
    for one, other in combinations(schemes, 2):
        # of splits that were cut from different ones, those that they were cut from are a pair
        if one.source == other.source and not _alternatives(one, other, rows, len(fs)):
            between = _Scheme((), one.source)
            names = product(one.names, other.names)
            found += [_pair(rows, a, b, len(fs), between) for a, b in names]
    return [pair for pair in found if not _may_share(pair)]


def is_training(name: str) -> bool:
    """Tell whether a split is for training, by its name."""
    return bool(_TRAINING.search(name.lower()))


def _by_hand(rows: Mapping[str, IntArray], made: set[str], n: int) -> list[_Scheme]:
    """Return splits that no call made, by the split that they are a part of."""
    found: dict[str | None, tuple[str, ...]] = {}
    for name in (name for name in rows if name not in made):
        source = None
        if not is_training(name) and not _TESTING.search(name.lower()):
            larger = (k for k, r in rows.items() if len(r) > len(rows[name]))
            around = (k for k in larger if _mask(n, rows[k])[rows[name]].all())
            source = min(around, key=lambda k: len(rows[k]), default=None)
        found[source] = (*found.get(source, ()), name)
    return [_Scheme(names, source) for source, names in found.items()]


def _pair(rows: Mapping[str, IntArray], a: str, b: str, n: int, scheme: _Scheme) -> Pair:
    if is_training(b) and not is_training(a):
        a, b = b, a
    return Pair((a, b), rows[a], rows[b], n, scheme.splitter, scheme.source)


def _alternatives(one: _Scheme, other: _Scheme, rows: Mapping[str, IntArray], n: int) -> bool:
    """Tell whether two calls divided the same rows, or most of them, in two ways."""
    if len(one.names) < 2 or len(other.names) < 2:
        return False
    a, b = (_mask(n, *(rows[name] for name in scheme.names)) for scheme in (one, other))
    return bool((a & b).sum() * 2 > min(a.sum(), b.sum()))


def _may_share(pair: Pair) -> bool:
    """Tell whether both are for training, or one is a part of the other and none is."""
    if is_training(pair.names[0]):
        return is_training(pair.names[1])
    return len(pair.shared) == min(len(pair.train), len(pair.test))


def _mask(n: int, *rows: IntArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    found = np.zeros(n, dtype=bool)
    for part in rows:
        found[part] = True
    return found
