"""A multi-layer perceptron."""

from __future__ import annotations

import math
from typing import Any

import torch

from modularml._typing import Shape
from modularml.errors import ConfigError, ShapeError
from modularml.models.torch.base import TorchBaseModel, activation_layer

__all__ = ["SequentialMLP"]


class SequentialMLP(TorchBaseModel):
    """Flatten the input, then ``n_layers - 1`` hidden layers and one output layer.

    Parameters
    ----------
    input_shape, output_shape : tuple of int, optional
        Of one sample; found by the graph where they are not given.
    n_layers : int
        Linear layers, the output layer among them; at least 1.
    hidden_dim : int
        Width of the hidden layers.
    activation : str
        Name of a torch activation, in any case.
    dropout : float
        Share of hidden values that are dropped in training, in ``[0, 1)``.

    Examples
    --------
    >>> SequentialMLP(input_shape=(4,), output_shape=(1,)).n_layers
    2
    """

    def __init__(
        self,
        *,
        input_shape: Shape | None = None,
        output_shape: Shape | None = None,
        n_layers: int = 2,
        hidden_dim: int = 32,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        check_sizes(n_layers=n_layers, hidden_dim=hidden_dim)
        check_dropout(dropout)
        super().__init__(
            input_shape=input_shape,
            output_shape=output_shape,
            n_layers=n_layers,
            hidden_dim=hidden_dim,
            activation=activation,
            dropout=dropout,
        )
        self.n_layers, self.hidden_dim = n_layers, hidden_dim
        self.activation, self.dropout = activation, dropout
        activation_layer(activation)

    def make_layers(self, input_shape: Shape, output_shape: Shape | None) -> None:
        """Make linear layers, activations and dropout."""
        if output_shape is None:
            raise ShapeError(
                "SequentialMLP needs output_shape; a node that is no tail must be given one"
            )
        layers: list[torch.nn.Module] = [torch.nn.Flatten()] if len(input_shape) > 1 else []
        width = math.prod(input_shape)
        for _ in range(self.n_layers - 1):
            layers += [torch.nn.Linear(width, self.hidden_dim), activation_layer(self.activation)]
            layers += [torch.nn.Dropout(self.dropout)] if self.dropout else []
            width = self.hidden_dim
        layers.append(torch.nn.Linear(width, math.prod(output_shape)))
        if len(output_shape) != 1:
            layers.append(torch.nn.Unflatten(1, output_shape or (1,)))
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(n, *output_shape)`` for ``(n, *input_shape)``."""
        out: torch.Tensor = self.layers(x)
        return out


def check_sizes(**sizes: Any) -> None:
    """Refuse sizes that are no positive int."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(f"{name} must be an int of at least 1, got {size!r}")


def check_dropout(dropout: float) -> None:
    """Refuse a dropout outside [0, 1)."""
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout must be in [0, 1), got {dropout!r}")
