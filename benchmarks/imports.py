"""CPU time of imports, each in a fresh process."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

from benchmarks.environments import ROOT

BASE = "import numpy, pyarrow"
STATEMENTS = {
    "import modularml": "import modularml",
    "import modularml and first use of FeatureSet": "import modularml; modularml.FeatureSet",
}
_TIMED = "import time; t = time.process_time()\n{}\nprint(time.process_time() - t)"


def import_seconds(statement: str) -> float:
    """Return the CPU time of a statement, the start of the interpreter not counted."""
    command = [sys.executable, "-c", _TIMED.format(statement)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def imports(*, quick: bool = False) -> list[dict[str, Any]]:
    """Return the ratio of each statement to ``import numpy, pyarrow``, in turn with it."""
    repeats = 2 if quick else 5
    for statement in (BASE, *STATEMENTS.values()):
        import_seconds(statement)  # compiles what is not compiled yet
    ratios: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(repeats):
        base = import_seconds(BASE)
        for name, statement in STATEMENTS.items():
            ratios[name].append(import_seconds(statement) / base)
    found = {name: statistics.median(values) for name, values in ratios.items()}
    limits = {"import modularml": 1.5}
    return [
        {"work": name, "value": value, "limit": limits.get(name)} for name, value in found.items()
    ]
