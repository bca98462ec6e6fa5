"""Ordering rows for batches: by group or stratum, or shuffled within windows."""

from __future__ import annotations

import numpy as np

from modularml._typing import Array, IntArray
from modularml._warning import warn
from modularml.samplers.epoch import cut

__all__ = ["by_groups", "in_windows", "interleaved"]

LEAST_BLOCK = 1024
"""Minimum rows of a block, which is read from a file as a whole."""

BLOCKS = 256
"""Blocks in a window, up to which its size determines how many there are."""


def by_groups(
    codes: IntArray, size: int, rng: np.random.Generator | None, *, drop_last: bool
) -> tuple[IntArray, IntArray]:
    """Return positions of rows and bounds of batches with one group each.

    Parameters
    ----------
    codes : ndarray of int64, shape (n,)
        Group of each row.
    size : int
    rng : numpy.random.Generator or None
        Shuffles the batches; None keeps their order.
    drop_last : bool
    """
    by_group = np.argsort(_compact(codes), kind="stable")
    starts, stops = cut(np.bincount(codes), size, drop_last=drop_last)
    order = np.arange(len(starts)) if rng is None else rng.permutation(len(starts))
    sizes = (stops - starts)[order]
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    at = np.arange(bounds[-1]) + np.repeat(starts[order] - bounds[:-1], sizes)
    return by_group[at], bounds


def interleaved(codes: IntArray, *, strict: bool) -> IntArray:
    """Return positions of rows so that every stretch contains every stratum."""
    counts = np.bincount(codes)
    by_stratum = np.argsort(_compact(codes), kind="stable")
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(codes), dtype=np.int64)
    rank[by_stratum] = np.arange(len(codes)) - np.repeat(starts, counts)
    if not strict:
        return np.lexsort((codes, (rank + 0.5) / counts[codes]))
    is_present = counts > 0
    smallest, n_strata = int(counts[is_present].min()), int(is_present.sum())
    if dropped := len(codes) - smallest * n_strata:
        warn(
            f"strict stratification drops {dropped} of {len(codes)} rows: the smallest stratum "
            f"has {smallest}; pass strict_stratification=False to keep them",
        )
    rows = np.flatnonzero(rank < smallest)
    stratum = (np.cumsum(is_present) - 1)[codes[rows]]
    order = np.empty(smallest * n_strata, dtype=np.int64)
    order[rank[rows] * n_strata + stratum] = rows
    return order


def in_windows(n: int, window: int, rng: np.random.Generator) -> IntArray:
    """Return the positions 0 to n - 1, shuffled within windows.

    The rows are cut into blocks of consecutive rows, from an offset that `rng` draws. Each window
    takes blocks from anywhere, and its rows are shuffled. Whoever reads the rows in this order
    needs one window in memory and reads each block once.

    Parameters
    ----------
    n : int
    window : int
        Maximum rows of a window. From `n` on, the whole order is shuffled.
    rng : numpy.random.Generator
    """
    if window >= n:
        return rng.permutation(n)
    size = min(window, max(LEAST_BLOCK, window // BLOCKS))
    starts = rng.permutation(np.arange(int(rng.integers(size)) - size + 1, n, size))
    n_blocks = window // size
    order, at = np.empty(n, dtype=np.int64), 0
    for first in range(0, len(starts), n_blocks):
        rows = (starts[first : first + n_blocks, None] + np.arange(size)).ravel()
        rows = rows[(rows >= 0) & (rows < n)]
        rng.shuffle(rows)
        order[at : at + len(rows)] = rows
        at += len(rows)
    return order


def _compact(codes: IntArray) -> Array:
    """Cast codes to the smallest dtype; numpy radix-sorts small integers."""
    return codes.astype(np.min_scalar_type(int(codes.max(initial=0))), copy=False)
