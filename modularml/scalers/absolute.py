"""Scaler that takes absolute values."""

from __future__ import annotations

import numpy as np

from modularml._typing import Array
from modularml.scalers.base import BaseScaler

__all__ = ["Absolute"]


class Absolute(BaseScaler):
    """Drop the sign of every value.

    The inverse needs the signs: `row_facts` are 1 or -1 for each value.

    Examples
    --------
    >>> import numpy as np
    >>> scaler, rows = Absolute(), np.array([[1.0, -2.0]])
    >>> scaled = scaler.fit_transform(rows)
    >>> scaler.inverse_with(scaled, scaler.row_facts(rows)).tolist()
    [[1.0, -2.0]]
    """

    needs_rows = True
    lost = "the sign of each value"

    def _scale(self, data: Array) -> Array:
        return np.abs(data)

    def _facts(self, data: Array) -> Array:
        signs: Array = np.where(np.signbit(data), -1, 1)
        return signs.astype(data.dtype)

    def _unscale(self, data: Array, facts: Array) -> Array:
        signs: Array = facts.astype(data.dtype, copy=False)
        return np.multiply(data, signs)
