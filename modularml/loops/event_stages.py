"""Stages: lazy transformations of iterators of events, and early stopping by patience."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Literal, overload

from modularml._arguments import Checked, at_least
from modularml.errors import ConfigError
from modularml.loops.checks import check_callable, check_int
from modularml.loops.events import Event, Events, NotAnEventError, Stage, number, source


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
        `stream` is not read before the first event is requested. Closing the iterator closes
        `stream`.

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
        Called with each event. The returned mapping is merged into a copy of the event, with
        precedence; None leaves the event unchanged.

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

    def augmented(events: Events) -> Iterator[dict[str, Any]]:
        with source(events) as upstream:
            for event in upstream:
                extra = fn(event)  # type: ignore[arg-type]
                try:
                    merged = event if extra is None else {**event, **extra}
                except TypeError:
                    if not isinstance(event, Mapping):
                        raise NotAnEventError(event) from None
                    message = f"fn must return a dict or None, got {extra!r:.200}"
                    raise ConfigError(message) from None
                yield merged

    return augmented


def tap(fn: Callable[[Event], Any], *, every: int = 1, start: int = 1) -> Stage:
    """Create a stage that calls a function with events and passes them on unchanged.

    Parameters
    ----------
    fn : callable
        Called with selected events, before they are passed on.
    every : int
        Call `fn` at every n-th event, from `start` on; at least 1.
    start : int
        The first event that `fn` is called with, 1-based.

    Raises
    ------
    ConfigError
        If an argument is not valid.

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

    def tapped(events: Events) -> Iterator[dict[str, Any]]:
        wait = start
        with source(events) as upstream:
            for event in upstream:
                wait -= 1
                if not wait:
                    fn(event)  # type: ignore[arg-type]
                    wait = every
                yield event

    return tapped


def tick(fn: Callable[[], Any]) -> Stage:
    """Create a stage that calls a function without arguments at each event.

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
    """Create a stage that ends after the first events, without requesting more.

    Parameters
    ----------
    n : int
        Number of events, at least 0.

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

    def taken(events: Events) -> Iterator[dict[str, Any]]:
        with source(events) as upstream:
            yield from islice(upstream, n)

    return taken


def ema(
    key: str,
    *,
    decay: float | None = None,
    half_life: float | None = None,
    out_key: str | None = None,
    bias_correction: bool = True,
) -> Stage:
    """Create a stage that adds an exponential moving average of a key.

    Parameters
    ----------
    key : str
        Key to smooth. Each event must have it, with a value that ``float`` accepts.
    decay : float, optional
        Weight of the past, at least 0 and less than 1.
    half_life : float, optional
        Events after which a weight is halved: ``decay = 0.5 ** (1 / half_life)``. Exactly one of
        the two must be given.
    out_key : str, optional
        Key of the average, ``{key}_ema`` by default; an existing value is overwritten.
    bias_correction : bool
        Whether to divide by ``1 - decay**t``, which removes the pull towards the zero start
        (Kingma & Ba 2015, *Adam*, section 3, arXiv:1412.6980).

    Raises
    ------
    ConfigError
        If not exactly one of `decay` and `half_life` is given, or it is out of range.
    KeyError, TypeError, ValueError
        While iterating: if an event lacks `key`, or ``float`` does not accept its value.

    Notes
    -----
    ``m = decay * m + (1 - decay) * x``, with ``m = 0`` before the first event. Events are copied,
    not changed.

    Examples
    --------
    >>> from modularml.streams import pipe
    >>> events = [
    ...     {"step": 1, "loss": 10.0},
    ...     {"step": 2, "loss": 20.0},
    ...     {"step": 3, "loss": 30.0},
    ... ]
    >>> smoothed = list(pipe(events, ema("loss", decay=0.5)))
    >>> [(event["step"], round(event["loss_ema"], 4)) for event in smoothed]
    [(1, 10.0), (2, 16.6667), (3, 24.2857)]
    """
    if (decay is None) == (half_life is None):
        raise ConfigError(
            f"pass exactly one of decay and half_life, got {decay!r} and {half_life!r}"
        )
    if decay is not None and not 0 <= decay < 1:
        raise ConfigError(f"decay must be at least 0 and less than 1, got {decay!r}")
    if half_life is not None and not 0 < half_life < math.inf:
        raise ConfigError(f"half_life must be positive (in events), got {half_life!r}")
    past = float(0.5 ** (1.0 / half_life) if half_life is not None else decay)  # type: ignore[arg-type]
    name = out_key or f"{key}_ema"

    def smoothed(events: Events) -> Iterator[dict[str, Any]]:
        mean, unseen = 0.0, 1.0
        with source(events) as upstream:
            for event in upstream:
                mean = past * mean + (1 - past) * number(event, key)
                unseen *= past
                yield event | {name: mean / (1 - unseen) if bias_correction else mean}

    return smoothed


def _stopping(
    key: str,
    patience: int,
    *,
    mode: Literal["min", "max"] = "min",
    min_delta: float = 0.0,
) -> Stage:
    Patience(mode, patience, min_delta)  # raises now, not at the first event

    def until_spent(events: Events) -> Iterator[dict[str, Any]]:
        watch = Patience(mode, patience, min_delta)
        with source(events) as upstream:
            for place, event in enumerate(upstream):
                watch.update(number(event, key), place)
                yield event
                if watch.is_spent:
                    return

    return until_spent


@overload
def early_stop(
    key: str, patience: int, *, mode: Literal["min", "max"] = "min", min_delta: float = 0.0
) -> Stage: ...
@overload
def early_stop(
    events: Events,
    /,
    key: str,
    patience: int,
    *,
    mode: Literal["min", "max"] = "min",
    min_delta: float = 0.0,
) -> Iterator[dict[str, Any]]: ...
@functools.wraps(_stopping, assigned=())  # so that `inspect.signature` shows that of the stage
def early_stop(*args: Any, **kwargs: Any) -> Any:
    """Yield events until a metric stops improving.

    Parameters
    ----------
    key : str
        Event key of the metric, with a value that ``float`` accepts.
    patience : int
        Consecutive events without improvement after which the stream ends; the last of them is
        still passed on. At least 0, which means 1.
    mode : {'min', 'max'}
        Which values are better.
    min_delta : float
        A value must be better than the best by more than this; at least 0. NaN is never better.

    Returns
    -------
    stage, or iterator of dict
        A stage for `pipe`; with a stream as first argument, an iterator of its events.

    Raises
    ------
    ConfigError
        If an argument is not valid.
    KeyError, TypeError, ValueError
        While iterating: if an event lacks `key`, or ``float`` does not accept its value.

    Examples
    --------
    >>> from modularml.streams import pipe
    >>> events = [{"val_loss": loss} for loss in (3.0, 2.0, 2.5, 2.0, 1.0)]
    >>> collected = list(pipe(events, early_stop("val_loss", patience=2)))
    >>> [event["val_loss"] for event in collected]
    [3.0, 2.0, 2.5, 2.0]

    >>> for event in early_stop(events, key="val_loss", patience=1):
    ...     print(event)
    {'val_loss': 3.0}
    {'val_loss': 2.0}
    {'val_loss': 2.5}
    """
    if args and not isinstance(args[0], str):
        return _stopping(*args[1:], **kwargs)(args[0])
    return _stopping(*args, **kwargs)


class Patience(Checked):
    """Count the epochs since a value last improved.

    Parameters
    ----------
    mode : {'min', 'max'}
        Which values are better.
    patience : int
        Consecutive epochs without improvement after which to stop; 0 means 1.
    min_delta : float
        A value must be better than the best by more than this; at least 0.

    Attributes
    ----------
    best : float or None
        The best value so far.
    best_epoch : int or None
        Epoch of the best value.
    waited : int
        Epochs since the best value.

    Raises
    ------
    ConfigError
        If an argument is not valid.

    Examples
    --------
    >>> watch = Patience("min", patience=2)
    >>> [watch.update(value, epoch) for epoch, value in enumerate([3.0, 2.0, 2.0, 2.5])]
    [True, True, False, False]
    >>> watch.is_spent, watch.best, watch.best_epoch
    (True, 2.0, 1)
    """

    def __init__(self, mode: Literal["min", "max"], patience: int, min_delta: float = 0.0) -> None:
        at_least(0, patience=patience, min_delta=min_delta)
        self.mode, self.patience, self.min_delta = mode, patience, min_delta
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.waited = 0

    def update(self, value: float, epoch: int) -> bool:
        """Record a value and return whether it is the best so far; NaN never is."""
        best = value if self.best is None else self.best
        gain = best - value if self.mode == "min" else value - best
        if not math.isnan(value) and (self.best is None or gain > self.min_delta):
            self.best, self.best_epoch, self.waited = value, epoch, 0
            return True
        self.waited += 1
        return False

    @property
    def is_spent(self) -> bool:
        """Whether the patience is used up."""
        return self.waited >= max(1, self.patience)
