"""Batches of one epoch as indices, and orders of rows by group, stratum or window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from modularml._typing import Array, IntArray
from modularml._warning import warn
from modularml.data.batch import DEFAULT_ROLE as DEFAULT

__all__ = ["DEFAULT", "EpochBatches", "by_groups", "cut", "in_windows", "interleaved"]


@dataclass(frozen=True)
class EpochBatches:
    """All batches of one epoch, concatenated.

    Parameters
    ----------
    rows : mapping of str to ndarray of int64, shape (n,)
        Positions within the sampled view, by role; -1 is padding, with weight 0.
    bounds : ndarray of int64, shape (n_batches + 1,)
        Batch ``i`` is ``rows[bounds[i]:bounds[i + 1]]``.
    weights : mapping of str to ndarray, shape (n,), optional
        Weight of each row, by role; 1 for an omitted role.
    in_order : bool
        Whether `rows` are known to be 0, 1, 2... in every role.
    """

    rows: Mapping[str, IntArray]
    bounds: IntArray
    weights: Mapping[str, Array] | None = None
    in_order: bool = False

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return len(self.bounds) - 1

    @cached_property
    def sizes(self) -> list[int]:
        """Rows in each batch."""
        sizes: list[int] = np.diff(self.bounds).tolist()
        return sizes

    def batch(self, i: int, role: str = DEFAULT) -> IntArray:
        """Return the positions of one batch."""
        return self.rows[role][self.bounds[i] : self.bounds[i + 1]]

    def weight(self, role: str = DEFAULT) -> Array | None:
        """Return the weight of each row of a role; None if all are 1."""
        return None if self.weights is None else self.weights.get(role)

    def stream(self, name: str) -> EpochBatches:
        """Return the batches of a stream: all roles, or one as the default role."""
        if name == DEFAULT:
            return self
        weight = self.weight(name)
        weights = None if weight is None else {DEFAULT: weight}
        return EpochBatches({DEFAULT: self.rows[name]}, self.bounds, weights, self.in_order)

    def taken(self, batches: Sequence[int] | IntArray) -> EpochBatches:
        """Return some batches, in this order."""
        numbers = np.asarray(batches, dtype=np.int64)
        sizes = np.diff(self.bounds)[numbers]
        bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        at = np.arange(bounds[-1]) + np.repeat(self.bounds[numbers] - bounds[:-1], sizes)
        weights = None if self.weights is None else {r: w[at] for r, w in self.weights.items()}
        return EpochBatches({role: rows[at] for role, rows in self.rows.items()}, bounds, weights)


def cut(
    lengths: Sequence[int] | IntArray, size: int, *, drop_last: bool
) -> tuple[IntArray, IntArray]:
    """Cut runs of rows into batches.

    Parameters
    ----------
    lengths : sequence of int
        Rows in each run; a batch never spans two runs.
    size : int
    drop_last : bool
        Whether to drop incomplete batches.

    Returns
    -------
    starts, stops : ndarray of int64, shape (n_batches,)
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    counts = sizes // size if drop_last else -(-sizes // size)
    ends = np.cumsum(sizes)
    position = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(ends - sizes, counts) + position * size
    return starts, np.minimum(starts + size, np.repeat(ends, counts))


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
