"""What loky, which comes with joblib, does not make public, and the public ways."""

from __future__ import annotations

import os
import sys
from concurrent.futures import Future
from typing import Any
from weakref import WeakKeyDictionary

from joblib.externals.loky import process_executor

from modularml._private import PUBLIC_ONLY

_asked: WeakKeyDictionary[Any, Future[int]] = WeakKeyDictionary()


def allow_memory() -> None:
    """Let this worker process hold more memory than at first; else loky may start another."""
    if not PUBLIC_ONLY:
        process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize


def ask_ids(executor: Any) -> None:
    """Prepare `process_ids` of an executor with one process."""
    if PUBLIC_ONLY:
        _asked[executor] = executor.submit(os.getpid)


def process_ids(executor: Any) -> list[int]:
    """Return the ids of the processes that an executor has started."""
    if not PUBLIC_ONLY:
        return list(executor._processes)
    answer = _asked[executor]
    return [answer.result()] if answer.done() and not answer.exception() else []
