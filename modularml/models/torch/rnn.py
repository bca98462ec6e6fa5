"""Recurrent networks of torch."""

from __future__ import annotations

import torch

from modularml.models.sequences import RNNArguments
from modularml.models.torch.sequences import SequenceModel, dropout_layer

__all__ = ["SequentialRNN"]

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
