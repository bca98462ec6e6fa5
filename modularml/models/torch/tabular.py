"""Models of tables in torch: perceptrons, embeddings and heads."""

from __future__ import annotations

import math

import torch

from modularml._typing import Shape
from modularml.backends.input_shapes import InputShape
from modularml.models.heads import GaussianHeadArguments
from modularml.models.sequential import MLPArguments
from modularml.models.tabular import TabularArguments
from modularml.models.torch.base import SequentialModel, TorchBaseModel, activation_layer
from modularml.models.torch.sequences import dropout_layer

__all__ = ["GaussianHead", "SequentialMLP", "TabularMLP"]


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


class GaussianHead(GaussianHeadArguments, TorchBaseModel):  # noqa: D101 - that of its arguments
    __doc__ = f"""{GaussianHeadArguments.__doc__}
    Examples
    --------
    >>> head = GaussianHead()
    >>> head.build(input_shape=(8,), output_shape=(1,))
    >>> head.output_shape
    (2,)
    """

    reads_several = False

    def make_layers(self, input_shape: Shape, output_shape: Shape | None) -> None:
        """Build the linear layer."""
        self.linear = torch.nn.Linear(math.prod(input_shape), 2 * self.n_targets(output_shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return means and variances, shape ``(n, 2 * n_targets)``."""
        if "linear" not in self._modules:
            raise self._no_layers()
        mean, raw = self.linear(x.flatten(1)).chunk(2, dim=1)
        return torch.cat([mean, torch.nn.functional.softplus(raw) + self.min_variance], dim=1)


class TabularMLP(TabularArguments, TorchBaseModel):  # noqa: D101 - that of its arguments
    __doc__ = f"""{TabularArguments.__doc__}
    Examples
    --------
    >>> model = TabularMLP(categories=[[7, 12, 1003], None], output_shape=(1,))
    >>> model.build(input_shape=(2,))
    >>> model(torch.tensor([[1003, 0.5], [99, 0.5]])).shape
    torch.Size([2, 1])
    """

    def make_layers(self, input_shape: InputShape, output_shape: Shape | None) -> None:
        """Build embeddings, linear layers, activations and dropout."""
        output_shape = self.check_output(output_shape)
        columns = self.category_columns(input_shape)
        self._places = [(column.input, column.place) for column in columns]
        self._names = list(input_shape) if isinstance(input_shape, dict) else None
        self.embeddings = torch.nn.ModuleList(
            CategoryEmbedding(len(column.ids) + 1, column.width) for column in columns
        )
        for i, column in enumerate(columns):
            self.register_buffer(f"ids_{i}", torch.tensor(column.ids), persistent=False)
        numbers = self.numbers(input_shape, columns)
        for i, places in enumerate(numbers):
            self.register_buffer(f"numbers_{i}", torch.tensor(places), persistent=False)
        width = sum(column.width for column in columns) + sum(map(len, numbers))
        layers: list[torch.nn.Module] = []
        for _ in range(self.n_layers - 1):
            layers += [torch.nn.Linear(width, self.hidden_dim), activation_layer(self.activation)]
            layers += [dropout_layer(self.dropout)] if self.dropout else []
            width = self.hidden_dim
        layers.append(torch.nn.Linear(width, math.prod(output_shape)))
        if len(output_shape) != 1:
            layers.append(torch.nn.Unflatten(1, output_shape or (1,)))
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        """Return ``(n, *output_shape)`` for one tensor per input, ``(n, *input_shape)``."""
        if "layers" not in self._modules:
            raise self._no_layers()
        values = [named[name] for name in self._names] if self._names else list(inputs)
        flat = [value.flatten(1) for value in values]
        dtype = next(self.layers.parameters()).dtype
        parts = [
            embedding(self._rows(getattr(self, f"ids_{i}"), flat[place][:, at])).to(dtype)
            for i, (embedding, (place, at)) in enumerate(
                zip(self.embeddings, self._places, strict=True)
            )
        ]
        parts += [x[:, getattr(self, f"numbers_{i}")].to(dtype) for i, x in enumerate(flat)]
        out: torch.Tensor = self.layers(torch.cat(parts, dim=1))
        if self.handle_unknown == "nan":
            unknown = self._unknown(flat).reshape(-1, *[1] * (out.ndim - 1))
            return torch.where(unknown, torch.nan, out)
        return out

    def _rows(self, ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return the row of the embedding for each value; 0 if it is not among the ids."""
        known = ids.to(values.dtype)
        place = torch.searchsorted(known, values.contiguous()).clamp(max=len(ids) - 1)
        return torch.where(known[place] == values, place + 1, 0)

    def _unknown(self, flat: list[torch.Tensor]) -> torch.Tensor:
        """Return which samples have a value that is not among the ids."""
        unknown = torch.zeros(len(flat[0]), dtype=torch.bool, device=flat[0].device)
        for i, (place, at) in enumerate(self._places):
            unknown = unknown | (self._rows(getattr(self, f"ids_{i}"), flat[place][:, at]) == 0)
        return unknown


class CategoryEmbedding(torch.nn.Embedding):
    """An embedding that begins at 0."""

    def reset_parameters(self) -> None:
        """Set all weights to 0."""
        torch.nn.init.zeros_(self.weight)
