"""Output methods of estimators, and the shapes of their outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.base import (
    OneToOneFeatureMixin,
    is_classifier,
    is_clusterer,
    is_outlier_detector,
    is_regressor,
)
from sklearn.ensemble import (
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags

from modularml._typing import Array, Shape
from modularml.errors import ConfigError, ShapeError

__all__ = [
    "OUTPUT_METHODS",
    "all_labels",
    "check_targets",
    "core",
    "dense",
    "is_supervised",
    "known_shape",
    "output_method",
]

OUTPUT_METHODS = ("predict", "predict_proba", "decision_function", "transform")
ENSEMBLES = (StackingClassifier, StackingRegressor, VotingClassifier, VotingRegressor)
"""Their ``transform`` returns the predictions of their members; these always predict."""
_PARTS = {"estimator", "estimators", "final_estimator", "regressor", "steps"}


def core(estimator: Any) -> Any:
    """Return the final estimator of a pipeline or search, however nested."""
    while True:
        if isinstance(estimator, Pipeline):
            inner = estimator.steps[-1][1]
        elif isinstance(estimator, BaseSearchCV):
            inner = getattr(estimator, "best_estimator_", estimator.estimator)
        else:
            return estimator
        if not hasattr(inner, "fit"):  # 'passthrough'
            return estimator
        estimator = inner


def is_supervised(estimator: Any) -> bool:
    """Return whether an estimator learns targets."""
    return bool(is_classifier(estimator) or is_regressor(estimator))


def output_method(model: Any, asked: str, *, feeds: bool) -> str:
    """Return the method that computes the outputs.

    Parameters
    ----------
    model : estimator
    asked : str
        'auto' or one of `OUTPUT_METHODS`.
    feeds : bool
        Whether another node reads the outputs.

    Raises
    ------
    ConfigError
        If there is none, or the requested one does not exist.
    """
    available = [name for name in OUTPUT_METHODS if _offers(model, name)]
    if asked != "auto":
        if asked not in available:
            raise ConfigError(
                f"output_method must be 'auto' or one that {type(model).__name__} has, "
                f"{available}, got {asked!r}"
            )
        return asked
    order = [name for name in _order(model, feeds=feeds) if name in available]
    if not order:
        raise ConfigError(
            f"{type(model).__name__} has neither predict nor transform, so it has no outputs for "
            "new rows"
        )
    return next((name for name in order if hasattr(model, name)), order[0])


def _order(model: Any, *, feeds: bool) -> list[str]:
    inner = core(model)
    transforms = [] if isinstance(inner, ENSEMBLES) or not feeds else ["transform"]
    if is_classifier(model):
        return [*transforms, "predict_proba", "decision_function", "predict"]
    if is_regressor(model):
        return [*transforms, "predict"]
    if is_clusterer(model) or is_outlier_detector(model):
        return [*transforms, "predict", "transform"]
    return ["transform", "predict"]


def _offers(model: Any, name: str) -> bool:
    """Return whether an estimator has a method, possibly only after fit."""
    if isinstance(model, BaseSearchCV) and model.refit is False:  # it stores no estimator
        return False
    if hasattr(model, name):
        return True
    inner = core(model)
    return hasattr(type(inner), name) and not _PARTS.isdisjoint(inner.get_params(deep=False))


def known_shape(
    model: Any, method: str, width: int | None, target: Shape | None, labels: Array | None
) -> Shape | None:
    """Return the shape of one output sample; None if only a fit determines it.

    Parameters
    ----------
    model : estimator
    method : str
    width : int or None
        Number of values in a row of its input.
    target : tuple of int or None
        Shape of one sample of the targets.
    labels : ndarray or None
        Classes of the outputs of a classifier.
    """
    if method == "predict":
        return (target or (1,)) if is_supervised(model) else (1,)
    if method in ("predict_proba", "decision_function"):
        if not is_classifier(model):
            return (1,) if is_outlier_detector(model) else None
        if labels is None:
            return None
        n = len(labels)
        if method == "predict_proba":
            return (n,)
        pairs = getattr(core(model), "decision_function_shape", "ovr") == "ovo"
        return (1,) if n == 2 else (n * (n - 1) // 2 if pairs else n,)
    if isinstance(model, OneToOneFeatureMixin):
        return None if width is None else (width,)
    components = getattr(model, "n_components", None)
    if isinstance(components, int) and type(model).__module__.startswith("sklearn."):
        return (components,)
    return _named_outputs(model)


def _named_outputs(model: Any) -> Shape | None:
    """Return the output shape of a fitted transformer from its feature names."""
    try:
        return (len(model.get_feature_names_out()),)
    except (AttributeError, ValueError, TypeError):  # not fitted, or it has no names
        return None


def check_targets(model: Any, method: str, shape: Shape | None, names: tuple[str, ...]) -> None:
    """Refuse several targets for an estimator that supports one.

    Raises
    ------
    ShapeError
        With the names of the targets.
    """
    n, inner = math.prod(shape or (1,)), core(model)
    if n < 2 or not is_supervised(model):
        return
    shown = f"{n} targets" + (f" ({', '.join(names)})" if names else "")
    single = type(inner).__module__.startswith("sklearn.") and _PARTS.isdisjoint(
        inner.get_params(deep=False)
    )
    if single and not get_tags(inner).target_tags.multi_output:
        kind = "Classifier" if is_classifier(model) else "Regressor"
        raise ShapeError(
            f"{type(inner).__name__} supports one target, but the node has {shown}; name one in "
            f"the FeatureSet reference, or wrap the estimator in sklearn's MultiOutput{kind}"
        )
    if is_classifier(model) and method != "predict":
        raise ShapeError(
            f"{type(inner).__name__} returns a separate table for each of the {shown}; pass "
            "output_method='predict' to ScikitModelWrapper, or use one node per target"
        )


def all_labels(labels: Array, known: Any) -> Array:
    """Return the union of labels of the target column and of a fitted classifier."""
    if not isinstance(known, np.ndarray) or (known.dtype.kind in "OSU") != (
        labels.dtype.kind in "OSU"
    ):
        return labels
    return np.union1d(labels, known)


def dense(out: Any) -> Array:
    """Return outputs as an array, converting sparse ones."""
    return np.asarray(out.toarray() if hasattr(out, "toarray") else out)
