"""Flattening of arrays to two dimensions, and its inverse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType

import numpy as np

from modularml._typing import Array, Shape
from modularml.config import Configurable
from modularml.errors import ShapeError, expect

_AXES = "an axis number, or a tuple of them"


@dataclass(frozen=True, eq=False, repr=False)
class Flattening(Configurable):
    """A way to lay samples out in two dimensions.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample, ``(n_columns, *shape)``.
    merged_axes : tuple of int, optional
        Axes of the whole array that become one dimension, 0 being samples. The dimension that
        has axis 0 is the rows. What is not merged must be one axis at most.

    Raises
    ------
    ShapeError
        If that does not make two dimensions; the message lists what would.

    Examples
    --------
    >>> import numpy as np
    >>> layout = Flattening((2, 101), (1, 2))
    >>> layout.apply(np.zeros((5, 2, 101))).shape
    (5, 202)
    >>> layout.undo(np.zeros((5, 202))).shape
    (5, 2, 101)
    """

    shape: tuple[int, ...]
    merged_axes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.shape or 0 in self.shape:
            raise ShapeError(f"samples must hold something to be scaled, got shape {self.shape}")
        n_axes = len(self.shape) + 1
        merged = [axis + n_axes * (axis < 0) for axis in self.merged_axes or ()]
        wrong = len(set(merged)) < len(merged) or not set(merged) <= set(range(n_axes))
        if wrong or len(self.row_axes) + len(self.column_axes) != n_axes:
            inner = tuple(range(1, n_axes))
            size = math.prod(self.shape)
            choices = [f"{inner} for {size} statistics a set, one for each value of a sample"]
            for kept in inner if n_axes > 2 else ():
                axes = tuple(axis for axis in range(n_axes) if axis != kept)
                what = "column" if kept == 1 else f"position along axis {kept}"
                choices.append(f"{axes} for {self.shape[kept - 1]}, one for each {what}")
            choices.append(f"{tuple(range(n_axes))} for one in all")
            raise ShapeError(
                f"data of shape (n, {', '.join(map(str, self.shape))}) cannot be laid out in two "
                f"dimensions by merged_axes={self.merged_axes}; choose merged_axes="
                f"{'; '.join(choices)}"
            )

    @property
    def row_axes(self) -> Shape:
        """Axes that make the rows, 0 (samples) first."""
        merged = self._merged
        return merged if 0 in merged else (0,)

    @property
    def column_axes(self) -> Shape:
        """Axes that make the columns; none where all values are in one column."""
        merged = self._merged
        if 0 not in merged:
            return merged
        rest = tuple(axis for axis in range(len(self.shape) + 1) if axis not in merged)
        return rest if len(rest) < 2 else ()

    @property
    def _merged(self) -> Shape:
        n_axes = len(self.shape) + 1
        if self.merged_axes:
            return tuple(sorted(axis % n_axes for axis in self.merged_axes))
        if n_axes == 3 and self.shape[0] == 1:
            return (1, 2)
        return (1,)

    def apply(self, data: Array) -> Array:
        """Lay samples, shape (n, *shape), out as rows and columns: a view where memory allows."""
        if data.shape[1:] != self.shape:
            raise ShapeError(
                f"samples must have the shape {self.shape} that was laid out before, "
                f"got {data.shape[1:]}"
            )
        sizes = data.shape
        rows = math.prod(sizes[axis] for axis in self.row_axes)
        columns = math.prod(sizes[axis] for axis in self.column_axes)
        order = self.row_axes + self.column_axes
        laid_out = data if order == tuple(range(len(order))) else data.transpose(order)
        return laid_out.reshape(rows, columns)

    def undo(self, data: Array) -> Array:
        """Put rows and columns, of any whole number of samples, back as (n, *shape)."""
        sizes = (0, *self.shape)
        per_sample = math.prod(sizes[axis] for axis in self.row_axes[1:])
        columns = math.prod(sizes[axis] for axis in self.column_axes)
        if data.ndim != 2 or data.shape[1] != columns or data.shape[0] % per_sample:
            raise ShapeError(
                f"samples of shape {self.shape} are laid out as {per_sample} rows of {columns} "
                f"columns each, got shape {data.shape}"
            )
        order = self.row_axes + self.column_axes
        laid_out = [data.shape[0] // per_sample, *(sizes[axis] for axis in order[1:])]
        restored = data.reshape(laid_out)
        is_in_order = order == tuple(range(len(order)))
        return restored if is_in_order else restored.transpose(np.argsort(order))


def flatten(
    data: Array, merged_axes: int | Sequence[int] | None = None
) -> tuple[Array, Flattening]:
    """Lay samples out in two dimensions, for a scaler.

    Parameters
    ----------
    data : ndarray, shape (n_samples, n_columns, *shape)
        Is not changed.
    merged_axes : int or sequence of int, optional
        Axes that become one dimension, 0 being samples and 1 columns. Of ``(n, c, k)``, merging
        (1, 2) gives ``(n, c * k)``, a statistic for every value; (0, 1) gives ``(n * c, k)``, one
        for each position; (0, 2) gives ``(n * k, c)``, one for each column; (0, 1, 2) gives
        ``(n * c * k, 1)``, one for all. With None, ``(n, c)`` stays and ``(n, 1, k)`` becomes
        ``(n, k)``.

    Returns
    -------
    array : ndarray, shape (n_rows, n_columns)
        A view of ``data`` where the memory allows it.
    layout : Flattening
        ``layout.undo(array)`` is ``data`` again; it serves any number of samples.

    Raises
    ------
    ShapeError
        If that does not make two dimensions; the message lists what would.

    Examples
    --------
    >>> import numpy as np
    >>> array, layout = flatten(np.zeros((5, 2, 101)), (0, 2))
    >>> array.shape, layout.undo(array).shape
    ((505, 2), (5, 2, 101))
    """
    if data.ndim < 2:
        raise ShapeError(f"data must have samples and columns, got shape {data.shape}")
    axes = (merged_axes,) if isinstance(merged_axes, int | np.integer) else merged_axes
    for axis in expect("merged_axes", axes, (Sequence, NoneType), _AXES) or ():
        expect("merged_axes", axis, (int, np.integer), _AXES)
    merged = None if axes is None else tuple(int(axis) for axis in axes)
    layout = Flattening(tuple(data.shape[1:]), merged)
    return layout.apply(data), layout
