"""X, y and metadata of scikit-learn as a FeatureSet."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.utils import assert_all_finite, check_array, check_consistent_length
from sklearn.utils.validation import validate_data

from modularml._typing import Array
from modularml.data.featureset import FeatureSet
from modularml.errors import DataError

ARRAY, TARGET = "x", "y"
WEIGHTS, GROUPS = "sample_weight", "groups"
LABEL = "data"


def keys_of(X: Any) -> list[str] | None:  # noqa: N803 - scikit-learn's name
    """Return a key for each column of a frame; None for an array.

    Characters that keys cannot have become ``_``.

    Raises
    ------
    DataError
        If two columns get one key, or one has the key of a target or of metadata.
    """
    if not hasattr(X, "columns"):
        return None
    keys = [re.sub(r"[.:\\/\s]", "_", str(name)) for name in X.columns]
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    reserved = sorted({TARGET, WEIGHTS, GROUPS} & set(keys))
    if repeated or reserved:
        why = "several columns are called" if repeated else "targets and metadata are called"
        raise DataError(f"{why} {repeated or reserved}; rename these columns of X")
    return keys


def columns_of(
    estimator: Any,
    X: Any,  # noqa: N803
    keys: Sequence[str] | None,
    *,
    reset: bool,
) -> dict[str, Any]:
    """Check X as scikit-learn does, and return its columns by key.

    Parameters
    ----------
    estimator : BaseEstimator
        With ``allow_nan``; its ``n_features_in_`` and ``feature_names_in_`` are set or compared.
    X : frame or array-like, shape (n_samples, n_features)
    keys : sequence of str or None
        Keys of the frame that the estimator is fitted with; None for an array, which becomes the
        column ``x``.
    reset : bool
        Whether the estimator is being fitted.

    Raises
    ------
    ValueError
        If scikit-learn refuses X, or its columns differ from those of the fit.
    """
    if keys is None or not hasattr(X, "columns"):
        finite: Any = "allow-nan" if estimator.allow_nan else True
        dtypes: Any = [np.float64, np.float32]
        array = validate_data(estimator, X, dtype=dtypes, ensure_all_finite=finite, reset=reset)
        return {ARRAY: array} if keys is None else dict(zip(keys, array.T, strict=True))
    validate_data(estimator, X, skip_check_array=True, reset=reset)
    if not len(X) or not keys:
        raise DataError(f"X must have at least one row and one column, got shape {X.shape}")
    columns = dict(zip(keys_of(X) or (), (X[name] for name in X.columns), strict=True))
    if columns.keys() != set(keys):
        raise DataError(
            f"X has columns {list(columns)}, but the estimator was fitted with {list(keys)}; pass "
            "the same columns"
        )
    for key, values in columns.items():
        if (array := np.asarray(values)).dtype.kind == "f":
            assert_all_finite(array, allow_nan=estimator.allow_nan, input_name=key)
    return columns


def weights_of(sample_weight: Any) -> Array | None:
    """Return sample weights as floats; DataError unless they are numbers of at least 0."""
    if sample_weight is None:
        return None
    weights: Array = check_array(
        sample_weight, ensure_2d=False, dtype=np.float64, input_name=WEIGHTS
    )
    if weights.ndim != 1 or (weights < 0).any() or not weights.any():
        got = f"shape {weights.shape}, minimum {weights.min(initial=0)}"
        raise DataError(
            f"{WEIGHTS} must hold one number of at least 0 for each row, not only zeros, got "
            f"{'weights that are all zero' if not weights.any() else got}"
        )
    return weights


def featureset_of(columns: Mapping[str, Any], y: Array, tags: Mapping[str, Any]) -> FeatureSet:
    """Return a FeatureSet ``data`` in the active context.

    Parameters
    ----------
    columns : mapping of str to array-like
        Features.
    y : ndarray, shape (n_samples,) or (n_samples, n_outputs)
        The target ``y``.
    tags : mapping of str to array-like or None
        Weights and groups of rows, if any.
    """
    known = {key: np.asarray(values) for key, values in tags.items() if values is not None}
    check_consistent_length(y, *columns.values(), *known.values())
    data = {**columns, TARGET: y, **known}
    return FeatureSet.from_dict(LABEL, data, list(columns), TARGET, list(known))
