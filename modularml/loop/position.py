"""Counting: where a loop is, how much of an epoch is left, what a state may say."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modularml.errors import ConfigError

__all__ = ["Position", "check_count"]


@dataclass(slots=True)
class Position:
    """Where a loop is.

    Attributes
    ----------
    epoch : int
        1-based; 0 before the first.
    iteration : int
        Items taken so far, in all epochs.
    began : int or None
        Value of `iteration` at which the epoch that is under way began; None between epochs.
    is_loaded : bool
        Whether that epoch comes from a state, and nobody has gone on with it yet.
    """

    epoch: int = 0
    iteration: int = 0
    began: int | None = None
    is_loaded: bool = False

    def next_epoch(self) -> None:
        """Count an epoch."""
        self.epoch += 1
        self.began, self.is_loaded = None, False

    def take_over(self) -> int | None:
        """Return where the epoch of a loaded state began, once; None where there is none."""
        began = self.began if self.is_loaded else None
        self.began, self.is_loaded = None, False
        return began

    def end(self, max_epoch: float, size: float, began: int | None) -> float:
        """Return the iteration at which a loop over epochs of one size will end."""
        left = 0.0 if began is None else self.left(size, began)
        more = max_epoch - self.epoch
        return self.iteration + left + (more * size if more > 0 else 0.0)

    def left(self, size: float, began: int) -> float:
        """Return how many items are left of an epoch of some size."""
        return max(0.0, size - (self.iteration - began))

    def to_dict(self) -> dict[str, int]:
        """Return the position as a state; ``position`` is left out between epochs."""
        state = {"epoch": self.epoch, "iteration": self.iteration}
        return state if self.began is None else {**state, "position": self.iteration - self.began}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Position:
        """Return the position that a state tells of.

        Raises
        ------
        ConfigError
            If it is not one.
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


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse what is no count.

    Raises
    ------
    ConfigError
        If `value` is neither an int of at least `least` nor infinite.
    """
    if isinstance(value, float) and value == math.inf:
        return
    try:
        enough = operator.index(value) >= least
    except TypeError:
        enough = False
    if not enough:
        raise ConfigError(f"{name} must be an int of at least {least}, or inf, got {value!r}")
