"""Batches of one epoch as indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from modularml._typing import Array, IntArray
from modularml.data.batch import DEFAULT_ROLE as DEFAULT

__all__ = ["DEFAULT", "EpochBatches", "cut"]


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
