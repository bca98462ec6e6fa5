"""What an attachment is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from modularml.runner.events import Listeners, State

__all__ = ["FIRST", "LAST", "Attachment", "accumulate"]

FIRST, LAST = -1, 1  # ranks before and after the callbacks of the user


class Attachment(ABC):
    """Something that listens to several events of a runner."""

    @abstractmethod
    def attach_on(self, runner: Listeners) -> None:
        """Attach to a runner.

        Parameters
        ----------
        runner : Runner
        """


def accumulate(state: State, key: str, add: Callable[[Any], Any], start: Any = None) -> None:
    """Replace ``state[key]`` by what `add` makes of it.

    A batch that is repeated (see `Runner.resume`) replaces what it has added before. What is
    needed for that is in the state, so that it is saved with it.
    """
    before = f"{key}_before"
    n_iters, value = state.get(before, (None, None))
    if not (state.get("_repeats") and n_iters == state["n_iters"]):
        value = state.get(key, start)
    state[before] = state.get("n_iters"), value
    state[key] = add(value)
