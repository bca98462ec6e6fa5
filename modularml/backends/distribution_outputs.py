"""Outputs that describe the distribution of a target: mean and variance, or quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

from modularml.errors import LossError

VARIANCE = "variance"
MOMENTS = ("mean", VARIANCE)
"""Blocks of the outputs of a loss that reads means and variances."""

QUANTILES = (0.1, 0.5, 0.9)
"""Quantiles of the pinball loss by default."""


def check_quantiles(quantiles: Any) -> tuple[float, ...]:
    """Return quantiles as a tuple; refuse those outside (0, 1) or not increasing.

    Raises
    ------
    LossError
        The message shows what came.
    """
    levels = list(quantiles) if isinstance(quantiles, Sequence) else [quantiles]
    inside = all(isinstance(q, Real) and 0.0 < float(q) < 1.0 for q in levels)
    if not levels or not inside or any(a >= b for a, b in pairwise(levels)):
        raise LossError(
            f"quantiles must be increasing numbers between 0 and 1, such as [0.1, 0.5, 0.9], got "
            f"{quantiles!r}"
        )
    return tuple(map(float, levels))


def quantile_labels(quantiles: Any) -> tuple[str, ...]:
    """Return the label of each quantile, such as ``q0.1``."""
    return tuple(f"q{q:g}" for q in check_quantiles(quantiles))
