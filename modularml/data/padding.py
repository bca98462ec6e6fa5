"""Padding of sequences: masks and weights of elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray

__all__ = ["held", "in_steps", "step_weights"]


def in_steps(mask: Array, shape: tuple[int, ...]) -> Array:
    """Broadcast a mask of steps to all elements, shape (n, *shape)."""
    return np.broadcast_to(mask[(..., *[None] * (len(shape) - mask.ndim))], shape)


def held(table: Any, names: Sequence[str], rows: IntArray | slice | None = None) -> Array | None:
    """Return which elements of stacked columns are data instead of padding.

    Returns
    -------
    ndarray of bool, shape (n, n_columns, *shape), or None
        None if no column is padded.
    """
    masks: Mapping[str, str] = {n: m for n in names if (m := table.schema.mask_of(n)) is not None}
    if not masks:
        return None
    read = {mask: table.gather((mask,), rows)[:, 0] for mask in masks.values()}
    n = len(next(iter(read.values())))
    parts = []
    for name in names:
        shape = (n, *table.schema[name].shape)
        mask = read[masks[name]] if name in masks else np.array(True)
        parts.append(in_steps(mask, shape))
    return np.stack(parts, axis=1)


def step_weights(holds: Array) -> Array:
    """Return element weights: 0 for padding, equal for data, mean 1 in each sample.

    Parameters
    ----------
    holds : ndarray of bool, shape (n, ...)

    Returns
    -------
    ndarray of float32, shape (n, ...)
    """
    flat = holds.reshape(len(holds), -1)
    share = flat.shape[1] / np.maximum(flat.sum(axis=1, keepdims=True), 1)
    weights: Array = (flat * share).astype(np.float32).reshape(holds.shape)
    return weights
