"""Models in torch: perceptrons, embeddings, and recurrent, convolutional and attention layers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch

from modularml._typing import Shape
from modularml.backends.layouts import InputShape
from modularml.models.layered import LayerArguments
from modularml.models.sequence_arguments import (
    CNNArguments,
    RNNArguments,
    SequenceArguments,
    TCNArguments,
    TransformerArguments,
    positions,
)
from modularml.models.tabular_arguments import GaussianHeadArguments, MLPArguments, TabularArguments
from modularml.models.torch.base import SequentialModel, TorchBaseModel, activation_layer


def dropout_layer(rate: float) -> torch.nn.Module:
    """Return a dropout layer, or the identity for 0."""
    return torch.nn.Dropout(rate) if rate else torch.nn.Identity()


def output_layers(width: int, output_shape: Shape) -> list[torch.nn.Module]:
    """Return a linear layer to an output shape."""
    linear = torch.nn.Linear(width, math.prod(output_shape))
    reshapes = len(output_shape) != 1
    return [linear, torch.nn.Unflatten(1, output_shape or (1,))] if reshapes else [linear]


def dense_layers(model: LayerArguments, width: int, output_shape: Shape) -> list[torch.nn.Module]:
    """Return the hidden layers that the arguments of a model describe, and the output layer."""
    hidden: list[torch.nn.Module] = []
    for _ in range(model.n_layers - 1):
        hidden += [torch.nn.Linear(width, model.hidden_dim), activation_layer(model.activation)]
        hidden += [torch.nn.Dropout(model.dropout)] if model.dropout else []
        width = model.hidden_dim
    return hidden + output_layers(width, output_shape)


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
        first = [torch.nn.Flatten()] if len(input_shape) > 1 else []
        dense = dense_layers(self, math.prod(input_shape), output_shape)
        self.layers = torch.nn.Sequential(*first, *dense)


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
        if not hasattr(self, "linear"):
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
        self.layers = torch.nn.Sequential(*dense_layers(self, width, output_shape))

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        """Return ``(n, *output_shape)`` for one tensor per input, ``(n, *input_shape)``."""
        if not hasattr(self, "layers"):
            raise self._no_layers()
        values = [named[name] for name in self._names] if self._names else list(inputs)
        flat = [value.flatten(1) for value in values]
        dtype = next(self.layers.parameters()).dtype
        rows = []  # of the embeddings; 0 for values that are not among the ids
        for i, (place, at) in enumerate(self._places):
            ids, column = getattr(self, f"ids_{i}"), flat[place][:, at]
            known = ids.to(column.dtype)
            row = torch.searchsorted(known, column.contiguous()).clamp(max=len(ids) - 1)
            rows.append(torch.where(known[row] == column, row + 1, 0))
        parts = [layer(row).to(dtype) for layer, row in zip(self.embeddings, rows, strict=True)]
        parts += [x[:, getattr(self, f"numbers_{i}")].to(dtype) for i, x in enumerate(flat)]
        out: torch.Tensor = self.layers(torch.cat(parts, dim=1))
        if self.handle_unknown == "nan" and rows:
            unknown = (torch.stack(rows) == 0).any(dim=0).reshape(-1, *[1] * (out.ndim - 1))
            return torch.where(unknown, torch.nan, out)
        return out


class CategoryEmbedding(torch.nn.Embedding):
    """An embedding that begins at 0."""

    def reset_parameters(self) -> None:
        """Set all weights to 0."""
        torch.nn.init.zeros_(self.weight)


class SequenceModel(SequenceArguments, TorchBaseModel, ABC):
    """An encoder of steps, pooling over real steps, and a linear layer."""

    reads_several = False

    @abstractmethod
    def make_encoder(self, n_channels: int, n_steps: int) -> None:
        """Build the layers of the encoder as attributes."""

    @abstractmethod
    def encode(self, steps: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return ``(n, time, hidden_dim)`` for ``(n, time, channels)``; real steps come first."""

    def make_layers(self, input_shape: Shape, output_shape: Shape | None) -> None:
        """Build the encoder and the linear layer."""
        self.make_encoder(*self.sizes(input_shape))
        head = [] if output_shape is None else output_layers(self.hidden_dim, output_shape)
        self.head = torch.nn.Sequential(*head)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return ``(n, *output_shape)`` for ``(n, *input_shape)``.

        `mask`, bool, shape ``(n, time)``, tells which steps are real; by default all are.
        """
        if not hasattr(self, "head"):
            raise self._no_layers()
        steps = x.transpose(1, 2) if x.ndim == 3 else x[:, 0]
        if mask is not None:
            self.check_mask(mask, steps)
            mask = mask.bool()
            # real steps come before padding, which becomes 0
            places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
            order = torch.sort(torch.where(mask, places, places + mask.shape[1]), dim=1)[0]
            order = order % mask.shape[1]
            mask = mask.gather(1, order)
            steps = steps.gather(1, order[..., None].expand(-1, -1, steps.shape[2]))
            steps = torch.where(mask[..., None], steps, 0.0)
        steps = self.encode(steps, mask)
        if mask is None:
            pooled = steps.mean(dim=1) if self.pooling == "mean" else steps[:, -1]
        elif self.pooling == "mean":
            total = (steps * mask[..., None]).sum(dim=1)
            pooled = total / mask.sum(dim=1, keepdim=True)  # NaN without real steps
        else:
            n_real = mask.sum(dim=1, keepdim=True)
            last = (n_real - 1).clamp(min=0)[..., None].expand(-1, -1, steps.shape[2])
            pooled = torch.where(n_real > 0, steps.gather(1, last)[:, 0], torch.nan)
        out: torch.Tensor = self.head(pooled)
        return out


_CELLS = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}


class SequentialRNN(RNNArguments, SequenceModel):  # noqa: D101 - that of its arguments
    __doc__ = f"""{RNNArguments.__doc__}
    Examples
    --------
    >>> model = SequentialRNN(cell="lstm", output_shape=(1,))
    >>> model.build(input_shape=(2, 50))
    >>> model(torch.zeros(8, 2, 50), mask=torch.ones(8, 50, dtype=torch.bool)).shape
    torch.Size([8, 1])
    """

    def make_encoder(self, n_channels: int, n_steps: int) -> None:
        """Build recurrent layers and dropout."""
        widths = [n_channels, *[self.hidden_dim] * (self.n_layers - 1)]
        layer = _CELLS[self.cell]
        self.recurrent = torch.nn.ModuleList(
            layer(width, self.hidden_dim, batch_first=True) for width in widths
        )
        self.drops = torch.nn.ModuleList(dropout_layer(self.dropout) for _ in widths)

    def encode(self, steps: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the outputs of the last recurrent layer; padding comes after real steps."""
        for layer, drop in zip(self.recurrent, self.drops, strict=True):
            steps = drop(layer(steps)[0].contiguous())  # dropout draws in order of memory
        return steps


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
        layers: list[torch.nn.Module] = []
        for n in channels:
            conv, size = _CONV[len(input_shape)], self.kernel_size
            layers.append(conv(n, self.hidden_dim, size, stride=self.stride, padding=self.padding))
            layers.append(activation_layer(self.activation))
            layers += [_POOL[len(input_shape)](self.pooling)] if self.pooling > 1 else []
            layers += [torch.nn.Dropout(self.dropout)] if self.dropout else []
        if output_shape is not None:
            width = self.hidden_dim * math.prod(space)
            layers += [torch.nn.Flatten(), torch.nn.Linear(width, math.prod(output_shape))]
            layers += [torch.nn.Unflatten(1, output_shape)] if len(output_shape) > 1 else []
        elif self.flatten_output:
            layers.append(torch.nn.Flatten())
        self.layers = torch.nn.Sequential(*layers)


class SequentialTCN(TCNArguments, SequenceModel):  # noqa: D101 - that of its arguments
    __doc__ = f"""{TCNArguments.__doc__}
    Examples
    --------
    >>> model = SequentialTCN(output_shape=(1,))
    >>> model.build(input_shape=(2, 50))
    >>> model(torch.zeros(8, 2, 50)).shape
    torch.Size([8, 1])
    """

    def make_encoder(self, n_channels: int, n_steps: int) -> None:
        """Build the residual blocks."""
        widths = [n_channels, *[self.hidden_dim] * (self.n_layers - 1)]
        self.blocks = torch.nn.Sequential(
            *(_ConvolutionBlock(self, width, 2**layer) for layer, width in enumerate(widths))
        )

    def encode(self, steps: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the outputs of the last block; no step sees a later one."""
        out: torch.Tensor = self.blocks(steps.transpose(1, 2)).transpose(1, 2)
        return out


class _ConvolutionBlock(torch.nn.Module):
    """Two causal convolutions beside the identity, or a convolution of width 1."""

    def __init__(self, model: SequentialTCN, width: int, dilation: int) -> None:
        super().__init__()
        hidden, size = model.hidden_dim, model.kernel_size
        self.before = (size - 1) * dilation
        self.first = torch.nn.Conv1d(width, hidden, size, dilation=dilation)
        self.second = torch.nn.Conv1d(hidden, hidden, size, dilation=dilation)
        self.skip = torch.nn.Identity() if width == hidden else torch.nn.Conv1d(width, hidden, 1)
        self.act, self.drop = activation_layer(model.activation), dropout_layer(model.dropout)
        self.drop_again = dropout_layer(model.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.drop(self.act(self.first(self._padded(x))))
        out = self.drop_again(self.act(self.second(self._padded(out))))
        summed: torch.Tensor = self.act(out + self.skip(x))
        return summed

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x, (self.before, 0))


class SequentialTransformer(TransformerArguments, SequenceModel):  # noqa: D101 - of its arguments
    __doc__ = f"""{TransformerArguments.__doc__}
    Examples
    --------
    >>> model = SequentialTransformer(output_shape=(1,))
    >>> model.build(input_shape=(2, 50))
    >>> model(torch.zeros(8, 2, 50)).shape
    torch.Size([8, 1])
    """

    encoding: torch.Tensor

    def make_encoder(self, n_channels: int, n_steps: int) -> None:
        """Build the linear layer for steps, positions, encoder layers and normalization."""
        self.steps = torch.nn.Linear(n_channels, self.hidden_dim)
        encoding = torch.tensor(positions(n_steps, self.hidden_dim))
        self.register_buffer("encoding", encoding, persistent=False)
        self.drop = dropout_layer(self.dropout)
        self.blocks = torch.nn.ModuleList(_AttentionBlock(self) for _ in range(self.n_layers))
        self.norm = torch.nn.LayerNorm(self.hidden_dim)

    def encode(self, steps: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the normalized outputs of the last layer."""
        x = self.steps(steps)
        x = self.drop(x + self.encoding[: x.shape[1]].to(x.dtype))
        for block in self.blocks:
            x = block(x, mask)
        out: torch.Tensor = self.norm(x)
        return out


class _AttentionBlock(torch.nn.Module):
    """Self-attention and a feed-forward part, each after a normalization."""

    def __init__(self, model: SequentialTransformer) -> None:
        super().__init__()
        dim, self.n_heads = model.hidden_dim, model.n_heads
        self.norm, self.qkv = torch.nn.LayerNorm(dim), torch.nn.Linear(dim, 3 * dim)
        self.out, self.norm_again = torch.nn.Linear(dim, dim), torch.nn.LayerNorm(dim)
        self.up, self.down = torch.nn.Linear(dim, 4 * dim), torch.nn.Linear(4 * dim, dim)
        self.act, self.drop = activation_layer(model.activation), dropout_layer(model.dropout)
        self.drop_again = dropout_layer(model.dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        n, n_steps, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, n_steps, 3, self.n_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = torch.where(mask[:, None, None, :], scores, -torch.inf)
        mixed = torch.softmax(scores, dim=-1) @ v
        x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(n, n_steps, width)))
        added = self.down(self.act(self.up(self.norm_again(x))))
        out: torch.Tensor = x + self.drop_again(added)
        return out
