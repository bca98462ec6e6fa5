"""Early stopping by patience."""

from __future__ import annotations

import math
from typing import Literal

from modularml._arguments import Checked, at_least

__all__ = ["Patience"]


class Patience(Checked):
    """Count the epochs since a value last improved.

    Parameters
    ----------
    mode : {'min', 'max'}
        Which values are better.
    patience : int
        Consecutive epochs without improvement after which to stop; 0 means 1.
    min_delta : float
        A value must be better than the best by more than this; at least 0.

    Attributes
    ----------
    best : float or None
        The best value so far.
    best_epoch : int or None
        Epoch of the best value.
    waited : int
        Epochs since the best value.

    Raises
    ------
    ConfigError
        If an argument is not valid.

    Examples
    --------
    >>> watch = Patience("min", patience=2)
    >>> [watch.update(value, epoch) for epoch, value in enumerate([3.0, 2.0, 2.0, 2.5])]
    [True, True, False, False]
    >>> watch.is_spent, watch.best, watch.best_epoch
    (True, 2.0, 1)
    """

    def __init__(self, mode: Literal["min", "max"], patience: int, min_delta: float = 0.0) -> None:
        at_least(0, patience=patience, min_delta=min_delta)
        self.mode, self.patience, self.min_delta = mode, patience, min_delta
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.waited = 0

    def update(self, value: float, epoch: int) -> bool:
        """Record a value and return whether it is the best so far; NaN never is."""
        best = value if self.best is None else self.best
        gain = best - value if self.mode == "min" else value - best
        if not math.isnan(value) and (self.best is None or gain > self.min_delta):
            self.best, self.best_epoch, self.waited = value, epoch, 0
            return True
        self.waited += 1
        return False

    @property
    def is_spent(self) -> bool:
        """Whether the patience is used up."""
        return self.waited >= max(1, self.patience)
