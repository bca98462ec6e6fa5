"""The base class of Keras models of sequences."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import keras
from keras import layers, ops

from modularml._typing import Shape
from modularml.models.sequences import SequenceArguments
from modularml.models.tensorflow.base import TensorflowBaseModel, activation_layer

__all__ = ["SequenceModel"]


class SequenceModel(SequenceArguments, TensorflowBaseModel, ABC):
    """An encoder of steps, pooling over real steps, and a linear layer."""

    reads_several = False

    def __init__(self, **kwargs: Any) -> None:
        if "activation" in kwargs:
            activation_layer(kwargs["activation"])
        super().__init__(**kwargs)

    @abstractmethod
    def make_encoder(self, n_channels: int, n_steps: int) -> list[Any]:
        """Return layers of ``(n, time, width)``; those with `reads_mask` get the mask too."""

    def make_model(self, input_shape: Shape, output_shape: Shape | None) -> keras.Model:
        """Return the encoder and the linear layer as one Keras model."""
        encoder, head = self.make_encoder(*self.sizes(input_shape)), list[Any]()
        if output_shape is not None:
            head.append(layers.Dense(math.prod(output_shape)))
            if len(output_shape) != 1:
                head.append(layers.Reshape(output_shape or (1,)))
        return SequenceNetwork(encoder, head, self)


class SequenceNetwork(keras.Model):  # type: ignore[misc]
    """Layers over steps, whose real ones come first, pooling, and layers of the output."""

    def __init__(self, encoder: list[Any], head: list[Any], arguments: SequenceArguments) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.pooling, self.check_mask = arguments.pooling, arguments.check_mask
        self.supports_masking = True

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """Return no mask, as there are no steps after pooling."""

    def call(self, x: Any, mask: Any = None, training: bool | None = None) -> Any:
        steps = ops.transpose(x, (0, 2, 1)) if len(x.shape) == 3 else x[:, 0]
        if mask is not None:
            self.check_mask(mask, steps)
            steps, mask = _real_first(steps, ops.cast(mask, "bool"))
        for layer in self.encoder:
            more = (mask,) if getattr(layer, "reads_mask", False) else ()
            steps = layer(steps, *more, training=training)
        out = self._pooled(steps, mask)
        for layer in self.head:
            out = layer(out)
        return out

    def _pooled(self, steps: Any, mask: Any) -> Any:
        if mask is None:
            return ops.mean(steps, axis=1) if self.pooling == "mean" else steps[:, -1]
        n_real = ops.sum(ops.cast(mask, "int32"), axis=1, keepdims=True)
        if self.pooling == "mean":
            total = ops.sum(steps * ops.cast(mask, steps.dtype)[..., None], axis=1)
            return total / ops.cast(n_real, steps.dtype)  # NaN without real steps
        places = ops.arange(steps.shape[1], dtype="int32")
        is_last = ops.cast(places == n_real - 1, steps.dtype)
        last = ops.sum(steps * is_last[..., None], axis=1)
        return ops.where(n_real > 0, last, math.nan)


def _real_first(steps: Any, mask: Any) -> tuple[Any, Any]:
    """Return steps and mask with real steps before padding, which becomes 0."""
    n_steps = mask.shape[1]
    places = ops.arange(n_steps, dtype="int32")
    order = ops.sort(ops.where(mask, places, places + n_steps), axis=1) % n_steps
    mask = ops.take_along_axis(mask, order, axis=1)
    steps = ops.take_along_axis(steps, order[..., None], axis=1)
    return ops.where(mask[..., None], steps, ops.zeros_like(steps)), mask
