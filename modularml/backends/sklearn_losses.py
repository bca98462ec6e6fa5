"""Losses on numpy arrays, named as in torch, with one value per element or sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from modularml._typing import Array

__all__ = ["BCELoss", "CrossEntropyLoss", "HuberLoss", "L1Loss", "MSELoss"]


@dataclass
class _Loss:
    reduction: str = "none"

    def __call__(self, output: Array, target: Array) -> Any:
        values = self._values(output, target)
        return values if self.reduction == "none" else getattr(values, self.reduction)()

    def _values(self, output: Array, target: Array) -> Any:
        raise NotImplementedError


@dataclass
class MSELoss(_Loss):
    """Squared difference."""

    def _values(self, output: Array, target: Array) -> Any:
        return np.square(output - target)


@dataclass
class L1Loss(_Loss):
    """Absolute difference."""

    def _values(self, output: Array, target: Array) -> Any:
        return np.abs(output - target)


@dataclass
class HuberLoss(_Loss):
    """Half the squared difference, linear beyond `delta`."""

    delta: float = 1.0

    def _values(self, output: Array, target: Array) -> Any:
        difference = np.abs(output - target)
        return np.where(
            difference < self.delta,
            0.5 * difference**2,
            self.delta * (difference - 0.5 * self.delta),
        )


@dataclass
class BCELoss(_Loss):
    """Logarithmic loss of a probability of class 1."""

    def _values(self, output: Array, target: Array) -> Any:
        return -(target * _log(output) + (1 - target) * _log(1 - output))


@dataclass
class CrossEntropyLoss(_Loss):
    """Logarithmic loss of class probabilities from ``predict_proba`` (not logits)."""

    def _values(self, output: Array, target: Array) -> Any:
        chosen = np.take_along_axis(output, target.reshape(len(target), 1), axis=1)
        return -_log(chosen)[:, 0]


def _log(p: Array) -> Array:
    """Return the clipped logarithm, as in `sklearn.metrics.log_loss`."""
    eps = np.finfo(p.dtype).eps
    return np.asarray(np.log(np.clip(p, eps, 1 - eps)))
