"""The position of a `Stream`, and the cyclic iteration over its loader."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modularml.errors import ConfigError, DataError

__all__ = ["LoaderCycle", "Position"]


@dataclass(slots=True)
class Position:
    """The position in a loop.

    Attributes
    ----------
    epoch : int
        1-based; 0 before the first.
    iteration : int
        Items so far, in all epochs.
    began : int or None
        Value of `iteration` at which the current epoch began; None between epochs.
    is_loaded : bool
        Whether that epoch was loaded from a state and not resumed yet.
    """

    epoch: int = 0
    iteration: int = 0
    began: int | None = None
    is_loaded: bool = False

    def next_epoch(self) -> None:
        """Count an epoch."""
        self.epoch += 1
        self.began, self.is_loaded = None, False

    def take_loaded_start(self) -> int | None:
        """Return, once, where the epoch of a loaded state began; else None."""
        began = self.began if self.is_loaded else None
        self.began, self.is_loaded = None, False
        return began

    def end(self, max_epoch: float, size: float, began: int | None) -> float:
        """Return the iteration at which a loop over epochs of one size will end."""
        left = 0.0 if began is None else self.left(size, began)
        more = max_epoch - self.epoch
        return self.iteration + left + (more * size if more > 0 else 0.0)

    def left(self, size: float, began: int) -> float:
        """Return the number of items left in an epoch."""
        return max(0.0, size - (self.iteration - began))

    def to_dict(self) -> dict[str, int]:
        """Return the position as a state; without ``position`` between epochs."""
        state = {"epoch": self.epoch, "iteration": self.iteration}
        return state if self.began is None else {**state, "position": self.iteration - self.began}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Position:
        """Build a position from a state.

        Raises
        ------
        ConfigError
            If the state is not valid.
        """
        if not isinstance(state, Mapping) or not {"epoch", "iteration"} <= state.keys():
            raise ConfigError(f"state_dict must have 'epoch' and 'iteration', got {state!r:.200}")
        for name in ("epoch", "iteration", "position"):
            if name in state and (not isinstance(state[name], int) or state[name] < 0):
                raise ConfigError(
                    f"state_dict[{name!r}] must be an int of at least 0, got {state[name]!r}"
                )
        if "position" not in state:
            return cls(state["epoch"], state["iteration"])
        began = state["iteration"] - state["position"]
        return cls(state["epoch"], state["iteration"], began, is_loaded=True)


_END = object()


class LoaderCycle:
    """Iterate over a loader repeatedly.

    Parameters
    ----------
    loader : iterable
        A ``DataLoader``, a list, a generator: any iterable.

    Attributes
    ----------
    is_exhausted : bool
        Whether the loader is an iterator without further items.

    Raises
    ------
    ConfigError
        If `loader` is empty, or not iterable.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        if not (hasattr(type(loader), "__iter__") or hasattr(type(loader), "__getitem__")):
            raise ConfigError(f"loader must be an iterable of batches, got {loader!r}")
        self.loader: Any = loader
        if self.length() == 0:
            raise ConfigError("loader must not be empty, got one of length 0")
        self.is_exhausted = False
        self._iterator: Iterator[Any] | None = None

    def length(self) -> int | None:
        """Return the length of the loader; None if unknown."""
        try:
            return len(self.loader)
        except TypeError:
            return None

    def rewind(self) -> None:
        """Restart the loader; an iterator continues."""
        self._iterator = iter(self.loader)

    def next_item(self) -> Any:
        """Return the next item, cyclically.

        Raises
        ------
        StopIteration
            If the loader is an iterator without further items.
        DataError
            If the loader is empty.
        """
        if self._iterator is None:
            self._iterator = iter(self.loader)
        item = next(self._iterator, _END)
        if item is not _END:
            return item
        self._iterator = iter(self.loader)
        item = next(self._iterator, _END)
        if item is not _END:
            return item
        if self._iterator is not self.loader:
            raise DataError("loader has no batches; pass one with at least one batch")
        self.is_exhausted = True
        raise StopIteration

    @property
    def has_state(self) -> bool:
        """Whether the loader has a state that can be saved and restored."""
        return hasattr(self.loader, "state_dict") and hasattr(self.loader, "load_state_dict")

    def state(self) -> Any:
        """Return a copy of the loader's state."""
        return copy.deepcopy(self.loader.state_dict())

    def set_state(self, state: Any) -> None:
        """Restore the state of the loader.

        Raises
        ------
        ConfigError
            If the loader has no state.
        """
        if not self.has_state:
            raise ConfigError(
                "state_dict has the state of a loader, but this loader has no load_state_dict; "
                "set the matching loader with set_loader first, or omit 'loader' and 'position'"
            )
        self.loader.load_state_dict(copy.deepcopy(state))
        self._iterator, self.is_exhausted = None, False
