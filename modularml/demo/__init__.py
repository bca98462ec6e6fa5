"""The main job on real data: rows in, a trained graph, honest figures and pictures out."""

from __future__ import annotations

import time
from pathlib import Path

from modularml._optional import require
from modularml.demo.diabetes import run_diabetes
from modularml.demo.digits import run_digits

__all__ = ["run_demo"]


def run_demo(out: Path, *, quiet: bool = False) -> None:
    """Run both jobs and write their pictures.

    Parameters
    ----------
    out : Path
        Folder for the pictures; made where it is not there.
    quiet : bool
        Whether progress bars are left out.
    """
    out.mkdir(parents=True, exist_ok=True)
    # models as small as these lose more to threads than they gain
    require("torch", purpose="for the demo").set_num_threads(1)
    start = time.perf_counter()
    run_digits(out, show=not quiet)
    run_diabetes(out, show=not quiet)
    pictures = "\n  ".join(str(path) for path in sorted(out.iterdir()))
    print(f"\nDone in {time.perf_counter() - start:.0f} s. The pictures:\n  {pictures}")
