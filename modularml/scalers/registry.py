"""Registry of scalers by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from modularml._optional import require
from modularml._registry import Registry
from modularml.config import config_registry
from modularml.scalers.affine import AFFINE

__all__ = ["ENCODERS", "OWN", "SKLEARN", "affine_class", "scaler_registry"]

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


def _class_of(module: str, name: str) -> Any:
    return getattr(require(module), name)


_LATE: dict[str, Callable[[], type[Any]]] = {
    **{name: partial(config_registry.__getitem__, name) for name in OWN},
    **{name: partial(_class_of, "sklearn.preprocessing", name) for name in SKLEARN},
    **{n: partial(_class_of, module, n) for module, names in OTHERS.items() for n in names},
}

scaler_registry: Registry[type[Any]] = Registry("scaler", late=dict(sorted(_LATE.items())))
"""Scaler classes by name, in any case; add yours with ``register(name, cls)``."""


def affine_class(name: str | None) -> type[Any] | None:
    """Return the class that does the work of scikit-learn's of this name, without its import.

    None if there is none, or another class was registered under the name.
    """
    if name not in AFFINE:
        return None
    is_theirs = scaler_registry.is_late(name) or scaler_registry[name].__module__[:8] == "sklearn."
    return AFFINE[name] if is_theirs else None
