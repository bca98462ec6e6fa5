"""Finding partners by sorted values, hashed values or a k-d tree; never by all pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.progress import bar
from modularml.samplers.condition import SimilarityCondition, takes_arrays

__all__ = ["Partners", "Rule", "find_partners", "pair_weights"]

MAX_PAIRS = 2**25
"""Pairs that are looked at one by one in a search, and kept of a k-d tree."""

FEWEST = 256
"""Candidates that an anchor has, where there are, even if `MAX_PAIRS` is passed."""

SLOWER = 16
"""How much less is looked at where a metric takes no arrays."""

CHUNK = 2**20


@dataclass(frozen=True)
class Rule:
    """A condition with the values that it compares.

    Parameters
    ----------
    condition : SimilarityCondition
    values : ndarray, shape (n, ...)
        One for each row; numbers of the groups where values are only equal or not.
    by_equality : bool
    """

    condition: SimilarityCondition
    values: Array
    by_equality: bool

    @property
    def is_quick(self) -> bool:
        """Whether distances of many pairs are one call."""
        metric = self.condition.metric
        return metric is None or takes_arrays(metric, self.values[:8], self.values[-8:])

    @property
    def joins(self) -> bool:
        """Whether rows of one group match and no others."""
        c = self.condition
        exact = self.by_equality or (c.tolerance == 0 and self.values.ndim == 1)
        return exact and c.mode == "similar" and c.metric is None

    @property
    def sorts(self) -> bool:
        """Whether matches are one or two runs of the sorted values."""
        return self.condition.metric is None and self.values.ndim == 1

    @property
    def near(self) -> bool:
        """Whether matches are within a distance that a k-d tree can search."""
        return self.condition.metric is None and self.condition.mode == "similar"

    def distances(self, a: IntArray, b: IntArray) -> Array:
        """Return the distance of pairs of rows."""
        if self.by_equality and self.condition.metric is None:
            return np.where(self.values[a] == self.values[b], 0.0, np.inf)
        return self.condition.distances(self.values[a], self.values[b])


def pair_weights(rules: Sequence[Rule], a: IntArray, b: IntArray) -> Array:
    """Return the product of what all conditions give pairs of rows."""
    weights = np.ones(len(a))
    for rule in rules:
        weights *= rule.condition.weights(rule.distances(a, b))
    return weights


@dataclass(frozen=True)
class Partners:
    """The partners of each row: two runs of `members`, of which either may be empty.

    Parameters
    ----------
    members : ndarray of int64
        Row numbers.
    starts, sizes : ndarray of int64, shape (2, n)
        Of the runs.
    nearest : bool or None
        Whether what lies nearest is where the runs meet (True) or at their far ends (False).
    """

    members: IntArray
    starts: IntArray
    sizes: IntArray
    nearest: bool | None = None

    @property
    def counts(self) -> IntArray:
        """Number of partners of each row."""
        counts: IntArray = self.sizes.sum(axis=0)
        return counts

    def at(self, rows: IntArray, places: IntArray) -> IntArray:
        """Return partners by place, from 0; both shape (n, k), or rows (n, 1)."""
        first, second = self.sizes[0][rows], self.starts[1][rows]
        found = np.where(places < first, self.starts[0][rows] + places, second + places - first)
        partners: IntArray = self.members.take(found, mode="clip")
        return partners

    def draw(self, rows: IntArray, k: int, rng: np.random.Generator) -> IntArray:
        """Return up to `k` partners of each row, drawn without replacement.

        Floyd's algorithm (Bentley & Floyd 1987, *A sample of brilliance*).

        Returns
        -------
        ndarray of int64, shape (n, k)
            -1 behind the last partner.
        """
        counts = self.counts[rows]
        taken = np.minimum(counts, k)
        places = np.full((len(rows), k), -1)
        for i in range(k):
            last = counts - taken + i
            drawn = (rng.random(len(rows)) * (last + 1)).astype(np.int64)
            twice = (places[:, :i] == drawn[:, None]).any(axis=1)
            places[:, i] = np.where(i < taken, np.where(twice, last, drawn), -1)
        found = self.at(rows[:, None], np.maximum(places, 0)) if len(self.members) else places
        return np.where(places < 0, -1, found)

    def pool(self, rows: IntArray, size: int, rng: np.random.Generator) -> tuple[IntArray, ...]:
        """Return pairs of rows and partners: all of them, or `size` for each row.

        Those are the nearest (or farthest) where values are sorted, else spread evenly.
        """
        counts = self.counts[rows][:, None]
        place = np.arange(min(size, int(counts.max(initial=0))))[None]
        if self.nearest is None:
            shift = (rng.random((len(rows), 1)) * counts).astype(np.int64)
            some = (place * counts // size + shift) % np.maximum(counts, 1)
        elif self.nearest:
            some = place + np.clip(self.sizes[0][rows][:, None] - size // 2, 0, counts - size)
        else:
            some = (place - size // 2) % np.maximum(counts, 1)
        places = np.where(counts <= size, place, some)
        there = place < counts
        a = np.broadcast_to(rows[:, None], there.shape)[there]
        return a, self.at(a, places[there])


def find_partners(
    rules: Sequence[Rule],
    n: int,
    rng: np.random.Generator,
    *,
    best: int | None = None,
    show: bool = False,
) -> Partners:
    """Find for each row the other rows that match it by all rules.

    Exact where sorted values or a k-d tree answer, or up to `MAX_PAIRS` candidates in all; beyond
    that a metric, or what is neither, is tried on `FEWEST` or more candidates a row (a 16th of that
    where the metric takes no arrays).

    Parameters
    ----------
    rules : sequence of Rule
        With `best`, those that allow a fallback do not restrict.
    n : int
        Number of rows.
    rng : numpy.random.Generator
        Chooses candidates where they are too many.
    best : int, optional
        Keep so many partners of each row, those that weigh most.
    show : bool
        Whether a progress bar is drawn where pairs are looked at.
    """
    strict = [r for r in rules if best is None or not r.condition.allow_fallback]
    usable = np.ones(n, dtype=bool)
    for rule in strict:
        if rule.condition.metric is None and rule.values.dtype.kind == "f":
            usable &= np.isfinite(rule.values.reshape(n, -1)).all(axis=1)
    rows = np.flatnonzero(usable)
    by_tree = [r for r in strict if r.near and not r.joins]
    if (len(by_tree) > 1 or any(r.values.ndim > 1 for r in by_tree)) and len(rows):
        pairs = _tree_pairs(by_tree, [r for r in strict if r.joins], rows)
        if pairs is not None:
            return _joined([_kept(strict, rules, *pairs, best)], n)
    runs, left = _runs(strict, rules, rows, n, ranked=best is not None)
    if best is None and not left:
        return runs
    size = max(FEWEST, MAX_PAIRS // max(1, len(rows)))
    if not all(rule.is_quick for rule in left):
        size //= SLOWER
    ranking = [r for r in rules if not (r.joins and any(r is s for s in strict))]
    if best is not None and len(ranking) <= 1 and all(r.sorts for r in ranking):
        size = 2 * best  # the best lie next to each other
    chunks = _chunks(runs, rows, size, rng, show=show)
    return _joined([_kept(left, rules, a, b, best) for a, b in chunks], n)


def _runs(
    strict: Sequence[Rule], rules: Sequence[Rule], rows: IntArray, n: int, *, ranked: bool
) -> tuple[Partners, list[Rule]]:
    """Sort rows so that partners by equality and by one column are runs; return the other rules."""
    joins = [r for r in strict if r.joins]
    groups = np.zeros(len(rows), dtype=np.int64)
    for rule in joins:
        own = np.unique(rule.values[rows], return_inverse=True)[1]
        groups = np.unique(groups * (own.max(initial=0) + 1) + own, return_inverse=True)[1]
    others = [r for r in strict if not r.joins]
    sorting = [r for r in others if r.sorts] or [r for r in rules if r.sorts and ranked]
    rule = next(iter(sorted(sorting, key=lambda r: not r.near)), None)
    values = np.zeros(len(rows)) if rule is None else rule.values[rows]
    order = np.lexsort((values, groups)) if joins else np.argsort(values, kind="stable")
    values, groups = values[order], groups[order]
    ends = np.cumsum(np.bincount(groups)) if len(rows) else groups
    start, end = np.append(0, ends)[groups], ends[groups]
    place = np.arange(len(rows))
    runs = [start, place, place + 1, end]
    if rule is not None and any(rule is r for r in others):
        low, high = _within(rule, values, start, end)
        runs = [low, place, place + 1, high] if rule.near else [start, low, high, end]
    table = np.zeros((4, n), dtype=np.int64)
    table[:, rows[order]] = runs
    nearest = None if rule is None else rule.condition.mode == "similar"
    found = Partners(rows[order], table[::2], table[1::2] - table[::2], nearest)
    return found, [r for r in others if r is not rule]


def _within(rule: Rule, values: Array, start: IntArray, end: IntArray) -> tuple[IntArray, IntArray]:
    """Return the run of sorted values within the tolerance of each, by bisection.

    The distance itself decides, so that no rounding of ``value + tolerance`` does.
    """
    tolerance = 0.0 if rule.by_equality else rule.condition.tolerance
    mine = values.astype(np.float64)
    place = np.arange(len(values))

    def bisect(low: IntArray, high: IntArray, *, upward: bool) -> IntArray:
        while (low < high).any():
            middle = (low + high) >> 1
            other = mine[np.minimum(middle, len(mine) - 1)]
            right = other - mine <= tolerance if upward else mine - other > tolerance
            right &= low < high
            low, high = np.where(right, middle + 1, low), np.where(right, high, middle)
            high = np.maximum(low, high)
        return low

    return bisect(start, place, upward=False), bisect(place, end, upward=True)


def _tree_pairs(
    near: Sequence[Rule], joins: Sequence[Rule], rows: IntArray
) -> tuple[IntArray, IntArray] | None:
    """Return all pairs within the tolerances, and a few more; None where they are too many."""
    columns: list[Array] = [
        r.values[rows].reshape(len(rows), -1) / r.condition.tolerance for r in near
    ]
    # groups lie so far apart that nothing reaches from one to another
    columns += [2.0 * np.unique(r.values[rows], return_inverse=True)[1][:, None] for r in joins]
    power = 2 if len(columns) == 1 else np.inf
    points = np.hstack(columns)
    tree = require("scipy.spatial").cKDTree(points)
    reach = 1 + 1e-9 + 1e-15 * np.abs(points).max(initial=0)
    if tree.count_neighbors(tree, reach, p=power) - len(rows) > MAX_PAIRS:
        return None
    a, b = rows[tree.query_pairs(reach, p=power, output_type="ndarray")].T
    return np.concatenate([a, b]), np.concatenate([b, a])


def _chunks(
    runs: Partners, rows: IntArray, size: int, rng: np.random.Generator, *, show: bool
) -> Iterator[tuple[IntArray, ...]]:
    """Yield candidate pairs, so many at a time."""
    step = max(1, CHUNK // min(size, max(1, int(runs.counts.max(initial=0)))))
    with bar(len(rows), "partners", show=show and len(rows) > step, unit="row") as drawn:
        for at in range(0, len(rows), step):
            part = rows[at : at + step]
            yield runs.pool(part, size, rng)
            drawn.update(len(part))


def _kept(
    tests: Sequence[Rule], rules: Sequence[Rule], a: IntArray, b: IntArray, best: int | None
) -> tuple[IntArray, IntArray]:
    """Return the pairs that match by these tests, or the best of them by all rules."""
    for rule in tests:
        keep = rule.condition.matches(rule.distances(a, b))
        a, b = a[keep], b[keep]
    order = np.argsort(a, kind="stable")
    if best is not None:
        order = np.lexsort((-pair_weights(rules, a, b), a))
    a, b = a[order], b[order]
    if best is not None:
        rank = np.arange(len(a)) - np.searchsorted(a, a)
        a, b = a[rank < best], b[rank < best]
    return a, b


def _joined(parts: Sequence[tuple[IntArray, IntArray]], n: int) -> Partners:
    """Return pairs, in any order of chunks whose anchors differ, as runs."""
    a = np.concatenate([np.empty(0, dtype=np.int64), *(p[0] for p in parts)])
    b = np.concatenate([np.empty(0, dtype=np.int64), *(p[1] for p in parts)])
    order = np.argsort(a, kind="stable")
    counts = np.bincount(a, minlength=n)
    none = np.zeros(n, dtype=np.int64)
    starts = np.stack([np.cumsum(counts) - counts, none])
    return Partners(b[order], starts, np.stack([counts, none]))
