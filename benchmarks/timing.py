"""CPU time of several contestants, in turn, in one process and on one thread."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping

Times = dict[str, list[float]]


def one_thread() -> None:
    """Keep torch, where it is there, to one thread."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)


def cpu_seconds(
    work: Callable[[], object], clock: Callable[[], float] = time.process_time
) -> float:
    """Return the CPU time of a call, all threads of this process together, in seconds."""
    gc.collect()
    before = clock()
    work()
    return clock() - before


def interleave(
    works: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 5,
    clock: Callable[[], float] = time.process_time,
) -> Times:
    """Time contestants in turn, A B A B, after each has run once.

    What else runs on the machine then hits all of them alike, and a drift of the clock rate
    cancels in the ratios.
    """
    for work in works.values():
        work()
    times: Times = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(cpu_seconds(work, clock))
    return times


def ratio(times: Mapping[str, list[float]], name: str, to: str = "hand") -> float:
    """Return the median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))


def rss_bytes() -> int:
    """Return the resident memory of this process."""
    import psutil

    return int(psutil.Process(os.getpid()).memory_info().rss)


def heap_bytes() -> int:
    """Return what glibc's allocator has handed out and not got back; 0 where there is none."""

    class Info(ctypes.Structure):
        _fields_ = tuple(
            (name, ctypes.c_size_t)
            for name in ("arena", "free", "fast", "maps", "mapped", "_1", "_2", "used", "_3", "_4")
        )

    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return 0
    ask.restype = Info
    found = ask()
    return int(found.used + found.mapped)
