"""The moments of a run, and who listens to them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar, overload

from modularml.errors import ConfigError, UnknownNameError

__all__ = ["Callback", "Event", "EventError", "Listeners", "State", "look_up"]

State: TypeAlias = dict[str, Any]
Callback: TypeAlias = Callable[[State], Any]
C = TypeVar("C", bound=Callback)


class Event(enum.Enum):
    """A moment of a run.

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
    """At the end of every epoch; an epoch that is broken off has no end."""
    FINISHED = "finished"
    """Once, at the end of a run, also of one that was stopped."""


class EventError(ConfigError, TypeError):
    """Something is no `Event`, or no callback for one."""


class Listeners:
    """Callbacks by event, and the order in which they are called."""

    def __init__(self) -> None:
        self._ranked: dict[str, list[tuple[int, Callback]]] = {e.value: [] for e in Event}
        self._plans: dict[str, list[tuple[int, Callback]]] = {e.value: [] for e in Event}
        """Callbacks by value of their event, in order, each with how many come after it."""

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
        """Add callbacks that listen to an event.

        Parameters
        ----------
        event : Event
        callbacks : callable or iterable of callable, optional
            Each is called with the state of the run; what it returns is ignored.
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
            If `event` is no `Event`, or a callback is not callable. None is added then.

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
        self._add(event.value, list(callbacks) if several else [callbacks], rank)  # type: ignore[arg-type]
        return None

    def _add(self, event: str, callbacks: list[Any], rank: int) -> None:
        for callback in callbacks:
            if not callable(callback):
                raise EventError(f"a callback must be callable, got {callback!r:.200}")
        ranked = self._ranked[event]
        ranked.extend((rank, callback) for callback in callbacks)
        ranked.sort(key=lambda entry: entry[0])
        last = len(ranked) - 1
        self._plans[event] = [(last - i, callback) for i, (_, callback) in enumerate(ranked)]


def look_up(state: State, key: str) -> Any:
    """Return an entry of a state.

    Raises
    ------
    UnknownNameError
        If it has none of that name; it is a `KeyError`.
    """
    if key not in state:
        raise UnknownNameError("state key", key, map(str, state))
    return state[key]
