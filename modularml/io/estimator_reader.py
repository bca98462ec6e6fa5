"""The reader of fitted estimators from plain data, with checks of each part."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from modularml._optional import require
from modularml.config import decode, estimator_from, find_code
from modularml.errors import ConfigError
from modularml.io.attributes import OWNERS, check_attributes, described
from modularml.io.boosters import booster_from
from modularml.io.estimator_kinds import (
    MADE,
    MADE_AGAIN,
    NAMED,
    NEIGHBOURS,
    PARTS,
    first_leaf,
    found_in,
    grown,
    is_estimator,
    parameters,
)
from modularml.io.randomness import generator_from
from modularml.io.relations import check_estimator, check_predictor, check_tree

__all__ = ["Reader"]


class Reader:
    """Reads the output of `Writer`, in the same order."""

    def __init__(self) -> None:
        self._numbered: list[Any] = []

    def take(self, estimator: Any, state: dict[str, Any]) -> None:
        """Check and restore the fitted state of an estimator."""
        self._set(estimator, state)
        check_attributes(estimator, parameters(type(estimator)))
        try:
            check_estimator(estimator)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"parts of a {type(estimator).__name__} do not fit each other: {error}"
            ) from error
        if hasattr(type(estimator), "_check_mkl_vcomp"):  # clusters in threads
            openmp = require("sklearn.utils._openmp_helpers")
            estimator._n_threads = openmp._openmp_effective_n_threads()
        if "X_thresholds_" in state and hasattr(estimator, "_build_f"):
            estimator._build_f(estimator.X_thresholds_, estimator.y_thresholds_)
        lacks = {"statistics_", "_fit_dtype"} <= state.keys() and "_fill_dtype" not in state
        if lacks and hasattr(type(estimator)().fit([[0.0]]), "_fill_dtype"):  # in scikit-learn 1.8
            estimator._fill_dtype = estimator._fit_dtype
        if isinstance(state.get("root_"), dict) and "$birch" in state["root_"]:
            estimator.dummy_leaf_ = first_leaf(estimator.root_)

    def _set(self, target: Any, state: dict[str, Any]) -> None:
        cls = type(target)
        keeps = cls.__module__.startswith(OWNERS)  # others may change their arguments
        given = {n: getattr(target, n, None) for n in parameters(cls)} if keeps else {}
        for name, value in state.items():
            revived, own = self.revived(value), getattr(cls, name, None)
            if not name.isidentifier() or name.startswith("__") or inspect.isroutine(own):
                raise ConfigError(f"{name!r:.60} is not a fitted attribute")
            if name in given and not _alike(revived, given[name]):
                raise ConfigError(f"{name!r:.60} differs in form from the estimator's argument")
            if not isinstance(own, property) and name not in MADE_AGAIN:
                setattr(target, name, revived)

    def revived(self, value: Any) -> Any:
        """Return the value represented by plain data."""
        if isinstance(value, list):
            return [self.revived(item) for item in value]
        if isinstance(value, dict):
            for tag, read in _PLAIN.items():
                if tag in value:
                    return read(self, value)
            if "$same" in value:
                return self._numbered[value["$same"]]
        elif not isinstance(value, np.ndarray):
            return value
        revived_object = self._object(value)
        self._numbered.append(revived_object)
        return revived_object

    def _object(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.copy()
        for tag, read in _OBJECTS.items():
            if tag in value:
                return read(self, value)
        if "$config" not in value:
            raise ConfigError(f"{sorted(value)!r:.80} is not part of a state")
        return decode(value["$config"])

    def _record(self, value: dict[str, Any]) -> Any:
        names, kinds, offsets = zip(*value["$record"], strict=True)
        if any(np.dtype(kind).kind not in "biuf" for kind in kinds):
            raise ConfigError("a table of a tree holds values that are not numbers")
        fields = {"names": names, "formats": kinds, "offsets": offsets, "itemsize": value["size"]}
        if not 0 < value["size"] <= 8 * len(names) + 8:
            raise ConfigError("a table of a tree has rows of another size than its columns")
        ends = [at + np.dtype(kind).itemsize for kind, at in zip(kinds, offsets, strict=True)]
        if min(offsets) < 0 or max(ends) > value["size"]:
            raise ConfigError("a column of a table of a tree lies outside its rows")
        columns = value["columns"]
        shape = next(iter(columns.values())).shape[:-1]
        out: Any = np.zeros(shape, np.dtype(fields))  # type: ignore[call-overload]
        for kind, values in columns.items():
            names_of_kind = [n for n, k in zip(names, kinds, strict=True) if k == kind]
            for name, column in zip(names_of_kind, np.moveaxis(values, -1, 0), strict=True):
                out[name] = column
        return out

    def _masked(self, value: dict[str, Any]) -> Any:
        data, mask = (self._object(part) for part in value["$masked"])
        return np.ma.MaskedArray(data, mask, fill_value=self.revived(value["fill"]))

    def _columns_first(self, value: dict[str, Any]) -> Any:
        return value["$columns_first"].copy().T

    def _objects(self, value: dict[str, Any]) -> Any:
        items = [self.revived(item) for item in value["$objects"]]
        out = np.empty(len(items), dtype=object)
        out[:] = items
        return out.reshape(value["shape"])

    def _sparse(self, value: dict[str, Any]) -> Any:
        data, indices, indptr = (self._object(part) for part in value["parts"])
        sparse = require("scipy.sparse")
        cls = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix}[value["$sparse"]]
        matrix = cls((data, indices, indptr), shape=tuple(value["shape"]))
        matrix.check_format(full_check=True)
        return matrix

    def _check_array(self, value: dict[str, Any]) -> Any:
        check = require("sklearn.utils.validation").check_array
        return partial(check, **self.revived(value["$check_array"]))

    def _spline(self, value: dict[str, Any]) -> Any:
        t, c = (self._object(part) for part in value["$spline"])
        return require("scipy.interpolate").BSpline(t, c, value["k"], value["extrapolate"])

    def _tree(self, value: dict[str, Any]) -> Any:
        data = value["$tree"]
        nodes, values = self._object(data["nodes"]), self._object(data["values"])
        n_classes = np.asarray(data["n_classes"], np.intp)
        check_tree(data["n_features"], n_classes, data["max_depth"], nodes, values)
        tree = require("sklearn.tree._tree").Tree(data["n_features"], n_classes, len(n_classes))
        state = {"max_depth": data["max_depth"], "node_count": len(nodes)}
        tree.__setstate__({**state, "nodes": nodes, "values": values})
        return tree

    def _neighbours(self, value: dict[str, Any]) -> Any:
        cls = getattr(require("sklearn.neighbors"), value["$neighbours"])
        if value["$neighbours"] not in NEIGHBOURS.values():
            raise ConfigError(f"{value['$neighbours']!r:.60} is not a tree of neighbours")
        data = self.revived(value["data"])
        metric, kwargs = self.revived(value["metric"]), self.revived(value["kwargs"])
        weights = {} if value["weights"] is None else {"sample_weight": value["weights"]}
        return cls(data, value["leaf_size"], metric=metric, **weights, **kwargs)

    def _part(self, value: dict[str, Any]) -> Any:
        cls = found_in(PARTS, value["$part"])
        part = cls.__new__(cls)
        vars(part).update({k: self.revived(v) for k, v in value["state"].items()})
        check_attributes(part)
        if cls.__name__ == "TreePredictor":
            check_predictor(part)
        return part

    def _made(self, value: dict[str, Any]) -> Any:
        return found_in(MADE, value["$made"])(*map(float, value["args"]))

    def _fitted(self, value: dict[str, Any]) -> Any:
        cls = find_code(value["$fitted"])
        if not (isinstance(cls, type) and hasattr(cls, "fit") and hasattr(cls, "get_params")):
            raise ConfigError(
                f"{value['$fitted']!r} is not an estimator, so it cannot be part of a state"
            )
        params = {name: self.revived(item) for name, item in value["params"].items()}
        estimator = estimator_from(cls, params, value)
        self.take(estimator, value["state"])
        return estimator

    def _bunch(self, value: dict[str, Any]) -> Any:
        bunch = require("sklearn.utils").Bunch()
        bunch.update({self.revived(k): self.revived(v) for k, v in value["$bunch"]})
        return bunch


def _alike(value: Any, given: Any) -> bool:
    """Return whether an argument has estimators in the same places as before fit."""
    if isinstance(given, list | tuple):
        same = type(value) is type(given) and len(value) == len(given)
        return same and all(map(_alike, value, given))
    if is_estimator(given):
        return type(value) is type(given)
    return described(value) == described(given)


_PLAIN: dict[str, Callable[[Reader, dict[str, Any]], Any]] = {
    "$tuple": lambda r, v: tuple(r.revived(item) for item in v["$tuple"]),
    "$dict": lambda r, v: {r.revived(key): r.revived(item) for key, item in v["$dict"]},
    "$bunch": Reader._bunch,
    "$slice": lambda r, v: slice(*v["$slice"]),
    "$dtype": lambda r, v: np.dtype(v["$dtype"]),
}

_OBJECTS: dict[str, Callable[[Reader, dict[str, Any]], Any]] = {
    "$objects": Reader._objects,
    "$columns_first": Reader._columns_first,
    "$masked": Reader._masked,
    "$record": Reader._record,
    "$random": lambda r, v: generator_from(r.revived(v["$random"])),
    "$sparse": Reader._sparse,
    "$check_array": Reader._check_array,
    "$spline": Reader._spline,
    "$tree": Reader._tree,
    "$booster": lambda r, v: booster_from(v),
    "$birch": lambda r, v: grown({k: r.revived(i) for k, i in v["$birch"].items()}),
    "$neighbours": Reader._neighbours,
    "$part": Reader._part,
    "$made": Reader._made,
    "$named": lambda r, v: found_in(NAMED, v["$named"])(*map(r.revived, v["items"])),
    "$fitted": Reader._fitted,
}
