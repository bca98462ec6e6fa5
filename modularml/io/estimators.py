"""Fitted state of estimators as plain data, without pickle.

Attributes are traversed. Objects that are neither data nor estimators must be on a closed list of
kinds: decision trees, neighbour trees, losses, sparse matrices, random generators and a few classes
of scikit-learn. Data that is read is validated before it is used.
"""

from __future__ import annotations

from collections import UserList
from functools import partial
from typing import Any

import numpy as np

from modularml.config import OF_THE_MACHINE, encode, origin
from modularml.errors import ConfigError
from modularml.io.attributes import check_attributes
from modularml.io.boosters import booster_text
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
    flattened,
    full_name,
    holds_estimator,
    is_estimator,
    is_listed,
    parameters,
    parts_of,
)
from modularml.io.estimator_reader import Reader
from modularml.io.randomness import generator_state

__all__ = ["Writer", "check_parts", "learned", "relearn"]


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
        if isinstance(
            value, UserList
        ):  # of columns in scikit-learn 1.6, which warns on each access
            value = value.data
        if isinstance(value, list):
            return [self.plain(item, where) for item in value]
        if type(value) is tuple:
            return {"$tuple": [self.plain(item, where) for item in value]}
        if isinstance(value, dict):
            tag = "$bunch" if type(value).__name__ == "Bunch" else "$dict"
            pairs = value.items()
            return {tag: [[self.plain(k, where), self.plain(v, where)] for k, v in pairs]}
        if isinstance(value, slice):
            return {"$slice": [value.start, value.stop, value.step]}
        if isinstance(value, np.dtype):
            return {"$dtype": value.str}
        return self._once(value, where, owner)

    def _once(self, value: Any, where: str, owner: Any) -> Any:
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
            return {"$tree": self._tree(value, where)}
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
        if value.dtype.names:
            return self._record(value)
        if value.dtype.hasobject:
            items = [self.plain(item, where) for item in value.ravel()]
            return {"$objects": items, "shape": list(value.shape)}
        if value.ndim > 1 and value.strides[0] < value.strides[-1]:
            return {"$columns_first": value.T.copy()}  # products differ by an ulp in C order
        return value.copy()

    @staticmethod
    def _record(value: Any) -> dict[str, Any]:
        """Return columns grouped by dtype, as padding bytes are random."""
        fields = {n: (f[0].str, f[1]) for n, f in (value.dtype.fields or {}).items()}
        kinds = sorted({kind for kind, _ in fields.values()})
        columns = {k: [value[n] for n in fields if fields[n][0] == k] for k in kinds}
        return {
            "$record": [[name, *field] for name, field in fields.items()],
            "size": value.dtype.itemsize,
            "columns": {k: np.stack(arrays, axis=-1) for k, arrays in columns.items()},
        }

    def _tree(self, tree: Any, where: str) -> dict[str, Any]:
        state = tree.__getstate__()
        return {
            "n_features": tree.n_features,
            "n_classes": np.array(tree.n_classes),
            "max_depth": state["max_depth"],
            "nodes": self._array(state["nodes"], where),
            "values": self._array(state["values"], where),
        }

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


def relearn(estimator: Any, state: dict[str, Any]) -> None:
    """Restore the fitted state that `learned` returned.

    Raises
    ------
    ConfigError
        If the state names a class that is not an estimator, or its parts do not fit each other.
    """
    Reader().take(estimator, state)
