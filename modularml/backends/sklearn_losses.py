"""Losses on numpy arrays, by the names that they bear in torch; one value an element or sample."""

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
        far = np.abs(output - target)
        return np.where(far < self.delta, 0.5 * far**2, self.delta * (far - 0.5 * self.delta))


@dataclass
class BCELoss(_Loss):
    """Logarithmic loss of a probability of class 1."""

    def _values(self, output: Array, target: Array) -> Any:
        return -(target * _log(output) + (1 - target) * _log(1 - output))


@dataclass
class CrossEntropyLoss(_Loss):
    """Logarithmic loss of class probabilities, as ``predict_proba`` gives them (not of logits)."""

    def _values(self, output: Array, target: Array) -> Any:
        chosen = np.take_along_axis(output, target.reshape(len(target), 1), axis=1)
        return -_log(chosen)[:, 0]


def _log(p: Array) -> Array:
    """Return the logarithm, cut off where it would be infinite, as `sklearn.metrics.log_loss`."""
    eps = np.finfo(p.dtype).eps
    return np.asarray(np.log(np.clip(p, eps, 1 - eps)))
