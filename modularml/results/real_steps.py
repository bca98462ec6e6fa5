"""Scores, tables and pictures of padded sequences: real steps alone."""

from __future__ import annotations

import numpy as np

from modularml._typing import Array
from modularml.data.execution import ExecutionContext
from modularml.errors import ShapeError

__all__ = ["blanked", "real_steps", "target_steps"]


def target_steps(
    steps: list[ExecutionContext], node_id: str, role: str = "default"
) -> Array | None:
    """Return which elements of a node's targets are data, all steps of a phase behind one another.

    Returns
    -------
    ndarray of bool, shape (n, n_columns, *shape), or None
        None where they are not padded.
    """
    parts = [step.held(step.compared_with(node_id), role) for step in steps]
    found = [part for part in parts if part is not None]
    return np.concatenate(found) if found else None


def real_steps(true: Array, out: Array, holds: Array) -> tuple[Array, Array]:
    """Return the steps of targets and outputs that are data, one a row.

    Parameters
    ----------
    true : ndarray, shape (n, n_columns, *shape)
        Padded targets.
    out : ndarray, shape (n, ...)
        As the targets but for axes of length 1, or with an axis more, of scores of classes, before
        or after the others.
    holds : ndarray of bool, shape of `true`

    Returns
    -------
    ndarray, shape (n_steps,), and ndarray, shape (n_steps,) or (n_steps, n_classes)
        Both of shape (n_steps, n_columns) where there are several columns of one mask.

    Raises
    ------
    ShapeError
        If outputs have other steps.
    """
    shape = true.shape
    if true.ndim > 2 and shape[1] > 1 and out.shape == shape and (holds == holds[:, :1]).all():
        true, out = (np.moveaxis(values, 1, -1)[holds[:, 0]] for values in (true, out))
        return true, out
    true, holds = true.reshape(len(true), *_long(true)), holds.reshape(len(holds), *_long(holds))
    flat = out.reshape(len(out), *_long(out))
    if flat.shape == true.shape:
        return true[holds], flat[holds]
    if flat.ndim == true.ndim + 1 and flat.shape[:-1] == true.shape:
        return true[holds], flat[holds]
    if flat.ndim == true.ndim + 1 and (len(flat), *flat.shape[2:]) == true.shape:
        return true[holds], np.moveaxis(flat, 1, -1)[holds]
    raise ShapeError(
        f"targets are padded, of shape {shape}, and outputs of shape {out.shape} have no "
        "such steps, so that padding cannot be left out; let the node give a value for each step, "
        "or compare it with one number a sample (ModelNode(targets=))"
    )


def blanked(values: Array, holds: Array | None) -> Array:
    """Return values with NaN in place of padding; as they are where they have no such steps."""
    if holds is None or values.size != holds.size or values.dtype.kind not in "biuf":
        return values
    floats = values if values.dtype.kind == "f" else values.astype(np.float64)
    return np.where(holds.reshape(values.shape), floats, np.nan).astype(floats.dtype)


def _long(values: Array) -> list[int]:
    return [size for size in values.shape[1:] if size != 1]
