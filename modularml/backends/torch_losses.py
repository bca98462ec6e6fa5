"""Torch losses of distributions, beside those of torch."""

from __future__ import annotations

import math
from typing import Any

from modularml._optional import require
from modularml.backends.distributions import QUANTILES, check_quantiles

torch = require("torch", purpose="to train torch models")

__all__ = ["CLASSES"]


class GaussianNLLLoss(torch.nn.GaussianNLLLoss):  # type: ignore[misc, name-defined]
    """Gaussian negative log-likelihood; without `var`, outputs are means, then variances."""

    def forward(self, input: Any, target: Any, var: Any = None) -> Any:
        if var is not None:
            return super().forward(input, target, var)
        mean, var = input.flatten(1).chunk(2, dim=1)
        safe = torch.where(var < 0, torch.nan, var.clamp(min=self.eps))
        values = 0.5 * (torch.log(safe) + (mean - target) ** 2 / safe)
        if self.full:
            values = values + 0.5 * math.log(2 * math.pi)
        return _reduced(values, self.reduction)


class PinballLoss(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Pinball loss of quantiles; outputs are a block of all targets for each quantile."""

    def __init__(self, quantiles: Any = QUANTILES, reduction: str = "mean") -> None:
        super().__init__()
        self.quantiles, self.reduction = check_quantiles(quantiles), reduction

    def forward(self, input: Any, target: Any) -> Any:
        blocks = input.flatten(1).chunk(len(self.quantiles), dim=1)
        parts = []
        for level, block in zip(self.quantiles, blocks, strict=True):
            above = target - block
            parts.append(torch.maximum(level * above, (level - 1.0) * above))
        return _reduced(torch.cat(parts, dim=1), self.reduction)


def _reduced(values: Any, reduction: str) -> Any:
    return {"none": lambda v: v, "mean": torch.mean, "sum": torch.sum}[reduction](values)


CLASSES = {"GaussianNLLLoss": GaussianNLLLoss, "PinballLoss": PinballLoss}
