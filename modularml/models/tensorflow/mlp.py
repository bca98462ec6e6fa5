"""Multi-layer perceptrons of Keras."""

from __future__ import annotations

import math
from typing import Any

from keras import layers

from modularml._typing import Shape
from modularml.models.sequential import MLPArguments
from modularml.models.tensorflow.base import SequentialModel, activation_layer

__all__ = ["SequentialMLP"]


class SequentialMLP(MLPArguments, SequentialModel):  # noqa: D101 - that of its arguments
    __doc__ = f"""{MLPArguments.__doc__}
    Examples
    --------
    >>> model = SequentialMLP(output_shape=(3,))
    >>> model.build(input_shape=(4,))
    >>> model.output_shape
    (3,)
    """

    config_name = "tensorflow.SequentialMLP"

    def make_sequence(self, input_shape: Shape, output_shape: Shape | None) -> list[Any]:
        """Return linear layers, activations and dropout."""
        output_shape = self.check_output(output_shape)
        sequence: list[Any] = [layers.Flatten()] if len(input_shape) > 1 else []
        for _ in range(self.n_layers - 1):
            sequence += [layers.Dense(self.hidden_dim), activation_layer(self.activation)]
            sequence += [layers.Dropout(self.dropout)] if self.dropout else []
        sequence.append(layers.Dense(math.prod(output_shape)))
        return sequence + ([layers.Reshape(output_shape or (1,))] if len(output_shape) != 1 else [])
