"""Transformer encoders of torch."""

from __future__ import annotations

import math

import torch

from modularml.models.sequences import TransformerArguments, positions
from modularml.models.torch.base import activation_layer
from modularml.models.torch.sequences import SequenceModel, dropout_layer

__all__ = ["SequentialTransformer"]


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
        self.blocks = torch.nn.ModuleList(_Block(self) for _ in range(self.n_layers))
        self.norm = torch.nn.LayerNorm(self.hidden_dim)

    def encode(self, steps: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the normalized outputs of the last layer."""
        x = self.steps(steps)
        x = self.drop(x + self.encoding[: x.shape[1]].to(x.dtype))
        for block in self.blocks:
            x = block(x, mask)
        out: torch.Tensor = self.norm(x)
        return out


class _Block(torch.nn.Module):
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
        x = x + self.drop(self.out(self._attention(self.qkv(self.norm(x)), mask)))
        added = self.down(self.act(self.up(self.norm_again(x))))
        out: torch.Tensor = x + self.drop_again(added)
        return out

    def _attention(self, qkv: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        n, n_steps, width = qkv.shape
        q, k, v = qkv.reshape(n, n_steps, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = torch.where(mask[:, None, None, :], scores, -torch.inf)
        mixed = torch.softmax(scores, dim=-1) @ v
        out: torch.Tensor = mixed.transpose(1, 2).reshape(n, n_steps, width // 3)
        return out
