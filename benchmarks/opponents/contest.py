"""One opponent against the hand-written loop, in the opponent's own process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

from benchmarks.cases import N_ROWS, table
from benchmarks.loops import HandJob
from benchmarks.timing import interleave, one_thread, ratio

Fit = Callable[[int], object]
EPOCHS = {32: 2, 64: 3, 512: 15}


def contest(name: str, package: str, start: Callable[[Any, Any, int], Fit]) -> None:
    """Race at batch 32, 64 and 512 and print one line of JSON.

    Parameters
    ----------
    name : str
        Of the opponent.
    package : str
        As pip knows it, for its version.
    start : callable
        Takes `x` of shape (n, 16), `y` of shape (n, 1) and the batch size; returns a function
        that trains on for a number of epochs.
    """
    quick = "--quick" in sys.argv
    data = table(2_000 if quick else N_ROWS)
    ratios: dict[str, float] = {}
    one_thread()
    for batch_size, epochs in EPOCHS.items():
        fit = start(data["x"], data["y"], batch_size)
        hand = HandJob("mlp", data, batch_size=batch_size)
        one_thread()
        works = {"hand": partial(hand.run, epochs), "theirs": partial(fit, epochs)}
        times = interleave(works, repeats=2 if quick else 5)
        ratios[str(batch_size)] = round(ratio(times, "theirs"), 2)
    answer = {"opponent": name, "version": version(package), "ratios": ratios}
    print(json.dumps(answer), flush=True)
