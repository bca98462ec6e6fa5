"""What flows through a stream, and how to take hold of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from modularml.errors import DataError, UnknownNameError

__all__ = ["Event", "Events", "NotAnEventError", "Stage", "Supply", "as_float", "number"]


class Event(dict[str, Any]):
    """What an epoch leaves behind: a dict whose usual keys editors know the types of.

    ======================  ======================================================
    ``step``                int, the epoch, 1-based unless offset
    ``epoch``               int, the epoch of a phase, 0-based
    ``train_loss``          float, the mean over the samples of the epoch
    ``val_loss``            float, where a stage has added it
    ``model``               what is being trained; no copy, so it goes on changing
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
    """Something in a stream is no dict."""

    def __init__(self, came: object) -> None:
        super().__init__(f"an event must be a dict with str keys, got {came!r:.200}")


class Supply:
    """The events a stage draws from: closed when the stage is done, fails or is closed itself.

    Parameters
    ----------
    events : iterable of dict
    """

    __slots__ = ("_iterator",)

    def __init__(self, events: Events) -> None:
        self._iterator = iter(events)

    def __enter__(self) -> Iterator[dict[str, Any]]:
        return self._iterator

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


def number(event: dict[str, Any], key: str) -> float:
    """Return a value of an event as a number.

    Raises
    ------
    UnknownNameError
        If the event has no such key; it is a `KeyError`.
    NotAnEventError
        If the event is no dict.
    TypeError, ValueError
        If ``float`` does not take the value.
    """
    if not isinstance(event, Mapping):
        raise NotAnEventError(event)
    if key not in event:
        raise UnknownNameError("event key", key, event)
    return as_float(event[key])


def as_float(value: Any) -> float:
    """Return ``float(value)``; a tensor is taken off its graph first."""
    detach = getattr(value, "detach", None)
    return float(value if detach is None else detach())
