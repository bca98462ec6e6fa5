"""A convolutional network over sequences, images or volumes."""

from __future__ import annotations

import math

import torch

from modularml._typing import Shape
from modularml.errors import ConfigError, ShapeError
from modularml.models.torch.base import TorchBaseModel, activation_layer
from modularml.models.torch.mlp import check_dropout, check_sizes

__all__ = ["SequentialCNN"]

_CONV = {2: torch.nn.Conv1d, 3: torch.nn.Conv2d, 4: torch.nn.Conv3d}
_POOL = {2: torch.nn.MaxPool1d, 3: torch.nn.MaxPool2d, 4: torch.nn.MaxPool3d}


class SequentialCNN(TorchBaseModel):
    """Convolutions, each with an activation and pooling, and a linear layer at the end.

    Parameters
    ----------
    input_shape : tuple of int, optional
        ``(channels, length)``, ``(channels, height, width)`` or ``(channels, d, h, w)``; the
        number of axes decides between 1-D, 2-D and 3-D convolutions.
    output_shape : tuple of int, optional
        Where it is given, or the graph knows it, a linear layer brings the flattened features to
        this shape. Otherwise the features themselves are the output.
    n_layers : int
        Convolutions; at least 1.
    hidden_dim : int
        Channels of each convolution.
    kernel_size, padding, stride : int
        Of each convolution.
    activation : str
        Name of a torch activation, in any case.
    dropout : float
        Share of values dropped after each convolution in training, in ``[0, 1)``.
    pooling : int
        Width of the max pooling after each convolution; 1 for none.
    flatten_output : bool
        Whether features that are the output are flattened to one axis.
    """

    def __init__(
        self,
        *,
        input_shape: Shape | None = None,
        output_shape: Shape | None = None,
        n_layers: int = 2,
        hidden_dim: int = 16,
        kernel_size: int = 3,
        padding: int = 1,
        stride: int = 1,
        activation: str = "relu",
        dropout: float = 0.0,
        pooling: int = 1,
        flatten_output: bool = True,
    ) -> None:
        check_sizes(
            n_layers=n_layers,
            hidden_dim=hidden_dim,
            kernel_size=kernel_size,
            stride=stride,
            pooling=pooling,
        )
        check_dropout(dropout)
        if padding < 0:
            raise ConfigError(f"padding must be at least 0, got {padding}")
        super().__init__(
            input_shape=input_shape,
            output_shape=output_shape,
            n_layers=n_layers,
            hidden_dim=hidden_dim,
            kernel_size=kernel_size,
            padding=padding,
            stride=stride,
            activation=activation,
            dropout=dropout,
            pooling=pooling,
            flatten_output=flatten_output,
        )
        self.n_layers, self.hidden_dim, self.kernel_size = n_layers, hidden_dim, kernel_size
        self.padding, self.stride, self.activation = padding, stride, activation
        self.dropout, self.pooling, self.flatten_output = dropout, pooling, flatten_output
        activation_layer(activation)

    def make_layers(self, input_shape: Shape, output_shape: Shape | None) -> None:
        """Make convolutions, activations, pooling and the linear layer."""
        rank = len(input_shape)
        if rank not in _CONV:
            raise ShapeError(
                "SequentialCNN takes samples of shape (channels, length), (channels, height, "
                "width) "
                f"or (channels, d, h, w), got {input_shape}"
            )
        layers: list[torch.nn.Module] = []
        channels, space = input_shape[0], list(input_shape[1:])
        for layer in range(self.n_layers):
            space = [self._next_size(size) for size in space]
            if min(space) < 1:
                raise ShapeError(
                    f"samples of shape {input_shape} are used up after {layer + 1} of "
                    f"{self.n_layers} layers; use fewer layers, less pooling or more padding"
                )
            layers += self._layer(rank, channels)
            channels = self.hidden_dim
        if output_shape is not None:
            layers += [
                torch.nn.Flatten(),
                torch.nn.Linear(channels * math.prod(space), math.prod(output_shape)),
            ]
            layers += [torch.nn.Unflatten(1, output_shape)] if len(output_shape) > 1 else []
        elif self.flatten_output:
            layers.append(torch.nn.Flatten())
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(n, *output_shape)`` for ``(n, *input_shape)``."""
        out: torch.Tensor = self.layers(x)
        return out

    def _layer(self, rank: int, channels: int) -> list[torch.nn.Module]:
        conv = _CONV[rank](
            channels, self.hidden_dim, self.kernel_size, stride=self.stride, padding=self.padding
        )
        made: list[torch.nn.Module] = [conv, activation_layer(self.activation)]
        made += [_POOL[rank](self.pooling)] if self.pooling > 1 else []
        return made + ([torch.nn.Dropout(self.dropout)] if self.dropout else [])

    def _next_size(self, size: int) -> int:
        after = (size + 2 * self.padding - self.kernel_size) // self.stride + 1
        return after // self.pooling
