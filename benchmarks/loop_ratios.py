"""Ratios of training loops: ours and the fused variant against the hand-written one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.cases import CASES, DATA, N_ROWS, Case
from benchmarks.loops import HandJob
from benchmarks.ours import OurJob
from benchmarks.timing import interleave, one_thread, ratio


def measure(case: Case, *, quick: bool = False) -> dict[str, Any]:
    """Time one case: by hand, by hand with fused Adam, and through modularml."""
    one_thread()
    data = DATA[case.kind](2_000 if quick else N_ROWS)
    size, epochs = case.batch_size, 1 if quick else case.epochs
    hand = HandJob(case.kind, data, batch_size=size)
    fused = HandJob(case.kind, data, batch_size=size, fused=True)
    ours = OurJob(case.kind, data, batch_size=size).build(hand.weights())
    times = interleave(
        {
            "hand": lambda: hand.run(epochs),
            "ours": lambda: ours.run(epochs),
            "fused": lambda: fused.run(epochs),
        },
        repeats=2 if quick else 5,
    )
    steps = epochs * -(-len(data["y"]) // size)
    return {
        "work": case.name,
        "ours": ratio(times, "ours"),
        "fused": ratio(times, "fused"),
        "required": case.required,
        "aim": case.aim,
        "ok": ratio(times, "ours") <= case.required,
        "us_a_step": {name: 1e6 * min(found) / steps for name, found in times.items()},
    }


def loop_ratios(*, quick: bool = False, only: str = "") -> Iterable[dict[str, Any]]:
    """Yield one row a case whose name holds `only`."""
    for case in CASES:
        if only in case.name:
            yield measure(case, quick=quick)
