"""The base class of torch models of sequences."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch

from modularml._typing import Shape
from modularml.models.sequences import SequenceArguments
from modularml.models.torch.base import TorchBaseModel, activation_layer

__all__ = ["SequenceModel", "dropout_layer"]


class SequenceModel(SequenceArguments, TorchBaseModel, ABC):
    """An encoder of steps, pooling over real steps, and a linear layer."""

    reads_several = False

    def __init__(self, **kwargs: Any) -> None:
        if "activation" in kwargs:
            activation_layer(kwargs["activation"])
        super().__init__(**kwargs)

    @abstractmethod
    def make_encoder(self, n_channels: int, n_steps: int) -> None:
        """Build the layers of the encoder as attributes."""

    @abstractmethod
    def encode(self, steps: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return ``(n, time, hidden_dim)`` for ``(n, time, channels)``; real steps come first."""

    def make_layers(self, input_shape: Shape, output_shape: Shape | None) -> None:
        """Build the encoder and the linear layer."""
        self.make_encoder(*self.sizes(input_shape))
        head: list[torch.nn.Module] = []
        if output_shape is not None:
            head.append(torch.nn.Linear(self.hidden_dim, math.prod(output_shape)))
            if len(output_shape) != 1:
                head.append(torch.nn.Unflatten(1, output_shape or (1,)))
        self.head = torch.nn.Sequential(*head)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return ``(n, *output_shape)`` for ``(n, *input_shape)``.

        `mask`, bool, shape ``(n, time)``, tells which steps are real; by default all are.
        """
        if "head" not in self._modules:
            raise self._no_layers()
        steps = x.transpose(1, 2) if x.ndim == 3 else x[:, 0]
        if mask is not None:
            self.check_mask(mask, steps)
            steps, mask = _real_first(steps, mask.bool())
        pooled = self._pooled(self.encode(steps, mask), mask)
        out: torch.Tensor = self.head(pooled)
        return out

    def _pooled(self, steps: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if mask is None:
            return steps.mean(dim=1) if self.pooling == "mean" else steps[:, -1]
        n_real = mask.sum(dim=1, keepdim=True)
        if self.pooling == "mean":
            total = (steps * mask[..., None]).sum(dim=1)
            return total / n_real  # NaN without real steps
        last = (n_real - 1).clamp(min=0)[..., None].expand(-1, -1, steps.shape[2])
        return torch.where(n_real > 0, steps.gather(1, last)[:, 0], torch.nan)


def dropout_layer(rate: float) -> torch.nn.Module:
    """Return a dropout layer, or the identity for 0."""
    return torch.nn.Dropout(rate) if rate else torch.nn.Identity()


def _real_first(steps: torch.Tensor, mask: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Return steps and mask with real steps before padding, which becomes 0."""
    n_steps = mask.shape[1]
    places = torch.arange(n_steps, device=mask.device).expand_as(mask)
    order = torch.sort(torch.where(mask, places, places + n_steps), dim=1)[0] % n_steps
    mask = mask.gather(1, order)
    steps = steps.gather(1, order[..., None].expand(-1, -1, steps.shape[2]))
    return torch.where(mask[..., None], steps, 0.0), mask
