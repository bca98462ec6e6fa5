"""Stages that follow a metric: smoothing it, and stopping when it gets no better."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Literal, overload

from modularml.loop.patience import Patience
from modularml.streams.averages import ExponentialMean, decay_of
from modularml.streams.events import Events, Stage, Supply, number

__all__ = ["early_stop", "ema"]


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
        What is smoothed. Each event must have it, as something that ``float`` takes.
    decay : float, optional
        Weight of the past, at least 0 and less than 1.
    half_life : float, optional
        Events after which half is forgotten: ``decay = 0.5 ** (1 / half_life)``. Exactly one of
        the two must be given.
    out_key : str, optional
        Where the average goes, ``{key}_ema`` by default; what is there is overwritten.
    bias_correction : bool
        Whether to divide by ``1 - decay**t``.

    Raises
    ------
    ConfigError
        If not exactly one of `decay` and `half_life` is given, or it is out of range.
    KeyError, TypeError, ValueError
        In passing: if an event lacks `key`, or ``float`` does not take its value.

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
    weight = decay_of(decay, half_life)
    return functools.partial(_smoothed, key, out_key or f"{key}_ema", weight, bias_correction)


def _smoothed(
    key: str, out_key: str, decay: float, bias_correction: bool, events: Events
) -> Iterator[dict[str, Any]]:
    mean = ExponentialMean(decay, bias_correction)
    with Supply(events) as source:
        for event in source:
            yield event | {out_key: mean.update(number(event, key))}


def _stopping(
    key: str,
    patience: int,
    *,
    mode: Literal["min", "max"] = "min",
    min_delta: float = 0.0,
) -> Stage:
    Patience(mode, patience, min_delta)  # complains now, not at the first event
    return functools.partial(_until_spent, key, (mode, patience, min_delta))


def _until_spent(
    key: str, rule: tuple[Literal["min", "max"], int, float], events: Events
) -> Iterator[dict[str, Any]]:
    watch = Patience(*rule)
    with Supply(events) as source:
        for place, event in enumerate(source):
            watch.update(number(event, key), place)
            yield event
            if watch.is_spent:
                return


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
@functools.wraps(_stopping, assigned=())  # so that `inspect.signature` shows the stage's own
def early_stop(*args: Any, **kwargs: Any) -> Any:
    """Yield events until a metric has not improved for some of them.

    Parameters
    ----------
    key : str
        Event key of the metric, something that ``float`` takes.
    patience : int
        Events in a row without improvement after which the stream ends; the last of them is still
        passed on. At least 0, which is taken as 1.
    mode : {'min', 'max'}
        Which values are better.
    min_delta : float
        A value must be better than the best by more than this; at least 0. NaN never is better.

    Returns
    -------
    stage, or iterator of dict
        A stage for `pipe`. With a stream as first argument, before the others: its events.

    Raises
    ------
    ConfigError
        If an argument is not as described.
    KeyError, TypeError, ValueError
        In passing: if an event lacks `key`, or ``float`` does not take its value.

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
