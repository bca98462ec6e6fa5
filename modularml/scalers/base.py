"""Base class of built-in scalers, which follow the protocol of scikit-learn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml.config import Configurable, Stateful
from modularml.errors import NotFittedError, ScalerError, ShapeError, UnknownNameError


class NoInverseError(ScalerError, NotImplementedError):
    """A scaler has no inverse, or none without facts about each row."""


class BaseScaler(Configurable, Stateful, ABC):
    """A scaler on ``(n, k)`` arrays that follows scikit-learn's protocol.

    A scaler of your own defines `_scale` and `_unscale`; with ``needs_rows = True`` also
    `_facts`, for an inverse that needs something about each row that its scaled values have lost.
    Integers become float64, as in scikit-learn; floats keep their type.

    Attributes
    ----------
    needs_rows : bool
        Whether the inverse needs `row_facts`.
    n_features_in_ : int
        Columns seen by `fit`.

    Examples
    --------
    >>> import numpy as np
    >>> class Halve(BaseScaler):
    ...     def _scale(self, data):
    ...         return data / 2
    ...
    ...     def _unscale(self, data, facts):
    ...         return data * 2
    >>> Halve().fit_transform(np.array([[2.0], [4.0]])).ravel().tolist()
    [1.0, 2.0]
    """

    needs_rows: bool = False
    lost: str = ""
    """What a row's scaled values no longer tell, where ``needs_rows`` is true."""

    n_features_in_: int

    @abstractmethod
    def _scale(self, data: Array) -> Array:
        """Scale floats of shape (n, k) into a new array of the same shape and type."""

    @abstractmethod
    def _unscale(self, data: Array, facts: Array) -> Array:
        """Undo `_scale`; facts have shape (n, m), and m is 0 where none are needed."""

    def _facts(self, data: Array) -> Array:
        """Return what `_unscale` must know about each row, shape (n, m)."""
        return np.empty((len(data), 0), dtype=data.dtype)

    def fit(self, X: Array, y: object = None) -> Self:  # noqa: N803 - scikit-learn's names
        """Take note of the number of columns; ``y`` is ignored."""
        self.n_features_in_ = as_numbers(X).shape[1]
        return self

    def transform(self, X: Array) -> Array:  # noqa: N803 - scikit-learn's name
        """Scale rows, of as many columns as at `fit`, into a new array; NaN stays NaN."""
        return self._scale(self._checked(X))

    def fit_transform(self, X: Array, y: object = None) -> Array:  # noqa: N803
        """Fit, then scale the same rows."""
        return self.fit(X, y).transform(X)

    def inverse_transform(self, X: Array) -> Array:  # noqa: N803
        """Undo `transform`.

        Raises
        ------
        NoInverseError
            If that needs facts about each row (``needs_rows``): use `inverse_with`.
        """
        if self.needs_rows:
            raise NoInverseError(
                f"{type(self).__name__} cannot be undone from its output alone, which no longer "
                f"tells {self.lost}; call inverse_with(data, row_facts(rows before scaling))"
            )
        data = self._checked(X)
        return self._unscale(data, np.empty((len(data), 0), dtype=data.dtype))

    def row_facts(self, data: Array) -> Array:
        """Return what the inverse must know about each row before scaling; see `Scaler`."""
        return self._facts(self._checked(data))

    def inverse_with(self, data: Array, facts: Array) -> Array:
        """Undo `transform` with what `row_facts` gave for the same rows; see `Scaler`."""
        data, found = self._checked(data), as_numbers(facts)
        expected = self._facts(np.zeros((1, data.shape[1]))).shape[1]
        if found.shape != (len(data), expected):
            raise ShapeError(
                f"{type(self).__name__} needs row facts of shape {(len(data), expected)} to undo "
                f"data of shape {data.shape}, got {found.shape}"
            )
        return self._unscale(data, found)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments, as scikit-learn asks for them."""
        return self._params()

    def set_params(self, **params: Any) -> Self:
        """Change some of the constructor's arguments and forget what was fitted.

        Raises
        ------
        UnknownNameError
            If the constructor has no such argument.
        """
        now = self._params()
        for name in params:
            if name not in now:
                raise UnknownNameError(f"parameter of {type(self).__name__}", name, now)
        fresh = type(self)(**{**now, **params})
        vars(self).clear()
        vars(self).update(vars(fresh))
        return self

    def _checked(self, data: Array) -> Array:
        if not hasattr(self, "n_features_in_"):
            raise NotFittedError(f"{type(self).__name__} is not fitted; call fit first")
        found = as_numbers(data)
        if found.shape[1] != self.n_features_in_:
            raise ShapeError(
                f"{type(self).__name__} was fitted on {self.n_features_in_} columns, "
                f"got {found.shape[1]}"
            )
        return found

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_features_in_")

    def __sklearn_tags__(self) -> Any:
        tools = require("sklearn.utils")
        return tools.Tags(
            estimator_type="transformer",
            target_tags=tools.TargetTags(required=False),
            transformer_tags=tools.TransformerTags(preserves_dtype=["float64", "float32"]),
            input_tags=tools.InputTags(allow_nan=True),
        )


def as_numbers(data: Any) -> Array:
    """Return floats of shape (n, k), or say why that cannot be done.

    Parameters
    ----------
    data : array-like
        Floats are passed on as they are, integers and bool become float64.

    Raises
    ------
    ShapeError
        If there are not two dimensions, or no columns.
    ScalerError
        If these are no real numbers.
    """
    found = as_table(data)
    if found.dtype.kind not in "biuf":
        raise ScalerError(f"scalers take real numbers, got {found.dtype}; convert the column first")
    return found if found.dtype.kind == "f" else found.astype(np.float64)


def as_table(data: Any) -> Array:
    """Return an array of shape (n, k) in its own dtype.

    Raises
    ------
    ShapeError
        If there are not two dimensions, or no columns.
    """
    try:
        found = np.asarray(data)
    except ValueError as error:
        raise ShapeError(f"scalers take rows of one length: {error}") from error
    if found.ndim != 2 or found.shape[1] == 0:
        raise ShapeError(
            f"scalers take two dimensions, (rows, columns), got shape {found.shape}; "
            "use merged_axes to flatten arrays"
        )
    return found
