"""Fitting of estimators: their inputs, and the fitted estimator."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import sklearn
from sklearn.base import (
    BaseEstimator,
    OneToOneFeatureMixin,
    is_classifier,
    is_clusterer,
    is_outlier_detector,
    is_regressor,
)
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import (
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.feature_selection import RFE, RFECV, SelectFromModel
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    GroupShuffleSplit,
    LeaveOneGroupOut,
    LeavePGroupsOut,
    StratifiedGroupKFold,
)
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags

from modularml._typing import Array, Shape
from modularml._warning import warn
from modularml.config import Configurable
from modularml.errors import ConfigError, MMLError, ShapeError
from modularml.io import limits
from modularml.io.estimators import check_parts, learned, relearn

BaseSearchCV = GridSearchCV.__base__
"""Searches over arguments of an estimator."""


class FittedEstimator(Configurable):
    """A fitted estimator: the object itself in memory, plain data in a file.

    Parameters
    ----------
    estimator : estimator
    """

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def check_storable(self) -> None:
        """Refuse an estimator whose class, arguments or attributes cannot be stored.

        Raises
        ------
        ConfigError
            The message names the class of the part that cannot be stored.
        """
        self.get_config()
        check_parts(self.estimator)

    def _file_state(self) -> dict[str, Any]:
        try:
            return {"sklearn": sklearn.__version__, "learned": learned(self.estimator)}
        except ConfigError as error:
            problem = f"a fitted {type(self.estimator).__name__} cannot be stored as data: {error}"
            hint = "Save it unfitted, and fit it again after loading"
            raise MMLError(limits.NO_PLAIN_DATA, problem=problem, hint=hint) from error

    def _set_file_state(self, state: dict[str, Any]) -> None:
        saved, installed = state["sklearn"], sklearn.__version__
        if saved.split(".")[:2] != installed.split(".")[:2]:
            warn(
                f"this {type(self.estimator).__name__} was saved with scikit-learn {saved}; "
                f"{installed} is installed, and its results may differ"
            )
        relearn(self.estimator, state["learned"])


def become(estimator: Any, other: Any) -> None:
    """Replace the attributes of an estimator in place by those of another."""
    vars(estimator).clear()
    vars(estimator).update(vars(other))


GROUPED = (
    GroupKFold,
    GroupShuffleSplit,
    LeaveOneGroupOut,
    LeavePGroupsOut,
    StratifiedGroupKFold,
)
WEIGHTS, GROUPS = "sample_weight", "groups"


def fit_argument(estimator: Any, name: str, method: str = "fit") -> str | None:
    """Return the argument of ``fit`` that passes weights or groups to an estimator.

    Parameters
    ----------
    estimator : estimator
        Pipelines pass weights to their last step, searches and selectors to the estimator that
        they fit, stacking and voting to all members, as in plain scikit-learn.
    name : {'sample_weight', 'groups'}
    method : {'fit', 'partial_fit'}

    Returns
    -------
    str or None
        None if they would not reach it.
    """
    parameters = inspect.signature(getattr(estimator, method)).parameters
    if name in parameters:
        return name
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    if isinstance(estimator, Pipeline):
        label, last = estimator.steps[-1]
        inner = fit_argument(last, name) if hasattr(last, "fit") else None
        return None if inner is None else f"{label}__{inner}"
    if sklearn.get_config()["enable_metadata_routing"]:
        return name
    if name == GROUPS:
        return name if isinstance(estimator, BaseSearchCV | RFECV) else None
    if isinstance(
        estimator, StackingClassifier | StackingRegressor | VotingClassifier | VotingRegressor
    ):
        members = [m for _, m in estimator.estimators if m != "drop"]
        final = getattr(estimator, "final_estimator", None)
        members += [] if final is None else [final]
        return name if all(fit_argument(m, name) == name for m in members) else None
    if isinstance(estimator, TransformedTargetRegressor):
        regressor = estimator.regressor
        return name if regressor is None else fit_argument(regressor, name)
    if isinstance(estimator, BaseSearchCV | SelectFromModel) or type(estimator) is RFE:
        return fit_argument(estimator.estimator, name)
    return None


def splits_by_group(estimator: Any) -> bool:
    """Return whether the fit of an estimator cross-validates by groups."""
    return any(isinstance(getattr(part, "cv", None), GROUPED) for part in _parts(estimator))


def selects_by_name(estimator: Any) -> bool:
    """Return whether an estimator selects columns by name, and so needs a frame."""
    for part in _parts(estimator):
        if isinstance(part, ColumnTransformer):
            selected = [columns for _, _, columns in part.transformers]
            if any(callable(c) or _is_text(c) for c in selected):
                return True
        selectors = [getattr(part, k, None) for k in ("categorical_features", "monotonic_cst")]
        if any(isinstance(value, dict) or _is_text(value) for value in selectors):
            return True
    return False


def _is_text(columns: Any) -> bool:
    if isinstance(columns, str):
        return columns != "from_dtype"
    if isinstance(columns, slice):
        return isinstance(columns.start, str) or isinstance(columns.stop, str)
    try:
        return any(isinstance(name, str) for name in columns)
    except TypeError:
        return False


def _parts(estimator: Any) -> Iterator[BaseEstimator]:
    yield estimator
    params = estimator.get_params(deep=True).values() if hasattr(estimator, "get_params") else ()
    yield from (value for value in params if hasattr(value, "get_params"))


@contextmanager
def copied_once(estimator: Any, rows: Any) -> Iterator[None]:
    """Avoid a second copy of the input by estimators with `copy_X`.

    They copy read-only rows anyway, before `copy_X` applies.
    """
    read_only = isinstance(rows, np.ndarray) and not rows.flags.writeable
    if not read_only or getattr(estimator, "copy_X", None) is not True:
        yield
        return
    estimator.copy_X = False
    try:
        yield
    finally:
        estimator.copy_X = True


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
    transforms = ["transform"] if feeds and not isinstance(core(model), ENSEMBLES) else []
    if is_classifier(model):
        order = [*transforms, "predict_proba", "decision_function", "predict"]
    elif is_regressor(model):
        order = [*transforms, "predict"]
    elif is_clusterer(model) or is_outlier_detector(model):
        order = [*transforms, "predict", "transform"]
    else:
        order = ["transform", "predict"]
    order = [name for name in order if name in available]
    if not order:
        raise ConfigError(
            f"{type(model).__name__} has neither predict nor transform, so it has no outputs for "
            "new rows"
        )
    return next((name for name in order if hasattr(model, name)), order[0])


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
