"""Position and early stopping for loops that you write yourself."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any

from modularml.errors import ConfigError, DataError
from modularml.loops.checks import check_int, length_of
from modularml.loops.event_stages import Patience
from modularml.progress import NO_BAR, bar

__all__ = ["Patience", "Stream"]

_END = object()


class Stream:
    """Wrap a loader with a position, so that a loop can be interrupted and resumed.

    A stream is an endless, forward-only iterator::

        while True:
            for item in loader:
                ...

    An epoch is a number of its items, independent of the length of the loader.

    Parameters
    ----------
    loader : iterable
        A ``DataLoader``, a list, a generator: any iterable. One that has
        ``state_dict`` and ``load_state_dict`` is saved and resumed with the stream.

    Raises
    ------
    ConfigError
        If `loader` is empty, or not iterable.

    Examples
    --------
    >>> stream = Stream(["a", "b", "c"])
    >>> for epoch in stream.epochs(2, show_progress=False):
    ...     for batch in epoch:
    ...         print(stream.epoch, stream.iteration, batch)
    1 1 a
    1 2 b
    1 3 c
    2 4 a
    2 5 b
    2 6 c

    The same with more control:

    >>> stream = Stream(["a", "b", "c"])
    >>> while stream.epoch < 2:
    ...     stream.increment_epoch()
    ...     for batch in stream.data():
    ...         pass
    >>> stream.state_dict()
    {'epoch': 2, 'iteration': 6}
    """

    _loader: Any
    _iterator: Iterator[Any] | None

    def __init__(self, loader: Iterable[Any]) -> None:
        self.set_loader(loader)
        self._epoch = self._iteration = 0
        self._began: int | None = None  # the iteration at which the current epoch began
        self._is_loaded = False  # whether that epoch is of a state, and was not resumed yet
        self._bar = NO_BAR

    @property
    def epoch(self) -> int:
        """Current epoch, 1-based; 0 before the first."""
        return self._epoch

    @property
    def iteration(self) -> int:
        """Items so far, in all epochs."""
        return self._iteration

    @property
    def loader(self) -> Iterable[Any]:
        """The wrapped loader; `set_loader` changes it."""
        loader: Iterable[Any] = self._loader
        return loader

    def epochs(
        self, max_epoch: float, epoch_size: float | None = None, *, show_progress: bool = True
    ) -> Iterator[Iterator[Any]]:
        """Iterate over epochs, with one progress bar over the whole loop.

        ::

            while stream.epoch < max_epoch:
                stream.increment_epoch()
                yield stream.data(epoch_size)

        Parameters
        ----------
        max_epoch : int or inf
            The loop runs while ``stream.epoch < max_epoch``.
        epoch_size : int or inf, optional
            Items per epoch, at least 1; by default the length of the loader.
        show_progress : bool
            Whether the bar is drawn.

        Yields
        ------
        iterator
            Over the items of one epoch. After `load_state_dict` the first one is the rest of the
            epoch in which the state was saved, if the state has its position.

        Raises
        ------
        ConfigError
            If an argument is not valid, or `epoch_size` is needed and missing.

        Notes
        -----
        The loop also ends after an epoch in which a loader that is an iterator was exhausted.

        Examples
        --------
        >>> stream = Stream(range(3))
        >>> [list(epoch) for epoch in stream.epochs(3, 2, show_progress=False)]
        [[0, 1], [2, 0], [1, 2]]
        """
        check_int("max_epoch", max_epoch, 0, or_inf=True)
        self._size("epoch_size", epoch_size, least=1)
        return self._run(max_epoch, epoch_size, show_progress)

    def data(self, n_items: float | None = None) -> Iterator[Any]:
        """Iterate over the next items from the current position.

        Parameters
        ----------
        n_items : int or inf, optional
            How many; by default the length of the loader.

        Raises
        ------
        ConfigError
            If `n_items` is negative, or needed and missing.

        Notes
        -----
        It ends early if the loader is an iterator that is exhausted.

        Examples
        --------
        >>> stream = Stream(range(5))
        >>> list(stream.data()), list(stream.data(3)), list(stream.data(3)), list(stream.data(1))
        ([0, 1, 2, 3, 4], [0, 1, 2], [3, 4, 0], [1])
        """
        return self._items(self._size("n_items", n_items))

    def next(self) -> Any:
        """Return the next item and count it.

        Raises
        ------
        StopIteration
            If the loader is an iterator without further items.
        DataError
            If the loader is empty.

        Examples
        --------
        >>> stream = Stream(range(3))
        >>> [stream.next() for _ in range(5)], stream.iteration
        ([0, 1, 2, 0, 1], 5)
        """
        if self._iterator is None:
            self._iterator = iter(self._loader)
        item = next(self._iterator, _END)
        if item is _END:
            self._iterator = iter(self._loader)
            item = next(self._iterator, _END)
        if item is _END:
            if self._iterator is not self._loader:
                raise DataError("loader has no batches; pass one with at least one batch")
            self._is_exhausted = True
            raise StopIteration
        self._iteration += 1
        self._bar.update()
        return item

    def increment_epoch(self) -> None:
        """Begin the next epoch."""
        self._epoch += 1
        self._began, self._is_loaded = None, False

    def reload_iterator(self) -> None:
        """Restart the loader; a loader that is an iterator continues.

        Examples
        --------
        >>> stream = Stream(range(5))
        >>> stream.next(), stream.next()
        (0, 1)
        >>> stream.reload_iterator()
        >>> stream.next()
        0
        """
        self._iterator = iter(self._loader)

    def set_loader(self, loader: Iterable[Any]) -> None:
        """Take the next items from another loader; the current epoch keeps its size.

        Raises
        ------
        ConfigError
            If `loader` is empty, or not iterable. The stream keeps the old one.

        Examples
        --------
        >>> from itertools import repeat
        >>> stream = Stream(repeat(0))
        >>> for x in stream.data(5):
        ...     print(stream.iteration, x)
        ...     if stream.iteration == 2:
        ...         stream.set_loader(repeat(1))
        1 0
        2 0
        3 1
        4 1
        5 1
        """
        if not (hasattr(type(loader), "__iter__") or hasattr(type(loader), "__getitem__")):
            raise ConfigError(f"loader must be an iterable of batches, got {loader!r}")
        if length_of(loader) == 0:
            raise ConfigError("loader must not be empty, got one of length 0")
        self._loader, self._iterator = loader, None
        self._is_exhausted = False  # whether the loader is an iterator without further items

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the stream, to be saved.

        Returns
        -------
        dict
            ``epoch`` and ``iteration``. If the loader has a ``state_dict``, also ``loader``, a copy
            of it, and within an epoch of `epochs` ``position``, the number of its items so far. An
            epoch lasts until its iterator is exhausted, or the next one begins.

        Examples
        --------
        >>> stream = Stream(range(10))
        >>> stream.next(), stream.next(), stream.increment_epoch()
        (0, 1, None)
        >>> stream.state_dict()
        {'epoch': 1, 'iteration': 2}
        """
        state: dict[str, Any] = {"epoch": self._epoch, "iteration": self._iteration}
        if self._has_state:
            if self._began is not None:
                state["position"] = self._iteration - self._began
            state["loader"] = copy.deepcopy(self._loader.state_dict())
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the position of another stream.

        Parameters
        ----------
        state_dict : mapping
            What `state_dict` returned. A loader without a state keeps its position.

        Raises
        ------
        ConfigError
            If the state is not one of a stream, or does not fit the loader. Nothing is changed
            then.

        Examples
        --------
        >>> stream = Stream(range(10))
        >>> stream.next(), stream.increment_epoch()
        (0, None)
        >>> resumed = Stream(range(10))
        >>> resumed.load_state_dict(stream.state_dict())
        >>> resumed.state_dict(), resumed.next()
        ({'epoch': 1, 'iteration': 1}, 0)
        """
        state = state_dict
        if not isinstance(state, Mapping) or not {"epoch", "iteration"} <= state.keys():
            raise ConfigError(f"state_dict must have 'epoch' and 'iteration', got {state!r:.200}")
        for name in ("epoch", "iteration", "position"):
            if name in state and (not isinstance(state[name], int) or state[name] < 0):
                raise ConfigError(
                    f"state_dict[{name!r}] must be an int of at least 0, got {state[name]!r}"
                )
        began = None
        if "loader" in state:  # a position is meaningless if the loader restarts
            if not self._has_state:
                raise ConfigError(
                    "state_dict has the state of a loader, but this loader has no load_state_dict; "
                    "set the matching loader with set_loader first, or omit 'loader' and 'position'"
                )
            self._loader.load_state_dict(copy.deepcopy(state["loader"]))
            self._iterator, self._is_exhausted = None, False
            if "position" in state:
                began = state["iteration"] - state["position"]
        self._epoch, self._iteration = state["epoch"], state["iteration"]
        self._began, self._is_loaded = began, began is not None

    @property
    def _has_state(self) -> bool:
        """Whether the loader has a state that can be saved and restored."""
        return hasattr(self._loader, "state_dict") and hasattr(self._loader, "load_state_dict")

    def _run(
        self, max_epoch: float, epoch_size: float | None, show: bool
    ) -> Iterator[Iterator[Any]]:
        began = self._began if self._is_loaded else None
        self._began, self._is_loaded = None, False
        size = self._size("epoch_size", epoch_size, least=1)
        left = 0.0 if began is None else max(0.0, size - (self._iteration - began))
        n_epochs = max_epoch - self._epoch
        end = self._iteration + left + (n_epochs * size if n_epochs > 0 else 0.0)
        total = None if math.isinf(end) else int(end)
        try:
            with bar(
                total, "", show=show, persist=True, unit="batch", initial=self._iteration
            ) as self._bar:
                if began is not None and self._epoch <= max_epoch:
                    yield self._epoch_items(left, began)
                while self._epoch < max_epoch and not self._is_exhausted:
                    self.increment_epoch()
                    size = self._size("epoch_size", epoch_size, least=1)
                    yield self._epoch_items(size, self._iteration)
        finally:
            self._bar = NO_BAR

    def _epoch_items(self, n_items: float, began: int) -> Iterator[Any]:
        """Mark an epoch as current until its items are exhausted."""
        self._began = began

        def items() -> Iterator[Any]:
            yield from self._items(n_items)
            self._began = None

        return items()

    def _items(self, n_items: float) -> Iterator[Any]:
        for _ in repeat(None) if n_items == math.inf else range(int(n_items)):
            try:
                item = self.next()
            except StopIteration:
                return
            yield item

    def _size(self, name: str, n_items: float | None, *, least: int = 0) -> float:
        if n_items is not None:
            check_int(name, n_items, least, or_inf=True)
            return n_items
        length = length_of(self._loader)
        if length is None:
            raise ConfigError(f"{name} must be given, because the loader has no length")
        return length
