"""Similarity conditions for pairs of samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from modularml._typing import Array
from modularml.config import Configurable
from modularml.errors import ConfigError

__all__ = ["SimilarityCondition"]

FALLBACK = 0.1
"""Weight of a pair that fails in mode ``binary`` with ``allow_fallback``."""


@dataclass(frozen=True, eq=False, repr=False)
class SimilarityCondition(Configurable):
    """A condition on the similarity, or dissimilarity, of two samples in one column.

    The distance is the absolute difference of numbers, the Euclidean distance of arrays, and for
    other types 0 if equal, else infinite. A NaN matches nothing.

    Parameters
    ----------
    mode : {'similar', 'dissimilar'}
        Whether a pair matches within `tolerance` or beyond it.
    tolerance : float
        In the unit of the column, at least 0.
    metric : callable, optional
        Custom distance of two values. A vectorized function, which also takes arrays of values,
        is much faster. For many rows, samplers evaluate only some candidates of each.
    weight_mode : {'binary', 'linear', 'exp'}
        ``binary``: the weight of a match is 1, of a failing pair 0.1. ``linear``:
        ``tolerance / distance``. ``exp``: ``exp(1 - distance / tolerance)``. For dissimilar pairs,
        the ratio is inverted and the exponent negated, so larger distances weigh more.
    max_weight, min_weight : float
        Bounds of linear and exponential weights. With the default bounds, a match weighs 1.
    allow_fallback : bool
        Whether failing pairs are used, with a weight below 1, if there are too few matches.
        Otherwise their weight is 0.

    Raises
    ------
    ConfigError
        If an argument is out of range.

    Examples
    --------
    >>> near = SimilarityCondition(tolerance=0.5, weight_mode="linear", max_weight=4.0)
    >>> near.score(1.0, 1.25), near.score(1.0, 2.0)
    (2.0, 0.0)
    """

    mode: Literal["similar", "dissimilar"] = "similar"
    tolerance: float = 0.0
    metric: Callable[[float, float], float] | None = None
    weight_mode: Literal["binary", "linear", "exp"] = "binary"
    max_weight: float = 1.0
    min_weight: float = 0.0
    allow_fallback: bool = False

    def __post_init__(self) -> None:
        ranges = {"tolerance": (0, math.inf), "max_weight": (1, math.inf), "min_weight": (0, 1)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value < high:
                raise ConfigError(f"{name} must be at least {low} and below {high}, got {value!r}")

    @property
    def gives_weights(self) -> bool:
        """Whether pairs can have weights other than 1."""
        return self.allow_fallback or (self.weight_mode != "binary" and self.max_weight > 1)

    def score(self, a: Any, b: Any) -> float:
        """Return the weight of a pair of values, anchor first: at least 1 for a match."""
        return float(self.weights(self.distances(np.asarray([a]), np.asarray([b])))[0])

    def distances(self, a: Array, b: Array) -> Array:
        """Return the distance of each pair of values, shape (n, ...) both."""
        if self.metric is not None:
            return _distances_by(self.metric, a, b)
        if a.dtype.kind not in "iuf":
            return np.where(a == b, 0.0, np.inf)
        if a.dtype.kind in "iu" and a.dtype == b.dtype:  # exact for large integers
            low, high = (pick(a, b).astype(np.uint64) for pick in (np.minimum, np.maximum))
            difference = (high - low).astype(np.float64)
        else:
            difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
        if a.ndim == 1:
            return difference
        squares: Array = (difference**2).sum(axis=tuple(range(1, a.ndim)))
        return np.sqrt(squares)

    def matches(self, distances: Array) -> Array:
        """Return which distances fulfil the condition."""
        if self.mode == "similar":
            return distances <= self.tolerance
        return distances > self.tolerance

    def weights(self, distances: Array) -> Array:
        """Return the weights of pairs at these distances."""
        matches = self.matches(distances)
        if self.weight_mode == "binary":
            matched, failed = np.ones(len(distances)), np.full(len(distances), FALLBACK)
        else:
            graded = self._graded(distances)
            matched = np.fmin(np.fmax(graded, 1.0), self.max_weight)
            failed = np.fmin(np.fmax(graded, self.min_weight), np.nextafter(1.0, 0.0))
        return np.where(matches, matched, failed if self.allow_fallback else 0.0)

    def _graded(self, distances: Array) -> Array:
        with np.errstate(all="ignore"):
            share = np.where(distances == 0, 0.0, distances / self.tolerance)
            graded = 1 / share if self.weight_mode == "linear" else np.exp(1 - share)
            return graded if self.mode == "similar" else np.divide(1.0, graded)

    @classmethod
    def from_config(cls, cfg: dict[str, Any]) -> SimilarityCondition:
        """Create a condition from the output of `get_config`."""
        return super().from_config(cfg)


def _distances_by(metric: Callable[..., Any], a: Array, b: Array) -> Array:
    """Return a metric of each pair, in one call if the metric is vectorized."""

    def one_by_one(n: int) -> Array:
        return np.array([metric(x, y) for x, y in zip(a[:n], b[:n], strict=True)], dtype=np.float64)

    try:
        probe = np.asarray(metric(a[:8], b[:8]), dtype=np.float64)
    except (TypeError, ValueError, AttributeError):
        return one_by_one(len(a))
    if np.array_equal(probe, one_by_one(8), equal_nan=True):
        return np.asarray(metric(a, b), dtype=np.float64)
    return one_by_one(len(a))
