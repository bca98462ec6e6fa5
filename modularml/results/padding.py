"""Removal of padding from targets and outputs."""

from __future__ import annotations

import numpy as np

from modularml._typing import Array
from modularml.data.execution import ExecutionContext
from modularml.errors import ShapeError

__all__ = ["blanked", "real_steps", "target_steps"]


def target_steps(
    steps: list[ExecutionContext], node_id: str, role: str = "default"
) -> Array | None:
    """Return the mask of a node's padded targets, for all steps concatenated.

    Returns
    -------
    ndarray of bool, shape (n, n_columns, *shape), or None
        True for data, False for padding; None if the targets are not padded.
    """
    all_masks = [step.held(step.compared_with(node_id), role) for step in steps]
    masks = [mask for mask in all_masks if mask is not None]
    return np.concatenate(masks) if masks else None


def real_steps(true: Array, out: Array, holds: Array) -> tuple[Array, Array]:
    """Return targets and outputs without padding, one sequence step per row.

    Parameters
    ----------
    true : ndarray, shape (n, n_columns, *shape)
        Padded targets.
    out : ndarray, shape (n, ...)
        Shaped as the targets, up to axes of length 1, or with an additional class axis before or
        after the others.
    holds : ndarray of bool, shape of `true`

    Returns
    -------
    ndarray, shape (n_steps,), and ndarray, shape (n_steps,) or (n_steps, n_classes)
        Both of shape (n_steps, n_columns) if several columns share one mask.

    Raises
    ------
    ShapeError
        If outputs do not have the steps of the targets.
    """
    shape = true.shape
    if true.ndim > 2 and shape[1] > 1 and out.shape == shape and (holds == holds[:, :1]).all():
        true, out = (np.moveaxis(values, 1, -1)[holds[:, 0]] for values in (true, out))
        return true, out
    true, holds = (
        true.reshape(len(true), *_squeezed_shape(true)),
        holds.reshape(len(holds), *_squeezed_shape(holds)),
    )
    flat = out.reshape(len(out), *_squeezed_shape(out))
    if flat.shape == true.shape:
        return true[holds], flat[holds]
    if flat.ndim == true.ndim + 1 and flat.shape[:-1] == true.shape:
        return true[holds], flat[holds]
    if flat.ndim == true.ndim + 1 and (len(flat), *flat.shape[2:]) == true.shape:
        return true[holds], np.moveaxis(flat, 1, -1)[holds]
    raise ShapeError(
        f"targets are padded, of shape {shape}, but outputs of shape {out.shape} do not have "
        "these steps, so padding cannot be removed; let the node output a value for each step, or "
        "compare it with one number per sample (ModelNode(targets=))"
    )


def blanked(values: Array, holds: Array | None) -> Array:
    """Return values with NaN in place of padding; unchanged if shapes differ."""
    if holds is None or values.size != holds.size or values.dtype.kind not in "biuf":
        return values
    floats = values if values.dtype.kind == "f" else values.astype(np.float64)
    return np.where(holds.reshape(values.shape), floats, np.nan).astype(floats.dtype)


def _squeezed_shape(values: Array) -> list[int]:
    return [size for size in values.shape[1:] if size != 1]
