"""A scikit-learn estimator as a model of a graph."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import joblib
import numpy as np
import sklearn
from sklearn.base import (
    OneToOneFeatureMixin,
    clone,
    is_classifier,
    is_clusterer,
    is_outlier_detector,
    is_regressor,
)
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from sklearn.utils.validation import check_is_fitted

from modularml._typing import Array, Shape
from modularml._warning import warn
from modularml.config import Configurable
from modularml.errors import (
    ConfigError,
    DataError,
    MMLError,
    NotFittedError,
    ShapeError,
)
from modularml.io import limits
from modularml.io.estimators import learned, relearn
from modularml.models.base import BaseModel, check_shape, check_weights

__all__ = ["ScikitModelWrapper"]

TRAINING_MODES = ("auto", "fit", "partial_fit")
OUTPUT_METHODS = ("predict", "predict_proba", "decision_function", "transform")


class ScikitModelWrapper(BaseModel):
    """Wrap a regressor, classifier, transformer, clusterer, pipeline or search.

    Samples are flattened to ``(n, k)`` and a single target to ``(n,)``; dtypes are kept.

    Parameters
    ----------
    model : estimator
        It is fitted in place. One that is fitted already can be asked at once.
    training_mode : {'auto', 'fit', 'partial_fit'}
        A `FitPhase` calls ``fit``, and a `TrainPhase` ``partial_fit`` on every batch where the
        estimator has it. ``'fit'`` leaves it unchanged in a `TrainPhase`; ``'partial_fit'`` lets a
        `FitPhase` call that, once for all rows.
    output_method : {'auto', 'predict', 'predict_proba', 'decision_function', 'transform'}
        What gives the outputs. ``'auto'`` is ``predict`` for regressors and clusterers;
        ``predict_proba`` for classifiers, or else ``decision_function``, or else ``predict``;
        ``transform`` for others that have it.
    partial_fit_kwargs : dict, optional
        Arguments for ``partial_fit``. A classifier gets its ``classes`` from the target column.

    Raises
    ------
    ConfigError
        If `model` is no estimator, or lacks a method that is asked for.

    Notes
    -----
    A graph knows the shape of outputs before anything is fitted: that of the targets for
    ``predict``, one number a class of the whole target column for ``predict_proba`` (a class
    that training rows lack has probability 0), ``n_components`` or that of the input for
    transformers. Where no rule tells, a clone is fitted on a few random rows. Outputs that turn
    out to have another shape are refused.

    Examples
    --------
    >>> from sklearn.decomposition import PCA
    >>> wrapped = ScikitModelWrapper(PCA(n_components=2))
    >>> wrapped.build(input_shape=(4,))
    >>> wrapped.output_shape
    (2,)
    """

    def __init__(
        self,
        model: Any,
        *,
        training_mode: str = "auto",
        output_method: str = "auto",
        partial_fit_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if inspect.isclass(model) or not (hasattr(model, "fit") and hasattr(model, "get_params")):
            raise ConfigError(f"model must be a scikit-learn estimator, got {model!r}")
        super().__init__(
            "scikit",
            model=model,
            training_mode=training_mode,
            output_method=output_method,
            partial_fit_kwargs=partial_fit_kwargs,
        )
        self.inner = model
        self.training_mode, self.partial_fit_kwargs = training_mode, partial_fit_kwargs
        self.output_method = output_method
        self.method = _method(model, output_method)
        if training_mode not in TRAINING_MODES:
            raise ConfigError(
                f"training_mode must be one of {list(TRAINING_MODES)}, got {training_mode!r}"
            )
        if training_mode == "partial_fit" and not hasattr(model, "partial_fit"):
            raise ConfigError(f"{self.shown_name} has no partial_fit; use training_mode='fit'")
        self._target_shape: Shape | None = None
        self._labels: Array | None = getattr(model, "classes_", None)

    # -- build --------------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        """Whether the estimator can be asked for outputs."""
        try:
            check_is_fitted(self.inner)
        except SklearnNotFittedError:
            return False
        return True

    def expect_targets(self, shape: Shape | None, labels: Callable[[], Array]) -> None:
        """Learn the shape of targets, and for a classifier all the labels there are."""
        supervised = is_classifier(self.inner) or is_regressor(self.inner)
        if shape is None and supervised and not self.is_fitted:
            raise ShapeError(
                f"{self.shown_name} needs targets; name some in the FeatureSet reference"
            )
        self._target_shape = shape
        if shape is not None and is_classifier(self.inner) and math.prod(shape) == 1:
            self._labels = labels()

    def build(
        self,
        input_shape: Shape | None = None,
        output_shape: Shape | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Find the shape of outputs; with `force`, forget what was learned."""
        if input_shape is None and self._input_shape is None:
            raise ShapeError(f"{self.shown_name} needs input_shape to be built")
        shape = check_shape("input_shape", input_shape or self._input_shape)
        if self._built and not force:
            self._check_fits(shape)
            return
        if force:
            self.reset_weights()
        self._output_shape = self._find_shape(shape, output_shape)
        self._input_shape, self._built = shape, True

    def _find_shape(self, shape: Shape, wanted: Shape | None) -> Shape:
        width, components = math.prod(shape), getattr(self.inner, "n_components", None)
        if self.is_fitted:
            return self._probed(self.inner, width)
        if self.method == "predict":
            supervised = is_classifier(self.inner) or is_regressor(self.inner)
            return (self._target_shape or wanted or (1,)) if supervised else (1,)
        if self.method == "predict_proba" and self._labels is not None:
            return (len(self._labels),)
        if self.method == "transform" and isinstance(self.inner, OneToOneFeatureMixin):
            return (width,)
        if self.method == "transform" and isinstance(components, int):
            return (components,)
        return self._probed(self._dry_fitted(width), width)

    def _dry_fitted(self, width: int) -> Any:
        """Return a clone that has seen random rows, only to learn the shape of its outputs."""
        rng, n = np.random.default_rng(0), 2 * width + 50
        labels = np.arange(2) if self._labels is None else self._labels
        y = labels[np.arange(n) % len(labels)]
        try:
            with warnings.catch_warnings(action="ignore"):
                return clone(self.inner).fit(np.abs(rng.normal(size=(n, width))), y)
        except ValueError as error:
            raise ShapeError(
                f"the output shape of {self.shown_name} cannot be known before it is fitted "
                f"({error}); fit it beforehand"
            ) from error

    def _probed(self, estimator: Any, width: int) -> Shape:
        zeros = np.zeros((2, width))
        try:
            out = _dense(getattr(estimator, self.method)(zeros))
        except ValueError as error:
            raise ShapeError(
                f"{self.shown_name} cannot take {width} values a row: {error}"
            ) from error
        if self.method == "predict":
            return self._target_shape or (out.shape[1:] or (1,))
        return tuple(out.shape[1:]) or (1,)

    # -- learn and run ------------------------------------------------------------------------

    @property
    def learns_in_batches(self) -> bool:
        """Whether a training phase changes the estimator, batch by batch."""
        return self.training_mode != "fit" and hasattr(self.inner, "partial_fit")

    @property
    def predicts_targets(self) -> bool:
        """Whether outputs are in the units of targets: not those of transformers and clusterers."""
        return self.method == "predict" and is_regressor(self.inner)

    def fit(self, features: Array, targets: Array | None) -> None:
        """Learn from all rows at once.

        Parameters
        ----------
        features : ndarray, shape (n, *input_shape)
        targets : ndarray, shape (n, *target_shape), or None
        """
        if self.training_mode == "partial_fit":
            return self.partial_fit(features, targets)
        rows, before = _rows(features), dict(vars(self.inner))
        try:
            with self._named_errors(), _copied_once(self.inner, rows):
                self.inner.fit(rows, *self._targets(targets))
        except BaseException:  # scikit-learn leaves an estimator half fitted
            vars(self.inner).clear()
            vars(self.inner).update(before)
            raise
        return None

    def partial_fit(self, features: Array, targets: Array | None) -> None:
        """Learn a little from some rows; see `fit`."""
        kwargs = dict(self.partial_fit_kwargs or {})
        if "classes" in inspect.signature(self.inner.partial_fit).parameters:
            kwargs.setdefault("classes", self._labels)
        with self._named_errors():
            self.inner.partial_fit(_rows(features), *self._targets(targets), **kwargs)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Say whose rows were refused where scikit-learn does not."""
        try:
            yield
        except SklearnNotFittedError as error:
            raise NotFittedError(f"{self.shown_name} has not been fitted: {error}") from error
        except ValueError as error:
            raise DataError(f"{self.shown_name} cannot take these rows: {error}") from error

    def __call__(self, features: Array) -> Array:
        """Return ``(n, *output_shape)`` for ``(n, *input_shape)``.

        Raises
        ------
        NotFittedError
            If the estimator has not been fitted.
        DataError
            If it refuses these rows.
        ShapeError
            If the outputs have another shape than the graph was built for.
        """
        n = len(features)
        shape = (n, *(self._output_shape or ()))
        if n == 0:
            return np.zeros(shape, np.float64)
        with self._named_errors():
            out = _dense(getattr(self.inner, self.method)(_rows(features)))
        if self.method == "predict_proba" and self._labels is not None:
            out = self._for_all_labels(out)
        if self._output_shape is None or out.shape == shape:
            return out
        if out.size != math.prod(shape):
            raise ShapeError(
                f"{self.shown_name} gives outputs of shape {out.shape[1:]}, and the graph was "
                f"built for {self._output_shape}; fix their number in the estimator, or fit it "
                "beforehand and make the graph with it"
            )
        return out.reshape(shape)

    def _for_all_labels(self, out: Array) -> Array:
        """Return one column a label of the target column, also for those that training lacked."""
        seen, labels = self.inner.classes_, np.asarray(self._labels)
        if len(seen) == len(labels):
            return out
        whole = np.zeros((len(out), len(labels)), out.dtype)
        whole[:, np.searchsorted(labels, seen)] = out
        return whole

    def _targets(self, targets: Array | None) -> tuple[Array, ...]:
        if targets is None:
            return ()
        flat = targets.reshape(len(targets), -1)
        return (flat[:, 0] if flat.shape[1] == 1 else flat,)

    # -- weights and state --------------------------------------------------------------------

    def get_weights(self) -> dict[str, Array]:
        """Return the arrays that were learned, such as ``coef_``, by name."""
        found = vars(self.inner).items()
        return {k: v.copy() for k, v in found if k.endswith("_") and isinstance(v, np.ndarray)}

    def set_weights(self, weights: dict[str, Any]) -> None:
        """Restore weights produced by `get_weights`."""
        check_weights(self.get_weights(), weights)
        for name, values in weights.items():
            setattr(self.inner, name, np.array(values))

    def reset_weights(self, seed: int | None = None) -> None:
        """Forget what was learned; a seed becomes every ``random_state`` of the estimator."""
        fresh = clone(self.inner)
        if seed is not None:
            names = [k for k in fresh.get_params() if k.split("__")[-1] == "random_state"]
            fresh.set_params(**dict.fromkeys(names, seed))
        _become(self.inner, fresh)

    def same_weights(self, other: BaseModel) -> bool:
        """Tell whether another estimator has learned the same."""
        return isinstance(other, ScikitModelWrapper) and bool(
            joblib.hash(self.inner) == joblib.hash(other.inner)
        )

    def get_state(self) -> dict[str, Any]:
        """Return shapes, labels and what was learned; empty before `build`."""
        if not self._built:
            return {}
        return {
            "input_shape": self._input_shape,
            "output_shape": self._output_shape,
            "target_shape": self._target_shape,
            "labels": self._labels,
            "estimator": FittedEstimator(copy.deepcopy(self.inner)),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to what `get_state` returned."""
        if not state:
            return
        self._input_shape, self._output_shape = state["input_shape"], state["output_shape"]
        self._target_shape, self._labels = state["target_shape"], state["labels"]
        _become(self.inner, copy.deepcopy(state["estimator"].estimator))
        self.method = _method(self.inner, self.output_method)
        self._built = True

    def parts(self) -> list[Any]:
        """Return the wrapper and the estimator."""
        return [self, self.inner]

    @property
    def shown_name(self) -> str:
        """Name of the estimator in messages and pictures."""
        return type(self.inner).__name__


class FittedEstimator(Configurable):
    """An estimator and what it has learned: itself in memory, plain data in a file.

    Parameters
    ----------
    estimator : estimator
    """

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def _file_state(self) -> dict[str, Any]:
        try:
            return {"sklearn": sklearn.__version__, "learned": learned(self.estimator)}
        except ConfigError as error:
            problem = f"a fitted {type(self.estimator).__name__} cannot be stored as data: {error}"
            hint = "Save it before it is fitted, and fit it again after loading"
            raise MMLError(limits.NO_PLAIN_DATA, problem=problem, hint=hint) from error

    def _set_file_state(self, state: dict[str, Any]) -> None:
        written, here = state["sklearn"], sklearn.__version__
        if written.split(".")[:2] != here.split(".")[:2]:
            warn(
                f"this {type(self.estimator).__name__} was saved with scikit-learn {written}; "
                f"{here} is installed, and its results may differ",
            )
        relearn(self.estimator, state["learned"])


def _method(model: Any, asked: str) -> str:
    """Return the method that gives outputs.

    Raises
    ------
    ConfigError
        If there is none, or the one asked for is not there.
    """
    there = [name for name in OUTPUT_METHODS if hasattr(model, name)]
    if asked != "auto":
        if asked not in there:
            raise ConfigError(
                f"output_method must be 'auto' or one that {type(model).__name__} has, {there}, "
                f"got {asked!r}"
            )
        return asked
    order = ["transform", "predict"]
    if is_classifier(model):
        order = ["predict_proba", "decision_function", "predict"]
    elif is_regressor(model) or is_clusterer(model) or is_outlier_detector(model):
        order = ["predict", "transform"]
    found = [name for name in order if name in there]
    found = found or [name for name in order if hasattr(type(model), name)]  # once it is fitted
    if not found:
        raise ConfigError(
            f"{type(model).__name__} has neither predict nor transform, so it cannot be asked "
            "about new rows"
        )
    return found[0]


@contextmanager
def _copied_once(estimator: Any, rows: Array) -> Iterator[None]:
    """Let an estimator that copies its input by `copy_X` do so once.

    It copies rows that cannot be written to anyway, before it looks at `copy_X`.
    """
    if rows.flags.writeable or getattr(estimator, "copy_X", None) is not True:
        yield
        return
    estimator.copy_X = False
    try:
        yield
    finally:
        estimator.copy_X = True


def _rows(features: Array) -> Array:
    return features if features.ndim == 2 else features.reshape(len(features), -1)


def _dense(out: Any) -> Array:
    return np.asarray(out.toarray() if hasattr(out, "toarray") else out)


def _become(estimator: Any, other: Any) -> None:
    """Give an estimator the attributes of another, so that it stays the same object."""
    vars(estimator).clear()
    vars(estimator).update(vars(other))
