"""Attachments: groups of callbacks for a runner."""

from __future__ import annotations

import logging
import math
import operator
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from modularml.errors import ConfigError
from modularml.loops.checks import length_of
from modularml.loops.runner import Event, Listeners, State, look_up
from modularml.progress import tqdm_class

logger = logging.getLogger(__name__)

FIRST, LAST = -1, 1  # ranks before and after the user's callbacks


class Attachment(ABC):
    """A group of callbacks for several events of a runner."""

    @abstractmethod
    def attach_on(self, runner: Listeners) -> None:
        """Attach to a runner.

        Parameters
        ----------
        runner : Runner
        """


def accumulate(state: State, key: str, add: Callable[[Any], Any], start: Any = None) -> None:
    """Replace ``state[key]`` by ``add(state[key])``.

    A repeated batch (see `Runner.resume`) replaces its earlier contribution. The data needed for
    this is stored in the state, so that it is saved with it.
    """
    before = f"{key}_before"
    n_iters, value = state.get(before, (None, None))
    if not (state.get("_repeats") and n_iters == state["n_iters"]):
        value = state.get(key, start)
    state[before] = state.get("n_iters"), value
    state[key] = add(value)


class EpochTimer(Attachment):
    """Log when each epoch starts and how long it took, at level INFO.

    Nothing is logged if ``state['max_epoch']`` is 1.
    """

    def __init__(self) -> None:
        self._started: float | None = None

    def attach_on(self, runner: Listeners) -> None:
        """Attach to a runner."""
        runner.on(Event.EPOCH_STARTED, self._start, rank=FIRST)
        runner.on(Event.EPOCH_FINISHED, self._finish, rank=LAST)

    def _start(self, state: State) -> None:
        self._started = time.monotonic()
        if state["max_epoch"] > 1:
            logger.info("Starting epoch %d/%d", state["epoch"], state["max_epoch"])

    def _finish(self, state: State) -> None:
        started, self._started = self._started, None
        if state["max_epoch"] <= 1:
            return
        if started is None:
            logger.info("Epoch %d/%d done", state["epoch"], state["max_epoch"])
            return
        took = timedelta(seconds=time.monotonic() - started)
        logger.info("Epoch %d/%d done in %s", state["epoch"], state["max_epoch"], took)


class ProgressBar(Attachment):
    """Draw a progress bar for each epoch.

    Parameters
    ----------
    n_items : str
        The bar advances by ``state[n_items]`` at each batch, by 1 without such a key.
    stats : str, optional
        Show ``state[stats]``, a dict of names and values, beside the bar.
    tqdm_cls : type, optional
        Class of the bars, by default that of ``tqdm.auto``.
    **kwargs
        Arguments of that class.

    Examples
    --------
    >>> from modularml.runner import Runner
    >>> from modularml.runner.attachments import ProgressBar
    >>> runner = Runner()
    >>> ProgressBar().attach_on(runner)
    >>> runner.run(range(10), max_epoch=10)
    """

    def __init__(
        self,
        *,
        n_items: str = "n_items",
        stats: str | None = None,
        tqdm_cls: Any = None,
        **kwargs: Any,
    ) -> None:
        if tqdm_cls is not None and not callable(tqdm_cls):
            raise ConfigError(f"tqdm_cls must be a class like tqdm.tqdm, got {tqdm_cls!r}")
        self.n_items, self.stats, self.tqdm_cls, self.kwargs = n_items, stats, tqdm_cls, kwargs
        self._bar: Any = None
        self._counted = 0

    def attach_on(self, runner: Listeners) -> None:
        """Attach to a runner."""
        runner.on(Event.EPOCH_STARTED, self._open, rank=FIRST)
        runner.on(Event.BATCH, self._advance, rank=LAST)
        runner.on(Event.EPOCH_FINISHED, self._close, rank=FIRST)
        runner.on(Event.FINISHED, self._close, rank=FIRST)

    def _open(self, state: State, done: int = 0) -> None:
        self._close(state)
        total = None if self.n_items in state else length_of(state["batches"])
        options = {"total": total, "initial": done, "mininterval": 0.1, **self.kwargs}
        if state["max_epoch"] > 1:
            options.setdefault("desc", f"epoch {state['epoch']}/{state['max_epoch']}")
        self._bar = (self.tqdm_cls or tqdm_class())(**options)

    def _advance(self, state: State) -> None:
        repeats = state.get("_repeats") and self._counted == state["n_iters"]
        if self._bar is None:  # a resumed epoch
            repeats = False
            self._open(state, done=0 if self.n_items in state else state["_epoch_iters"] - 1)
        if self.n_items in state and "total" not in self.kwargs:
            self._bar.total = None  # it counts batches, but the bar counts items
        if self.stats is not None:
            self._bar.set_postfix(look_up(state, self.stats), refresh=False)
        if not repeats:
            self._bar.update(state.get(self.n_items, 1))
        self._counted = state["n_iters"]

    def _close(self, state: State) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()


class LambdaReducer(Attachment):
    """Reduce a value of each batch to one of the epoch.

    Parameters
    ----------
    name : str
        The result goes to ``state[name]`` at the end of an epoch, before the callbacks of
        `Event.EPOCH_FINISHED`; None if the epoch had no batches.
    reduce_fn : callable
        Called with the result so far and the next value.
    value : str
        The value of a batch is ``state[value]``, read after the callbacks of `Event.BATCH`.

    Raises
    ------
    KeyError
        In a run: if the state has no `value`.

    Examples
    --------
    >>> from modularml.runner import Event, Runner
    >>> from modularml.runner.attachments import LambdaReducer
    >>> runner = Runner()
    >>> LambdaReducer('product', lambda x, y: x * y).attach_on(runner)
    >>> @runner.on(Event.BATCH)
    ... def on_batch(state):
    ...     state['output'] = state['batch']
    ...
    >>> runner.run([10, 20, 30])
    >>> runner.state['product']
    6000
    """

    def __init__(
        self, name: str, reduce_fn: Callable[[Any, Any], Any], *, value: str = "output"
    ) -> None:
        if not callable(reduce_fn):
            raise ConfigError(f"reduce_fn must be callable, got {reduce_fn!r}")
        self.name, self.reduce_fn, self.value = name, reduce_fn, value
        self._so_far = f"_{name}_so_far"  # stored in the state to be saved with it

    def attach_on(self, runner: Listeners) -> None:
        """Attach to a runner."""
        runner.on(Event.EPOCH_STARTED, self._start, rank=FIRST)
        runner.on(Event.BATCH, self._add, rank=LAST)
        runner.on(Event.EPOCH_FINISHED, self._finish, rank=FIRST)

    def _start(self, state: State) -> None:
        state.pop(self._so_far, None)

    def _add(self, state: State) -> None:
        value = look_up(state, self.value)
        accumulate(
            state,
            self._so_far,
            lambda found: (value if found is None else self.reduce_fn(found[0], value),),
        )

    def _finish(self, state: State) -> None:
        state[self.name] = state.get(self._so_far, (None,))[0]


class SumReducer(LambdaReducer):
    """Sum a value over the batches of an epoch.

    Parameters
    ----------
    name : str
        The sum goes to ``state[name]`` at the end of an epoch; 0 if it had no batches.
    value : str
        The value of a batch is ``state[value]``.

    Examples
    --------
    >>> from modularml.runner import Runner
    >>> runner = Runner()
    >>> SumReducer('sum', value='batch').attach_on(runner)
    >>> runner.run([1, 2, 3])
    >>> runner.state['sum']
    6
    """

    def __init__(self, name: str, *, value: str = "output") -> None:
        super().__init__(name, operator.add, value=value)

    def _finish(self, state: State) -> None:
        state[self.name] = state.get(self._so_far, (0,))[0]


class MeanReducer(SumReducer):
    """Divide the sum of a value over batches by the sum of their sizes.

    Parameters
    ----------
    name : str
        The mean goes to ``state[name]`` at the end of an epoch; NaN if it had no batches.
    value : str
        The value of a batch is ``state[value]``: the sum over its samples if it has a size.
    size : str
        The size of a batch is ``state[size]``, 1 without such a key.

    Examples
    --------
    >>> from modularml.runner import Event, Runner
    >>> from modularml.runner.attachments import MeanReducer
    >>> runner = Runner()
    >>> MeanReducer('mean').attach_on(runner)
    >>> @runner.on(Event.BATCH)
    ... def on_batch(state):
    ...     state['output'] = state['batch']
    ...
    >>> runner.run([1, 2, 3])
    >>> runner.state['mean']
    2.0
    """

    def __init__(self, name: str, *, value: str = "output", size: str = "size") -> None:
        super().__init__(name, value=value)
        self.size = size
        self._size_so_far = f"_{name}_size_so_far"

    def _start(self, state: State) -> None:
        super()._start(state)
        state[self._size_so_far] = 0

    def _add(self, state: State) -> None:
        super()._add(state)
        accumulate(state, self._size_so_far, lambda found: found + state.get(self.size, 1), 0)

    def _finish(self, state: State) -> None:
        size = state.get(self._size_so_far, 0)
        total = state.get(self._so_far, (0,))[0]
        state[self.name] = total / size if size else math.nan
