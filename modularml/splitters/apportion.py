"""Apportionment of whole rows to fractional shares by largest remainders."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modularml._typing import IntArray

__all__ = ["apportion", "largest_remainder"]

NOISE = 1e-9
"""Tolerance within which a share counts as a whole number: 0.1 * 30 is 3."""


def largest_remainder(n: int, ratios: NDArray[np.float64]) -> IntArray:
    """Divide a number of rows into parts by ratio, so that the parts sum to it.

    Parameters
    ----------
    n : int
        Number of rows to distribute.
    ratios : ndarray, shape (n_parts,)
        Positive, summing to 1.

    Returns
    -------
    ndarray of int64, shape (n_parts,)
        Each part gets its share rounded down; the remaining rows go, one each, to the parts with
        the largest remainders, the first ones for ties.

    Examples
    --------
    >>> import numpy as np
    >>> largest_remainder(508, np.array([0.6, 0.2, 0.2])).tolist()
    [305, 102, 101]
    """
    sizes, fractions = _floors(n * ratios)
    order = np.argsort(-np.round(fractions, 9), kind="stable")
    sizes[order[: n - sizes.sum()]] += 1
    return sizes


def apportion(
    counts: IntArray, ratios: NDArray[np.float64], *, in_every_part: bool = False
) -> IntArray:
    """Divide each stratum into parts by ratio, so that strata and parts both add up.

    Parameters
    ----------
    counts : ndarray of int64, shape (n_strata,)
        Rows of each stratum, in the order in which remaining rows are distributed.
    ratios : ndarray, shape (n_parts,)
        Positive, summing to 1.
    in_every_part : bool
        Give each part at least one row of each stratum that has enough rows, at the cost of exact
        shares.

    Returns
    -------
    ndarray of int64, shape (n_strata, n_parts)
        Each cell is its share rounded down or up; rows sum to ``counts``, columns to the largest
        remainders of the total. With ``in_every_part``, small strata may violate both rules except
        for the row sums.
    """
    cells, fractions = _floors(counts[:, None] * ratios)
    if in_every_part:
        _lift_to_one(cells, counts)
    floors = cells.copy()
    need = largest_remainder(int(counts.sum()), ratios) - cells.sum(axis=0)
    _distribute(cells, need, counts - cells.sum(axis=1), fractions)
    _balance(cells, need, floors, fractions)
    return cells


def _floors(shares: NDArray[np.float64]) -> tuple[IntArray, NDArray[np.float64]]:
    floors = np.floor(shares + NOISE)
    return floors.astype(np.int64), np.maximum(shares - floors, 0.0)


def _lift_to_one(cells: IntArray, counts: IntArray) -> None:
    enough = counts >= cells.shape[1]
    cells[enough] = np.maximum(cells[enough], 1)
    while (over := cells.sum(axis=1) > counts).any():
        cells[over, cells[over].argmax(axis=1)] -= 1


def _distribute(
    cells: IntArray, need: IntArray, left: IntArray, fractions: NDArray[np.float64]
) -> None:
    """Give the remaining rows of each stratum to the parts that need most rows."""
    needed = need.tolist()
    parts = range(len(needed))
    for stratum in np.flatnonzero(left).tolist():
        remainders = fractions[stratum].tolist()
        ranked = sorted(parts, key=lambda p: (remainders[p] <= NOISE, -needed[p]))
        for part in ranked[: left[stratum]]:
            cells[stratum, part] += 1
            needed[part] -= 1
    need[:] = needed


def _balance(
    cells: IntArray, need: IntArray, floors: IntArray, fractions: NDArray[np.float64]
) -> None:
    """Move rows between parts, within a stratum, until every part has its total."""
    for _ in range(int(np.abs(need).sum())):
        over, under = int(need.argmin()), int(need.argmax())
        movable = (cells[:, over] > floors[:, over]) & (cells[:, under] == floors[:, under])
        if need[over] >= 0 or not movable.any():
            return
        stratum = (movable * (1 + fractions[:, under])).argmax()
        cells[stratum, [over, under]] += [-1, 1]
        need[[over, under]] += [1, -1]
