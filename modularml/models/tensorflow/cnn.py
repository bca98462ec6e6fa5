"""A convolutional network over sequences, images or volumes."""

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
    __doc__ = CNNArguments.__doc__

    config_name = "tensorflow.SequentialCNN"

    def make_sequence(self, input_shape: Shape, output_shape: Shape | None) -> list[Any]:
        """Make convolutions, activations, pooling and the linear layer.

        TensorFlow convolves with channels last; they go there first and come back last.
        """
        self.spaces(input_shape)
        rank = len(input_shape)
        made = [layers.Permute((*range(2, rank + 1), 1))]
        made += [part for _ in range(self.n_layers) for part in self._layer(rank)]
        made.append(layers.Permute((rank, *range(1, rank))))
        if output_shape is not None:
            made += [layers.Flatten(), layers.Dense(math.prod(output_shape))]
            made += [layers.Reshape(output_shape)] if len(output_shape) > 1 else []
        elif self.flatten_output:
            made.append(layers.Flatten())
        return made

    def _layer(self, rank: int) -> list[Any]:
        same = self.stride == 1 and 2 * self.padding == self.kernel_size - 1
        made = [_ZEROS[rank](self.padding)] if self.padding and not same else []
        pads = "same" if same else "valid"
        made.append(_CONV[rank](self.hidden_dim, self.kernel_size, self.stride, padding=pads))
        made.append(activation_layer(self.activation))
        made += [_POOL[rank](self.pooling)] if self.pooling > 1 else []
        return made + ([layers.Dropout(self.dropout)] if self.dropout else [])
