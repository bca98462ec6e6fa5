"""A demo of training and evaluation on two real data sets."""

from __future__ import annotations

import time
from pathlib import Path

from modularml._optional import require
from modularml.demo.experiments import run_diabetes, run_digits

__all__ = ["run_demo"]


def run_demo(out: Path, *, quiet: bool = False) -> None:
    """Run both examples and write their figures.

    Parameters
    ----------
    out : Path
        Folder for the figures; created if needed.
    quiet : bool
        Whether to hide progress bars.
    """
    out.mkdir(parents=True, exist_ok=True)
    # threads slow down models as small as these
    require("torch", purpose="for the demo").set_num_threads(1)
    start = time.perf_counter()
    run_digits(out, show=not quiet)
    run_diabetes(out, show=not quiet)
    figures = "\n  ".join(str(path) for path in sorted(out.iterdir()))
    print(f"\nDone in {time.perf_counter() - start:.0f} s. The figures:\n  {figures}")
