"""Scaler that applies a separate scaler to each segment of columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from modularml._typing import Array
from modularml.errors import ConfigError, ShapeError
from modularml.scalers.base import BaseScaler, as_numbers
from modularml.scalers.scaler import Scaler

__all__ = ["SegmentedScaler"]


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
        pairs = zip(self._segments, self._cut(data), strict=True)
        return np.concatenate([segment.transform(part) for segment, part in pairs], axis=1)

    def _facts(self, data: Array) -> Array:
        pairs = zip(self._segments, self._cut(data), strict=True)
        return np.concatenate([segment.row_facts(part) for segment, part in pairs], axis=1)

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
