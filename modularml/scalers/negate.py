"""Scaler that flips the sign."""

from __future__ import annotations

from modularml._typing import Array
from modularml.scalers.base import BaseScaler

__all__ = ["Negate"]


class Negate(BaseScaler):
    """Flip the sign of every value.

    Examples
    --------
    >>> import numpy as np
    >>> Negate().fit_transform(np.array([[1.0, -2.0]])).tolist()
    [[-1.0, 2.0]]
    """

    def _scale(self, data: Array) -> Array:
        return -data

    def _unscale(self, data: Array, facts: Array) -> Array:
        return -data
