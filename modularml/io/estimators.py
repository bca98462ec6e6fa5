"""Fitted state of estimators as plain data, without pickle.

Attributes are traversed. Objects that are neither data nor estimators must be on a closed list of
kinds: decision trees, neighbour trees, losses, sparse matrices, random generators and a few classes
of scikit-learn. Data that is read is validated before it is used.
"""

from __future__ import annotations

import inspect
from collections import UserList
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from modularml._arguments import OF_THE_MACHINE, estimator_from, origin
from modularml._optional import require
from modularml.config import (
    decode,
    decode_items,
    encode,
    find_code,
    reads_file,
    tagged,
)
from modularml.errors import ConfigError
from modularml.io.boosters import booster_from, booster_text
from modularml.io.estimator_checks import (
    OWNERS,
    check_attributes,
    check_estimator,
    check_predictor,
    check_tree,
    described,
)
from modularml.io.estimator_kinds import (
    BIRCH,
    CHECK_ARRAY,
    MADE,
    MADE_AGAIN,
    NAMED,
    NEIGHBOURS,
    PARTS,
    SPARSE,
    SPLINE,
    TREE,
    first_leaf,
    flattened,
    found_in,
    full_name,
    grown,
    holds_estimator,
    is_estimator,
    is_listed,
    parameters,
    parts_of,
)
from modularml.io.randomness import generator_from, generator_state


class Writer:
    """Writes values; repeated ones are written once and referred to by number."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._alive: list[Any] = []  # keeps objects alive, so that ids stay unique

    def state(self, estimator: Any) -> dict[str, Any]:
        """Return the fitted state of an estimator, by attribute."""
        given = parameters(type(estimator))
        return {
            name: self.plain(value, f"{type(estimator).__name__}.{name}", estimator)
            for name, value in vars(estimator).items()
            if (name not in given or holds_estimator(value)) and name not in MADE_AGAIN
        }

    def plain(self, value: Any, where: str, owner: Any = None) -> Any:
        """Return a value as plain data; `where` names it in errors."""
        if value is None or isinstance(value, bool | int | float | str | np.generic):
            return value
        # of columns in scikit-learn 1.6, which warns on each access
        value = value.data if isinstance(value, UserList) else value
        if isinstance(value, list) or type(value) is tuple:
            return tagged(value, [self.plain(item, where) for item in value], encode)
        if isinstance(value, dict):
            tag = "$bunch" if type(value).__name__ == "Bunch" else "$dict"
            pairs = value.items()
            return {tag: [[self.plain(k, where), self.plain(v, where)] for k, v in pairs]}
        if isinstance(value, slice):
            return {"$slice": [value.start, value.stop, value.step]}
        if isinstance(value, np.dtype):
            return {"$dtype": value.str}
        key: Any = id(value)
        if isinstance(value, np.ndarray):
            start = value.__array_interface__["data"][0]
            key = (start, value.shape, value.strides, value.dtype.str, type(value))
            key = key if value.size else id(value)
        if key in self._numbers:
            return {"$same": self._numbers[key]}
        tree = self._object(value, where, owner)
        self._numbers[key] = len(self._numbers)
        self._alive.append(value)
        return tree

    def _object(self, value: Any, where: str, owner: Any) -> Any:
        if isinstance(value, np.ndarray):
            return self._array(value, where)
        if isinstance(value, np.random.RandomState | np.random.Generator):
            return {"$random": self.plain(generator_state(value), where)}
        if (tree := self._listed(value, where, owner)) is not None:
            return tree
        if is_estimator(value):
            params = value.get_params(deep=False).items()
            params = [(k, v) for k, v in params if k not in OF_THE_MACHINE]
            arguments = {k: self.plain(v, f"{where}.{k}") for k, v in params}
            code = encode(type(value))["$code"]
            state = self.state(value)
            return {"$fitted": code, "params": arguments, "state": state} | origin(value)
        try:
            return {"$config": encode(value)}
        except ConfigError as error:
            raise ConfigError(
                f"{where} is a {type(value).__name__} and cannot be stored as plain data; "
                "define get_state() and set_state(state) in its class, or fit it again after "
                "loading"
            ) from error

    def _listed(self, value: Any, where: str, owner: Any) -> Any:
        """Return an object of a listed kind as data; None for others."""
        name = full_name(value)
        if hasattr(value, "tocsr") and getattr(value, "format", "") in ("csr", "csc"):
            parts = [self._array(getattr(value, p), where) for p in SPARSE]
            return {"$sparse": value.format, "shape": list(value.shape), "parts": parts}
        if (booster := booster_text(value)) is not None:
            return booster
        if isinstance(value, partial) and encode(value.func) == {"$code": CHECK_ARRAY}:
            return {"$check_array": self.plain(value.keywords, where)}
        if name == SPLINE:
            parts = [self._array(part, where) for part in (value.t, value.c)]
            return {"$spline": parts, "k": value.k, "extrapolate": value.extrapolate}
        if name == TREE:
            state = value.__getstate__()
            arrays = {part: self._array(state[part], where) for part in ("nodes", "values")}
            facts = {"n_features": value.n_features, "n_classes": np.array(value.n_classes)}
            return {"$tree": {**facts, "max_depth": state["max_depth"], **arrays}}
        if name == BIRCH:
            return {"$birch": {k: self.plain(v, where) for k, v in flattened(value).items()}}
        if name in NEIGHBOURS:
            return {"$neighbours": NEIGHBOURS[name], **self._neighbours(value, where, owner)}
        if is_listed(NAMED, name):
            return {"$named": name, "items": [self.plain(item, where) for item in value]}
        if is_listed(PARTS, name):
            told = {k: self.plain(v, f"{where}.{k}", value) for k, v in vars(value).items()}
            return {"$part": name, "state": told}
        if is_listed(MADE, name):
            made, args = value.__reduce__()[:2]
            return {"$made": name, "args": list(args) if made is type(value) else []}
        return None

    def _array(self, value: Any, where: str) -> Any:
        if isinstance(value, np.ma.MaskedArray):
            parts = [self._array(np.asarray(p), where) for p in (value.data, value.mask)]
            return {"$masked": parts, "fill": self.plain(value.fill_value, where)}
        if value.dtype.names:  # columns grouped by dtype, as padding bytes are random
            fields = {n: (f[0].str, f[1]) for n, f in (value.dtype.fields or {}).items()}
            kinds = sorted({kind for kind, _ in fields.values()})
            columns = {k: [value[n] for n in fields if fields[n][0] == k] for k in kinds}
            return {
                "$record": [[name, *field] for name, field in fields.items()],
                "size": value.dtype.itemsize,
                "columns": {k: np.stack(arrays, axis=-1) for k, arrays in columns.items()},
            }
        if value.dtype.hasobject:
            items = [self.plain(item, where) for item in value.ravel()]
            return {"$objects": items, "shape": list(value.shape)}
        if value.ndim > 1 and value.strides[0] < value.strides[-1]:
            return {"$columns_first": value.T.copy()}  # products differ by an ulp in C order
        return value.copy()

    def _neighbours(self, tree: Any, where: str, owner: Any) -> dict[str, Any]:
        """Return the inputs of the tree, from which it can be rebuilt identically."""
        metric = getattr(owner, "effective_metric_", getattr(owner, "metric", None))
        kwargs = getattr(owner, "effective_metric_params_", getattr(owner, "metric_params", None))
        weights = getattr(tree, "sample_weight", None)
        return {
            "data": self.plain(np.asarray(tree.data), where),
            "leaf_size": tree.__getstate__()[4],
            "metric": self.plain(metric, where),
            "kwargs": self.plain(kwargs or {}, where),
            "weights": None if weights is None else np.array(weights),
        }


def learned(estimator: Any, *, check: bool = True) -> dict[str, Any]:
    """Return the fitted state of an estimator.

    Parameters
    ----------
    estimator : object
        Its attributes are stored, except for constructor arguments. Of those, only the ones
        that hold estimators, which may have been fitted in place.
    check : bool
        Whether to check attributes with `check_attributes`, as reading does.

    Returns
    -------
    dict of str to object
        Numbers, strings, arrays, lists and dicts; arrays are copies.

    Raises
    ------
    ConfigError
        If an attribute is none of these, or not on the list.
    """
    if check:
        check_parts(estimator)
    return Writer().state(estimator)


def check_parts(estimator: Any) -> None:
    """Check an estimator and all its parts with `check_attributes`."""
    for part in parts_of(estimator):
        check_attributes(part, parameters(type(part)) if is_estimator(part) else ())


class Reader:
    """Reads the output of `Writer`, in the same order."""

    def __init__(self) -> None:
        self._numbered: list[Any] = []

    def take(self, estimator: Any, state: dict[str, Any]) -> None:
        """Check and restore the fitted state of an estimator."""
        cls = type(estimator)
        keeps = cls.__module__.startswith(OWNERS)  # others may change their arguments
        given = {n: getattr(estimator, n, None) for n in parameters(cls)} if keeps else {}
        for name, value in state.items():
            revived, own = self.revived(value), getattr(cls, name, None)
            if not name.isidentifier() or name.startswith("__") or inspect.isroutine(own):
                raise ConfigError(f"{name!r:.60} is not a fitted attribute")
            if name in given and not _alike(revived, given[name]):
                raise ConfigError(f"{name!r:.60} differs in form from the estimator's argument")
            if not isinstance(own, property) and name not in MADE_AGAIN:
                setattr(estimator, name, revived)
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

    def revived(self, value: Any) -> Any:
        """Return the value represented by plain data."""
        if isinstance(value, list) or (isinstance(value, dict) and _ITEMS & value.keys()):
            return decode_items(value, self.revived)
        if isinstance(value, dict):
            for tag, read in _PLAIN.items():
                if tag in value:
                    return read(self, value)
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

    def _fitted(self, value: dict[str, Any]) -> Any:
        cls = find_code(value["$fitted"])
        if not (isinstance(cls, type) and hasattr(cls, "fit") and hasattr(cls, "get_params")):
            raise ConfigError(
                f"{value['$fitted']!r} is not an estimator, so it cannot be part of a state"
            )
        params = {name: self.revived(item) for name, item in value["params"].items()}
        estimator = estimator_from(cls, params, value, foreign=reads_file())
        self.take(estimator, value["state"])
        return estimator

    def _bunch(self, value: dict[str, Any]) -> Any:
        bunch = require("sklearn.utils").Bunch()
        bunch.update(decode_items({"$dict": value["$bunch"]}, self.revived))
        return bunch


def _alike(value: Any, given: Any) -> bool:
    """Return whether an argument has estimators in the same places as before fit."""
    if isinstance(given, list | tuple):
        same = type(value) is type(given) and len(value) == len(given)
        return same and all(map(_alike, value, given))
    if is_estimator(given):
        return type(value) is type(given)
    return described(value) == described(given)


_ITEMS = frozenset({"$tuple", "$dict"})
_PLAIN: dict[str, Callable[[Reader, dict[str, Any]], Any]] = {
    "$bunch": Reader._bunch,
    "$slice": lambda r, v: slice(*v["$slice"]),
    "$dtype": lambda r, v: np.dtype(v["$dtype"]),
    "$same": lambda r, v: r._numbered[v["$same"]],
}

_OBJECTS: dict[str, Callable[[Reader, dict[str, Any]], Any]] = {
    "$objects": Reader._objects,
    "$columns_first": lambda r, v: v["$columns_first"].copy().T,
    "$masked": lambda r, v: np.ma.MaskedArray(
        r._object(v["$masked"][0]), r._object(v["$masked"][1]), fill_value=r.revived(v["fill"])
    ),
    "$record": Reader._record,
    "$random": lambda r, v: generator_from(r.revived(v["$random"])),
    "$sparse": Reader._sparse,
    "$check_array": lambda r, v: partial(
        require("sklearn.utils.validation").check_array, **r.revived(v["$check_array"])
    ),
    "$spline": lambda r, v: require("scipy.interpolate").BSpline(
        *map(r._object, v["$spline"]), v["k"], v["extrapolate"]
    ),
    "$tree": Reader._tree,
    "$booster": lambda r, v: booster_from(v),
    "$birch": lambda r, v: grown({k: r.revived(i) for k, i in v["$birch"].items()}),
    "$neighbours": Reader._neighbours,
    "$part": Reader._part,
    "$made": lambda r, v: found_in(MADE, v["$made"])(*map(float, v["args"])),
    "$named": lambda r, v: found_in(NAMED, v["$named"])(*map(r.revived, v["items"])),
    "$fitted": Reader._fitted,
}


def relearn(estimator: Any, state: dict[str, Any]) -> None:
    """Restore the fitted state that `learned` returned.

    Raises
    ------
    ConfigError
        If the state names a class that is not an estimator, or its parts do not fit each other.
    """
    Reader().take(estimator, state)
