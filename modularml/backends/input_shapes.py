"""Input shapes of models: one input, or several by position or name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from modularml._typing import Shape

__all__ = ["InputShape", "arranged", "is_several", "shapes_of"]

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
