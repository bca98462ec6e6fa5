"""Assignment of whole groups to parts, so that each part comes close to its share of the rows.

The optimal assignment is a partition problem and NP-hard. For few groups, every assignment is
tried; many groups are assigned at random, large ones first, and then moved and swapped while that
improves the result. The generator chooses among assignments that are about equally good.
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
"""Share of all rows that an assignment may misplace beyond the best one."""

TRY_ALL = 2.0**20
"""Largest number of values to compute when trying every assignment."""

ONE_BY_ONE = 256
"""Number of largest groups assigned one by one; the rest is assigned in bulk."""

CANDIDATES = 64
"""Number of groups of each part considered for one swap."""

UNIT = 1000
"""Weight of a row; integers make sums identical on every machine."""


@dataclass(frozen=True)
class _Table:
    """Weight of each group, and target weight of each part.

    Attributes
    ----------
    weights : ndarray of int64, shape (n_groups, n_columns)
        Rows of each group in the first column; then, for several classes, its rows of each class,
        scaled so that all classes have equal weight and together as much as the rows.
    targets : ndarray, shape (n_parts, n_columns)
    """

    weights: IntArray
    targets: NDArray[np.float64]

    def cost(self, totals: IntArray) -> float:
        """Return the total weight in the wrong part."""
        return float(np.abs(totals - self.targets).sum())

    def totals(self, labels: IntArray) -> IntArray:
        """Return the weight in each part."""
        return np.stack([self.weights[labels == p].sum(axis=0) for p in range(len(self.targets))])


def deal(counts: IntArray, ratios: NDArray[np.float64], rng: Generator) -> IntArray:
    """Return the part of each group.

    Parameters
    ----------
    counts : ndarray of int64, shape (n_groups, n_classes)
        Rows of each class in each group; one column without classes. At least as many groups as
        parts.
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
    if n_groups * np.log2(len(ratios)) <= np.log2(TRY_ALL / max(n_groups, n_columns)):
        return _best_of_all(table, slack, rng)
    attempts = []
    for _ in range(max(1, min(8, 2000 // n_groups))):
        labels = _start(counts, ratios, rng)
        attempts.append((_improve(table, labels, rng), labels))
        if attempts[-1][0] <= slack:
            break
    return min(attempts, key=lambda pair: pair[0])[1]


def _weigh(counts: IntArray, ratios: NDArray[np.float64]) -> _Table:
    weights = UNIT * counts.sum(axis=1, keepdims=True)
    if counts.shape[1] > 1:
        scale = UNIT * counts.sum() / (counts.shape[1] * counts.sum(axis=0))
        by_class = counts * np.maximum(np.rint(scale), 1).astype(np.int64)
        weights = np.concatenate([weights, by_class], axis=1)
    return _Table(weights, ratios[:, None] * weights.sum(axis=0))


def _best_of_all(table: _Table, slack: float, rng: Generator) -> IntArray:
    """Try every assignment and draw one of those about as good as the best."""
    n_parts, n_groups = len(table.targets), len(table.weights)
    assignments = np.arange(n_parts**n_groups)[:, None] // n_parts ** np.arange(n_groups) % n_parts
    cost = np.zeros(len(assignments))
    for part, target in enumerate(table.targets):
        here = assignments == part
        cost += np.abs(here.astype(np.int64) @ table.weights - target).sum(axis=1)
        cost[~here.any(axis=1)] = np.inf
    good = np.flatnonzero(np.round(cost, 3) <= np.round(cost.min() + slack, 3))
    chosen: IntArray = assignments[rng.choice(good)]
    return chosen


def _start(counts: IntArray, ratios: NDArray[np.float64], rng: Generator) -> IntArray:
    """Assign groups at random, class by class, so that no part is empty."""
    sizes, main_class = counts.sum(axis=1), counts.argmax(axis=1)
    labels = np.empty(len(counts), dtype=np.int64)
    missing = np.zeros(len(ratios))
    for label in np.flatnonzero(np.bincount(main_class)):
        groups = np.flatnonzero(main_class == label)
        missing += ratios * sizes[groups].sum()
        labels[groups] = _fill(sizes[groups], missing, rng)
        missing -= np.bincount(labels[groups], weights=sizes[groups], minlength=len(ratios))
    for part in range(len(ratios)):
        members = np.bincount(labels, minlength=len(ratios))
        if not members[part]:
            movable = np.flatnonzero(members[labels] > 1)
            labels[movable[sizes[movable].argmin()]] = part
    return labels


def _fill(sizes: IntArray, capacity: NDArray[np.float64], rng: Generator) -> IntArray:
    """Assign groups to parts at random, in proportion to their capacities."""
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    labels = np.empty(len(sizes), dtype=np.int64)
    first, rest = order[:ONE_BY_ONE], rng.permutation(order[ONE_BY_ONE:])
    left = capacity.tolist()
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
    """Draw a part with capacity for a group, else the part with the most capacity."""
    capacities = [capacity if capacity >= size else 0.0 for capacity in left]
    remaining = draw * sum(capacities)
    for part, capacity in enumerate(capacities):
        remaining -= capacity
        if remaining < 0:
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
    """Make the best of some exchanges between two parts; return whether it helped."""
    in_a, in_b = np.flatnonzero(labels == a), np.flatnonzero(labels == b)
    from_a = in_a[rng.integers(len(in_a), size=CANDIDATES)]
    from_b = in_b[rng.integers(len(in_b), size=CANDIDATES)]
    nothing = np.zeros((1, table.weights.shape[1]), dtype=np.int64)
    out = np.concatenate([nothing, table.weights[from_a]])
    back = np.concatenate([nothing, table.weights[from_b]])
    net = out[:, None] - back
    cost = np.abs(totals[a] - net - table.targets[a]) + np.abs(totals[b] + net - table.targets[b])
    total = np.round(cost.sum(axis=2), 3)
    current = total[0, 0]
    if len(in_a) == 1:
        total[1:, 0] = np.inf
    if len(in_b) == 1:
        total[0, 1:] = np.inf
    i, j = np.unravel_index(total.argmin(), total.shape)
    if current - total[i, j] < UNIT / 10:
        return False
    if i:
        labels[from_a[i - 1]] = b
    if j:
        labels[from_b[j - 1]] = a
    totals[a] -= net[i, j]
    totals[b] += net[i, j]
    return True
