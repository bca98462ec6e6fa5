"""SIGINT, SIGTERM, SIGHUP: the batch is finished, a checkpoint written, and the run ends."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modularml.engine.callback import Callback
from modularml.engine.run_state import Start

__all__ = ["Interruption", "ends_raise", "is_interruption"]

_AFTER_ALL = 1_000_001
_ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_SIGNALS = (signal.SIGINT, *_ENDS)


class Interruption(Callback):
    """Ends a run cleanly when the process is asked to end; a second signal ends it at once.

    A SIGTERM or SIGHUP within a second of the first is the same one, sent to a group of processes
    and passed on by the parent. It is a context manager in which signals are caught, in the main
    thread only.

    Parameters
    ----------
    path : Path
        Of the checkpoint that is written then.
    """

    changes_weights = False

    def __init__(self, path: Path) -> None:
        super().__init__("interruption", execution_order=_AFTER_ALL)
        self.path = path
        self._asked, self._since = 0, 0.0
        self._before: dict[int, Any] = {}

    def on_batch_end(self, *, experiment: Any, phase: Any, **facts: Any) -> None:
        """End where that was asked for."""
        if self._asked and phase.is_between_moves:
            self._end("batch_end", experiment, phase)

    def on_epoch_end(self, *, experiment: Any, phase: Any, **facts: Any) -> None:
        """End where that was asked for after the last batch."""
        if self._asked:
            self._end("epoch_end", experiment, phase)

    def _end(self, hook: str, experiment: Any, phase: Any) -> None:
        asked = self._asked
        if phase.is_main:
            meta = {"phase": phase.label, "hook": hook}
            experiment._keep_run(self.path, True, meta, Start.behind(hook, phase), alone=True)
            logging.getLogger(__name__).warning(
                "note: phase %r was stopped by %s; run(resume='auto') goes on from %s",
                phase.label,
                signal.Signals(asked).name,
                self.path,
            )
        self._asked = 0
        raise _error(asked)

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked and (number == signal.SIGINT or time.monotonic() - self._since > 1):
            raise _error(number)
        if not self._asked:
            self._asked, self._since = number, time.monotonic()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            ignored = [s for s in _SIGNALS if signal.getsignal(s) == signal.SIG_IGN]
            self._before = {s: signal.signal(s, self._ask) for s in _SIGNALS if s not in ignored}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if self._asked and error is None:  # it came after the last batch
            signal.raise_signal(self._asked)


def is_interruption(error: BaseException) -> bool:
    """Tell whether an error is one that a signal makes."""
    told = isinstance(error, SystemExit) and error.code in [128 + number for number in _ENDS]
    return told or isinstance(error, KeyboardInterrupt)


@contextmanager
def ends_raise() -> Iterator[None]:
    """Let signals that ask the process to end raise SystemExit, so that blocks are left in order.

    In the main thread only, and where nobody else handles or ignores them.
    """
    usual = threading.current_thread() is threading.main_thread()
    mine = [n for n in _ENDS if usual and signal.getsignal(n) == signal.SIG_DFL]

    def end(number: int, frame: Any) -> None:
        raise _error(number)

    for number in mine:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


def _error(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
