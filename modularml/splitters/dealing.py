"""Groups and strata of rows, and how they are dealt to parts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml._warning import warn
from modularml.errors import SplitError
from modularml.splitters.base import StrataWarning

MAX_CELLS = 50_000_000
"""Maximum number of group-by-stratum counts in memory (8 bytes each, a few times)."""


@dataclass(frozen=True)
class Factor:
    """Rows numbered by their combination of key values.

    Attributes
    ----------
    codes : ndarray of int64, shape (n_rows,)
        Numbers from 0 without gaps, in the sorted order of the keys.
    count : int
        Number of combinations.
    keys : mapping of str to ndarray, shape (n_rows,)
        The key columns.
    """

    codes: IntArray
    count: int
    keys: Mapping[str, Array]

    @cached_property
    def sizes(self) -> IntArray:
        """Number of rows of each combination."""
        return np.bincount(self.codes, minlength=self.count)

    def name(self, code: int) -> str:
        """Return a combination as text: ``cell='A', cycle=3``."""
        row = int(np.argmax(self.codes == code))
        return ", ".join(
            f"{key}={values[row : row + 1].tolist()[0]!r}" for key, values in self.keys.items()
        )


def factorise(keys: Sequence[str], columns: Mapping[str, Array]) -> Factor:
    """Assign each row a code for its values in some columns.

    Parameters
    ----------
    keys : sequence of str
        Columns, at least one.
    columns : mapping of str to ndarray, shape (n_rows,)
        Of any type; not changed.

    Returns
    -------
    Factor

    Raises
    ------
    SplitError
        If samples are arrays, or values are missing or cannot be sorted.

    Notes
    -----
    Codes follow the sorted keys, not the order of rows, so shuffled rows give the same groups
    the same numbers.
    """
    codes, count = _codes(keys[0], columns[keys[0]])
    for key in keys[1:]:
        more, n_more = _codes(key, columns[key])
        codes, count = _codes(key, codes * n_more + more)
    return Factor(codes, count, {key: columns[key] for key in keys})


def cross(groups: Factor, strata: Factor) -> IntArray:
    """Count the rows of each stratum in each group.

    Returns
    -------
    ndarray of int64, shape (n_groups, n_strata)

    Raises
    ------
    SplitError
        If there are too many cells for memory.
    """
    if groups.count * strata.count > MAX_CELLS:
        raise SplitError(
            f"{groups.count} groups times {strata.count} strata are too many to balance; "
            "stratify by something coarser, such as a label or a few bins"
        )
    cells = np.bincount(
        groups.codes * strata.count + strata.codes, minlength=groups.count * strata.count
    )
    return cells.reshape(groups.count, strata.count)


def _codes(key: str, values: Array) -> tuple[IntArray, int]:
    if values.ndim != 1:
        raise SplitError(
            f"column {key!r} holds arrays of shape {values.shape[1:]}; rows can be grouped and "
            "stratified by single values only"
        )
    try:
        codes, uniques = require("pandas").factorize(values, sort=True)
    except TypeError as error:
        raise SplitError(
            f"column {key!r} holds values that cannot be sorted ({error}); convert them to one type"
        ) from error
    if len(codes) and codes.min() < 0:
        missing = codes < 0
        raise SplitError(
            f"column {key!r} has {missing.sum()} missing values (the first at row "
            f"{missing.argmax()}), so those rows have no group or stratum; fill them, or filter "
            "them out"
        )
    return codes.astype(np.int64, copy=False), len(uniques)


BINS = 10
"""Default number of bins of a column with fractions."""

SHOWN = 3
"""Number of strata that a warning names."""


def stratify(keys: Sequence[str], columns: Mapping[str, Array], bins: int | None = None) -> Factor:
    """Assign each row the code of its stratum.

    Parameters
    ----------
    keys : sequence of str
        Columns, at least one; each combination of their values is a stratum.
    columns : mapping of str to ndarray, shape (n,)
        Not changed.
    bins : int, optional
        Number of bins, with about equally many rows, for columns of numbers or times that have
        more distinct values. By default 10 for columns with fractions, while integers are treated
        as classes.

    Raises
    ------
    SplitError
        As for `factorise`.
    """
    bins_of = {key: binned(columns[key], bins) for key in keys}
    codes = {key: columns[key] if b is None else b[0] for key, b in bins_of.items()}
    names = {k: columns[k] if b is None else np.array(b[1])[b[0]] for k, b in bins_of.items()}
    return replace(factorise(keys, codes), keys=names)


def warn_about_missing(strata: Factor, cells: IntArray, parts: Sequence[str], by: Any) -> None:
    """Warn about strata that are not in every part.

    Parameters
    ----------
    strata : Factor
    cells : ndarray of int64, shape (n_strata, n_parts)
        Rows of each stratum in each part.
    parts : sequence of str
        Names of the parts.
    by : str or list of str
        The columns, for the message.
    """
    incomplete = np.flatnonzero((cells == 0).any(axis=1))
    if not len(incomplete):
        return
    descriptions = [
        f"{strata.name(code)} ({strata.sizes[code]} rows) is missing from "
        + ", ".join(parts[part] for part in np.flatnonzero(cells[code] == 0).tolist())
        for code in incomplete[:SHOWN].tolist()
    ]
    more = f"; and {len(incomplete) - SHOWN} more" if len(incomplete) > SHOWN else ""
    warn(
        f"{len(incomplete)} of {strata.count} strata by {by!r} are not in every part: "
        f"{'; '.join(descriptions)}{more}. Merge rare classes, use fewer parts, or cut numbers "
        "into bins with bins=",
        StrataWarning,
    )


def binned(values: Array, bins: int | None) -> tuple[IntArray, list[str]] | None:
    """Return the bin of each row and the names of the bins; None if not binned.

    See `stratify`; columns with missing values are not binned.
    """
    if values.ndim != 1 or values.dtype.kind not in ("f" if bins is None else "iufmM"):
        return None
    present = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    if len(present) < len(values) or (bins is None and (np.floor(present) == present).all()):
        return None
    distinct = np.unique(present)
    if len(distinct) <= (bins or BINS):
        return None
    at = np.arange(1, bins or BINS) * len(values) // (bins or BINS)
    edges = np.unique(np.sort(values)[at])
    edges = edges[edges > distinct[0]]
    lows = [distinct[0], *edges]
    return np.searchsorted(edges, values, side="right"), [f"from {low!s} on" for low in lows]


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
    weights = UNIT * counts.sum(axis=1, keepdims=True)
    if counts.shape[1] > 1:
        scale = UNIT * counts.sum() / (counts.shape[1] * counts.sum(axis=0))
        by_class = counts * np.maximum(np.rint(scale), 1).astype(np.int64)
        weights = np.concatenate([weights, by_class], axis=1)
    table = _Table(weights, ratios[:, None] * weights.sum(axis=0))
    n_groups, n_columns = table.weights.shape
    slack = SLACK * UNIT * counts.sum()
    if n_groups * np.log2(len(ratios)) <= np.log2(TRY_ALL / max(n_groups, n_columns)):
        # every assignment is tried, and one of those about as good as the best is drawn
        n_parts = len(ratios)
        tried = np.arange(n_parts**n_groups)[:, None] // n_parts ** np.arange(n_groups) % n_parts
        costs = np.zeros(len(tried))
        for part, target in enumerate(table.targets):
            here = tried == part
            costs += np.abs(here.astype(np.int64) @ table.weights - target).sum(axis=1)
            costs[~here.any(axis=1)] = np.inf
        good = np.flatnonzero(np.round(costs, 3) <= np.round(costs.min() + slack, 3))
        chosen: IntArray = tried[rng.choice(good)]
        return chosen
    attempts = []
    for _ in range(max(1, min(8, 2000 // n_groups))):
        labels = _start(counts, ratios, rng)
        # move and swap groups between pairs of parts while the cost falls
        totals = table.totals(labels)
        pairs = list(itertools.combinations(range(len(totals)), 2))
        cost, before = table.cost(totals), np.inf
        while cost < before:
            before = cost
            for a, b in pairs:
                while _swap(table, labels, totals, a, b, rng):
                    pass
            cost = table.cost(totals)
        attempts.append((cost, labels))
        if attempts[-1][0] <= slack:
            break
    return min(attempts, key=lambda pair: pair[0])[1]


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
        # a part with capacity for the group, else the one with the most capacity
        capacities = [capacity if capacity >= size else 0.0 for capacity in left]
        remaining, part = draw * sum(capacities), left.index(max(left))
        for candidate, space in enumerate(capacities):
            remaining -= space
            if remaining < 0:
                part = candidate
                break
        labels[group] = part
        left[part] -= size
    if len(rest):
        edges = np.cumsum(np.maximum(left, 0.0))
        middles = np.cumsum(sizes[rest]) - sizes[rest] / 2
        edges *= sizes[rest].sum() / edges[-1]
        labels[rest] = np.searchsorted(edges[:-1], middles, side="right")
    return labels


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
