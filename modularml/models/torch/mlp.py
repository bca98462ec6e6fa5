"""Multi-layer perceptrons of torch."""

from __future__ import annotations

import math

import torch

from modularml._typing import Shape
from modularml.models.sequential import MLPArguments
from modularml.models.torch.base import SequentialModel, activation_layer

__all__ = ["SequentialMLP"]


class SequentialMLP(MLPArguments, SequentialModel):  # noqa: D101 - that of its arguments
    __doc__ = f"""{MLPArguments.__doc__}
    Examples
    --------
    >>> SequentialMLP(input_shape=(4,), output_shape=(1,)).n_layers
    2
    """

    def make_layers(self, input_shape: Shape, output_shape: Shape | None) -> None:
        """Build linear layers, activations and dropout."""
        output_shape = self.check_output(output_shape)
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
