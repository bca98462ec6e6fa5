"""Registry of scalers by name."""

from __future__ import annotations

from typing import Any

from modularml._optional import require
from modularml._registry import Registry
from modularml.config import config_registry

__all__ = ["ENCODERS", "OWN", "SKLEARN", "scaler_registry"]

OWN = ("Absolute", "Negate", "PerSampleMinMaxScaler", "PerSampleZeroStart", "SegmentedScaler")

SKLEARN = (
    "MaxAbsScaler",
    "MinMaxScaler",
    "Normalizer",
    "PowerTransformer",
    "QuantileTransformer",
    "RobustScaler",
    "StandardScaler",
)


ENCODERS = ("LabelEncoder", "OneHotEncoder", "OrdinalEncoder", "TargetEncoder")
"""What takes text and other categories."""

OTHERS = {
    "sklearn.decomposition": ("PCA",),
    "sklearn.feature_selection": ("SelectKBest", "VarianceThreshold"),
    "sklearn.impute": ("KNNImputer", "SimpleImputer"),
    "sklearn.preprocessing": (*ENCODERS, "KBinsDiscretizer", "PolynomialFeatures"),
}
"""Steps that may change the number of columns, by module."""


def _load() -> dict[str, type[Any]]:
    preprocessing = require("sklearn.preprocessing")
    ours = {name: config_registry[name] for name in OWN}
    theirs = {name: getattr(preprocessing, name) for name in SKLEARN}
    others = {n: getattr(require(module), n) for module, names in OTHERS.items() for n in names}
    return dict(sorted({**ours, **theirs, **others}.items()))


scaler_registry: Registry[type[Any]] = Registry("scaler", load=_load)
"""Scaler classes by name, in any case; add yours with ``register(name, cls)``."""
