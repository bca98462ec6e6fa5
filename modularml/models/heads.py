"""Arguments of models that predict a distribution, shared by all frameworks."""

from __future__ import annotations

import math
from typing import Any

from modularml._typing import Shape
from modularml.errors import ConfigError, ShapeError

__all__ = ["GaussianHeadArguments"]


class GaussianHeadArguments:
    """A linear layer that predicts the mean and the variance of each target.

    For ``k`` target values the outputs are ``k`` means, then ``k`` variances. Trained with
    ``Loss("gaussian_nll")``.

    Parameters
    ----------
    input_shape : tuple of int, optional
        Of one sample; by default set by the graph.
    target_shape : tuple of int, optional
        Shape of the targets of one sample; by default set by the graph.
    min_variance : float
        Added to each variance, which is ``softplus`` of the linear layer; at least 0.

    Notes
    -----
    Source: Nix & Weigend 1994, *Estimating the mean and variance of the target probability
    distribution* (ICNN).
    """

    def __init__(
        self,
        *,
        input_shape: Shape | None = None,
        target_shape: Shape | None = None,
        min_variance: float = 1e-6,
    ) -> None:
        if min_variance < 0:
            raise ConfigError(f"min_variance must be at least 0, got {min_variance!r}")
        super().__init__(
            input_shape=input_shape, target_shape=target_shape, min_variance=min_variance
        )  # type: ignore[call-arg]
        self.target_shape, self.min_variance = target_shape, min_variance

    def n_targets(self, target_shape: Shape | None) -> int:
        """Return the number of target values of one sample; ShapeError if it is not known."""
        shape: Any = self.target_shape if self.target_shape is not None else target_shape
        if shape is None:
            raise ShapeError(
                "GaussianHead needs target_shape unless its node is a tail of the graph; pass "
                "target_shape="
            )
        return math.prod(shape)
