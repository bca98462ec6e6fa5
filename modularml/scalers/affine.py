"""Registry of scalers, and two that compute as scikit-learn does, without its import.

Results and learned attributes equal scikit-learn's bit for bit, for arrays of float32 and float64
and common arguments. All else is left to its own classes, which are imported then: importing
scikit-learn takes longer than scaling 10 million numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np

from modularml._optional import require
from modularml._registry import Registry
from modularml._typing import Array
from modularml.config import config_registry
from modularml.errors import ConfigError
from modularml.io.estimator_kinds import parameters

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class AffineScaler:
    """What both scalers share; the methods are those of scikit-learn's class of the same name."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {name: value for name, value in vars(self).items() if not name.endswith("_")}

    def of_sklearn(self) -> Any:
        """Return scikit-learn's scaler with the same arguments and learned attributes."""
        full = getattr(require("sklearn.preprocessing"), type(self).__name__)(**self.get_params())
        vars(full).update(vars(self))
        return full

    def fit(self, X: Array, y: object = None) -> Self:  # noqa: N803 - scikit-learn's names
        """Learn from rows, forgetting what was learned before."""
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        return self.partial_fit(X)

    def partial_fit(self, X: Array, y: object = None) -> Self:  # noqa: N803
        """Learn from more rows."""
        is_first = not hasattr(self, "n_samples_seen_")
        if not self._is_plain(X) or (not is_first and X.shape[1] != vars(self)["n_features_in_"]):
            vars(self).update(vars(self.of_sklearn().partial_fit(X)))
            return self
        if is_first:
            self.n_features_in_ = X.shape[1]
        self._learn(X, is_first)
        return self

    def transform(self, X: Array) -> Array:  # noqa: N803
        """Scale rows into a new array."""
        return self._apply("transform", X)

    def inverse_transform(self, X: Array) -> Array:  # noqa: N803
        """Undo `transform`, in a new array."""
        return self._apply("inverse_transform", X)

    def _apply(self, method: str, X: Array) -> Array:  # noqa: N803
        columns = getattr(self, "n_features_in_", None)
        if not self._is_plain(X) or X.shape[1] != columns:
            found: Array = getattr(self.of_sklearn(), method)(X)
            return found
        out = np.array(X)
        self._scale(out) if method == "transform" else self._unscale(out)
        return out

    def _is_plain(self, X: Array) -> bool:  # noqa: N803
        """Return whether scikit-learn would accept arguments and rows and convert none."""
        is_array = type(X) in (np.ndarray, np.memmap)  # others may sum or multiply otherwise
        if not (is_array and X.dtype in _FLOATS and X.ndim == 2 and X.size):
            return False
        with np.errstate(all="ignore"):
            finite = np.isfinite(X.sum(dtype=np.float64))
        return self._has_plain_arguments() and bool(finite or not np.isinf(X).any())

    def _has_plain_arguments(self) -> bool:
        raise NotImplementedError

    def _learn(self, X: Array, is_first: bool) -> None:  # noqa: N803
        raise NotImplementedError

    def _scale(self, out: Array) -> None:
        raise NotImplementedError

    def _unscale(self, out: Array) -> None:
        raise NotImplementedError


class StandardScaler(AffineScaler):
    """Subtracts means and divides by standard deviations, both ignoring NaN."""

    def __init__(self, *, copy: bool = True, with_mean: bool = True, with_std: bool = True) -> None:
        self.copy, self.with_mean, self.with_std = copy, with_mean, with_std

    def _has_plain_arguments(self) -> bool:
        return all(type(value) is bool for value in (self.copy, self.with_mean, self.with_std))

    def _learn(self, X: Array, is_first: bool) -> None:  # noqa: N803
        """Update mean and variance by Chan, Golub & LeVeque's two-pass algorithm."""
        if is_first:
            self.mean_: Any = 0.0
            self.var_: Any = 0.0 if self.with_std else None
        n_before = np.zeros(X.shape[1]) + (0 if is_first else self.n_samples_seen_)
        if self.with_mean or self.with_std:
            self.mean_, self.var_, n = _updated(X, self.mean_, self.var_, n_before)
        else:
            self.mean_, self.var_ = None, None
            n = n_before.astype(np.int64) + (len(X) - np.isnan(X).sum(axis=0))
        self.n_samples_seen_: Any = n[0] if n.max() == n.min() else n
        self.scale_: Array | None = None
        if self.with_std:
            seen, eps = self.n_samples_seen_, np.finfo(np.float64).eps
            bound = seen * eps * self.var_ + (seen * self.mean_ * eps) ** 2
            self.scale_ = np.sqrt(self.var_)
            self.scale_[self.var_ <= bound] = 1.0

    def _scale(self, out: Array) -> None:
        if self.with_mean:
            out -= self.mean_.astype(out.dtype)
        if self.scale_ is not None:
            out /= self.scale_.astype(out.dtype)

    def _unscale(self, out: Array) -> None:
        if self.scale_ is not None:
            out *= self.scale_.astype(out.dtype)
        if self.with_mean:
            out += self.mean_.astype(out.dtype)


def _updated(X: Array, mean: Any, var: Any, n_before: Array) -> tuple[Array, Any, Array]:  # noqa: N803
    """Return mean, variance and number of rows by column, after further rows."""
    is_nan = np.isnan(X)
    total: Any = np.nansum if is_nan.any() else np.sum
    sum_before = mean * n_before
    new_sum, n_new = total(X, axis=0, dtype=np.float64), len(X) - is_nan.sum(axis=0, dtype=float)
    n = n_before + n_new
    new_mean = (sum_before + new_sum) / n
    if var is None:
        return new_mean, None, n
    distance = X - new_sum / n_new
    correction = total(distance, axis=0, dtype=np.float64)
    distance **= 2
    spread = total(distance, axis=0, dtype=np.float64)
    spread -= correction**2 / n_new
    with np.errstate(divide="ignore", invalid="ignore"):
        share = n_before / n_new
        together = var * n_before + spread + share / n * (sum_before / share - new_sum) ** 2
    is_first = n_before == 0
    together[is_first] = spread[is_first]
    return new_mean, together / n, n


class MinMaxScaler(AffineScaler):
    """Maps the range of each column, ignoring NaN, to a given range."""

    def __init__(
        self, feature_range: tuple[float, float] = (0, 1), *, copy: bool = True, clip: bool = False
    ) -> None:
        self.feature_range, self.copy, self.clip = feature_range, copy, clip

    n_samples_seen_: int
    data_min_: Array
    data_max_: Array

    def _has_plain_arguments(self) -> bool:
        known = type(self.copy) is bool and type(self.clip) is bool
        ends: tuple[Any, ...] = self.feature_range if type(self.feature_range) is tuple else ()
        numbers = len(ends) == 2 and all(type(end) in (int, float) for end in ends)
        return known and numbers and ends[0] < ends[1]

    def _learn(self, X: Array, is_first: bool) -> None:  # noqa: N803
        low, high = (X.dtype.type(end) for end in self.feature_range)
        least, most = np.nanmin(X, axis=0), np.nanmax(X, axis=0)
        if not is_first:
            least, most = np.minimum(self.data_min_, least), np.maximum(self.data_max_, most)
        seen = 0 if is_first else self.n_samples_seen_
        self.n_samples_seen_ = seen + len(X)
        width = most - least
        divisor = width.copy()
        divisor[divisor < 10 * np.finfo(divisor.dtype).eps] = 1.0
        self.scale_ = (high - low) / divisor
        self.min_ = low - least * self.scale_
        self.data_min_, self.data_max_, self.data_range_ = least, most, width

    def _scale(self, out: Array) -> None:
        out *= self.scale_
        out += self.min_
        if self.clip:
            np.clip(out, *(out.dtype.type(end) for end in self.feature_range), out=out)

    def _unscale(self, out: Array) -> None:
        out -= self.min_
        out /= self.scale_


AFFINE: dict[str, type[AffineScaler]] = {
    "MinMaxScaler": MinMaxScaler,
    "StandardScaler": StandardScaler,
}
"""Classes by the name of scikit-learn's class."""


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


def resolve(scaler: Any) -> tuple[str | None, type[Any], dict[str, Any]]:
    """Return the registered name and class of a scaler, and the arguments of an instance.

    Raises
    ------
    UnknownNameError
        If nothing is registered under the name.
    ConfigError
        If the object is no scaler, or does not store its arguments.
    """
    if isinstance(scaler, str):
        name = scaler_registry.find(scaler)
        return name, affine_class(name) or scaler_registry[scaler], {}
    cls = scaler if isinstance(scaler, type) else type(scaler)
    lacking = [n for n in ("fit", "transform") if not callable(getattr(cls, n, None))]
    if lacking:
        raise ConfigError(
            f"a scaler is a registered name, or has fit and transform; {scaler!r} lacks "
            f"{' and '.join(lacking)}. Names: {', '.join(scaler_registry)}"
        )
    name = scaler_registry.name_of(cls)
    arguments: dict[str, Any] = {}
    if isinstance(scaler, type):
        return name, affine_class(name) or cls, arguments
    # those that the instance was made with, but for defaults
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    known = scaler.get_params(deep=False) if hasattr(scaler, "get_params") else vars(scaler)
    for key, parameter in parameters(cls).items():
        if parameter.kind in kinds:
            continue
        if key not in known:
            raise ConfigError(
                f"{cls.__name__} does not store its argument {key!r} under that name; give the "
                f"class and its arguments: Scaler({cls.__name__}, {{{key!r}: ...}})"
            )
        value, default = known[key], parameter.default
        comparable = isinstance(value, bool | int | float | str | tuple)
        is_same = comparable and type(value) is type(default) and bool(value == default)
        if value is not default and not is_same:
            arguments[key] = value
    return name, affine_class(name) or cls, arguments
