"""Exponential averaging: the arithmetic, apart from events."""

from __future__ import annotations

import math

from modularml.errors import ConfigError

__all__ = ["ExponentialMean", "decay_of"]


class ExponentialMean:
    """Average numbers as they come, with weights that fall off into the past.

    Parameters
    ----------
    decay : float
        Weight of the past, at least 0 and less than 1.
    bias_correction : bool
        Whether to divide by ``1 - decay**t``, which removes the pull towards the zero start
        (Kingma & Ba 2015, *Adam*, section 3, arXiv:1412.6980).

    Examples
    --------
    >>> mean = ExponentialMean(0.5)
    >>> [round(mean.update(x), 4) for x in (10.0, 20.0, 30.0)]
    [10.0, 16.6667, 24.2857]
    """

    __slots__ = ("_mean", "_unseen", "bias_correction", "decay")

    def __init__(self, decay: float, bias_correction: bool = True) -> None:
        self.decay, self.bias_correction = decay, bias_correction
        self._mean, self._unseen = 0.0, 1.0

    def update(self, value: float) -> float:
        """Take in a number and return the average of all so far."""
        self._mean = self.decay * self._mean + (1 - self.decay) * value
        self._unseen *= self.decay
        return self._mean / (1 - self._unseen) if self.bias_correction else self._mean


def decay_of(decay: float | None, half_life: float | None) -> float:
    """Return a decay, given as such or by the number of steps after which half is forgotten.

    Raises
    ------
    ConfigError
        If not exactly one is given, or it is out of range.
    """
    if (decay is None) == (half_life is None):
        raise ConfigError(
            f"give exactly one of decay and half_life, got {decay!r} and {half_life!r}"
        )
    if decay is not None:
        if not 0 <= decay < 1:
            raise ConfigError(f"decay must be at least 0 and less than 1, got {decay!r}")
        return float(decay)
    assert half_life is not None
    if not 0 < half_life < math.inf:
        raise ConfigError(f"half_life must be positive (in events), got {half_life!r}")
    return float(0.5 ** (1.0 / half_life))
