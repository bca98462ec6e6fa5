"""Experiments as classifiers and regressors of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from modularml._typing import Array
from modularml.errors import ConfigError, DataError
from modularml.results.scores import Meaning
from modularml.sklearn.base import Build, ExperimentEstimator
from modularml.strategies.member_predictions import NodePredictions

OUTPUTS = ("auto", "logits", "probabilities")
"""What a node of a classifier may predict."""


class ExperimentRegressor(RegressorMixin, ExperimentEstimator):  # type: ignore[misc]
    """Train an experiment on X and y, as a regressor of scikit-learn.

    Parameters
    ----------
    build : callable, optional
        Function or class that takes a FeatureSet and returns an experiment with a plan, made by
        `Experiment.from_active_context`; by default `tabular_mlp`. The FeatureSet ``data`` has the
        split ``train`` and the target ``y``. Its features are the columns of a DataFrame, by name
        (with ``_`` for characters that keys cannot have), or one column ``x`` of an array.
        ``sample_weight`` and ``groups`` are tags, if they are passed to `fit`.
    node : str, optional
        Label of the node that predicts; by default the only one that ends the graph.
    validation_fraction : float, optional
        Share of rows that are held out as the split ``val``, such as for early stopping. Rows of
        one group stay together.
    allow_nan : bool
        Whether X may hold NaN, which the experiment must then handle.
    random_state : int, RandomState, optional
        Seed of the held-out rows, weights and run. None draws one from numpy's global generator,
        or uses the seed of the experiment that `build` returns. Other random states of the process
        do not change.
    verbose : bool
        Whether progress bars are drawn.
    **params
        Arguments of `build`, and settings of the experiment by path with ``__`` for dots, such as
        ``graph__optimizer__lr``; see `modularml.Sweep`. All are parameters for `set_params` and
        searches.

    Attributes
    ----------
    experiment_ : Experiment
        The trained experiment, with its history.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Names of columns, if X was a frame.

    Notes
    -----
    Each `fit` starts from new weights: there is no ``warm_start``. A setting by path rebuilds the
    experiment, so its weights differ from those of an equal argument of `build`.

    A pickle of a fitted estimator holds the experiment as a `.mml` file without rows, and `build`
    and your classes by reference. What a worker process returns of the functions and classes of a
    script, or of a `build` within another function, is pickled with its rows.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
    >>> model = ExperimentRegressor(n_epochs=20, graph__optimizer__lr=0.02, random_state=0)
    >>> model.fit(X, y).predict(X).shape
    (442,)
    """

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Return predictions in the units of y, in its shape.

        Raises
        ------
        ConfigError
            If the node has more or fewer outputs than y has.
        """
        predicted = self._predicted(X)
        values = predicted.stacked[0]
        if np.prod(values.shape[1:]) != np.prod(self._y_shape):
            raise ConfigError(
                f"node {predicted.rows.label!r} predicts values of shape {values.shape[1:]} for a "
                f"target of shape {self._y_shape}; pass another as node="
            )
        return np.asarray(values.reshape(len(values), *self._y_shape))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class ExperimentClassifier(ClassifierMixin, ExperimentEstimator):  # type: ignore[misc]
    """Train an experiment on X and classes y, as a classifier of scikit-learn.

    Parameters
    ----------
    build : callable, optional
        See `ExperimentRegressor`. The target ``y`` is encoded as class numbers by a `LabelEncoder`
        that is fitted on ``train``.
    node : str, optional
        See `ExperimentRegressor`.
    outputs : {'auto', 'logits', 'probabilities'}
        What the node predicts; ``auto`` needs a column for each class. One column is the score of
        the second of two classes.
    class_weight : 'balanced' or dict, optional
        Weights of classes, which multiply the sample weights; see
        `sklearn.utils.class_weight.compute_class_weight`.
    validation_fraction : float, optional
        Share of rows that are held out as the split ``val``, with equal shares of the classes; by
        groups instead, if there are groups.
    allow_nan, random_state, verbose, **params
        See `ExperimentRegressor`.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
        Sorted classes.
    experiment_, n_features_in_, feature_names_in_
        See `ExperimentRegressor`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True, as_frame=True)
    >>> model = ExperimentClassifier(n_epochs=20, class_weight="balanced", random_state=0)
    >>> model.fit(X, y).predict_proba(X).shape
    (150, 3)
    """

    def __init__(
        self,
        build: Build | None = None,
        *,
        node: str | None = None,
        outputs: Meaning = "auto",
        class_weight: Mapping[Any, float] | str | None = None,
        validation_fraction: float | None = None,
        allow_nan: bool = False,
        random_state: Any = None,
        verbose: bool = False,
        **params: Any,
    ) -> None:
        self.outputs, self.class_weight = outputs, class_weight
        super().__init__(
            build,
            node=node,
            validation_fraction=validation_fraction,
            allow_nan=allow_nan,
            random_state=random_state,
            verbose=verbose,
            **params,
        )

    def _target(self, y: Any) -> Array:
        if self.outputs not in OUTPUTS:
            raise ConfigError(f"outputs must be one of {list(OUTPUTS)}, got {self.outputs!r}")
        target: Array = validate_data(self, "no_validation", y)
        if pd.isna(target).any():
            raise DataError(f"y has {pd.isna(target).sum()} missing classes; drop these rows")
        check_classification_targets(target)
        self.classes_ = np.unique(target)
        return target

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Return the most likely class of each row, shape (n_samples,).

        Raises
        ------
        DataError
            If the node has no scores for a row, such as for missing values.
        """
        predicted = self._predicted(X)
        is_label = predicted.kind == "labels"
        values = predicted.member_labels()[0] if is_label else self._probabilities(predicted)
        if lacking := np.flatnonzero(pd.isna(values).any(axis=1)).tolist():
            raise DataError(
                f"node {predicted.rows.label!r} predicts no class for {len(lacking)} rows, the "
                f"first {lacking[:5]} (0-based); fill missing values, or call predict_proba"
            )
        if is_label:
            return np.asarray(values[:, 0], dtype=self.classes_.dtype)
        return np.asarray(self.classes_[values.argmax(axis=1)])

    def predict_proba(self, X: Any) -> Array:  # noqa: N803
        """Return probabilities in the order of ``classes_``, shape (n_samples, n_classes).

        Raises
        ------
        ConfigError
            If the node predicts something other than scores of these classes.
        """
        return self._probabilities(self._predicted(X))

    def _probabilities(self, predicted: NodePredictions) -> Array:
        values, n = predicted.stacked[0], len(self.classes_)
        if predicted.kind == "probabilities" and values.shape[1:] == (1,) and n == 2:
            return np.concatenate([1 - values, values], axis=1)
        if predicted.kind != "probabilities" or values.shape[1:] != (n,):
            raise ConfigError(
                f"node {predicted.rows.label!r} predicts {predicted.kind} of shape "
                f"{values.shape[1:]}, not a score for each of {n} classes; end the graph in "
                "scores, trained with a loss such as 'cross_entropy'"
            )
        return np.asarray(values)
