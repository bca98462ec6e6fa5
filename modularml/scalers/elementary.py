"""Scalers of single values, and of the values of one sample."""

from __future__ import annotations

import numpy as np

from modularml._typing import Array, IntArray
from modularml.errors import ConfigError, ScalerError
from modularml.scalers.base import BaseScaler

__all__ = ["Absolute", "Negate", "PerSampleMinMaxScaler", "PerSampleZeroStart"]


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


class PerSampleMinMaxScaler(BaseScaler):
    """Scale each row so that its least and greatest values are the ends of a range.

    The inverse needs those values: `row_facts` has two columns, the minimum and the maximum.
    A constant row becomes the lower end; NaN is passed over and stays.

    Parameters
    ----------
    feature_range : tuple of (float, float)
        Lower and upper end of the range, in this order.

    Raises
    ------
    ConfigError
        If the ends are not two numbers, the lower one first.
    ScalerError
        From `transform`, if a value is infinite.

    Examples
    --------
    >>> import numpy as np
    >>> PerSampleMinMaxScaler().fit_transform(np.array([[2.0, 4.0, 3.0]])).tolist()
    [[0.0, 1.0, 0.5]]
    """

    needs_rows = True
    lost = "the minimum and maximum of each row"

    def __init__(self, feature_range: tuple[float, float] = (0, 1)) -> None:
        ends = np.asarray(feature_range)
        if ends.shape != (2,) or ends.dtype.kind not in "iuf" or not ends[0] < ends[1]:
            raise ConfigError(f"feature_range must be (lower, upper), got {feature_range!r}")
        self.feature_range = feature_range

    def _scale(self, data: Array) -> Array:
        lower, upper = self.feature_range
        least, span = _least_and_span(self._facts(data))
        return (data - least) / span * (upper - lower) + lower

    def _facts(self, data: Array) -> Array:
        facts = np.stack([np.fmin.reduce(data, axis=1), np.fmax.reduce(data, axis=1)], axis=1)
        if np.isinf(facts).any():
            row = int(np.isinf(facts).any(axis=1).argmax())
            raise ScalerError(
                f"PerSampleMinMaxScaler cannot scale row {row}, which holds infinity; "
                "replace it by NaN or drop the row"
            )
        return facts

    def _unscale(self, data: Array, facts: Array) -> Array:
        lower, upper = self.feature_range
        least, span = _least_and_span(facts.astype(data.dtype, copy=False))
        return (data - lower) / (upper - lower) * span + least


def _least_and_span(facts: Array) -> tuple[Array, Array]:
    span = facts[:, 1:] - facts[:, :1]
    span[span == 0] = 1
    return facts[:, :1], span
