"""Arrangements of the axes of one sample for a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

from modularml._typing import Shape
from modularml.errors import BackendNotSupportedError, ShapeError

InputShape: TypeAlias = Any
"""Of one sample: a tuple of ints, a tuple of such tuples, or a dict of them by name."""


def is_several(shape: InputShape) -> bool:
    """Return whether a shape is that of several inputs."""
    return isinstance(shape, Mapping) or any(isinstance(size, tuple | list) for size in shape)


def shapes_of(shape: InputShape) -> list[Shape]:
    """Return the shape of each input, in order."""
    if isinstance(shape, Mapping):
        return list(shape.values())
    return list(shape) if is_several(shape) else [shape]


def arranged(values: Sequence[Any], shape: InputShape) -> Any:
    """Return one value per input in the form of `shape`: single, list or dict."""
    if isinstance(shape, Mapping):
        return dict(zip(shape, values, strict=True))
    return list(values) if is_several(shape) else values[0]


InputLayout: TypeAlias = Literal["channels_first", "flat", "time_first"]
LAYOUTS = ("channels_first", "flat", "time_first")

Arrangement: TypeAlias = Literal["reshape", "swap"] | None
"""How samples get the shape that a model reads; None if they have it."""


def laid_out(shape: Shape, layout: InputLayout) -> Shape:
    """Return the shape of a sample in a layout.

    Raises
    ------
    ShapeError
        If samples of several axes have no time axis that is known.
    """
    if layout == "flat":
        return (math.prod(shape),)
    if layout == "channels_first":
        return (1, *shape) if len(shape) == 1 else shape
    if len(shape) == 1:
        return (*shape, 1)
    if len(shape) == 2:
        return (shape[1], shape[0])
    if len(shape) == 3 and shape[0] == 1:
        return shape[1:]
    raise ShapeError(
        "input_layout='time_first' needs samples of shape (time,), (channels, time) or (1, time, "
        f"channels), got {shape}"
    )


def matching(shape: Shape, declared: tuple[int | None, ...]) -> Shape | None:
    """Return a declared shape with known sizes if only axes of length 1 differ from `shape`.

    Parameters
    ----------
    shape : tuple of int
    declared : tuple of int or None
        None for a size that is not declared.
    """
    same_rank = len(shape) == len(declared)
    if same_rank and all(d in (None, n) for d, n in zip(declared, shape, strict=False)):
        return shape
    sizes = [n for n in shape if n != 1]
    wanted = [n for n in declared if n != 1]
    if len(sizes) != len(wanted) or any(
        d not in (None, n) for d, n in zip(wanted, sizes, strict=True)
    ):
        return None
    known = iter(sizes)
    return tuple(1 if n == 1 else next(known) for n in declared)


def arrangement(shape: Shape, target: Shape | None, layout: str | None = None) -> Arrangement:
    """Return how samples of a shape become those of the shape that a model reads.

    None if they need no change, or the model's shape is not known.
    """
    if layout == "time_first" and len(shape) == 2 and min(shape) > 1:
        return "swap"
    if target is None or shape == target:
        return None
    flattened = layout == "flat" and target == (math.prod(shape),)
    if flattened or matching(shape, target) is not None:
        return "reshape"
    return "swap" if len(shape) == 2 and shape[::-1] == target else None


def arranged_call(adapter: Any, call: Any, how: Arrangement, target: Shape) -> Any:
    """Return a function that arranges its first argument and calls another."""
    if how is None:
        return call
    change = adapter.swap_axes if how == "swap" else partial(adapter.reshape, shape=target)

    def arranged(x: Any, **kwargs: Any) -> Any:
        if adapter.mask_of(x) is not None:
            raise BackendNotSupportedError(
                f"samples of shape {tuple(x.shape)[1:]} have a mask of Keras, which would be lost "
                f"in the shape {target}; omit input_layout, or reshape them in the model"
            )
        return call(change(x), **kwargs)

    return arranged
