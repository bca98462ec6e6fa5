"""How much of the full figures a run does, and from which seed."""

from __future__ import annotations

import os
import random

SHARE = float(os.environ.get("MML_FUZZ", "0.1"))
SEED = int(os.environ.get("MML_SEED", "20261121"))


def times(full: int) -> int:
    """Return how often a run does what the full run does this often."""
    return max(1, round(full * SHARE))


def dice(name: str) -> random.Random:
    """Return a generator of a test's own."""
    return random.Random(f"{SEED} {name}")
