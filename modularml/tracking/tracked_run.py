"""A run that is being logged: its queue of calls and the metrics that wait to be sent."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol


class Point(NamedTuple):
    """One value of one metric: its name, value, step (the 0-based epoch) and time in seconds."""

    name: str
    value: float
    step: int
    time: float


class Store(Protocol):
    """A run in a tracking store; used in the thread of its session alone."""

    run_id: str
    group: str
    """What runs below it have as their `parent`."""

    def logged_steps(self) -> Mapping[str, Iterable[int]]:
        """Return the steps that the run holds, by metric."""

    def write_params(self, params: Mapping[str, Any]) -> None:
        """Write parameters."""

    def write_points(self, points: list[Point]) -> None:
        """Write values of metrics."""

    def write_file(self, path: Path) -> None:
        """Write a file."""

    def close(self, status: str) -> None:
        """End the run: ``completed``, ``failed`` or ``interrupted``."""


class Session:
    """Calls to a tracking store, made in order in one thread, none after the first error.

    Parameters
    ----------
    owner : object
        The run that is logged.
    open_store : callable
        Creates or reopens the run in the store; the first call.
    every_seconds : float
        Least time between two transmissions of metrics.
    as_key : callable
        Returns the name that the store has for a metric.
    """

    store: Store

    def __init__(
        self,
        owner: Any,
        open_store: Callable[[], Store],
        every_seconds: float,
        as_key: Callable[[str], str],
    ) -> None:
        self.owner, self.error, self._as_key = owner, None, as_key
        self._open_store, self._every_seconds, self._due = open_store, every_seconds, 0.0
        self._points: list[Point] = []
        self.sent: dict[str, set[int]] = defaultdict(set)
        """Steps by metric that need not be sent."""
        self._calls: SimpleQueue[Callable[[Store], object] | None] = SimpleQueue()
        self._cleanup: Callable[[], object] = lambda: None
        self._submitted = self._finished = 0
        self._is_open = self._is_closed = False
        self._progress = threading.Condition()
        self.submit(lambda store: None)
        threading.Thread(target=self._work, name="modularml-tracker", daemon=True).start()

    error: BaseException | None
    """The first error of a call."""

    def submit(self, call: Callable[[Store], object]) -> None:
        """Make a call after all earlier ones."""
        self._submitted += 1
        self._calls.put(call)

    def wait(self, seconds: float) -> bool:
        """Wait for all calls; return whether each ended within this time of the one before."""
        with self._progress:
            while self._finished < self._submitted:
                if not self._progress.wait(seconds):
                    return False
        return True

    def close(self, status: str) -> None:
        """End the run in the store."""

        def close(store: Store) -> None:
            store.close(status)
            self._is_closed = True

        self.submit(close)

    @property
    def names(self) -> set[str]:
        """Id and group of the run, once it is open."""
        return {self.store.run_id, self.store.group} if self._is_open else set()

    def end(self, cleanup: Callable[[], object] | None = None) -> None:
        """End the thread after the calls that were submitted, then clean up."""
        self._cleanup = cleanup or self._cleanup
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self.error is None:
                try:
                    if self._finished == 0:
                        self.store, self._is_open = self._open_store(), True
                    call(self.store)
                except BaseException as error:  # noqa: BLE001 - a store must not stop a run
                    self.error = error
            with self._progress:
                self._finished += 1
                self._progress.notify_all()
        if self._is_open and not self._is_closed:  # it was given up
            with suppress(Exception):
                self.store.close("failed")
        self._cleanup()

    def add(self, path: str, metrics: Mapping[str, float], epoch: int) -> None:
        """Add the metrics of one epoch of a phase, except those that were sent before."""
        now = time.time()
        for name, value in metrics.items():
            key = self._as_key(f"{path}/{name}")
            if epoch not in (steps := self.sent[key]):
                steps.add(epoch)
                self._points.append(Point(key, value, epoch, now))
        if now >= self._due:
            self.flush()

    def add_all(self, results: Any) -> None:
        """Add what was not sent of the metrics of all phases."""
        for path, phase in results.paths():
            by_epoch: dict[int, dict[str, float]] = defaultdict(dict)
            for name in phase.metric_names():
                for epoch, value in phase._metrics.epoch_values(name).items():
                    by_epoch[epoch][name] = value
            for epoch, metrics in sorted(by_epoch.items()):
                self.add(path, metrics, epoch)
        self.flush()

    def read_steps(self, store: Store) -> None:
        """Note the steps that a reopened run holds."""
        for metric, steps in store.logged_steps().items():
            self.sent[metric].update(steps)

    def flush(self) -> None:
        """Send the points that wait."""
        self._due = time.time() + self._every_seconds
        if self._points:
            points, self._points = self._points, []
            self.submit(lambda store: store.write_points(points))
