"""Prediction of one column from another on held-out rows."""

from __future__ import annotations

import numpy as np

from modularml._typing import Array, IntArray
from modularml.audit.likeness import average_ranks

__all__ = ["Wanted", "explained", "likely"]

SCREENED, SCREEN_ROWS, LIKELY = 8, 800, 0.6
"""Columns from which on they are screened, on how many rows, and the share they must reach."""

FEW = 20
"""Values up to which whole numbers may be classes."""


class Wanted:
    """A column that is to be predicted, and the rows to learn from and to test on.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Numbers or codes.
    train, test : ndarray of int64
    is_class : bool
        Whether the values are classes without an order.
    """

    def __init__(self, values: Array, train: IntArray, test: IntArray, is_class: bool) -> None:
        self.values, self.train, self.test, self.is_class = values, train, test, is_class
        self.codes = np.unique(values, return_inverse=True)[1]
        self.ranks = average_ranks(values)[:, 0] / len(values)
        self.n_values = int(self.codes.max(initial=-1)) + 1


def likely(flat: Array, y: Wanted) -> IntArray:
    """Return the columns that may tell y, after a look at neighbours alone.

    Along y, and along the column itself, the other must change little from row to row (von
    Neumann's ratio). Columns with missing values are always returned.

    Parameters
    ----------
    flat : ndarray, shape (n, d)
    """
    if flat.shape[1] < SCREENED:
        return np.arange(flat.shape[1])
    some = np.concatenate([y.train, y.test])[-SCREEN_ROWS:]
    goal = y.codes[some] if y.is_class else y.ranks[some]
    part = flat[some]

    def smooth(values: Array, spread: Array) -> Array:
        steps = np.square(np.diff(values, axis=0)).mean(axis=0)
        found: Array = steps < (1 - LIKELY) * 2 * spread
        return found

    with np.errstate(all="ignore"):
        by_y = part[np.argsort(goal, kind="stable")]
        found = smooth(by_y, part.var(axis=0)) | ~np.isfinite(part).all(axis=0)
        along = goal[np.argsort(part, axis=0)]
        if y.is_class:
            changes = (np.diff(along, axis=0) != 0).mean(axis=0)
            usual = 1 - np.square(np.bincount(goal) / len(goal)).sum()
            found |= changes < (1 - LIKELY) * usual
        else:
            found |= smooth(along, goal.var())
    return np.flatnonzero(found)


def explained(x: Array, y: Wanted) -> float:
    """Return how much of y x explains, or y of x, on the rows held out.

    Nearest training rows by x predict y, so the relation may have any form; in return those by y
    predict x, so that a coarse or binned y is recognised.

    Parameters
    ----------
    x : ndarray, shape (n,)
        Numbers or codes; rows that are not finite are left out.

    Returns
    -------
    float
        The share of variance of ranks, or of classes Cohen's kappa; 0 where too few rows are known.
    """
    known = np.isfinite(x)
    train, test = y.train[known[y.train]], y.test[known[y.test]]
    if len(train) < 20 or len(test) < 8 or len(train) + len(test) < 0.3 * known.size:
        return 0.0
    there = x[np.concatenate([train, test])]
    levels = np.unique(there)
    if len(levels) < 2:
        return 0.0
    few = len(levels) <= max(FEW, len(there) / 8)
    codes = np.searchsorted(levels, x)
    if few and np.sort(np.bincount(np.minimum(codes[test], len(levels))))[-1] > 0.98 * len(test):
        return 0.0  # nearly constant
    if y.is_class:
        forth = _kappa(codes if few else x, y.codes, train, test, few)
        back = _kappa(y.codes, codes, train, test, True) if few else 0.0
        return max(forth, back)
    ranks = np.zeros(len(x))
    some = np.concatenate([train, test])
    ranks[some] = average_ranks(x[some])[:, 0] / len(some)
    forth = _share(codes if few else x, y.ranks, train, test, few)
    y_few = y.n_values <= max(FEW, len(there) / 8)
    back = _share(y.codes if y_few else y.ranks, ranks, train, test, y_few)
    return max(forth, back)


def _share(x: Array, y: Array, train: IntArray, test: IntArray, few: bool) -> float:
    if few:
        guess, factor = _mean_of_value(x, y, train, test), 1.0
    else:
        left, right = _neighbours(x, train, test)
        guess, factor = (y[left] + y[right]) / 2, 1.5
    spread = float(np.var(y[test]))
    return 1 - float(np.mean(np.square(y[test] - guess))) / factor / spread if spread else 0.0


def _kappa(x: Array, y: IntArray, train: IntArray, test: IntArray, few: bool) -> float:
    if few:
        n_x, n_y = int(x.max()) + 1, int(y.max()) + 1
        counts = np.bincount(x[train] * n_y + y[train], minlength=n_x * n_y).reshape(n_x, n_y)
        guess = counts.argmax(axis=1)[x[test]]
        guess[counts.sum(axis=1)[x[test]] == 0] = -1
    else:
        left, right = _neighbours(x, train, test)
        nearer = np.abs(x[left] - x[test]) < np.abs(x[right] - x[test])
        guess = y[np.where(nearer, left, right)]
    n = len(test)
    agree = float((guess == y[test]).mean())
    top = max(int(y.max()), int(guess.max())) + 1
    shares = [np.bincount(v[v >= 0], minlength=top) / n for v in (guess, y[test])]
    chance = float((shares[0] * shares[1]).sum())
    return (agree - chance) / (1 - chance) if chance < 1 else 0.0


def _mean_of_value(x: IntArray, y: Array, train: IntArray, test: IntArray) -> Array:
    n = np.bincount(x[train], minlength=int(x.max()) + 1)
    mean = np.bincount(x[train], y[train], minlength=len(n)) / np.maximum(n, 1)
    found: Array = np.where(n[x[test]] > 0, mean[x[test]], y[train].mean())
    return found


def _neighbours(x: Array, train: IntArray, test: IntArray) -> tuple[IntArray, IntArray]:
    """Return the training rows next to each test row on either side."""
    order = train[np.argsort(x[train], kind="stable")]
    place = np.searchsorted(x[order], x[test])
    return order[np.maximum(place - 1, 0)], order[np.minimum(place, len(order) - 1)]
