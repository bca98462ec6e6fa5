"""Events, and iteration over streams of events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from modularml.errors import DataError, UnknownNameError

__all__ = ["Event", "Events", "NotAnEventError", "Stage", "number", "source"]


class Event(dict[str, Any]):
    """The result of an epoch: a dict with typed common keys.

    ======================  ======================================================
    ``step``                int, the epoch, 1-based unless offset
    ``epoch``               int, the epoch of a phase, 0-based
    ``train_loss``          float, the mean over the samples of the epoch
    ``val_loss``            float, if a stage added it
    ``model``               the model in training; no copy, so it changes
    ======================  ======================================================

    Examples
    --------
    >>> event = Event(step=1, train_loss=0.5)
    >>> event, event["step"]
    ({'step': 1, 'train_loss': 0.5}, 1)
    """

    if TYPE_CHECKING:

        @overload
        def __getitem__(self, key: Literal["step", "epoch"], /) -> int: ...
        @overload
        def __getitem__(self, key: Literal["train_loss", "val_loss"], /) -> float: ...
        @overload
        def __getitem__(self, key: str, /) -> Any: ...
        def __getitem__(self, key: str, /) -> Any: ...


Events: TypeAlias = Iterable[dict[str, Any]]
Stage: TypeAlias = Callable[[Events], Iterator[dict[str, Any]]]


class NotAnEventError(DataError, TypeError):
    """An element of a stream is not a dict."""

    def __init__(self, came: object) -> None:
        super().__init__(f"an event must be a dict with str keys, got {came!r:.200}")


@contextmanager
def source(events: Events) -> Iterator[Iterator[dict[str, Any]]]:
    """Iterate over events, and close their iterator at the end, on failure or when closed."""
    iterator = iter(events)
    try:
        yield iterator
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def number(event: dict[str, Any], key: str) -> float:
    """Return a value of an event as a number.

    Raises
    ------
    UnknownNameError
        If the event has no such key; also a `KeyError`.
    NotAnEventError
        If the event is not a dict.
    TypeError, ValueError
        If ``float`` does not accept the value.
    """
    if not isinstance(event, Mapping):
        raise NotAnEventError(event)
    if key not in event:
        raise UnknownNameError("event key", key, event)
    value = event[key]
    detach = getattr(value, "detach", None)  # for tensors
    return float(value if detach is None else detach())
