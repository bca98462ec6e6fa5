"""Inverse scaling of means, variances and quantiles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from modularml._typing import Array
from modularml.backends.distributions import VARIANCE
from modularml.errors import ScalerError

__all__ = ["unscaled_block"]


def unscaled_block(undo: Callable[..., Array], parts: Array, label: tuple[int, str]) -> Array:
    """Undo the scaling of one block of outputs.

    Parameters
    ----------
    undo : callable
        Undoes the scaling of values, shape (n, n_columns).
    parts : ndarray, shape (n, n_blocks, n_columns)
    label : (int, str)
        The block, and what it is: ``mean``, ``variance`` or a quantile.

    Raises
    ------
    ScalerError
        If a variance has no inverse because a scaler is not linear, or a scaler reverses the order
        of values, so that quantiles change places.
    """
    place, name = label
    values = parts[:, place]
    if not values.size:
        return values
    if name == VARIANCE:
        variance: Array = (values * _slopes(undo, parts[:, 0]) ** 2).astype(values.dtype)
        return variance
    if name != "mean" and (undo(data=values + np.abs(values) + 1.0) < undo(data=values)).any():
        raise ScalerError(
            f"quantile {name!r} cannot be unscaled: the scaler of the target reverses the order of "
            "values, so that quantiles change places; pass unscale=False"
        )
    return undo(data=values)


def _slopes(undo: Callable[..., Array], means: Array) -> Array:
    """Return the factor of a linear inverse for each value, shape (n, n_columns)."""
    zeros = np.zeros(means.shape, dtype=np.float64)
    base = undo(data=zeros).astype(np.float64)
    slopes = np.empty_like(base)
    linear = True
    for column in range(means.shape[1]):
        unit = zeros.copy()
        unit[:, column] = 1.0
        change = undo(data=unit) - base
        slopes[:, column] = change[:, column]
        others = np.delete(change, column, axis=1)
        linear &= bool(np.allclose(others, 0.0, atol=1e-9 * (1.0 + np.abs(change).max())))
    expected = base + means * slopes
    error = np.abs(undo(data=means.astype(np.float64)) - expected)
    allowed = 1e-5 * (np.abs(means * slopes) + np.abs(slopes)) + 1e-12 * np.abs(base)
    linear &= not (error > allowed).any()  # NaN is no error
    if not linear:
        raise ScalerError(
            "a variance cannot be unscaled: the scaler of its target is not linear, or mixes "
            "columns; scale with StandardScaler or MinMaxScaler, predict quantiles "
            "(Loss('pinball')), or pass unscale=False"
        )
    return slopes
