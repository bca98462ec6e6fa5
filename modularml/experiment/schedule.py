"""How the batches of several samplers are put side by side."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np

from modularml.backends.base import Processes
from modularml.errors import ConfigError, UnknownNameError
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
        """Read a policy from its name.

        Raises
        ------
        UnknownNameError
            If there is no such policy.
        ConfigError
            If the policy alternates: steps that leave an input empty are not run yet.
        """
        names = [policy.value for policy in cls]
        name = value.value if isinstance(value, cls) else str(value).lower()
        if name not in names:
            raise UnknownNameError("batch schedule", value, names)
        if name.startswith("alternate"):
            raise ConfigError(
                f"batch_schedule {name!r} cannot be run yet: it leaves inputs of a step empty; use "
                "'zip_strict' or 'zip_cycle', or one phase for each sampler"
            )
        return cls(name)


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
    n = min(counts) if policy is BatchSchedulingPolicy.ZIP_STRICT else max(counts)
    return [e if e.n_batches == n else _taken(e, np.arange(n) % e.n_batches) for e in epochs]


def share(
    epochs: Sequence[EpochBatches], processes: Processes
) -> tuple[list[EpochBatches], list[tuple[float, float]]]:
    """Deal the batches of an epoch to processes that train together, in turn.

    Parameters
    ----------
    epochs : sequence of EpochBatches
        One a sampler, of one number; the same in all processes.
    processes : Processes

    Returns
    -------
    epochs : list of EpochBatches
        The batches of this process. Where there are none left for it in the last step it gets the
        first batch once more.
    counts : list of (float, float)
        For each of them: rows that count, none where it came once more, and the rows of a process
        on average.
    """
    n, size = epochs[0].n_batches, processes.size
    steps = -(-n // size)
    mine = np.arange(steps) * size + processes.rank
    rows = np.zeros(steps * size)
    rows[:n] = epochs[0].sizes
    counts = list(zip(rows[mine].tolist(), rows.reshape(steps, size).mean(1).tolist(), strict=True))
    return [_taken(e, np.where(mine < n, mine, 0)) for e in epochs], counts


def _taken(
    epoch: EpochBatches, batches: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> EpochBatches:
    sizes = np.asarray(epoch.sizes)[batches]
    rows = {
        role: np.concatenate([epoch.batch(int(i), role) for i in batches]) for role in epoch.rows
    }
    return EpochBatches(rows, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
