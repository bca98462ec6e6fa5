"""Input shapes that the first layer of a torch module declares."""

from __future__ import annotations

from typing import Any

from modularml._optional import require
from modularml._typing import Shape
from modularml.backends.layouts import matching

torch = require("torch", purpose="to train torch models")

__all__ = ["declared_shape"]


def declared_shape(module: Any, shape: Shape) -> Shape | None:
    """Return the shape in which the first layer of a chain reads samples of `shape`.

    Returns
    -------
    tuple of int or None
        None if the module is no chain of layers, or its first layer allows several shapes.
    """
    layers = torch.nn
    while type(module) is layers.Sequential and len(module):
        module = module[0]
    if type(module) is layers.Linear:
        return matching(shape, (module.in_features,))
    for rank, kind in enumerate((layers.Conv1d, layers.Conv2d, layers.Conv3d), 1):
        if type(module) is kind:
            return matching(shape, (module.in_channels, *[None] * rank))
    if type(module) is layers.TransformerEncoder and len(module.layers):
        module = module.layers[0]
    if type(module) is layers.TransformerEncoderLayer and module.self_attn.batch_first:
        return _steps(shape, module.self_attn.embed_dim)
    if isinstance(module, layers.RNNBase) and module.batch_first:
        return _steps(shape, module.input_size)
    return None


def _steps(shape: Shape, width: int) -> Shape | None:
    """Return the shape (time, width) of steps; None if samples have none of this width."""
    if len(shape) == 2 and shape[1] != width and shape[0] == width:
        return shape[::-1]
    return matching(shape, (None, width))
