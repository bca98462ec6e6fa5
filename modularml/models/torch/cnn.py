"""Convolutional networks of torch."""

from __future__ import annotations

import math

import torch

from modularml._typing import Shape
from modularml.models.sequential import CNNArguments
from modularml.models.torch.base import SequentialModel, activation_layer

__all__ = ["SequentialCNN"]

_CONV = {2: torch.nn.Conv1d, 3: torch.nn.Conv2d, 4: torch.nn.Conv3d}
_POOL = {2: torch.nn.MaxPool1d, 3: torch.nn.MaxPool2d, 4: torch.nn.MaxPool3d}


class SequentialCNN(CNNArguments, SequentialModel):  # noqa: D101 - that of its arguments
    __doc__ = f"""{CNNArguments.__doc__}
    Examples
    --------
    >>> model = SequentialCNN(output_shape=(3,), hidden_dim=8)
    >>> model.build(input_shape=(1, 100))
    >>> model.output_shape
    (3,)
    """

    def make_layers(self, input_shape: Shape, output_shape: Shape | None) -> None:
        """Build convolutions, activations, pooling and the linear layer."""
        space = self.spaces(input_shape)[-1]
        channels = [input_shape[0], *[self.hidden_dim] * (self.n_layers - 1)]
        layers = [part for n in channels for part in self._layer(len(input_shape), n)]
        if output_shape is not None:
            width = self.hidden_dim * math.prod(space)
            layers += [torch.nn.Flatten(), torch.nn.Linear(width, math.prod(output_shape))]
            layers += [torch.nn.Unflatten(1, output_shape)] if len(output_shape) > 1 else []
        elif self.flatten_output:
            layers.append(torch.nn.Flatten())
        self.layers = torch.nn.Sequential(*layers)

    def _layer(self, rank: int, channels: int) -> list[torch.nn.Module]:
        conv = _CONV[rank](
            channels, self.hidden_dim, self.kernel_size, stride=self.stride, padding=self.padding
        )
        layers: list[torch.nn.Module] = [conv, activation_layer(self.activation)]
        layers += [_POOL[rank](self.pooling)] if self.pooling > 1 else []
        return layers + ([torch.nn.Dropout(self.dropout)] if self.dropout else [])
