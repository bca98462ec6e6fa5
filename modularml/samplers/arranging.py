"""Putting rows into batches: in their order, by groups, or with every stratum in each."""

from __future__ import annotations

import numpy as np

from modularml._typing import Array, IntArray
from modularml._warning import warn
from modularml.samplers.epoch import cut

__all__ = ["by_groups", "interleaved"]


def by_groups(
    codes: IntArray, size: int, rng: np.random.Generator | None, *, drop_last: bool
) -> tuple[IntArray, IntArray]:
    """Return places of rows, and bounds of batches that hold one group each.

    Parameters
    ----------
    codes : ndarray of int64, shape (n,)
        Group of each row.
    size : int
    rng : numpy.random.Generator or None
        Puts the batches into an order of their own.
    drop_last : bool
    """
    by_group = np.argsort(_small(codes), kind="stable")
    starts, stops = cut(np.bincount(codes), size, drop_last=drop_last)
    order = np.arange(len(starts)) if rng is None else rng.permutation(len(starts))
    sizes = (stops - starts)[order]
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    at = np.arange(bounds[-1]) + np.repeat(starts[order] - bounds[:-1], sizes)
    return by_group[at], bounds


def interleaved(codes: IntArray, *, strict: bool) -> IntArray:
    """Return places of rows so that every stretch of them holds every stratum."""
    counts = np.bincount(codes)
    by_stratum = np.argsort(_small(codes), kind="stable")
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(codes), dtype=np.int64)
    rank[by_stratum] = np.arange(len(codes)) - np.repeat(starts, counts)
    if not strict:
        return np.lexsort((codes, (rank + 0.5) / counts[codes]))
    there = counts > 0
    fewest, n_strata = int(counts[there].min()), int(there.sum())
    if dropped := len(codes) - fewest * n_strata:
        warn(
            f"strict stratification drops {dropped} of {len(codes)} rows: the smallest stratum "
            f"has {fewest}; pass strict_stratification=False to keep them",
        )
    kept = np.flatnonzero(rank < fewest)
    stratum = (np.cumsum(there) - 1)[codes[kept]]
    found = np.empty(fewest * n_strata, dtype=np.int64)
    found[rank[kept] * n_strata + stratum] = kept
    return found


def _small(codes: IntArray) -> Array:
    """Return codes in the fewest bytes; short integers are sorted by radix."""
    return codes.astype(np.min_scalar_type(int(codes.max(initial=0))), copy=False)
