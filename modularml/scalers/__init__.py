"""Scalers of two-dimensional arrays."""

from __future__ import annotations

from typing import Any

from modularml.scalers.affine import SKLEARN, scaler_registry
from modularml.scalers.base import BaseScaler, NoInverseError
from modularml.scalers.elementary import (
    Absolute,
    Negate,
    PerSampleMinMaxScaler,
    PerSampleZeroStart,
    SegmentedScaler,
)
from modularml.scalers.flattening import Flattening, flatten
from modularml.scalers.scaler import Scaler

__all__ = [
    "Absolute",
    "BaseScaler",
    "Flattening",
    "MaxAbsScaler",
    "MinMaxScaler",
    "Negate",
    "NoInverseError",
    "Normalizer",
    "PerSampleMinMaxScaler",
    "PerSampleZeroStart",
    "PowerTransformer",
    "QuantileTransformer",
    "RobustScaler",
    "Scaler",
    "SegmentedScaler",
    "StandardScaler",
    "flatten",
    "scaler_registry",
    "supported_scalers",
]


supported_scalers = scaler_registry
"""The same registry, under the name that `Scaler` uses."""


def __getattr__(name: str) -> Any:
    if name in SKLEARN:
        return scaler_registry[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
