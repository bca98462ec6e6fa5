"""Rows that are equal or nearly so, and columns that are copies; never each against each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.data.ids import scramble

__all__ = ["SEQUENCE", "affine_residuals", "is_coarse", "like_rows", "row_codes", "standardised"]

SEQUENCE = 8
"""Elements from which on an array is a sequence (shorter ones are alike by chance), and the
dimensions in which near ones are looked for."""


def row_codes(columns: Sequence[Array]) -> IntArray:
    """Give equal rows equal numbers from 0, by a 64-bit hash; NaN equals NaN.

    Of a million unlike rows, two share a number with a probability of 3e-8.
    """
    state = np.zeros(len(columns[0]), dtype=np.uint64)
    for values in columns:
        for element in _words(values).T:
            state = scramble(state ^ element)
    return np.unique(state, return_inverse=True)[1].astype(np.int64, copy=False)


def is_coarse(columns: Sequence[Array]) -> bool:
    """Tell whether equal rows come by chance: fewer than ``n**2`` are possible (birthdays)."""
    left = float(len(columns[0])) ** 2
    for values in columns:
        for element in _words(values[:10_000]).T:
            left /= len(np.unique(element))
            if left <= 1:
                return False
    return True


def like_rows(values: Array, train: IntArray, test: IntArray, tolerance: float) -> IntArray:
    """Return the test rows that are nearly equal to a training row; see `FeatureSet.audit`.

    Rows of `values`, of shape ``(n, d)``, are projected onto a few orthonormal directions, which
    brings no two of them further apart. A k-d tree finds the nearest ones there, and their full
    distance decides. Rows that are not finite are like no other.
    """
    finite = np.asarray(np.isfinite(values).all(axis=1))
    train, test = train[finite[train]], test[finite[test]]
    if not len(train) or not len(test):
        return test[:0]
    spread = np.std(values[finite], dtype=np.float64)
    reach = tolerance * float(spread) * values.shape[1] ** 0.5
    normals = np.random.default_rng(0).normal(size=(values.shape[1], SEQUENCE))
    directions = np.linalg.qr(normals)[0]
    tree = require("scipy.spatial").cKDTree(values[train] @ directions)
    near = tree.query(values[test] @ directions, k=8, distance_upper_bound=reach)[1]
    found = np.zeros(len(test), dtype=bool)
    for column in near.T:
        there = np.flatnonzero(column < len(train))
        apart = values[test[there]] - values[train[column[there]]]
        found[there[np.einsum("ij,ij->i", apart, apart) <= reach**2]] = True
    return test[found]


def affine_residuals(values: Array, targets: Array) -> Array:
    """Return what the best column leaves of each standardised target, by offset and factor.

    Returns
    -------
    ndarray, shape (n_targets,)
        In standard deviations of the target: 0 for a copy, 1 for no relation.
    """
    best = np.abs(standardised(values).T @ targets).max(axis=0)
    left: Array = np.sqrt(np.clip(1.0 - np.square(best), 0.0, 1.0))
    return left


def standardised(values: Array) -> Array:
    """Return columns of mean 0 and length 1; 0 where they are constant or not finite."""
    with np.errstate(invalid="ignore"):
        found = np.subtract(values, values.mean(axis=0, dtype=np.float64), dtype=np.float64)
        length = np.sqrt(np.einsum("ij,ij->j", found, found))
    known = np.isfinite(length) & (length > 0)
    return np.where(known, found, 0.0) / np.where(known, length, 1.0)


def _words(values: Array) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return the elements of each sample as 64-bit words, shape (n, d)."""
    flat = values.reshape(len(values), -1)
    if flat.dtype.kind == "f":
        flat = flat.astype(np.float64) + 0.0  # no -0.0
        flat[np.isnan(flat)] = np.nan
    elif flat.dtype.kind not in "mM":
        flat = flat.astype(np.int64)
    return flat.view(np.uint64)
