"""Whole jobs as processes, through modularml and by hand, in turn.

``python -m benchmarks.jobs`` prints a table; names of jobs and a number of rounds may follow.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.environments import ROOT
from benchmarks.job_scripts import write_data

JOBS = {
    "digits": ("digits, two branches, 20 epochs", 0.85),
    "iris": ("150 rows of a CSV file, MLP, 30 epochs", 0.7),
    "curves": ("4,000 curves with scalars, two branches, 10 epochs", 0.9),
    "table": ("200,000 x 30, MLP, 3 epochs of batch 256", 0.8),
    "forest": ("forest in 5 grouped folds, 5,000 x 30", 1.02),
}
"""What a job does, and the largest ratio of CPU time."""

MEMORY = {"forest": 1.05}
"""The largest ratio of peak resident memory."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run(name: str, side: str, data: Path) -> tuple[float, float]:
    """Run a job in a process; return its CPU time (s, user and system) and peak memory (MiB)."""
    env = {**os.environ, **dict.fromkeys(_THREADS, "1"), "PYTHONPATH": str(ROOT)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process would compile our package
    command = [sys.executable, "-m", "benchmarks.job_scripts", name, side, str(data)]
    with (data / "out.txt").open("w") as out:
        files = [(os.POSIX_SPAWN_DUP2, out.fileno(), n) for n in (1, 2)]
        pid = os.posix_spawn(sys.executable, command, env, file_actions=files)
        _, status, usage = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"{name}, {side}, failed:\n{(data / 'out.txt').read_text()}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def jobs(*, quick: bool = False, only: list[str] | None = None, rounds: int = 7) -> list[Any]:
    """Return ratios of CPU time, and of peak memory where it is limited."""
    found = []
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where jobs save
        try:
            write_data(Path(folder), quick=quick)
            for name in only or JOBS:
                found += _race(name, Path(folder), 1 if quick else rounds)
        finally:
            os.chdir(before)
    return found


def _race(name: str, data: Path, rounds: int) -> list[dict[str, Any]]:
    work, limit = JOBS[name]
    for side in ("hand", "ours"):
        run(name, side, data)  # compiles what is not compiled yet
    pairs = [(run(name, "hand", data), run(name, "ours", data)) for _ in range(rounds)]
    ratios = [[ours[i] / hand[i] for hand, ours in pairs] for i in (0, 1)]
    rows = [(f"{work}, CPU time", statistics.median(ratios[0]), limit)]
    rows += [(f"{work}: by hand (s)", min(hand[0] for hand, _ in pairs), None)]
    memory = statistics.median(ratios[1])
    rows += [(f"{work}, peak memory", memory, MEMORY.get(name))]
    return [
        {"work": text, "value": value, "limit": most, "ok": most is None or value <= most}
        for text, value, most in rows
    ]


if __name__ == "__main__":
    given = sys.argv[1:]
    n_rounds = next((int(text) for text in given if text.isdigit()), 7)
    names = [text for text in given if not text.isdigit()]
    for row in jobs(only=names, rounds=n_rounds):
        print(f"{row['value']:8.3f}  (at most {row['limit']})  {row['work']}")
