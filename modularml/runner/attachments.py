"""Attachments: several callbacks that belong together, put on a runner at once."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any

from modularml.errors import ConfigError
from modularml.progress import tqdm_class
from modularml.runner.attachment import FIRST, LAST, Attachment
from modularml.runner.events import Event, Listeners, State, look_up
from modularml.runner.reducers import LambdaReducer, MeanReducer, SumReducer

__all__ = [
    "Attachment",
    "EpochTimer",
    "LambdaReducer",
    "MeanReducer",
    "ProgressBar",
    "SumReducer",
]

logger = logging.getLogger(__name__)


class EpochTimer(Attachment):
    """Log when each epoch starts and how long it took, at level INFO.

    Nothing is logged where ``state['max_epoch']`` is 1.
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
        The bar advances by ``state[n_items]`` at each batch, by 1 where there is no such key.
    stats : str, optional
        Show ``state[stats]``, a dict of names and values, beside the bar.
    tqdm_cls : type, optional
        The class of bars, by default the one of tqdm that draws best.
    **kwargs
        For that class.

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
        total = None if self.n_items in state else _length(state["batches"])
        options = {"total": total, "initial": done, "mininterval": 0.1, **self.kwargs}
        if state["max_epoch"] > 1:
            options.setdefault("desc", f"epoch {state['epoch']}/{state['max_epoch']}")
        self._bar = (self.tqdm_cls or tqdm_class())(**options)

    def _advance(self, state: State) -> None:
        repeats = state.get("_repeats") and self._counted == state["n_iters"]
        if self._bar is None:  # an epoch that is resumed
            repeats = False
            self._open(state, done=0 if self.n_items in state else state["_epoch_iters"] - 1)
        if self.n_items in state and "total" not in self.kwargs:
            self._bar.total = None  # it counts batches, and the bar counts items
        if self.stats is not None:
            self._bar.set_postfix(look_up(state, self.stats), refresh=False)
        if not repeats:
            self._bar.update(state.get(self.n_items, 1))
        self._counted = state["n_iters"]

    def _close(self, state: State) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()


def _length(batches: Any) -> int | None:
    try:
        return len(batches)
    except TypeError:
        return None
