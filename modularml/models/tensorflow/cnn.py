"""Convolutional networks of Keras."""

from __future__ import annotations

import math
from typing import Any

from keras import layers

from modularml._typing import Shape
from modularml.models.sequential import CNNArguments
from modularml.models.tensorflow.base import SequentialModel, activation_layer

__all__ = ["SequentialCNN"]

_CONV = {2: layers.Conv1D, 3: layers.Conv2D, 4: layers.Conv3D}
_POOL = {2: layers.MaxPooling1D, 3: layers.MaxPooling2D, 4: layers.MaxPooling3D}
_ZEROS = {2: layers.ZeroPadding1D, 3: layers.ZeroPadding2D, 4: layers.ZeroPadding3D}


class SequentialCNN(CNNArguments, SequentialModel):  # noqa: D101 - that of its arguments
    __doc__ = f"""{CNNArguments.__doc__}
    Examples
    --------
    >>> model = SequentialCNN(output_shape=(3,))
    >>> model.build(input_shape=(1, 100))
    >>> model.output_shape
    (3,)
    """

    config_name = "tensorflow.SequentialCNN"

    def make_sequence(self, input_shape: Shape, output_shape: Shape | None) -> list[Any]:
        """Return convolutions, activations, pooling and the linear layer.

        TensorFlow convolves with channels last, so the first and last layers permute them.
        """
        self.spaces(input_shape)
        rank = len(input_shape)
        sequence = [layers.Permute((*range(2, rank + 1), 1))]
        sequence += [part for _ in range(self.n_layers) for part in self._layer(rank)]
        sequence.append(layers.Permute((rank, *range(1, rank))))
        if output_shape is not None:
            sequence += [layers.Flatten(), layers.Dense(math.prod(output_shape))]
            sequence += [layers.Reshape(output_shape)] if len(output_shape) > 1 else []
        elif self.flatten_output:
            sequence.append(layers.Flatten())
        return sequence

    def _layer(self, rank: int) -> list[Any]:
        same = self.stride == 1 and 2 * self.padding == self.kernel_size - 1
        sequence = [_ZEROS[rank](self.padding)] if self.padding and not same else []
        pads = "same" if same else "valid"
        sequence.append(_CONV[rank](self.hidden_dim, self.kernel_size, self.stride, padding=pads))
        sequence.append(activation_layer(self.activation))
        sequence += [_POOL[rank](self.pooling)] if self.pooling > 1 else []
        return sequence + ([layers.Dropout(self.dropout)] if self.dropout else [])
