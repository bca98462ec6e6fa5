"""Fitting of estimators: their inputs, and the fitted estimator."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import sklearn
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import (
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.feature_selection import RFE, RFECV, SelectFromModel
from sklearn.model_selection import (
    GroupKFold,
    GroupShuffleSplit,
    LeaveOneGroupOut,
    LeavePGroupsOut,
    StratifiedGroupKFold,
)
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline

from modularml._warning import warn
from modularml.config import Configurable
from modularml.errors import ConfigError, MMLError
from modularml.io import limits
from modularml.io.estimators import check_parts, learned, relearn

__all__ = [
    "FittedEstimator",
    "become",
    "copied_once",
    "fit_argument",
    "selects_by_name",
    "splits_by_group",
]


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
