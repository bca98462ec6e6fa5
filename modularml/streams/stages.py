"""Stages: from an iterator of events to another one, lazily and in order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from modularml.errors import ConfigError
from modularml.streams.checks import check_callable, check_int
from modularml.streams.events import Event, Events, NotAnEventError, Stage, Supply

__all__ = ["augment", "pipe", "take", "tap", "tick"]


def pipe(stream: Events, *stages: Stage) -> Iterator[dict[str, Any]]:
    """Compose stages from left to right.

    Parameters
    ----------
    stream : iterable of dict
    *stages : callable
        Each takes an iterator of events and returns one.

    Returns
    -------
    iterator of dict
        Nothing is drawn from `stream` before somebody asks. Closing it closes `stream`.

    Raises
    ------
    ConfigError
        If a stage is not callable.

    Examples
    --------
    >>> events = [{"x": 1}, {"x": 2}]
    >>> add_one = augment(lambda event: {"x": event["x"] + 1})
    >>> add_double = augment(lambda event: {"double": 2 * event["x"]})
    >>> list(pipe(events, add_one, add_double))
    [{'x': 2, 'double': 4}, {'x': 3, 'double': 6}]

    >>> from modularml.streams import ema
    >>> stream = pipe(
    ...     [{"loss": 3.0}, {"loss": 2.0}, {"loss": 1.0}],
    ...     ema("loss", decay=0.5, bias_correction=False),
    ...     take(2),
    ... )
    >>> list(stream)
    [{'loss': 3.0, 'loss_ema': 1.5}, {'loss': 2.0, 'loss_ema': 1.75}]
    """
    for place, stage in enumerate(stages, 1):
        check_callable(f"stage {place} of pipe", stage)
    return functools.reduce(lambda events, stage: stage(events), stages, iter(stream))


def augment(fn: Callable[[Event], Mapping[str, Any] | None]) -> Stage:
    """Create a stage that merges extra keys into each event.

    Parameters
    ----------
    fn : callable
        Called with each event. The mapping it returns is merged into a copy of the event, so that
        its keys win; None leaves the event as it is.

    Examples
    --------
    >>> add_error = augment(
    ...     lambda event: {"error": event["pred"] - event["target"]} if "pred" in event else None
    ... )
    >>> events = [{"pred": 3.0, "target": 2.5}, {"target": 1.0}]
    >>> list(add_error(events))
    [{'pred': 3.0, 'target': 2.5, 'error': 0.5}, {'target': 1.0}]
    """
    check_callable("fn", fn)
    return functools.partial(_augmented, fn)


def _augmented(fn: Any, events: Events) -> Iterator[dict[str, Any]]:
    with Supply(events) as source:
        for event in source:
            extra = fn(event)
            yield event if extra is None else _merged(event, extra)


def _merged(event: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {**event, **extra}
    except TypeError:
        if not isinstance(event, Mapping):
            raise NotAnEventError(event) from None
        raise ConfigError(f"fn must return a dict or None, got {extra!r:.200}") from None


def tap(fn: Callable[[Event], Any], *, every: int = 1, start: int = 1) -> Stage:
    """Create a stage that looks at events and passes them on unchanged.

    Parameters
    ----------
    fn : callable
        Called with selected events, before they are passed on.
    every : int
        Call `fn` at each so-manieth event, from `start` on; at least 1.
    start : int
        The first event that `fn` is called with, 1-based.

    Raises
    ------
    ConfigError
        If an argument is not as described.

    Examples
    --------
    >>> seen = []
    >>> list(pipe([{"x": n} for n in range(1, 8)], tap(seen.append, every=3, start=2), take(7)))[0]
    {'x': 1}
    >>> seen
    [{'x': 2}, {'x': 5}]
    """
    check_callable("fn", fn)
    check_int("every", every, 1)
    check_int("start", start, 1)
    return functools.partial(_tapped, fn, every, start)


def _tapped(fn: Any, every: int, start: int, events: Events) -> Iterator[dict[str, Any]]:
    wait = start
    with Supply(events) as source:
        for event in source:
            wait -= 1
            if not wait:
                fn(event)
                wait = every
            yield event


def tick(fn: Callable[[], Any]) -> Stage:
    """Create a stage that calls a function at each event, without it.

    Examples
    --------
    >>> list(pipe([{"x": 1}, {"x": 2}], tick(lambda: print("tick"))))
    tick
    tick
    [{'x': 1}, {'x': 2}]
    """
    check_callable("fn", fn)
    return tap(lambda event: fn())


def take(n: int) -> Stage:
    """Create a stage that ends after the first events; no further one is asked for.

    Parameters
    ----------
    n : int
        How many, at least 0.

    Raises
    ------
    ConfigError
        If `n` is negative.

    Examples
    --------
    >>> events = [{"x": 1}, {"x": 2}, {"x": 3}]
    >>> list(take(2)(events)), list(pipe(events, take(1)))
    ([{'x': 1}, {'x': 2}], [{'x': 1}])
    """
    check_int("n", n, 0)
    return functools.partial(_taken, n)


def _taken(n: int, events: Events) -> Iterator[dict[str, Any]]:
    with Supply(events) as source:
        yield from islice(source, n)
