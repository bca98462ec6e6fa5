"""Scalers of single values, of the values of one sample, and of segments of columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from modularml._typing import Array, IntArray
from modularml.errors import ConfigError, ScalerError, ShapeError
from modularml.scalers.base import BaseScaler, as_numbers
from modularml.scalers.scaler import Scaler


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


class SegmentedScaler(BaseScaler):
    """Fit a clone of one scaler on each segment of the columns.

    Parameters
    ----------
    boundaries : sequence of int
        Start of each segment, 0-based, and the end of the last: from 0, strictly rising, ending
        at the number of columns.
    scaler : str, class, instance or Scaler
        Whatever `Scaler` takes.
    scaler_kwargs : dict, optional
        Its arguments.

    Raises
    ------
    ConfigError
        If the boundaries do not start at 0 or do not rise.
    ShapeError
        From `fit`, if the last boundary is not the number of columns.

    Examples
    --------
    >>> import numpy as np
    >>> scaler = SegmentedScaler([0, 2, 5], "MinMaxScaler")
    >>> scaler.fit_transform(np.array([[0, 0, 0, 0, 0], [1, 2, 3, 4, 5]])).tolist()
    [[0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(
        self,
        boundaries: Sequence[int],
        scaler: str | Any,
        scaler_kwargs: dict[str, Any] | None = None,
    ) -> None:
        edges = np.asarray(boundaries)
        whole = edges.ndim == 1 and edges.dtype.kind in "iu" and len(edges) > 1
        if not whole or edges[0] != 0 or min(np.diff(edges)) <= 0:
            raise ConfigError(
                "boundaries must start at 0 and rise strictly to the number of columns, such as "
                f"[0, 20, 101], got {boundaries!r}"
            )
        self.boundaries = boundaries
        self.scaler = scaler
        self.scaler_kwargs = scaler_kwargs
        self._segments = [Scaler(scaler, scaler_kwargs) for _ in edges[1:]]
        self.needs_rows = self._segments[0].needs_rows
        self.lost = getattr(self._segments[0].inner, "lost", "")

    @property
    def learns(self) -> bool:
        """Whether its segments learn from rows."""
        return self._segments[0].learns

    def fit(self, X: Array, y: object = None) -> Self:  # noqa: N803 - scikit-learn's name
        """Fit one clone on each segment; ``y`` is ignored."""
        data = as_numbers(X)
        if data.shape[1] != self.boundaries[-1]:
            raise ShapeError(
                f"boundaries {self.boundaries!r} must end at the number of columns, which is "
                f"{data.shape[1]}"
            )
        pairs = zip(self._segments, self._cut(data), strict=True)
        self._segments = [segment.clone_unfitted().fit(part) for segment, part in pairs]
        return super().fit(data, y)

    def get_state(self) -> dict[str, Any]:
        """Return what was learned, segment by segment."""
        return {**super().get_state(), "segments_": [s.get_state() for s in self._segments]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_state` returned, of as many segments."""
        own = dict(state)
        parts = own.pop("segments_", [])
        if len(parts) != len(self._segments):
            raise ShapeError(f"{len(self._segments)} segments cannot take {len(parts)} states")
        for segment, part in zip(self._segments, parts, strict=True):
            segment.set_state(part)
        super().set_state(own)

    def _scale(self, data: Array) -> Array:
        return self._joined("transform", data)

    def _facts(self, data: Array) -> Array:
        return self._joined("row_facts", data)

    def _joined(self, method: str, data: Array) -> Array:
        pairs = zip(self._segments, self._cut(data), strict=True)
        return np.concatenate([getattr(scaler, method)(part) for scaler, part in pairs], axis=1)

    def _unscale(self, data: Array, facts: Array) -> Array:
        parts = self._cut(data)
        widths = [
            segment.row_facts(part[:1]).shape[1]
            for segment, part in zip(self._segments, parts, strict=True)
        ]
        known = np.split(facts, np.cumsum(widths)[:-1], axis=1)
        triples = zip(self._segments, parts, known, strict=True)
        return np.concatenate([s.inverse_with(part, fact) for s, part, fact in triples], axis=1)

    def _cut(self, data: Array) -> list[Array]:
        return np.split(data, [int(edge) for edge in self.boundaries[1:-1]], axis=1)
