"""Rows that are equal or nearly so, and columns that are copies; never each against each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.data.collection import scramble

__all__ = ["SEQUENCE", "affine_residuals", "is_coarse", "like_rows", "row_codes"]

SEQUENCE = 8
"""Elements from which on an array is a sequence (shorter ones are alike by chance), and the
dimensions in which near ones are looked for."""

_COMPARED = 8
"""So many rows, the nearest there, are compared with each row in full."""


def row_codes(columns: Sequence[Array]) -> IntArray:
    """Give equal rows equal numbers.

    Parameters
    ----------
    columns : sequence of ndarray, shape (n, *shape)
        Of any dtype but object. NaN is equal to NaN, and 0.0 to -0.0.

    Returns
    -------
    ndarray of int64, shape (n,)
        From 0, by a 64-bit hash: two of a million unlike rows share one with a probability of
        3e-8.
    """
    state = np.zeros(len(columns[0]), dtype=np.uint64)
    for values in columns:
        for element in _bits(values).T:
            state = scramble(state ^ element)
    return np.unique(state, return_inverse=True)[1].astype(np.int64, copy=False)


def is_coarse(columns: Sequence[Array], n: int, most: int = 10_000) -> bool:
    """Tell whether columns have so few values that equal rows come by chance.

    That is where fewer than ``n**2`` different rows are possible (the birthday problem).
    """
    bits = 0.0
    for values in columns:
        for element in _bits(values[:most]).T:
            bits += np.log2(len(np.unique(element)))
            if bits > 2 * np.log2(max(n, 1)):
                return False
    return True


def like_rows(values: Array, train: IntArray, test: IntArray, tolerance: float) -> IntArray:
    """Return the test rows that are nearly equal to a training row.

    Parameters
    ----------
    values : ndarray, shape (n, d)
    train, test : ndarray of int64
        Rows that are compared; those with values that are not finite are like no other.
    tolerance : float
        The root mean square difference of two like rows, at most, as a share of the standard
        deviation of all values.

    Notes
    -----
    Rows are projected onto a few orthonormal directions, which brings no two of them further
    apart; a k-d tree finds the neighbours there, and their full distance decides.
    """
    finite = np.isfinite(values).all(axis=1)
    train, test = train[finite[train]], test[finite[test]]
    if not len(train) or not len(test):
        return test[:0]
    spread = np.std(values[finite], dtype=np.float64)
    reach = tolerance * float(spread) * values.shape[1] ** 0.5
    normals = np.random.default_rng(0).normal(size=(values.shape[1], SEQUENCE))
    directions = np.linalg.qr(normals)[0]
    tree = require("scipy.spatial").cKDTree(values[train] @ directions)
    near = tree.query(values[test] @ directions, k=_COMPARED, distance_upper_bound=reach)[1]
    found = np.zeros(len(test), dtype=bool)
    for column in near.T:
        there = np.flatnonzero(column < len(train))
        apart = values[test[there]] - values[train[column[there]]]
        found[there[np.einsum("ij,ij->i", apart, apart) <= reach**2]] = True
    return test[found]


def affine_residuals(columns: Sequence[Array], targets: Array) -> Array:
    """Return how far each target is from an affine copy of each column.

    Parameters
    ----------
    columns : sequence of ndarray, shape (n, d)
    targets : ndarray, shape (n, q)

    Returns
    -------
    ndarray, shape (n_columns, q)
        The standard deviation of what the best element of the column leaves of the target, as a
        share of the target's own: 0 for a copy, 1 for no relation, or where one is constant.
    """
    wanted = _standardised(targets)
    best = [np.abs(_standardised(values).T @ wanted).max(axis=0) for values in columns]
    return np.sqrt(np.clip(1.0 - np.square(best), 0.0, 1.0))


def _standardised(values: Array) -> Array:
    """Return columns of mean 0 and length 1; 0 where they are constant or not finite."""
    with np.errstate(invalid="ignore"):
        found = np.subtract(values, values.mean(axis=0, dtype=np.float64), dtype=np.float64)
        length = np.sqrt(np.einsum("ij,ij->j", found, found))
    known = np.isfinite(length) & (length > 0)
    return np.where(known, found, 0.0) / np.where(known, length, 1.0)


def _bits(values: Array) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return the elements of each sample as 64-bit words, shape (n, d)."""
    flat = values.reshape(len(values), -1)
    if flat.dtype.kind == "f":
        flat = flat.astype(np.float64) + 0.0
        flat[np.isnan(flat)] = np.nan
    elif flat.dtype.kind not in "mM":
        flat = flat.astype(np.int64)
    return flat.view(np.uint64)
