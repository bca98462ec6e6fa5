"""Models of torch that predict a distribution."""

from __future__ import annotations

import math

import torch

from modularml._typing import Shape
from modularml.models.heads import GaussianHeadArguments
from modularml.models.torch.base import TorchBaseModel

__all__ = ["GaussianHead"]


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
