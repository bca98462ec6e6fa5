"""The runner: batches, epochs, and a state that can be put away and taken up again."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from modularml.errors import ConfigError, ExecutionError
from modularml.runner.events import Callback, Event, Listeners

__all__ = ["Runner"]

BATCH, FINISHED = Event.BATCH.value, Event.FINISHED.value
KEYS = ("batches", "max_epoch", "n_iters", "running", "epoch", "batch")


class Runner(Listeners):
    """Go through batches for some epochs and tell callbacks of it.

    Attributes
    ----------
    state : dict
        What callbacks are called with, and may change:

        - ``batches``, iterable that makes up an epoch
        - ``max_epoch``, int
        - ``n_iters``, int, batches so far in all epochs
        - ``running``, bool; set it to False to stop
        - ``epoch``, int, 1-based
        - ``batch``, the current one

        Keys with a leading underscore say where in the run it is, so that a copy of the state
        (a pickle, say), taken at any time, can be resumed in another process.

    Notes
    -----
    A run that is stopped emits `Event.FINISHED`. An epoch that is broken off has no
    `Event.EPOCH_FINISHED`; it comes when the epoch is resumed and ends.

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
        self._live: tuple[Iterator[Any], Any] | None = None  # of the epoch that is under way
        self._mark: tuple[int, int] = (0, 0)  # the epoch and number of batches it stands at

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
            What makes up an epoch.
        max_epoch : int
            At least 0.

        Raises
        ------
        ConfigError
            If an argument is not as described.
        """
        if not (hasattr(type(batches), "__iter__") or hasattr(type(batches), "__getitem__")):
            raise ConfigError(f"batches must be an iterable, got {batches!r:.200}")
        if not isinstance(max_epoch, int) or max_epoch < 0:
            raise ConfigError(f"max_epoch must be an int of at least 0, got {max_epoch!r}")
        self._live = None
        start = {"max_epoch": max_epoch, "n_iters": 0, "running": True, "epoch": 0, "batch": None}
        self._emit(Event.STARTED, batches=batches, _epoch_iters=None, **start)
        self._go_on()

    def resume(self, repeat_last_batch: bool = False) -> None:
        """Go on from the current state.

        Parameters
        ----------
        repeat_last_batch : bool
            Whether the last batch is processed again. Ignored if its epoch is finished.

        Raises
        ------
        ExecutionError
            If there is nothing to resume: the state is not one of a run.

        Notes
        -----
        - Where a callback raised, it is called again, and then those after it; at `Event.BATCH`
          the rest of the batch is passed over instead, unless `repeat_last_batch`.
        - In the process that was stopped the same iterator goes on. In another one ``batches`` is
          iterated over again and the batches seen in this epoch are skipped, unless it has a
          ``load_state_dict``: then it is taken to know its own place.
        """
        state = self.state
        missing = [key for key in KEYS if key not in state]
        if missing:
            raise ExecutionError(
                f"there is no run to resume, its state lacks {', '.join(missing)}; "
                "call run(batches) first, or set `state` to one that a run has left"
            )
        if repeat_last_batch and state.get("_epoch_iters"):
            state["running"] = state["_repeats"] = True
            self._emit(Event.BATCH)
        else:
            self._finish_event()
        self._go_on()

    def _go_on(self) -> None:
        state = self.state
        state["_repeats"] = False
        while state["running"] and self._has_epochs(state):
            if state.get("_epoch_iters") is None:
                self._emit(Event.EPOCH_STARTED, epoch=state["epoch"] + 1, _epoch_iters=0)
            if state["running"] and self._run_batches():
                self._live = None
                self._emit(Event.EPOCH_FINISHED, _epoch_iters=None)
        if state.get("_event") != FINISHED:
            self._emit(Event.FINISHED)
        state["running"] = False

    @staticmethod
    def _has_epochs(state: dict[str, Any]) -> bool:
        return state.get("_epoch_iters") is not None or state["epoch"] < state["max_epoch"]

    def _run_batches(self) -> bool:
        """Go through the batches of an epoch; tell whether they are used up."""
        state, plans, iterator = self.state, self._plans, self._iterator()
        state["_event"], state["_left"] = BATCH, 0
        try:
            for batch in iterator:
                state["batch"] = batch
                state["n_iters"] += 1
                state["_epoch_iters"] += 1
                self._call(plans[BATCH], False)
                if not state["running"]:
                    return False
        finally:
            self._mark = (state["epoch"], state["_epoch_iters"])
        return True

    def _emit(self, event: Event, **facts: Any) -> None:
        plan = self._plans[event.value]
        self.state.update(facts, _event=event.value, _left=len(plan))
        self._call(plan, event is not Event.BATCH)

    def _call(self, plan: Sequence[tuple[int, Callback]], retry: bool) -> None:
        """Call callbacks; with `retry`, one that raises will be the first that `resume` calls."""
        state = self.state
        for left, callback in plan:
            state["_left"] = left  # before the call, so that a copy made in it goes on after it
            try:
                callback(state)
            except BaseException:
                state["_left"] = left + 1 if retry else 0
                raise

    def _finish_event(self) -> None:
        """Call the callbacks that were not reached; a run that has ended runs again."""
        state = self.state
        left, event = state.get("_left", 0), state.get("_event")
        if left and event is not None:
            self._call(self._plans[event][-left:], event != BATCH)
        elif event in (None, FINISHED):
            state["running"] = True

    def _iterator(self) -> Iterator[Any]:
        """Return the batches of this epoch that are still to come."""
        state = self.state
        batches, done = state["batches"], state["_epoch_iters"]
        if done and self._live is not None and self._mark == (state["epoch"], done):
            iterator, source = self._live
            if source is batches and not _is_closed(iterator):
                return iterator
        iterator = iter(batches)
        if done and not hasattr(batches, "load_state_dict"):
            next(islice(iterator, done - 1, done), None)
        self._live = (iterator, batches)
        return iterator


def _is_closed(iterator: Any) -> bool:
    """Tell whether a generator has ended, as one does in which something was raised."""
    return (
        inspect.isgenerator(iterator) and inspect.getgeneratorstate(iterator) == inspect.GEN_CLOSED
    )
