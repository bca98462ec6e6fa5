"""What a phase costs before its first step; run in a process of its own.

``python -m benchmarks.phase_cost`` prints one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import torch

from benchmarks.cases import N_ROWS, table
from benchmarks.ours import OurJob
from benchmarks.timing import cpu_seconds, one_thread
from modularml.callbacks import Callback


class FirstBatch(Callback):
    """Notes the CPU and wall time at which the first batch starts."""

    def __init__(self) -> None:
        super().__init__()
        self.at: tuple[float, float] | None = None

    def on_batch_start(self, **facts: Any) -> None:
        """Note the time, once."""
        if self.at is None:
            self.at = (time.process_time(), time.perf_counter())


def before_first_step(job: OurJob) -> tuple[float, float]:
    """Run one epoch and return CPU and wall time until its first batch, in milliseconds."""
    seen = FirstBatch()
    cpu, wall = time.process_time(), time.perf_counter()
    job.run(1, callbacks=[seen])
    assert seen.at is not None
    return 1e3 * (seen.at[0] - cpu), 1e3 * (seen.at[1] - wall)


def main(n_rows: int = N_ROWS, repeats: int = 5) -> None:
    """Print the cost of a process's first phase, of a graph's first, and of later ones.

    Torch loads its compiler when the first optimizer of a process is made, whoever makes it; a
    hand-written loop pays for it too, so it is weighed apart.
    """
    one_thread()
    data = table(n_rows)
    torch_itself = 1e3 * cpu_seconds(lambda: torch.optim.Adam(torch.nn.Linear(1, 1).parameters()))
    first = before_first_step(OurJob("mlp", data, batch_size=64))
    fresh = [OurJob("mlp", data, batch_size=64) for _ in range(repeats)]
    new = [before_first_step(job) for job in fresh]
    again = [before_first_step(fresh[-1]) for _ in range(repeats)]
    answer = {
        "torch's own first optimizer": (torch_itself, torch_itself),
        "first phase of a process": first,
        "first phase of a graph": medians(new),
        "later phases": medians(again),
    }
    print(json.dumps(answer))


def medians(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the median of each column."""
    cpu, wall = zip(*pairs, strict=True)
    return statistics.median(cpu), statistics.median(wall)


if __name__ == "__main__":
    main(2_000, 2) if "--quick" in sys.argv else main()
