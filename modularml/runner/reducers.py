"""Attachments that make one value of an epoch out of one of each batch."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from modularml.errors import ConfigError
from modularml.runner.attachment import FIRST, LAST, Attachment, accumulate
from modularml.runner.events import Event, Listeners, State, look_up

__all__ = ["LambdaReducer", "MeanReducer", "SumReducer"]


class LambdaReducer(Attachment):
    """Reduce a value of each batch to one of the epoch.

    Parameters
    ----------
    name : str
        The result goes to ``state[name]`` at the end of an epoch, before the callbacks of
        `Event.EPOCH_FINISHED`; None where the epoch had no batches.
    reduce_fn : callable
        Called with what has been reduced so far and the next value.
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
        self._so_far = f"_{name}_so_far"  # in the state, so that it is saved with it

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
    """Add up a value of each batch.

    Parameters
    ----------
    name : str
        The sum goes to ``state[name]`` at the end of an epoch; 0 where it had no batches.
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
        The mean goes to ``state[name]`` at the end of an epoch; NaN where it had no batches.
    value : str
        The value of a batch is ``state[value]``: the sum over its samples where it has a size.
    size : str
        The size of a batch is ``state[size]``, 1 where there is no such key.

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
