"""Prediction intervals: split-conformal, CV+ and order statistics of members."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from numbers import Real
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from modularml._typing import Array, IntArray
from modularml.errors import ConfigError, DataError

Bounds: TypeAlias = tuple[Array, Array]
"""Lower and upper bounds, each of shape (n, k)."""
Method: TypeAlias = Literal["auto", "split", "cv+", "quantiles"]

_CELLS = 4_000_000
"""Maximum numbers in one block of candidate bounds."""
_STEPS = 64
"""About as many steps as a bisection of floats takes."""


def check_level(level: Any) -> None:
    """Refuse a level that is not a number between 0 and 1."""
    is_number = isinstance(level, Real) and not isinstance(level, bool)
    if not is_number or not 0 < level < 1:
        raise ConfigError(
            f"interval must be the share of targets inside, between 0 and 1, exclusive, such as "
            f"0.9, got {level!r}"
        )


def residuals_of(targets: Array, outputs: Array, label: str) -> Array:
    """Return targets minus outputs as float64, shape (n, ...).

    Raises
    ------
    DataError
        If they are not numbers, have other shapes than each other, or a target is NaN.
    """
    if targets.dtype.kind not in "iuf" or outputs.dtype.kind not in "iuf":
        raise DataError(
            f"interval needs numeric targets and outputs, and those of node {label!r} are "
            f"{targets.dtype} and {outputs.dtype}; omit interval"
        )
    if targets[:1].size != outputs[:1].size:
        raise DataError(
            f"interval needs one output per target value, and node {label!r} has outputs of shape "
            f"{outputs.shape[1:]} for targets of shape {targets.shape[1:]}; omit interval"
        )
    residuals = targets.reshape(outputs.shape).astype(np.float64) - outputs
    missing = np.asarray(~np.isfinite(in_columns(residuals)).all(axis=1))
    if missing.any():
        raise DataError(
            f"{missing.sum()} of {len(missing)} calibration rows of node {label!r} have a target "
            f"or output that is NaN or infinite (the first at row {missing.argmax()}); omit them"
        )
    return residuals


def in_columns(values: Array) -> Array:
    """Return values of shape (n, ...) in shape (n, k); n may be 0."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def split_conformal(center: Array, residuals: Array, level: float) -> Bounds:
    """Return split-conformal bounds.

    Parameters
    ----------
    center : ndarray, shape (n, k)
        Predictions.
    residuals : ndarray, shape (n_calibration, k)
        Of rows that the model has not learned from.
    level : float
        Share of targets inside, above 0 and below 1.

    Raises
    ------
    ConfigError
        If there are too few residuals for the level.

    Notes
    -----
    The half width is the ``ceil(level * (n_calibration + 1))``-th smallest absolute residual. If
    all rows are exchangeable, a target is inside with a probability of at least `level` (Lei et al.
    2018, *Distribution-free predictive inference for regression*, JASA 113, section 2.2).

    Examples
    --------
    >>> import numpy as np
    >>> residuals = np.linspace(-1, 1, 99).reshape(-1, 1)
    >>> low, high = split_conformal(np.zeros((2, 1)), residuals, 0.9)
    >>> high.ravel().round(2).tolist()
    [0.92, 0.92]
    """
    rank = _rank(len(residuals), level)
    width = np.partition(np.abs(residuals), rank - 1, axis=0)[rank - 1]
    return center - width, center + width


def cv_plus(members: Array, residuals: Array, held_out: Array, level: float) -> Bounds:
    """Return CV+ bounds of fold models, or jackknife+-after-bootstrap bounds.

    Parameters
    ----------
    members : ndarray, shape (n_members, n, k)
        Predictions of each member.
    residuals : ndarray, shape (n_calibration, k)
        Of the mean over those members that have not learned from the row.
    held_out : ndarray of bool, shape (n_calibration, n_members)
        Which members these are; at least one per row.
    level : float
        Share of targets inside, above 0 and below 1.

    Raises
    ------
    ConfigError
        If there are too few residuals for the level.

    Notes
    -----
    For each calibration row, the mean over its members minus and plus its absolute residual is a
    candidate; bounds are order statistics of these. If all rows are exchangeable, a target is
    inside with a probability of at least about ``1 - 2 * (1 - level)``, and close to `level` for
    stable models (Barber et al. 2021, *Predictive inference with the jackknife+*, Annals of
    Statistics 49; Kim, Xu & Barber 2020, *Predictive inference is free with the
    jackknife+-after-bootstrap*, NeurIPS 33).

    Examples
    --------
    >>> import numpy as np
    >>> members, residuals = np.zeros((2, 1, 1)), np.linspace(-1, 1, 40).reshape(-1, 1)
    >>> low, high = cv_plus(members, residuals, np.arange(40)[:, None] % 2 == np.arange(2), 0.9)
    >>> float(low.item()) < 0 < float(high.item())
    True
    """
    rank = _rank(len(residuals), level)
    patterns, which = np.unique(held_out, axis=0, return_inverse=True)
    with np.errstate(invalid="ignore"):  # bounds are NaN if a member predicts no number
        centers = np.tensordot(patterns / patterns.sum(axis=1, keepdims=True), members, axes=1)
    low, high = np.empty(members.shape[1:]), np.empty(members.shape[1:])
    ranked = _ranked_by_search if _STEPS * len(patterns) < len(residuals) else _ranked_of_all
    for k in range(members.shape[2]):
        width, center = np.abs(residuals[:, k]), centers[:, :, k]
        high[:, k] = ranked(center, width, which.ravel(), rank)
        low[:, k] = -ranked(-center, width, which.ravel(), rank)
    return low, high


def _ranked_of_all(center: Array, width: Array, which: IntArray, rank: int) -> Array:
    """Return the `rank`-th smallest of ``center[which] + width`` of each column."""
    found = np.empty(center.shape[1])
    size = max(1, _CELLS // len(width))
    for at in range(0, center.shape[1], size):
        part = slice(at, at + size)
        candidates = center[which, part] + width[:, None]
        found[part] = np.partition(candidates, rank - 1, axis=0)[rank - 1]
    return found


def _ranked_by_search(center: Array, width: Array, which: IntArray, rank: int) -> Array:
    """Return the same as `_ranked_of_all` to rounding, by bisection; quick for few centers."""
    widths = [np.sort(width[which == i]) for i in range(len(center))]
    pairs = list(zip(center, widths, strict=True))
    low = np.min([c + w[0] for c, w in pairs], axis=0)
    high = np.max([c + w[-1] for c, w in pairs], axis=0)
    low = np.nextafter(low, -np.inf)  # so that fewer than `rank` are below
    while True:
        middle = low + (high - low) / 2
        if not ((low < middle) & (middle < high)).any():  # NaN stays NaN
            return np.asarray(high)
        count = sum(np.searchsorted(w, middle - c, side="right") for c, w in pairs)
        low, high = np.where(count >= rank, low, middle), np.where(count >= rank, middle, high)


def quantile_bounds(members: Array, level: float) -> Bounds:
    """Return the range that holds a further member with a probability of at least `level`.

    Parameters
    ----------
    members : ndarray, shape (n_members, n, k)
    level : float
        Above 0 and below 1.

    Raises
    ------
    ConfigError
        If there are too few members for the level.

    Notes
    -----
    The bounds are the order statistics ``j`` and ``n_members + 1 - j`` for
    ``j = floor((1 - level) / 2 * (n_members + 1))``. They say nothing of the noise of targets.

    Examples
    --------
    >>> import numpy as np
    >>> low, high = quantile_bounds(np.arange(99.0).reshape(99, 1, 1), 0.9)
    >>> float(low.item()), float(high.item())
    (4.0, 94.0)
    """
    n, tail = len(members), (1 - _exact(level)) / 2
    j = math.floor(tail * (n + 1))
    if j < 1:
        raise ConfigError(
            f"quantiles of members for interval={level:g} need at least "
            f"{math.ceil(1 / tail) - 1} members, and there are {n}; train more, choose a lower "
            "level, or another method"
        )
    ordered = np.sort(members, axis=0)
    return ordered[j - 1], ordered[n - j]


def quantile_conformal(
    bounds: Bounds, targets: Array, calibration_bounds: Bounds, level: float
) -> Bounds:
    """Widen or narrow bounds so that they hold a share `level` of calibration targets.

    Parameters
    ----------
    bounds : tuple of ndarray, each of shape (n, k)
    targets : ndarray, shape (n_calibration, k)
    calibration_bounds : tuple of ndarray, each of shape (n_calibration, k)
    level : float
        Above 0 and below 1.

    Raises
    ------
    ConfigError
        If there are too few calibration rows for the level.

    Notes
    -----
    Romano, Patterson & Candès 2019, *Conformalized quantile regression*, NeurIPS 32.

    Examples
    --------
    >>> import numpy as np
    >>> y, ones = np.linspace(-2, 2, 99).reshape(-1, 1), np.ones((99, 1))
    >>> low, high = quantile_conformal((-ones, ones), y, (-ones, ones), 0.9)
    >>> round(float(high[0, 0]), 2)
    1.84
    """
    low, high = calibration_bounds
    outside = np.maximum(low - targets, targets - high)
    rank = _rank(len(outside), level)
    margin = np.partition(outside, rank - 1, axis=0)[rank - 1]
    crossed = (bounds[0] - margin) > (bounds[1] + margin)
    middle = (bounds[0] + bounds[1]) / 2
    return (
        np.where(crossed, middle, bounds[0] - margin),
        np.where(crossed, middle, bounds[1] + margin),
    )


def per_group(
    rows: Array, calibration: Array, bounds_of: Callable[[Any, Any], Bounds], shape: Any
) -> Bounds:
    """Return bounds of each group from the calibration rows of the same group.

    Parameters
    ----------
    rows, calibration : ndarray, shape (n,) and (n_calibration,)
        Groups of the rows to predict, and of calibration rows.
    bounds_of : callable
        Returns bounds of selected rows from selected calibration rows.
    shape : tuple of int
        Of each bound.

    Raises
    ------
    ConfigError
        If a group has too few calibration rows; the message names it.
    DataError
        If a row to predict has no group.

    Notes
    -----
    Coverage then holds within each group (Vovk, Lindsay, Nouretdinov & Gammerman 2003, *Mondrian
    confidence machine*).
    """
    missing = pd.isna(rows)
    if missing.any():
        raise DataError(
            f"{missing.sum()} of {len(rows)} rows have no group (the first at row "
            f"{missing.argmax()}); fill the column of group_by, or omit group_by"
        )
    low, high = np.empty(shape), np.empty(shape)
    for group in np.unique(rows):
        mask = rows == group
        try:
            low[mask], high[mask] = bounds_of(mask, calibration == group)
        except ConfigError as error:
            raise ConfigError(f"group {group}: {error}") from error
    return low, high


def _exact(level: float) -> Fraction:
    return Fraction(repr(float(level)))  # so that 0.9 * 10 is 9


def _rank(n: int, level: float) -> int:
    """Return the rank of the absolute residual that is the half width."""
    share = _exact(level)
    rank = math.ceil(share * (n + 1))
    if rank > n:
        raise ConfigError(
            f"interval={level:g} needs at least {math.ceil(share / (1 - share))} calibration rows, "
            f"and there are {n}; pass more, or choose a lower level"
        )
    return rank
