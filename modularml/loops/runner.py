"""The runner: epochs, batches, events with callbacks, and a resumable state."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias, TypeVar, overload

from modularml.errors import ConfigError, ExecutionError, UnknownNameError

State: TypeAlias = dict[str, Any]
Callback: TypeAlias = Callable[[State], Any]
C = TypeVar("C", bound=Callback)


class Event(enum.Enum):
    """An event of a run.

    ::

        STARTED
        for each epoch:
            EPOCH_STARTED
            for each batch:
                BATCH
            EPOCH_FINISHED
        FINISHED
    """

    STARTED = "started"
    """Once, at the start of a run."""
    EPOCH_STARTED = "epoch started"
    """At the start of every epoch."""
    BATCH = "batch"
    """At every batch."""
    EPOCH_FINISHED = "epoch finished"
    """At the end of every epoch; not for an interrupted epoch."""
    FINISHED = "finished"
    """Once, at the end of a run, including one that was stopped."""


class EventError(ConfigError, TypeError):
    """A value is not an `Event`, or not a callback."""


class Listeners:
    """Callbacks by event, and the order in which they are called."""

    def __init__(self) -> None:
        self._ranked: dict[str, list[tuple[int, Callback]]] = {e.value: [] for e in Event}
        self._plans: dict[str, list[tuple[int, Callback]]] = {e.value: [] for e in Event}
        """Callbacks by value of their event, in order, each with the number after it."""

    @overload
    def on(
        self, event: Event, callbacks: Callback | Iterable[Callback], *, rank: int = 0
    ) -> None: ...
    @overload
    def on(self, event: Event, callbacks: None = None, *, rank: int = 0) -> Callable[[C], C]: ...
    def on(
        self,
        event: Event,
        callbacks: Callback | Iterable[Callback] | None = None,
        *,
        rank: int = 0,
    ) -> Callable[[C], C] | None:
        """Add callbacks for an event.

        Parameters
        ----------
        event : Event
        callbacks : callable or iterable of callable, optional
            Each is called with the state of the run; return values are ignored.
        rank : int
            Callbacks of a lower rank are called first, those of one rank in the order in which
            they were added. Attachments use -1 and 1.

        Returns
        -------
        callable or None
            Without `callbacks`, a decorator.

        Raises
        ------
        EventError
            If `event` is not an `Event`, or a callback is not callable. No callback is added then.

        Examples
        --------
        >>> from modularml.runner import Event, Runner
        >>> runner = Runner()
        >>> @runner.on(Event.BATCH)
        ... def show(state):
        ...     print(state["batch"])
        >>> runner.on(Event.FINISHED, [lambda state: print("so"), lambda state: print("done")])
        >>> runner.run("ab")
        a
        b
        so
        done
        """
        if not isinstance(event, Event):
            names = ", ".join(f"Event.{known.name}" for known in Event)
            raise EventError(f"event must be one of {names}, got {event!r}")
        if callbacks is None:

            def add(callback: C) -> C:
                self.on(event, callback, rank=rank)
                return callback

            return add
        several = isinstance(callbacks, Iterable) and not callable(callbacks)
        added: list[Any] = list(callbacks) if several else [callbacks]  # type: ignore[arg-type]
        for callback in added:
            if not callable(callback):
                raise EventError(f"a callback must be callable, got {callback!r:.200}")
        ranked = self._ranked[event.value]
        ranked.extend((rank, callback) for callback in added)
        ranked.sort(key=lambda entry: entry[0])
        last = len(ranked) - 1
        self._plans[event.value] = [(last - i, call) for i, (_, call) in enumerate(ranked)]
        return None


def look_up(state: State, key: str) -> Any:
    """Return an entry of a state.

    Raises
    ------
    UnknownNameError
        If it has no such entry; also a `KeyError`.
    """
    if key not in state:
        raise UnknownNameError("state key", key, map(str, state))
    return state[key]


BATCH, FINISHED = Event.BATCH.value, Event.FINISHED.value
KEYS = ("batches", "max_epoch", "n_iters", "running", "epoch", "batch")


class Runner(Listeners):
    """Iterate over batches for a number of epochs and notify callbacks.

    Attributes
    ----------
    state : dict
        Passed to callbacks, which may change it:

        - ``batches``, iterable of an epoch
        - ``max_epoch``, int
        - ``n_iters``, int, batches so far in all epochs
        - ``running``, bool; set it to False to stop
        - ``epoch``, int, 1-based
        - ``batch``, the current one

        Keys with a leading underscore hold the position in the run, so that a copy of the state
        (such as a pickle) can be resumed in another process at any time.

    Notes
    -----
    A run that is stopped emits `Event.FINISHED`. An interrupted epoch has no `Event.EPOCH_FINISHED`
    until it is resumed and ends.

    Examples
    --------
    >>> runner = Runner()
    >>> @runner.on(Event.BATCH)
    ... def stop_at_three(state):
    ...     print(state["epoch"], state["n_iters"], state["batch"])
    ...     state["running"] = state["n_iters"] != 3
    >>> runner.run("ab", max_epoch=2)
    1 1 a
    1 2 b
    2 3 a
    >>> runner.resume()
    2 4 b
    """

    def __init__(self) -> None:
        super().__init__()
        self.state: dict[str, Any] = {}
        self._live: tuple[Iterator[Any], Any] | None = None  # of the current epoch
        self._mark: tuple[int, int] = (0, 0)  # its epoch and number of batches

    def run(self, batches: Iterable[Any], max_epoch: int = 1) -> None:
        """Run on batches for a number of epochs.

        ::

            emit STARTED
            while running and there are epochs left:
                emit EPOCH_STARTED
                for each batch: emit BATCH
                emit EPOCH_FINISHED
            emit FINISHED

        Parameters
        ----------
        batches : iterable
            Batches of an epoch.
        max_epoch : int
            At least 0.

        Raises
        ------
        ConfigError
            If an argument is not valid.
        """
        if not (hasattr(type(batches), "__iter__") or hasattr(type(batches), "__getitem__")):
            raise ConfigError(f"batches must be an iterable, got {batches!r:.200}")
        if not isinstance(max_epoch, int) or max_epoch < 0:
            raise ConfigError(f"max_epoch must be an int of at least 0, got {max_epoch!r}")
        self._live = None
        start = {"max_epoch": max_epoch, "n_iters": 0, "running": True, "epoch": 0, "batch": None}
        self._emit(Event.STARTED, batches=batches, _epoch_iters=None, **start)
        self._loop()

    def resume(self, repeat_last_batch: bool = False) -> None:
        """Resume from the current state.

        Parameters
        ----------
        repeat_last_batch : bool
            Whether the last batch is processed again. Ignored if its epoch is finished.

        Raises
        ------
        ExecutionError
            If the state is not that of a run.

        Notes
        -----
        - A callback that raised is called again, and then those after it; at `Event.BATCH`
          the rest of the batch is skipped instead, unless `repeat_last_batch`.
        - In the same process the same iterator continues. In another one ``batches`` is
          iterated over again and the finished batches of this epoch are skipped, unless it has a
          ``load_state_dict``: then it is expected to resume its own position.
        """
        state = self.state
        missing = [key for key in KEYS if key not in state]
        if missing:
            raise ExecutionError(
                f"there is no run to resume, its state lacks {', '.join(missing)}; "
                "call run(batches) first, or set `state` to that of a run"
            )
        left, event = state.get("_left", 0), state.get("_event")
        if repeat_last_batch and state.get("_epoch_iters"):
            state["running"] = state["_repeats"] = True
            self._emit(Event.BATCH)
        elif left and event is not None:
            self._call(self._plans[event][-left:], event != BATCH)
        elif event in (None, FINISHED):
            state["running"] = True
        self._loop()

    def _loop(self) -> None:
        state = self.state
        state["_repeats"] = False
        while state["running"]:
            if state.get("_epoch_iters") is None:
                if state["epoch"] >= state["max_epoch"]:
                    break
                self._emit(Event.EPOCH_STARTED, epoch=state["epoch"] + 1, _epoch_iters=0)
            if not state["running"]:
                continue
            iterator = self._iterator()
            state["_event"], state["_left"] = BATCH, 0
            try:
                for batch in iterator:
                    state["batch"] = batch
                    state["n_iters"] += 1
                    state["_epoch_iters"] += 1
                    self._call(self._plans[BATCH], False)
                    if not state["running"]:
                        break
            finally:
                self._mark = (state["epoch"], state["_epoch_iters"])
            if state["running"]:
                self._live = None
                self._emit(Event.EPOCH_FINISHED, _epoch_iters=None)
        if state.get("_event") != FINISHED:
            self._emit(Event.FINISHED)
        state["running"] = False

    def _emit(self, event: Event, **facts: Any) -> None:
        plan = self._plans[event.value]
        self.state.update(facts, _event=event.value, _left=len(plan))
        self._call(plan, event is not Event.BATCH)

    def _call(self, plan: Sequence[tuple[int, Callback]], retry: bool) -> None:
        """Call callbacks; with `retry`, `resume` starts with one that raised."""
        state = self.state
        for left, callback in plan:
            state["_left"] = (
                left  # before the call, so that a copy taken during it resumes after it
            )
            try:
                callback(state)
            except BaseException:
                state["_left"] = left + 1 if retry else 0
                raise

    def _iterator(self) -> Iterator[Any]:
        """Return an iterator of the remaining batches of this epoch."""
        state = self.state
        batches, done = state["batches"], state["_epoch_iters"]
        if done and self._live is not None and self._mark == (state["epoch"], done):
            iterator, source = self._live
            closed = (
                inspect.isgenerator(iterator)
                and inspect.getgeneratorstate(iterator) == inspect.GEN_CLOSED
            )
            if source is batches and not closed:
                return iterator
        iterator = iter(batches)
        if done and not hasattr(batches, "load_state_dict"):
            next(islice(iterator, done - 1, done), None)
        self._live = (iterator, batches)
        return iterator
