"""Similarity conditions, and the search for rows that match."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.config import Configurable
from modularml.errors import ConfigError
from modularml.progress import bar

FALLBACK = 0.1
"""Weight of a pair that fails in mode ``binary`` with ``allow_fallback``."""


@dataclass(frozen=True, eq=False, repr=False)
class SimilarityCondition(Configurable):
    """A condition on the similarity, or dissimilarity, of two samples in one column.

    The distance is the absolute difference of numbers, the Euclidean distance of arrays, and for
    other types 0 if equal, else infinite. A NaN matches nothing.

    Parameters
    ----------
    mode : {'similar', 'dissimilar'}
        Whether a pair matches within `tolerance` or beyond it.
    tolerance : float
        In the unit of the column, at least 0.
    metric : callable, optional
        Custom distance of two values. A vectorized function, which also takes arrays of values,
        is much faster. For many rows, samplers evaluate only some candidates of each.
    weight_mode : {'binary', 'linear', 'exp'}
        ``binary``: the weight of a match is 1, of a failing pair 0.1. ``linear``:
        ``tolerance / distance``. ``exp``: ``exp(1 - distance / tolerance)``. For dissimilar pairs,
        the ratio is inverted and the exponent negated, so larger distances weigh more.
    max_weight, min_weight : float
        Bounds of linear and exponential weights. With the default bounds, a match weighs 1.
    allow_fallback : bool
        Whether failing pairs are used, with a weight below 1, if there are too few matches.
        Otherwise their weight is 0.

    Raises
    ------
    ConfigError
        If an argument is out of range.

    Examples
    --------
    >>> near = SimilarityCondition(tolerance=0.5, weight_mode="linear", max_weight=4.0)
    >>> near.score(1.0, 1.25), near.score(1.0, 2.0)
    (2.0, 0.0)
    """

    mode: Literal["similar", "dissimilar"] = "similar"
    tolerance: float = 0.0
    metric: Callable[[float, float], float] | None = None
    weight_mode: Literal["binary", "linear", "exp"] = "binary"
    max_weight: float = 1.0
    min_weight: float = 0.0
    allow_fallback: bool = False

    def __post_init__(self) -> None:
        ranges = {"tolerance": (0, math.inf), "max_weight": (1, math.inf), "min_weight": (0, 1)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value < high:
                raise ConfigError(f"{name} must be at least {low} and below {high}, got {value!r}")

    @property
    def gives_weights(self) -> bool:
        """Whether pairs can have weights other than 1."""
        return self.allow_fallback or (self.weight_mode != "binary" and self.max_weight > 1)

    def score(self, a: Any, b: Any) -> float:
        """Return the weight of a pair of values, anchor first: at least 1 for a match."""
        return float(self.weights(self.distances(np.asarray([a]), np.asarray([b])))[0])

    def distances(self, a: Array, b: Array) -> Array:
        """Return the distance of each pair of values, shape (n, ...) both."""
        if self.metric is not None:
            return _distances_by(self.metric, a, b)
        if a.dtype.kind not in "iuf":
            return np.where(a == b, 0.0, np.inf)
        if a.dtype.kind in "iu" and a.dtype == b.dtype:  # exact for large integers
            low, high = (pick(a, b).astype(np.uint64) for pick in (np.minimum, np.maximum))
            difference = (high - low).astype(np.float64)
        else:
            difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
        if a.ndim == 1:
            return difference
        squares: Array = (difference**2).sum(axis=tuple(range(1, a.ndim)))
        return np.sqrt(squares)

    def matches(self, distances: Array) -> Array:
        """Return which distances fulfil the condition."""
        if self.mode == "similar":
            return distances <= self.tolerance
        return distances > self.tolerance

    def weights(self, distances: Array) -> Array:
        """Return the weights of pairs at these distances."""
        matches = self.matches(distances)
        if self.weight_mode == "binary":
            matched, failed = np.ones(len(distances)), np.full(len(distances), FALLBACK)
        else:
            with np.errstate(all="ignore"):
                share = np.where(distances == 0, 0.0, distances / self.tolerance)
                graded = 1 / share if self.weight_mode == "linear" else np.exp(1 - share)
                graded = graded if self.mode == "similar" else np.divide(1.0, graded)
            matched = np.fmin(np.fmax(graded, 1.0), self.max_weight)
            failed = np.fmin(np.fmax(graded, self.min_weight), np.nextafter(1.0, 0.0))
        return np.where(matches, matched, failed if self.allow_fallback else 0.0)

    @classmethod
    def from_config(cls, cfg: dict[str, Any]) -> SimilarityCondition:
        """Create a condition from the output of `get_config`."""
        return super().from_config(cfg)


def _distances_by(metric: Callable[..., Any], a: Array, b: Array) -> Array:
    """Return a metric of each pair, in one call if the metric is vectorized."""

    def one_by_one(n: int) -> Array:
        return np.array([metric(x, y) for x, y in zip(a[:n], b[:n], strict=True)], dtype=np.float64)

    try:
        probe = np.asarray(metric(a[:8], b[:8]), dtype=np.float64)
    except (TypeError, ValueError, AttributeError):
        return one_by_one(len(a))
    if np.array_equal(probe, one_by_one(8), equal_nan=True):
        return np.asarray(metric(a, b), dtype=np.float64)
    return one_by_one(len(a))


MAX_PAIRS = 2**25
"""Pairs that a search evaluates (a quarter of that with a metric) or a tree returns."""

MIN_CANDIDATES = 256
"""Candidates per row (a quarter with a metric) even if that exceeds `MAX_PAIRS`."""

CHUNK = 2**20


@dataclass(frozen=True, eq=False)
class Rule:
    """A condition with its values, shape (n, ...); group codes if `by_equality`."""

    condition: SimilarityCondition
    values: Array
    by_equality: bool

    @property
    def sorts(self) -> bool:
        """Whether matches form one or two runs of the sorted values."""
        return self.condition.metric is None and self.values.ndim == 1

    @property
    def near(self) -> bool:
        """Whether matches lie within a distance."""
        return self.condition.metric is None and self.condition.mode == "similar"

    @property
    def joins(self) -> bool:
        """Whether exactly the rows of the same group match."""
        return self.near and self.sorts and (self.by_equality or self.condition.tolerance == 0)

    def distances(self, a: IntArray, b: IntArray) -> Array:
        """Return the distance of pairs of rows."""
        if self.by_equality:
            return np.where(self.values[a] == self.values[b], 0.0, np.inf)
        return self.condition.distances(self.values[a], self.values[b])


def pair_weights(rules: Sequence[Rule], a: IntArray, b: IntArray) -> Array:
    """Return the product of the weights of all conditions for pairs of rows."""
    weights = np.ones(len(a))
    for rule in rules:
        weights *= rule.condition.weights(rule.distances(a, b))
    return weights


@dataclass(frozen=True)
class Partners:
    """The partners of each row: two runs of `members`, either of which may be empty.

    Parameters
    ----------
    members : ndarray of int64
        Row numbers.
    starts, sizes : ndarray of int64, shape (2, n)
        Starts and sizes of the runs.
    nearest : bool or None
        Whether the nearest rows are where the runs meet (True) or at their far ends (False).
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

    def draw(self, rows: IntArray, k: int, rng: np.random.Generator) -> IntArray:
        """Return up to `k` partners of each row, shape (n, k), padded with -1.

        Drawn without replacement by Floyd's algorithm (Bentley & Floyd 1987, *A sample of
        brilliance*).
        """
        counts = self.counts[rows]
        n_drawn = np.minimum(counts, k)
        places = np.full((len(rows), k), -1)
        for i in range(k):
            last = counts - n_drawn + i
            drawn = (rng.random(len(rows)) * (last + 1)).astype(np.int64)
            repeated = (places[:, :i] == drawn[:, None]).any(axis=1)
            places[:, i] = np.where(i < n_drawn, np.where(repeated, last, drawn), -1)
        return np.where(places < 0, -1, self._at(rows[:, None], places)) if counts.any() else places

    def pool(self, rows: IntArray, size: int, rng: np.random.Generator) -> tuple[IntArray, ...]:
        """Return pairs of rows and partners: all of them, or `size` for each row.

        These are the nearest (or farthest) if values are sorted, else evenly spread.
        """
        counts = self.counts[rows][:, None]
        place = np.arange(min(size, int(counts.max(initial=0))))[None]
        if self.nearest is None:
            shift = (rng.random((len(rows), 1)) * counts).astype(np.int64)
            chosen = (place * counts // size + shift) % np.maximum(counts, 1)
        elif self.nearest:
            chosen = place + np.clip(self.sizes[0][rows][:, None] - size // 2, 0, counts - size)
        else:
            chosen = (place - size // 2) % np.maximum(counts, 1)
        places = np.where(counts <= size, place, chosen)
        is_pair = place < counts
        a = np.broadcast_to(rows[:, None], is_pair.shape)[is_pair]
        return a, self._at(a, places[is_pair])

    def _at(self, rows: IntArray, places: IntArray) -> IntArray:
        first, second = self.sizes[0][rows], self.starts[1][rows]
        at = np.where(places < first, self.starts[0][rows] + places, second + places - first)
        partners: IntArray = self.members.take(at, mode="clip")
        return partners


def find_partners(
    rules: Sequence[Rule],
    n: int,
    rng: np.random.Generator,
    *,
    best: int | None = None,
    show: bool = False,
) -> Partners:
    """Find the other rows that match each of `n` rows by all rules.

    The search is exact with equal values, sorted values or a k-d tree, or if all candidates can be
    evaluated; else candidates of each row are drawn with `rng`, with a progress bar if `show`. With
    `best`, only the `best` partners with the largest weights are kept, and rules that allow a
    fallback do not exclude rows.
    """
    strict = [r for r in rules if best is None or not r.condition.allow_fallback]
    usable = np.ones(n, dtype=bool)
    for rule in strict:
        if rule.condition.metric is None and rule.values.dtype.kind == "f":
            usable &= np.isfinite(rule.values.reshape(n, -1)).all(axis=1)
    rows, joins = np.flatnonzero(usable), [r for r in strict if r.joins]
    near = [r for r in strict if r.near and not r.joins]
    if len(near) > 1 or any(not r.sorts for r in near):
        pairs = _tree_pairs(near, joins, rows)
        if pairs is not None:
            return _as_partners([_matching(strict, rules, *pairs, best)], n)
    others = [r for r in rules if r not in joins]
    ranked = [r for r in others if r in strict or best is not None]
    sorting = sorted((r for r in ranked if r.sorts), key=lambda r: (r not in strict, not r.near))
    by = sorting[0] if sorting else None
    runs = _runs(joins, by, rows, n, filters=by in strict)
    remaining = [r for r in strict if r in others and r is not by]
    if best is None and not remaining:
        return runs
    size = max(MIN_CANDIDATES, MAX_PAIRS // max(1, len(rows)))
    if best is not None and by is not None and others == [by]:
        n_nan = 0 if by.values.dtype.kind != "f" else int((~np.isfinite(by.values)).sum())
        # the best are adjacent or at the ends, and NaN is sorted to the end
        size = max(2 * best, min(2 * (best + n_nan), size))
    elif any(r.condition.metric is not None for r in others):
        size = max(1, size // 4)
    step = max(1, CHUNK // min(size, max(1, int(runs.counts.max(initial=0)))))
    chunks = []
    with bar(len(rows), "partners", show=show and len(rows) > step, unit="row") as drawn:
        for at in range(0, len(rows), step):
            a, b = runs.pool(rows[at : at + step], size, rng)
            chunks.append(_matching(remaining, rules, a, b, best))
            drawn.update(len(rows[at : at + step]))
    return _as_partners(chunks, n)


def _runs(
    joins: Sequence[Rule], by: Rule | None, rows: IntArray, n: int, *, filters: bool
) -> Partners:
    """Sort rows so that partners form runs, by equality and by one rule."""
    groups = np.zeros(len(rows), dtype=np.int64)
    for rule in joins:
        codes = np.unique(rule.values[rows], return_inverse=True)[1]
        groups = np.unique(groups * (codes.max(initial=0) + 1) + codes, return_inverse=True)[1]
    values = np.zeros(len(rows)) if by is None else by.values[rows]
    order = np.lexsort((values, groups)) if joins else np.argsort(values, kind="stable")
    values, groups = values[order], groups[order]
    ends = np.cumsum(np.bincount(groups))
    start, end = np.append(0, ends)[groups], ends[groups]
    place = np.arange(len(rows))
    runs = [start, place, place + 1, end]
    if by is not None and filters:
        low, high = _within(by, values.astype(np.float64), start, end)
        runs = [low, place, place + 1, high] if by.near else [start, low, high, end]
    table = np.zeros((4, n), dtype=np.int64)
    table[:, rows[order]] = runs
    nearest = None if by is None else by.condition.mode == "similar"
    return Partners(rows[order], table[::2], table[1::2] - table[::2], nearest)


def _within(rule: Rule, values: Array, start: IntArray, end: IntArray) -> list[IntArray]:
    """Return the run of sorted values within the tolerance of each, by bisection.

    Distances are compared directly, which avoids rounding of ``value + tolerance``.
    """
    tolerance, place = (0.0 if rule.by_equality else rule.condition.tolerance), np.arange(len(end))
    bounds = []
    for first, last, sign in ((start, place, -1), (place, end, 1)):
        low, high = first, last
        while (low < high).any():
            middle = (low + high) >> 1
            distance = (values.take(middle, mode="clip") - values) * sign
            right = (distance <= tolerance) if sign > 0 else (distance > tolerance)
            right &= low < high
            low, high = np.where(right, middle + 1, low), np.where(right, high, middle)
            high = np.maximum(low, high)
        bounds.append(low)
    return bounds


def _tree_pairs(
    near: Sequence[Rule], joins: Sequence[Rule], rows: IntArray
) -> tuple[IntArray, IntArray] | None:
    """Return all pairs within the tolerances and a few more; None for too many."""
    if not len(rows):
        return rows, rows
    columns: list[Array] = [
        r.values[rows].reshape(len(rows), -1) / r.condition.tolerance for r in near
    ]
    # groups are too far apart for pairs across groups
    columns += [2.0 * np.unique(r.values[rows], return_inverse=True)[1][:, None] for r in joins]
    power, points = 2 if len(columns) == 1 else np.inf, np.hstack(columns)
    tree = require("scipy.spatial").cKDTree(points)
    reach = 1 + 1e-9 + 1e-15 * np.abs(points).max()
    if tree.count_neighbors(tree, reach, p=power) - len(rows) > MAX_PAIRS:
        return None
    a, b = rows[tree.query_pairs(reach, p=power, output_type="ndarray")].T
    return np.concatenate([a, b]), np.concatenate([b, a])


def _matching(
    tests: Sequence[Rule], rules: Sequence[Rule], a: IntArray, b: IntArray, best: int | None
) -> tuple[IntArray, IntArray]:
    """Return the pairs that pass all tests, by anchor, or only the best by all rules."""
    for rule in tests:
        keep = rule.condition.matches(rule.distances(a, b))
        a, b = a[keep], b[keep]
    if best is None:
        order = np.argsort(a, kind="stable")
        return a[order], b[order]
    order = np.lexsort((-pair_weights(rules, a, b), a))
    a, b = a[order], b[order]
    rank = np.arange(len(a)) - np.searchsorted(a, a)
    return a[rank < best], b[rank < best]


def _as_partners(parts: Sequence[tuple[IntArray, IntArray]], n: int) -> Partners:
    """Convert chunks of pairs, each with other anchors, to runs."""
    none = np.empty(0, dtype=np.int64)
    a, b = (np.concatenate([none, *(part[i] for part in parts)]) for i in (0, 1))
    order, counts = np.argsort(a, kind="stable"), np.bincount(a, minlength=n)
    starts = np.stack([np.cumsum(counts) - counts, np.zeros(n, dtype=np.int64)])
    return Partners(b[order], starts, np.stack([counts, np.zeros(n, dtype=np.int64)]))
