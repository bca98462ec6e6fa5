"""A loader as one endless iterator that moves forward only."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from modularml.errors import ConfigError, DataError

__all__ = ["Source"]

_END = object()


class Source:
    """Go through a loader again and again.

    Parameters
    ----------
    loader : iterable
        A ``DataLoader``, a list, a generator: anything that can be iterated over.

    Attributes
    ----------
    is_dry : bool
        Whether the loader is an iterator, and has no more.

    Raises
    ------
    ConfigError
        If `loader` is empty, or no iterable.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        if not (hasattr(type(loader), "__iter__") or hasattr(type(loader), "__getitem__")):
            raise ConfigError(f"loader must be an iterable of batches, got {loader!r}")
        self.loader: Any = loader
        if self.length() == 0:
            raise ConfigError("loader must not be empty, got one of length 0")
        self.is_dry = False
        self._iterator: Iterator[Any] | None = None

    def length(self) -> int | None:
        """Return the length of the loader; None where it has none or does not know it."""
        try:
            return len(self.loader)
        except TypeError:
            return None

    def rewind(self) -> None:
        """Start the loader from its beginning; one that is an iterator goes on."""
        self._iterator = iter(self.loader)

    def take(self) -> Any:
        """Return the next item, the first one again after the last.

        Raises
        ------
        StopIteration
            If the loader is an iterator and has no more.
        DataError
            If the loader gives nothing at all.
        """
        if self._iterator is None:
            self._iterator = iter(self.loader)
        item = next(self._iterator, _END)
        return item if item is not _END else self._first()

    def _first(self) -> Any:
        self._iterator = iter(self.loader)
        item = next(self._iterator, _END)
        if item is not _END:
            return item
        if self._iterator is not self.loader:
            raise DataError("loader gives no batches; give one that has at least one")
        self.is_dry = True
        raise StopIteration

    @property
    def keeps_state(self) -> bool:
        """Whether the loader has a state that can be saved and put back."""
        return hasattr(self.loader, "state_dict") and hasattr(self.loader, "load_state_dict")

    def state(self) -> Any:
        """Return a copy of the loader's state."""
        return copy.deepcopy(self.loader.state_dict())

    def set_state(self, state: Any) -> None:
        """Put the loader back to a state.

        Raises
        ------
        ConfigError
            If the loader keeps none.
        """
        if not self.keeps_state:
            raise ConfigError(
                "state_dict has the state of a loader, but this loader has no load_state_dict; "
                "set the right one with set_loader first, or leave out 'loader' and 'position'"
            )
        self.loader.load_state_dict(copy.deepcopy(state))
        self._iterator, self.is_dry = None, False
