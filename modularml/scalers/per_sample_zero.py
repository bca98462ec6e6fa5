"""Scaler that shifts each sample to start at zero."""

from __future__ import annotations

import numpy as np

from modularml._typing import Array, IntArray
from modularml.scalers.base import BaseScaler

__all__ = ["PerSampleZeroStart"]


class PerSampleZeroStart(BaseScaler):
    """Subtract each row's first value that is not NaN, so that the row starts at zero.

    The inverse needs those values: `row_facts` has one column. A row of NaN stays as it is.

    Examples
    --------
    >>> import numpy as np
    >>> PerSampleZeroStart().fit_transform(np.array([[3.0, 5.0], [10.0, 9.0]])).tolist()
    [[0.0, 2.0], [0.0, -1.0]]
    """

    needs_rows = True
    lost = "the value that each row started at"

    def _scale(self, data: Array) -> Array:
        scaled: Array = data - self._facts(data)
        return scaled

    def _facts(self, data: Array) -> Array:
        first: IntArray = np.isnan(data).argmin(axis=1)
        values: Array = np.take_along_axis(data, first[:, None], axis=1)
        return values

    def _unscale(self, data: Array, facts: Array) -> Array:
        undone: Array = data + facts.astype(data.dtype, copy=False)
        return undone
