"""Signal handling: finish the batch, write a checkpoint and end the run."""

from __future__ import annotations

import ctypes
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modularml.engine.callback import Callback

_AFTER_ALL = 1_000_001
_ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_SIGNALS = (signal.SIGINT, *_ENDS)
_in_threads: dict[int, Signals] = {}
"""Those of runs in other threads than the main thread, by thread."""


class Signals:
    """Receives signals that end a run, so that it can end between two batches.

    A second signal ends it at once. Signals are SIGINT, SIGTERM and SIGHUP; a SIGTERM or SIGHUP
    within a second of the first counts as the same signal, sent to a group of processes and
    forwarded by the parent. As a context manager it catches signals, in the main thread only; in
    another, `stop_thread` takes their place.

    Attributes
    ----------
    number : int
        The signal received; 0 for none.
    """

    def __init__(self) -> None:
        self.number, self._received_at = 0, 0.0
        self._handlers: dict[int, Any] = {}

    def _handle(self, number: int, frame: Any) -> None:
        if self.number and (number == signal.SIGINT or time.monotonic() - self._received_at > 1):
            raise _error(number)
        if not self.number:
            self.number, self._received_at = number, time.monotonic()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            ignored = [s for s in _SIGNALS if signal.getsignal(s) == signal.SIG_IGN]
            self._handlers = {
                s: signal.signal(s, self._handle) for s in _SIGNALS if s not in ignored
            }
        else:
            _in_threads[threading.get_ident()] = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if _in_threads.get(threading.get_ident()) is self:
            del _in_threads[threading.get_ident()]
        for number, handler in self._handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if self.number and error is None:  # it arrived after the last batch
            if threading.current_thread() is not threading.main_thread():
                raise _error(self.number)
            signal.raise_signal(self.number)


shared_signals: ContextVar[Signals | None] = ContextVar("modularml_signals", default=None)
"""Signals that the main thread receives for runs in other threads."""


class Interruption(Callback):
    """Ends a run cleanly on a signal that is caught within `catching`; see `Signals`.

    Parameters
    ----------
    path : Path
        File of the checkpoint to write.
    save : callable
        Writes it; see `Experiment.save_checkpoint`.
    """

    changes_weights = False
    reads_batches = False

    def __init__(self, path: Path, save: Callable[..., Any]) -> None:
        super().__init__("interruption", execution_order=_AFTER_ALL)
        shared = shared_signals.get()
        self.path, self.save, self._signals = path, save, shared or Signals()
        self.catching: AbstractContextManager[Any] = (
            self._signals if shared is None else nullcontext()
        )

    def on_batch_end(self, *, phase: Any, **facts: Any) -> None:
        """End the run if a signal has arrived."""
        if self._signals.number and phase.has_no_pending_gradients:
            self._end("batch_end", phase)

    def on_epoch_end(self, *, phase: Any, **facts: Any) -> None:
        """End the run if a signal has arrived after the last batch."""
        if self._signals.number:
            self._end("epoch_end", phase)

    def _end(self, hook: str, phase: Any) -> None:
        number = self._signals.number
        if phase.is_main:
            meta = {"phase": phase.label, "hook": hook}
            self.save(self.path, True, meta, phase.position.record(hook), alone=True)
            logging.getLogger(__name__).warning(
                "note: phase %r was stopped by %s; run(resume='auto') resumes from %s",
                phase.label,
                signal.Signals(number).name,
                self.path,
            )
        if self.catching is self._signals:
            self._signals.number = 0
        raise _error(number)


def is_interruption(error: BaseException) -> bool:
    """Return whether an error was raised by a signal."""
    ended = isinstance(error, SystemExit) and error.code in [128 + number for number in _ENDS]
    return ended or isinstance(error, KeyboardInterrupt)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Raise SystemExit on signals that end the process, so that blocks clean up.

    Only in the main thread, and only for signals that are not handled or ignored already.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    numbers = [n for n in _ENDS if in_main_thread and signal.getsignal(n) == signal.SIG_DFL]

    def end(number: int, frame: Any) -> None:
        raise _error(number)

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def stop_thread(ident: int) -> None:
    """End what another thread runs as SIGTERM ends the main thread: by SystemExit.

    A run with checkpoints on disk finishes its batch and writes one first.
    """
    if (signals := _in_threads.get(ident)) is not None:
        signals._handle(signal.SIGTERM, None)
    else:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(_Stop))


class _Stop(SystemExit):
    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def _error(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
