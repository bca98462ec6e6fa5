"""Models of Keras that predict a distribution."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers, ops

from modularml._typing import Shape
from modularml.models.heads import GaussianHeadArguments
from modularml.models.tensorflow.base import TensorflowBaseModel

__all__ = ["GaussianHead"]


class GaussianHead(GaussianHeadArguments, TensorflowBaseModel):  # noqa: D101 - that of arguments
    __doc__ = GaussianHeadArguments.__doc__

    config_name = "tensorflow.GaussianHead"
    reads_several = False

    def make_model(self, input_shape: Shape, output_shape: Shape | None) -> keras.Model:
        """Return the dense layer as a Keras model."""
        return GaussianNetwork(2 * self.n_targets(output_shape), self.min_variance)


class GaussianNetwork(keras.Model):  # type: ignore[misc]
    """A dense layer whose second half becomes positive."""

    def __init__(self, width: int, min_variance: float) -> None:
        super().__init__()
        self.linear, self.min_variance = layers.Dense(width), min_variance

    def call(self, x: Any) -> Any:
        flat = ops.reshape(x, (-1, math.prod(x.shape[1:])))
        mean, raw = ops.split(self.linear(flat), 2, axis=1)
        return ops.concatenate([mean, ops.softplus(raw) + self.min_variance], axis=1)
