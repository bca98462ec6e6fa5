"""How the batches of several samplers are put side by side."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np

from modularml._registry import member
from modularml._typing import Array, IntArray
from modularml.backends.base import Processes
from modularml.samplers import EpochBatches

__all__ = ["BatchSchedulingPolicy", "schedule", "share"]


class BatchSchedulingPolicy(enum.Enum):
    """Which batches of several samplers make one step.

    With ``S1 = [b1, b2, b3]`` and ``S2 = [c1, c2]``: ``zip_strict`` gives ``(b1, c1), (b2, c2)``
    and ``zip_cycle`` gives ``(b1, c1), (b2, c2), (b3, c1)``; ``alternate_strict`` gives
    ``b1, c1, b2, c2`` and ``alternate_cycle`` ``b1, c1, b2, c2, b3, c1``.
    """

    ZIP_STRICT = "zip_strict"
    ZIP_CYCLE = "zip_cycle"
    ALTERNATE_STRICT = "alternate_strict"
    ALTERNATE_CYCLE = "alternate_cycle"

    @classmethod
    def from_value(cls, value: str | BatchSchedulingPolicy) -> BatchSchedulingPolicy:
        """Read a policy from its name; UnknownNameError where there is none."""
        return member(cls, value, "batch schedule")

    @property
    def alternates(self) -> bool:
        """Whether a step takes the rows of one sampler, and the others' are padding."""
        return self in (self.ALTERNATE_STRICT, self.ALTERNATE_CYCLE)

    @property
    def cycles(self) -> bool:
        """Whether shorter samplers begin again, rather than end the epoch."""
        return self in (self.ZIP_CYCLE, self.ALTERNATE_CYCLE)


def schedule(epochs: Sequence[EpochBatches], policy: BatchSchedulingPolicy) -> list[EpochBatches]:
    """Bring the batches of all samplers to one number.

    Parameters
    ----------
    epochs : sequence of EpochBatches
        One a sampler.
    policy : BatchSchedulingPolicy

    Returns
    -------
    list of EpochBatches
        Step ``i`` takes batch ``i`` of each.
    """
    counts = [e.n_batches for e in epochs]
    n = max(counts) if policy.cycles else min(counts)
    found = [e if e.n_batches == n else e.taken(np.arange(n) % e.n_batches) for e in epochs]
    if not policy.alternates or len(epochs) == 1:
        return found
    sizes = np.stack([np.diff(e.bounds) for e in found], axis=1).reshape(-1)
    return [_in_turn(e, i, sizes) for i, e in enumerate(found)]


def share(
    epochs: Sequence[EpochBatches], totals: Array, processes: Processes
) -> tuple[list[EpochBatches], list[tuple[float, float]]]:
    """Deal the batches of an epoch to processes that train together, in turn.

    Parameters
    ----------
    epochs : sequence of EpochBatches
        One a sampler, of one number; the same in all processes.
    totals : ndarray of float64, shape (n_batches,)
        Rows of each batch, or the sum of their weights.
    processes : Processes

    Returns
    -------
    epochs : list of EpochBatches
        The batches of this process. Where there are none left for it in the last step it gets the
        first batch once more.
    counts : list of (float, float)
        Totals of these batches, zero where one came once more, and what those of all processes are
        on average.
    """
    n, size = len(totals), processes.size
    steps = -(-n // size)
    mine = np.arange(steps) * size + processes.rank
    rows = np.concatenate([totals, np.zeros(steps * size - n)])
    counts = list(zip(rows[mine].tolist(), rows.reshape(steps, size).mean(1).tolist(), strict=True))
    return [e.taken(np.where(mine < n, mine, 0)) for e in epochs], counts


def _in_turn(epoch: EpochBatches, first: int, sizes: IntArray) -> EpochBatches:
    """Put batches where it is their turn, and padding (-1, of weight 0) between them.

    Parameters
    ----------
    epoch : EpochBatches
    first : int
        First step that takes a batch of it.
    sizes : ndarray of int64, shape (n_steps,)
        Rows in each step.
    """
    every = len(sizes) // epoch.n_batches
    mine = np.repeat(np.arange(len(sizes)) % every == first, sizes)

    def spread(values: Array, empty: float) -> Array:
        found = np.full(len(mine), empty, dtype=values.dtype)
        found[mine] = values
        return found

    ones = {role: np.ones(len(rows)) for role, rows in epoch.rows.items()}
    return EpochBatches(
        {role: spread(rows, -1) for role, rows in epoch.rows.items()},
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        {role: spread(w, 0.0) for role, w in {**ones, **(epoch.weights or {})}.items()},
    )
