"""The wrapper of scikit-learn estimators."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from sklearn.utils.validation import check_is_fitted

from modularml import errors
from modularml._typing import Array, Shape
from modularml.errors import ConfigError, DataError, NotFittedError, ShapeError
from modularml.models.base import BaseModel, Place, check_shape, check_weights
from modularml.models.sklearn_estimators import (
    FittedEstimator,
    all_labels,
    become,
    check_targets,
    copied_once,
    dense,
    fit_argument,
    is_supervised,
    known_shape,
    output_method,
    selects_by_name,
    splits_by_group,
)

TRAINING_MODES = ("auto", "fit", "partial_fit")


class ScikitModelWrapper(BaseModel):
    """Wrap a regressor, classifier, transformer, clusterer, pipeline or search.

    Samples are flattened to ``(n, k)``, with columns of different shapes concatenated, and a single
    target to ``(n,)``; dtypes are preserved. An estimator that selects columns by name gets a
    frame.

    Parameters
    ----------
    model : estimator
        It is fitted in place. One that is already fitted can be used at once.
    training_mode : {'auto', 'fit', 'partial_fit'}
        A `FitPhase` calls ``fit``, and a `TrainPhase` ``partial_fit`` on every batch if the
        estimator has it. With ``'fit'`` a `TrainPhase` does not change it; with ``'partial_fit'`` a
        `FitPhase` calls that method, once with all rows.
    output_method : {'auto', 'predict', 'predict_proba', 'decision_function', 'transform'}
        Method that computes the outputs. ``'auto'`` depends on the position in the graph: an
        estimator that another node reads and that has ``transform`` uses it, as in a scikit-learn
        pipeline. Otherwise it is ``predict`` for regressors and clusterers; ``predict_proba`` for
        classifiers, or else ``decision_function``, or else ``predict``; ``transform`` for others
        that have it. Stacking and voting always predict.
    partial_fit_kwargs : dict, optional
        Arguments for ``partial_fit``. A classifier gets its ``classes`` from the target column.
    group_by : str, optional
        Column, such as a tag, with the ``groups`` of a search that cross-validates by groups.

    Raises
    ------
    ConfigError
        If `model` is not an estimator, or lacks a requested method.

    Notes
    -----
    The shape of outputs is that of the targets for ``predict``, and for ``predict_proba`` one
    number per class of the whole target column (classes missing from the training rows have
    probability 0). The shape for a transformer is known after its first fit at the latest, and each
    fit may change it.

    Sample weights (`AppliedLoss` with ``sample_weight=``, or those of a sampler) are passed to
    ``fit`` and ``partial_fit``: to the last step of a pipeline, to the estimator of a search, to
    every member of stacking and voting. An estimator that does not accept them raises an error.

    Examples
    --------
    >>> from sklearn.decomposition import PCA
    >>> wrapped = ScikitModelWrapper(PCA(n_components=2))
    >>> wrapped.build(input_shape=(4,))
    >>> wrapped.output_shape
    (2,)
    """

    reads_flat = True

    def __init__(
        self,
        model: Any,
        *,
        training_mode: str = "auto",
        output_method: str = "auto",
        partial_fit_kwargs: dict[str, Any] | None = None,
        group_by: str | None = None,
    ) -> None:
        if inspect.isclass(model) or not (hasattr(model, "fit") and hasattr(model, "get_params")):
            raise ConfigError(f"model must be a scikit-learn estimator, got {model!r}")
        super().__init__(
            "scikit",
            model=model,
            training_mode=training_mode,
            output_method=output_method,
            partial_fit_kwargs=partial_fit_kwargs,
            group_by=group_by,
        )
        self.inner = model
        self.training_mode, self.partial_fit_kwargs = training_mode, partial_fit_kwargs
        self.output_method, self.group_by = output_method, group_by
        self._place, self._answered = Place(), False
        self._by_name = selects_by_name(model)
        self._choose_method()
        if training_mode not in TRAINING_MODES:
            raise ConfigError(
                f"training_mode must be one of {list(TRAINING_MODES)}, got {training_mode!r}"
            )
        if training_mode == "partial_fit" and not hasattr(model, "partial_fit"):
            raise ConfigError(f"{self.shown_name} has no partial_fit; use training_mode='fit'")
        self._groups_as = None if group_by is None else fit_argument(model, "groups")
        if group_by is not None and self._groups_as is None:
            raise ConfigError(
                f"group_by={group_by!r}: the fit of {self.shown_name} takes no groups; omit "
                "group_by"
            )
        self._target_shape: Shape | None = None
        self._labels: Array | None = getattr(model, "classes_", None)

    # -- build --------------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        """Whether the estimator is fitted."""
        try:
            check_is_fitted(self.inner)
        except SklearnNotFittedError:
            return False
        return True

    def expect_targets(self, shape: Shape | None, labels: Callable[[], Array | None]) -> None:
        """Record the shape of targets, and for a classifier all labels."""
        if shape is None and is_supervised(self.inner) and not self.is_fitted:
            raise ShapeError(
                f"{self.shown_name} needs targets; add them to the FeatureSet reference"
            )
        self._target_shape = shape
        of_classes = shape is not None and is_classifier(self.inner) and math.prod(shape) == 1
        if of_classes and (known := labels()) is not None:
            self._labels = all_labels(known, getattr(self.inner, "classes_", None))

    def expect_place(self, place: Place) -> None:
        """Choose the output method by the position in the graph, and check the inputs.

        Raises
        ------
        ConfigError
            If the estimator needs column names or groups that are not available.
        ShapeError
            If it supports one target and there are several.
        """
        self._place, before = place, self.method
        self._by_name = selects_by_name(self.inner)
        self._choose_method()
        check_targets(self.inner, self.method, self._target_shape, place.targets)
        if self._by_name and not place.columns:
            raise ConfigError(
                f"{self.shown_name} selects columns by name, but reads from a node, whose outputs "
                "have no names; select them by index"
            )
        if self.group_by is None and not self.is_fitted and splits_by_group(self.inner):
            raise ConfigError(
                f"{self.shown_name} cross-validates by groups, which a node passes only if their "
                "column is named: ScikitModelWrapper(model, group_by='...')"
            )
        if before != self.method:
            self._built, self._answered = False, False
        if place.follows and place.shape != self._input_shape:
            self._input_shape, self._built = place.shape, False

    def build(
        self,
        input_shape: Shape | None = None,
        output_shape: Shape | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Set the shape of outputs, if known; with `force`, discard the fit."""
        if input_shape is None and self._input_shape is None:
            raise ShapeError(f"{self.shown_name} needs input_shape to be built")
        shape = check_shape("input_shape", input_shape or self._input_shape)
        if self._built and not force and self._input_shape is not None:
            self._check_fits(shape)
            return
        if force:
            self.reset_weights()
        width = getattr(self.inner, "n_features_in_", None)
        if not self._place.follows and width not in (None, math.prod(shape)):
            raise ShapeError(
                f"{self.shown_name} got {math.prod(shape)} values per row, but was fitted on "
                f"{width}; build with force=True to discard the fit"
            )
        self._input_shape = shape
        self._find_shape(output_shape)

    def build_unread(self, output_shape: Shape | None, *, force: bool = False) -> Shape | None:
        """Return the shape of outputs if known without that of the input."""
        if force:
            self.reset_weights()
        if force or not self._built:
            self._find_shape(output_shape)
        return self._output_shape

    def _find_shape(self, wanted: Shape | None) -> None:
        width = None if self._input_shape is None else math.prod(self._input_shape)
        target = self._target_shape or wanted
        if not self._answered:
            self._output_shape = known_shape(self.inner, self.method, width, target, self._labels)
        self._built = True
        if self._output_shape is None and self.is_fitted and self._place.rows is not None:
            self(self._place.rows())

    def _choose_method(self) -> None:
        self.method = output_method(self.inner, self.output_method, feeds=self._place.feeds)

    # -- fit and call -------------------------------------------------------------------------

    @property
    def learns_in_batches(self) -> bool:
        """Whether a training phase changes the estimator, batch by batch."""
        return self.training_mode != "fit" and hasattr(self.inner, "partial_fit")

    @property
    def predicts_targets(self) -> bool:
        """Whether outputs are in the units of targets; false for transformers and clusterers."""
        return self.method == "predict" and is_regressor(self.inner)

    def takes(self, method: str) -> str | None:
        """Return the argument of ``fit`` or ``partial_fit`` for sample weights, or None."""
        if method == "fit" and self.training_mode == "partial_fit":
            method = "partial_fit"
        return fit_argument(self.inner, "sample_weight", method)

    def fit(
        self,
        features: Array,
        targets: Array | None,
        *,
        sample_weight: Array | None = None,
        groups: Array | None = None,
    ) -> None:
        """Fit the estimator on all rows.

        Parameters
        ----------
        features : ndarray, shape (n, *input_shape)
        targets : ndarray, shape (n, *target_shape), or None
        sample_weight, groups : ndarray, shape (n,), optional

        Raises
        ------
        ConfigError
            If the estimator does not accept weights.
        DataError
            If it rejects these rows; it is unchanged then.
        """
        if self.training_mode == "partial_fit":
            return self.partial_fit(features, targets, sample_weight=sample_weight)
        kwargs = self._weights_for("fit", sample_weight)
        if groups is not None and self._groups_as is not None:
            kwargs[self._groups_as] = groups.reshape(len(features))
        rows, before = self._rows(features), dict(vars(self.inner))
        try:
            with self._named_errors(), copied_once(self.inner, rows):
                self.inner.fit(rows, *self._targets(targets), **kwargs)
        except BaseException:  # scikit-learn may leave an estimator partly fitted
            vars(self.inner).clear()
            vars(self.inner).update(before)
            raise
        self._answered = False
        return None

    def partial_fit(
        self, features: Array, targets: Array | None, *, sample_weight: Array | None = None
    ) -> None:
        """Update the fit with a batch of rows; see `fit`."""
        kwargs = dict(self.partial_fit_kwargs or {})
        if "classes" in inspect.signature(self.inner.partial_fit).parameters:
            kwargs.setdefault("classes", self._labels)
        kwargs |= self._weights_for("partial_fit", sample_weight)
        with self._named_errors():
            self.inner.partial_fit(self._rows(features), *self._targets(targets), **kwargs)

    def _weights_for(self, method: str, weights: Array | None) -> dict[str, Any]:
        if weights is None:
            return {}
        name = self.takes(method)
        if name is None:
            raise ConfigError(f"{method} of {self.shown_name} takes no sample_weight")
        return {name: weights.reshape(len(weights))}

    def _rows(self, features: Array) -> Any:
        rows = features if features.ndim == 2 else features.reshape(len(features), -1)
        if self._by_name and self._place.columns:
            return pd.DataFrame(rows, columns=list(self._place.columns))
        return rows

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Add the estimator's name to errors of scikit-learn."""
        try:
            yield
        except SklearnNotFittedError as error:
            raise NotFittedError(f"{self.shown_name} has not been fitted: {error}") from error
        except errors.ModularMLError:
            raise
        except Exception as error:
            names = ", ".join(self._place.columns)
            hint = "" if isinstance(error, ValueError) else " (it gets an array with one row per "
            hint += hint and "sample" + (f" and the columns {names})" if names else ")")
            raise DataError(f"{self.shown_name} rejects these rows: {error}{hint}") from error

    def __call__(self, features: Array) -> Array:
        """Return ``(n, *output_shape)`` for ``(n, *input_shape)``.

        Raises
        ------
        NotFittedError
            If the estimator has not been fitted.
        DataError
            If it rejects these rows.
        ShapeError
            If the shape of outputs is not the one the graph was built for.
        """
        n = len(features)
        if n == 0:
            return np.zeros((n, *(self._output_shape or ())), np.float64)
        if not self._answered:
            self._choose_method()  # some have a method only after fit
        with self._named_errors():
            out = dense(getattr(self.inner, self.method)(self._rows(features)))
            if self.method == "predict_proba" and self._labels is not None:
                seen, labels = self.inner.classes_, np.asarray(self._labels)
                if len(seen) != len(labels):  # one column per label, also of those not in training
                    seen_scores, out = out, np.zeros((len(out), len(labels)), out.dtype)
                    out[:, np.searchsorted(labels, seen)] = seen_scores
        known = self._output_shape
        if known is None or not self._answered:
            if known is None or out.size != len(out) * math.prod(known):
                self._output_shape = tuple(out.shape[1:]) or (1,)
            self._answered = self.is_fitted
        shape = (n, *(self._output_shape or ()))
        if out.size != math.prod(shape):
            raise ShapeError(
                f"{self.shown_name} returned outputs of shape {out.shape[1:]}, but "
                f"{self._output_shape} before; an estimator must return outputs of one shape"
            )
        return out if out.shape == shape else out.reshape(shape)

    def _targets(self, targets: Array | None) -> tuple[Array, ...]:
        if targets is None:
            return ()
        flat = targets.reshape(len(targets), -1)
        return (flat[:, 0] if flat.shape[1] == 1 else flat,)

    # -- weights and state --------------------------------------------------------------------

    def get_weights(self) -> dict[str, Array]:
        """Return the fitted arrays, such as ``coef_``, by name."""
        attributes = vars(self.inner).items()
        return {k: v.copy() for k, v in attributes if k.endswith("_") and isinstance(v, np.ndarray)}

    def set_weights(self, weights: dict[str, Any]) -> None:
        """Restore weights produced by `get_weights`."""
        check_weights(self.get_weights(), weights)
        for name, values in weights.items():
            setattr(self.inner, name, np.array(values))

    def reset_weights(self, seed: int | None = None) -> None:
        """Discard the fit; a seed sets every ``random_state`` of the estimator."""
        fresh = clone(self.inner)
        if seed is not None:
            names = [k for k in fresh.get_params() if k.split("__")[-1] == "random_state"]
            fresh.set_params(**dict.fromkeys(names, seed))
        become(self.inner, fresh)
        self._answered, self._output_shape = False, None
        if self._built:
            self._labels = self._labels if self._target_shape else None
            self._choose_method()
            self._find_shape(None)

    def same_weights(self, other: BaseModel) -> bool:
        """Return whether another estimator has the same fitted state."""
        return isinstance(other, ScikitModelWrapper) and bool(
            joblib.hash(self.inner) == joblib.hash(other.inner)
        )

    def get_state(self) -> dict[str, Any]:
        """Return shapes, labels and the fitted estimator; empty before `build`."""
        if not self._built:
            return {}
        return {
            "input_shape": self._input_shape,
            "output_shape": self._output_shape,
            "target_shape": self._target_shape,
            "labels": self._labels,
            "feeds": self._place.feeds,
            "columns": list(self._place.columns),
            "estimator": FittedEstimator(copy.deepcopy(self.inner)),
        }

    def check_storable(self) -> None:
        """Raise a ModularMLError if the estimator cannot be stored, fitted or not."""
        FittedEstimator(self.inner).check_storable()

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        if not state:
            return
        self._input_shape, self._output_shape = state["input_shape"], state["output_shape"]
        self._target_shape, self._labels = state["target_shape"], state["labels"]
        become(self.inner, copy.deepcopy(state["estimator"].estimator))
        if "feeds" in state:
            columns = tuple(state["columns"])
            self._place = replace(self._place, feeds=state["feeds"], columns=columns)
        self._choose_method()
        self._built, self._answered = True, self._output_shape is not None and self.is_fitted

    def parts(self) -> list[Any]:
        """Return the wrapper and the estimator."""
        return [self, self.inner]

    @property
    def shown_name(self) -> str:
        """Name of the estimator in messages and diagrams."""
        return type(self.inner).__name__
