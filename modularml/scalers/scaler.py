"""Wrapper of scalers with validation, config and state."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np

from modularml._optional import loaded, require
from modularml._typing import Array
from modularml.config import Configurable, Stateful
from modularml.errors import (
    ConfigError,
    ModularMLError,
    NotFittedError,
    ScalerError,
    ShapeError,
    UnknownNameError,
)
from modularml.io.artifact import Saveable
from modularml.io.estimator_kinds import parameters
from modularml.io.estimators import learned, relearn
from modularml.scalers.affine import ENCODERS, OWN, SKLEARN, AffineScaler, resolve, scaler_registry
from modularml.scalers.base import NoInverseError, as_numbers, as_table

__all__ = ["NoInverseError", "Scaler"]


class Scaler(Configurable, Stateful, Saveable):
    """A scaler of any kind on ``(n_samples, n_features)`` arrays.

    Parameters
    ----------
    scaler : str, class, instance or Scaler
        A registered name in any case, or anything with ``fit`` and ``transform``. An instance
        gives its class and parameters; it is neither fitted nor changed.
    scaler_kwargs : dict, optional
        Arguments for the scaler; they go before those of an instance.

    Attributes
    ----------
    scaler_name : str
        The registered name, or the name of the class.
    scaler_kwargs : dict
        Arguments that differ from the scaler's defaults, or were given.
    is_fit : bool
        Whether `fit` was called, or a fitted state was set.

    Raises
    ------
    UnknownNameError
        If nothing is registered under the name, or an argument is unknown to the scaler.
    ConfigError
        If the object is no scaler, or cannot be made with these arguments.

    Examples
    --------
    >>> import numpy as np
    >>> scaler = Scaler("minmaxscaler", {"feature_range": (0, 10)})
    >>> scaler.fit_transform(np.array([[1.0], [2.0], [3.0]])).ravel().tolist()
    [0.0, 5.0, 10.0]
    """

    artifact_kind = "sc"
    supported_scalers: ClassVar[Mapping[str, Any]] = scaler_registry

    def __init__(self, scaler: str | Any, scaler_kwargs: dict[str, Any] | None = None) -> None:
        given: Any = scaler
        if isinstance(scaler, Scaler):
            name, self._class, params = given.scaler, given._class, given.scaler_kwargs
        else:
            name, self._class, params = resolve(scaler)
        self.scaler = name or self._class
        self.scaler_kwargs = {**params, **(scaler_kwargs or {})}
        self._wrapped = self._build()
        self._n_features = 0
        self.is_fit = False

    @classmethod
    def get_supported_scalers(cls) -> dict[str, Any]:
        """Return the scaler classes that can be named, by name."""
        return dict(cls.supported_scalers)

    @property
    def scaler_name(self) -> str:
        """The registered name, or the name of the class."""
        return self.scaler if isinstance(self.scaler, str) else self._class.__name__

    @property
    def wrapped(self) -> Any:
        """The object that does the work; what it learned (``mean_``...) stands on it."""
        if isinstance(self._wrapped, AffineScaler):
            self._wrapped = self._wrapped.of_sklearn()
        return self._wrapped

    @property
    def inner(self) -> Any:
        """What does the work, without the import of scikit-learn where that is not needed."""
        return self._wrapped

    @property
    def needs_rows(self) -> bool:
        """Whether the inverse needs `row_facts`."""
        return bool(getattr(self._wrapped, "needs_rows", False))

    @property
    def learns(self) -> bool:
        """Whether it has learned more from the rows it was fitted on than how many columns."""
        known = {*parameters(self._class), "n_features_in_", "feature_names_in_"}
        return bool(getattr(self._wrapped, "learns", not known.issuperset(vars(self._wrapped))))

    @property
    def takes_categories(self) -> bool:
        """Whether it takes text and other categories, in their own dtype."""
        if self.scaler_name in ENCODERS:
            return True
        known = self._categorical
        if known is None or known[0] is not self._wrapped:  # tags take as long as a small transform
            tags = None
            if hasattr(self._wrapped, "__sklearn_tags__"):
                tags = require("sklearn.utils").get_tags(self._wrapped).input_tags
            takes = getattr(tags, "categorical", False) or getattr(tags, "string", False)
            known = self._categorical = (self._wrapped, bool(takes))
        return known[1]

    _categorical: tuple[Any, bool] | None = None
    """The wrapped object, and whether it takes categories."""

    @property
    def is_cross_fitted(self) -> bool:
        """Whether rows that it is fitted on are transformed by what other rows have taught it."""
        return self.scaler_name == "TargetEncoder"

    @property
    def spreads(self) -> bool:
        """Whether each column becomes several, however many these are."""
        added = bool(getattr(self._wrapped, "add_indicator", False))
        return added or self.scaler_name in ("OneHotEncoder", "PolynomialFeatures")

    def clone_unfitted(self) -> Self:
        """Make a scaler with the same config that has learned nothing."""
        return type(self)(self)

    def fit(self, data: Array, targets: Array | None = None) -> Self:
        """Learn from rows, forgetting what was learned before.

        Parameters
        ----------
        data : ndarray, shape (n_samples, n_features)
            At least one row. Is not changed.
        targets : ndarray, shape (n_samples,) or (n_samples, n_targets), optional
            For what looks at targets, such as `SelectKBest`.

        Returns
        -------
        Scaler
            Itself. If fitting fails it is as it was.

        Raises
        ------
        ShapeError
            If the data is not two-dimensional.
        ScalerError
            If there are no rows or no numbers, the scaler cannot be fitted on them, or it needs
            targets and there are none.
        """
        found = self._table(data)
        if len(found) == 0:
            raise ScalerError(f"{self.scaler_name} cannot be fitted on 0 rows")
        fresh = self._build()
        try:
            self._call(fresh, "fit", found, targets)
        except ScalerError as error:
            if targets is None and ("requires y" in str(error) or "'y'" in str(error)):
                raise ScalerError(f"{self.scaler_name} looks at targets; pass targets=") from error
            raise
        self._wrapped, self._n_features, self.is_fit = fresh, found.shape[1], True
        return self

    def partial_fit(self, data: Array) -> Self:
        """Learn from more rows, where the scaler can; see `fit`."""
        found = self._checked(data) if self.is_fit else self._table(data)
        self._call(self._wrapped, "partial_fit", found)
        self._n_features, self.is_fit = found.shape[1], True
        return self

    def transform(self, data: Array) -> Array:
        """Scale rows.

        Parameters
        ----------
        data : ndarray, shape (n_samples, n_features)
            As many columns as at `fit`; may have no rows. Is not changed.

        Returns
        -------
        ndarray, shape (n_samples, n_features_out)
            A new array; float32 stays float32 where the scaler keeps it.

        Raises
        ------
        NotFittedError
            If the scaler is not fitted.
        ShapeError
            If the number of columns differs.
        ScalerError
            If these are no numbers, or the scaler fails on them.
        """
        return self._apply("transform", self._checked(data))

    def fit_transform(self, data: Array, targets: Array | None = None) -> Array:
        """Fit on rows, then scale them; see `fit`."""
        self.fit(data, targets)
        if not self.is_cross_fitted or targets is None:
            return self.transform(data)
        return self.cross_fit(data, targets, None)

    def cross_fit(self, data: Array, targets: Array, seed: int | None) -> Array:
        """Transform the rows of `fit`, each by what was learned from rows of other folds.

        Rows are dealt to folds by `seed`, unless the scaler has a seed or folds of its own.
        """
        fresh = self._build()
        if isinstance(fresh.cv, int) and fresh.random_state == "deprecated":  # scikit-learn 1.9
            kind = require("sklearn.utils.multiclass").type_of_target(targets)
            name = "KFold" if kind == "continuous" else "StratifiedKFold"
            folds = getattr(require("sklearn.model_selection"), name)
            fresh.cv = folds(fresh.cv, shuffle=True, random_state=seed)
        elif fresh.random_state is None:
            fresh.random_state = seed
        return self._apply("fit_transform", self._checked(data), fresh, targets)

    def inverse_transform(self, data: Array) -> Array:
        """Undo `transform`.

        Parameters
        ----------
        data : ndarray, shape (n_samples, n_features_out)
            Scaled rows, or predictions in scaled units. Is not changed.

        Returns
        -------
        ndarray, shape (n_samples, n_features)

        Raises
        ------
        NotFittedError
            If the scaler is not fitted.
        NoInverseError
            If the scaler has no inverse, or none without `row_facts`.
        """
        self._require_fit()
        # the inverse of a FunctionTransformer without inverse_func would change nothing
        forgets = (
            getattr(self._wrapped, "func", None) is not None
            and getattr(self._wrapped, "inverse_func", self._wrapped) is None
        )
        if forgets or not hasattr(self._wrapped, "inverse_transform"):
            raise NoInverseError(
                f"{self.scaler_name} has no inverse; keep the rows as they were before scaling"
            )
        found = self._checked(data) if self._is_known else as_numbers(data)
        if self.scaler_name in ("LabelEncoder", "OrdinalEncoder"):
            codes = np.rint(found)
            if not np.array_equal(codes, found):
                odd = found[codes != found][0]
                raise ScalerError(f"{self.scaler_name} is undone from class numbers, got {odd}")
            found = codes.astype(np.int64)
        return self._apply("inverse_transform", found)

    def row_facts(self, data: Array) -> Array:
        """Return what `inverse_with` must know about each row.

        Parameters
        ----------
        data : ndarray, shape (n_samples, n_features)
            Rows as they are before scaling.

        Returns
        -------
        ndarray, shape (n_samples, n_facts)
            No columns where `needs_rows` is false.
        """
        found = self._checked(data)
        if not self.needs_rows:
            return np.empty((len(found), 0), dtype=found.dtype)
        return np.asarray(self._wrapped.row_facts(found))

    def inverse_with(self, data: Array, facts: Array) -> Array:
        """Undo `transform`, with facts about each row where they are needed.

        Parameters
        ----------
        data : ndarray, shape (n_samples, n_features_out)
        facts : ndarray, shape (n_samples, n_facts)
            What `row_facts` gave for the same rows.

        Returns
        -------
        ndarray, shape (n_samples, n_features)
        """
        if not self.needs_rows:
            return self.inverse_transform(data)
        return np.asarray(self._wrapped.inverse_with(self._checked(data), facts))

    def get_state(self) -> dict[str, Any]:
        """Return what was learned, as numbers, arrays, lists and dicts.

        Returns
        -------
        dict
            ``is_fit``; if true, also ``n_features_in_`` and the fitted attributes of the wrapped
            scaler, or what its own ``get_state`` gives, as ``wrapped_``.

        Raises
        ------
        ConfigError
            If a fitted attribute is no plain data.
        """
        if not self.is_fit:
            return {"is_fit": False}
        own = _keeps_state(self._wrapped)
        found = {"wrapped_": self._wrapped.get_state()} if own else learned(self._wrapped)
        return {**found, "is_fit": True, "n_features_in_": self._n_features}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_state` returned.

        Raises
        ------
        ScalerError
            If it is not such a state; the scaler is then as it was.
        """
        if "is_fit" not in state or (state["is_fit"] and "n_features_in_" not in state):
            raise ScalerError(f"this is no state of a scaler: it has only {sorted(state)}")
        fresh = self._build()
        if state["is_fit"] and _keeps_state(fresh):
            fresh.set_state(state["wrapped_"])
        elif state["is_fit"]:
            mine = {"is_fit"} - vars(fresh).keys()  # some classes have such an attribute too
            if self.scaler_name in _OF_ONE_COLUMN:
                mine.add("n_features_in_")  # which those of scikit-learn do not have
            relearn(fresh, {key: value for key, value in state.items() if key not in mine})
        self._wrapped, self.is_fit = fresh, bool(state["is_fit"])
        self._n_features = int(state.get("n_features_in_", 0))

    def __repr__(self) -> str:
        kwargs = f", {self.scaler_kwargs!r}" if self.scaler_kwargs else ""
        return f"Scaler({self.scaler_name!r}{kwargs})"

    def _build(self) -> Any:
        """Make the wrapped scaler, with copies of the arguments, so that nothing is shared."""
        allowed = parameters(self._class)
        open_ended = any(p.kind is p.VAR_KEYWORD for p in allowed.values())
        for name in self.scaler_kwargs:
            if name not in allowed and not open_ended:
                raise UnknownNameError(f"argument of {self.scaler_name}", name, allowed)
        try:
            base = loaded("sklearn.base")
            clone = copy.deepcopy if base is None else partial(base.clone, safe=False)
            return self._class(**{k: clone(v) for k, v in self.scaler_kwargs.items()})
        except ModularMLError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{self.scaler_name} cannot be made with {self.scaler_kwargs!r}: {error}"
            ) from error

    @property
    def _is_known(self) -> bool:
        """Whether it keeps the number of columns and, with ``copy=True``, leaves data alone."""
        return self.scaler in (*OWN, *SKLEARN)

    def _require_fit(self) -> None:
        if not self.is_fit:
            raise NotFittedError(f"{self.scaler_name} is not fitted; call fit(data) first")

    def _checked(self, data: Array) -> Array:
        self._require_fit()
        found = self._table(data)
        if found.shape[1] != self._n_features:
            raise ShapeError(
                f"{self.scaler_name} was fitted on {self._n_features} columns, "
                f"got {found.shape[1]} (shape {found.shape})"
            )
        return found

    def _table(self, data: Array) -> Array:
        return as_table(data) if self.takes_categories else as_numbers(data)

    def _apply(
        self, method: str, data: Array, scaler: Any = None, targets: Array | None = None
    ) -> Array:
        if len(data) == 0:  # scikit-learn refuses; one row tells the shape and type
            known = getattr(self._wrapped, "categories_", None)
            if known is None and self.scaler_name in _OF_ONE_COLUMN:
                known = [self._wrapped.classes_]
            if known is None:
                row = np.ones((1, data.shape[1]), dtype=data.dtype)
            else:
                alike = len({values.dtype for values in known}) == 1
                row = np.array([[v[0] for v in known]], known[0].dtype if alike else object)
            return self._apply(method, row, scaler, targets)[:0]
        out = self._call(self._wrapped if scaler is None else scaler, method, data, targets)
        found = np.asarray(out.toarray() if hasattr(out, "toarray") else out)
        if self.scaler_name in _OF_ONE_COLUMN and found.ndim == 1:
            found = found[:, None]
        if found.ndim != 2 or len(found) != len(data):
            raise ScalerError(
                f"{self.scaler_name}.{method} must return {len(data)} rows in two dimensions, "
                f"got shape {found.shape}"
            )
        return found

    def _call(self, scaler: Any, method: str, data: Array, targets: Array | None = None) -> Any:
        may_write = not self._is_known or not getattr(scaler, "copy", True)
        given = data.copy() if may_write else data
        if self.scaler_name in _OF_ONE_COLUMN:
            if data.shape[1] != 1:
                raise ScalerError(f"{self.scaler_name} takes one column, got {data.shape[1]}")
            given = given[:, 0]
        try:
            return getattr(scaler, method)(given, *(() if targets is None else (targets,)))
        except ModularMLError:
            raise
        except Exception as error:
            text = str(error).partition("\n")[0]
            if len(text) > LONGEST:  # as one that lists every category
                text = f"{text[:LONGEST]}..."
            if "unknown categories" in str(error):
                text += "; fit it with handle_unknown='ignore' or 'use_encoded_value'"
            raise ScalerError(
                f"{self.scaler_name}.{method} failed on data of shape {data.shape} "
                f"({data.dtype}): {text}"
            ) from error


LONGEST = 240
"""Characters of a message of scikit-learn that are shown."""

_OF_ONE_COLUMN = ("LabelEncoder", "LabelBinarizer")
"""Classes of scikit-learn that take a single column, without its axis."""


def _keeps_state(scaler: Any) -> bool:
    return hasattr(scaler, "get_state") and hasattr(scaler, "set_state")
