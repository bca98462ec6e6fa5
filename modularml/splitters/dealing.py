"""Deal whole groups to parts, so that each part comes close to its share of the rows.

Choosing the very best deal is a partition problem and NP-hard. A few groups are tried in every way
there is; many are dealt at random, big ones first, and then moved and swapped while that helps.
Either way the generator decides among deals that are about equally good.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from modularml._typing import IntArray

__all__ = ["deal"]

SLACK = 0.005
"""Deals that misplace this share of all rows more than the best one count as equally good."""

TRY_ALL = 2.0**20
"""How many numbers may be looked at in trying every deal."""

ONE_BY_ONE = 256
"""How many of the biggest groups are dealt one after another; the rest is cut in bulk."""

CANDIDATES = 64
"""How many groups of each part are looked at for one swap."""

UNIT = 1000
"""What a row weighs: whole numbers, so that sums are the same on every machine."""


@dataclass(frozen=True)
class _Table:
    """What each group weighs, and what each part should weigh.

    Attributes
    ----------
    weights : ndarray of int64, shape (n_groups, n_columns)
        Rows of each group in the first column; then, where there are several classes, its rows of
        each class, scaled so that all classes count alike and together as much as the rows.
    targets : ndarray, shape (n_parts, n_columns)
    """

    weights: IntArray
    targets: NDArray[np.float64]

    def cost(self, totals: IntArray) -> float:
        """Weight that is in the wrong part."""
        return float(np.abs(totals - self.targets).sum())

    def totals(self, labels: IntArray) -> IntArray:
        """Weigh what is in each part."""
        return np.stack([self.weights[labels == p].sum(axis=0) for p in range(len(self.targets))])


def deal(counts: IntArray, ratios: NDArray[np.float64], rng: Generator) -> IntArray:
    """Say which part each group goes to.

    Parameters
    ----------
    counts : ndarray of int64, shape (n_groups, n_classes)
        Rows of each class in each group; one column where classes do not matter. At least as
        many groups as parts.
    ratios : ndarray, shape (n_parts,)
        Positive, summing to 1.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of int64, shape (n_groups,)
        Each part gets at least one group.
    """
    table = _weigh(counts, ratios)
    n_groups, n_columns = table.weights.shape
    slack = SLACK * UNIT * counts.sum()
    few = n_groups * np.log2(len(ratios)) <= np.log2(TRY_ALL / max(n_groups, n_columns))
    if few:
        return _best_of_all(table, slack, rng)
    found = []
    for _ in range(max(1, min(8, 2000 // n_groups))):
        labels = _start(counts, ratios, rng)
        found.append((_improve(table, labels, rng), labels))
        if found[-1][0] <= slack:
            break
    return min(found, key=lambda pair: pair[0])[1]


def _weigh(counts: IntArray, ratios: NDArray[np.float64]) -> _Table:
    weights = UNIT * counts.sum(axis=1, keepdims=True)
    if counts.shape[1] > 1:
        scale = UNIT * counts.sum() / (counts.shape[1] * counts.sum(axis=0))
        by_class = counts * np.maximum(np.rint(scale), 1).astype(np.int64)
        weights = np.concatenate([weights, by_class], axis=1)
    return _Table(weights, ratios[:, None] * weights.sum(axis=0))


def _best_of_all(table: _Table, slack: float, rng: Generator) -> IntArray:
    """Try every deal and draw one of those that are about as good as the best."""
    n_parts, n_groups = len(table.targets), len(table.weights)
    deals = np.arange(n_parts**n_groups)[:, None] // n_parts ** np.arange(n_groups) % n_parts
    cost = np.zeros(len(deals))
    for part, target in enumerate(table.targets):
        here = deals == part
        cost += np.abs(here.astype(np.int64) @ table.weights - target).sum(axis=1)
        cost[~here.any(axis=1)] = np.inf
    good = np.flatnonzero(np.round(cost, 3) <= np.round(cost.min() + slack, 3))
    chosen: IntArray = deals[rng.choice(good)]
    return chosen


def _start(counts: IntArray, ratios: NDArray[np.float64], rng: Generator) -> IntArray:
    """Deal at random, class by class where there are several, so that no part is without."""
    sizes, main_class = counts.sum(axis=1), counts.argmax(axis=1)
    labels = np.empty(len(counts), dtype=np.int64)
    owed = np.zeros(len(ratios))
    for found in np.flatnonzero(np.bincount(main_class)):
        groups = np.flatnonzero(main_class == found)
        owed += ratios * sizes[groups].sum()
        labels[groups] = _fill(sizes[groups], owed, rng)
        owed -= np.bincount(labels[groups], weights=sizes[groups], minlength=len(ratios))
    for part in range(len(ratios)):
        members = np.bincount(labels, minlength=len(ratios))
        if not members[part]:
            spare = np.flatnonzero(members[labels] > 1)
            labels[spare[sizes[spare].argmin()]] = part
    return labels


def _fill(sizes: IntArray, room: NDArray[np.float64], rng: Generator) -> IntArray:
    """Deal groups to parts at random, in proportion to the room that each part has."""
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    labels = np.empty(len(sizes), dtype=np.int64)
    first, rest = order[:ONE_BY_ONE], rng.permutation(order[ONE_BY_ONE:])
    left = room.tolist()
    draws = rng.random(len(first)).tolist()
    for group, size, draw in zip(first.tolist(), sizes[first].tolist(), draws, strict=True):
        part = _pick(left, size, draw)
        labels[group] = part
        left[part] -= size
    if len(rest):
        edges = np.cumsum(np.maximum(left, 0.0))
        middles = np.cumsum(sizes[rest]) - sizes[rest] / 2
        edges *= sizes[rest].sum() / edges[-1]
        labels[rest] = np.searchsorted(edges[:-1], middles, side="right")
    return labels


def _pick(left: list[float], size: int, draw: float) -> int:
    """Draw a part that has room for a group; where none has, take the one with most room."""
    room = [space if space >= size else 0.0 for space in left]
    mark = draw * sum(room)
    for part, space in enumerate(room):
        mark -= space
        if mark < 0:
            return part
    return left.index(max(left))


def _improve(table: _Table, labels: IntArray, rng: Generator) -> float:
    """Move and swap groups between pairs of parts while the cost falls; return the cost."""
    totals = table.totals(labels)
    pairs = list(itertools.combinations(range(len(totals)), 2))
    cost, before = table.cost(totals), np.inf
    while cost < before:
        before = cost
        for a, b in pairs:
            while _swap(table, labels, totals, a, b, rng):
                pass
        cost = table.cost(totals)
    return cost


def _swap(
    table: _Table, labels: IntArray, totals: IntArray, a: int, b: int, rng: Generator
) -> bool:
    """Make the best of some exchanges between two parts; say whether it was worth much."""
    mine, yours = np.flatnonzero(labels == a), np.flatnonzero(labels == b)
    give = mine[rng.integers(len(mine), size=CANDIDATES)]
    take = yours[rng.integers(len(yours), size=CANDIDATES)]
    nothing = np.zeros((1, table.weights.shape[1]), dtype=np.int64)
    out = np.concatenate([nothing, table.weights[give]])
    back = np.concatenate([nothing, table.weights[take]])
    net = out[:, None] - back
    cost = np.abs(totals[a] - net - table.targets[a]) + np.abs(totals[b] + net - table.targets[b])
    total = np.round(cost.sum(axis=2), 3)
    now = total[0, 0]
    if len(mine) == 1:
        total[1:, 0] = np.inf
    if len(yours) == 1:
        total[0, 1:] = np.inf
    i, j = np.unravel_index(total.argmin(), total.shape)
    if now - total[i, j] < UNIT / 10:
        return False
    if i:
        labels[give[i - 1]] = b
    if j:
        labels[take[j - 1]] = a
    totals[a] -= net[i, j]
    totals[b] += net[i, j]
    return True
