"""Growth of resident memory over epochs without recording; run in a process of its own.

``python -m benchmarks.memory`` prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.cases import N_ROWS, table
from benchmarks.ours import OurJob
from benchmarks.timing import one_thread, rss_bytes
from modularml.callbacks import Callback

WARM = 5


class Resident(Callback):
    """Notes resident memory at the end of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def on_epoch_end(self, **facts: Any) -> None:
        """Note it."""
        self.bytes.append(rss_bytes())


def main(n_rows: int = N_ROWS, epochs: int = 50) -> None:
    """Print by how much the highest later epoch exceeds the fifth, in MiB."""
    one_thread()
    seen = Resident()
    job = OurJob("mlp", table(n_rows), batch_size=64)
    job.run(epochs, recording="none", callbacks=[seen])
    grown = (max(seen.bytes[WARM:]) - seen.bytes[WARM - 1]) / 2**20
    last = (seen.bytes[-1] - seen.bytes[WARM - 1]) / 2**20
    print(json.dumps({"epochs": epochs, "grown_mib": grown, "at_the_end_mib": last}))


if __name__ == "__main__":
    main(2_000, 12) if "--quick" in sys.argv else main()
