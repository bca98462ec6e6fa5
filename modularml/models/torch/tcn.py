"""Temporal convolutional networks of torch."""

from __future__ import annotations

import torch

from modularml.models.sequences import TCNArguments
from modularml.models.torch.base import activation_layer
from modularml.models.torch.sequences import SequenceModel, dropout_layer

__all__ = ["SequentialTCN"]


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
            *(_Block(self, width, 2**layer) for layer, width in enumerate(widths))
        )

    def encode(self, steps: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the outputs of the last block; no step sees a later one."""
        out: torch.Tensor = self.blocks(steps.transpose(1, 2)).transpose(1, 2)
        return out


class _Block(torch.nn.Module):
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
