"""What an estimator has learned, as plain data and back; nothing is pickled.

Attributes are walked. Objects that are neither data nor estimators are written by a closed list of
kinds: decision trees, neighbour trees, losses, sparse matrices, random generators and a few of
scikit-learn's own holders. What is read is held against its structure before it is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from modularml._optional import require
from modularml.config import decode, encode, find_code
from modularml.errors import ConfigError
from modularml.io.birch import first_leaf, flattened, grown
from modularml.io.randomness import generator_from, generator_state
from modularml.io.structure import check_estimator, check_predictor, check_tree

__all__ = ["learned", "parameters", "relearn"]

PARTS = {
    "sklearn._loss.link": "IdentityLink LogLink LogitLink HalfLogitLink MultinomialLogit Interval",
    "sklearn._loss.loss": "HalfSquaredError AbsoluteError PinballLoss HuberLoss HalfPoissonLoss "
    "HalfGammaLoss HalfTweedieLoss HalfTweedieLossIdentity HalfBinomialLoss HalfMultinomialLoss "
    "ExponentialLoss",
    "sklearn.calibration": "_CalibratedClassifier",
    "sklearn.cluster._bisect_k_means": "_BisectingTree",
    "sklearn.ensemble._hist_gradient_boosting.predictor": "TreePredictor",
    "sklearn.metrics._scorer": "_CurveScorer _PassthroughScorer _Scorer _MultimetricScorer",
    "sklearn.utils._metadata_requests": "MetadataRequest MethodMetadataRequest",
    "sklearn.neural_network._stochastic_optimizers": "AdamOptimizer SGDOptimizer",
}
"""Classes of scikit-learn whose objects are their attributes and nothing else."""

MADE = {
    "sklearn._loss._loss": "CyHalfSquaredError CyAbsoluteError CyPinballLoss CyHuberLoss "
    "CyHalfPoissonLoss CyHalfGammaLoss CyHalfTweedieLoss CyHalfTweedieLossIdentity "
    "CyHalfBinomialLoss CyHalfMultinomialLoss CyExponentialLoss",
    "sklearn.linear_model._sgd_fast": "Hinge SquaredHinge ModifiedHuber EpsilonInsensitive "
    "SquaredEpsilonInsensitive",
}
"""Classes written in C that a few numbers make again."""

NAMED = {"sklearn.impute._iterative": "_ImputerTriplet"}
CHECK_ARRAY = "sklearn.utils.validation:check_array"
SPLINE = "scipy.interpolate._bsplines:BSpline"
TREE = "sklearn.tree._tree:Tree"
BIRCH = "sklearn.cluster._birch:_CFNode"
NEIGHBOURS = {f"sklearn.neighbors._{k.lower()[:-4]}_tree:{k}": k for k in ("KDTree", "BallTree")}


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Return what a class's constructor takes, by name."""
    try:
        return dict(inspect.signature(cls).parameters)
    except ValueError:  # some classes written in C do not tell
        return {}


def learned(estimator: Any) -> dict[str, Any]:
    """Return what an estimator has learned.

    Parameters
    ----------
    estimator : object
        Its attributes are taken, but for the constructor's arguments. Of those, only the ones
        that hold estimators, which may have been fitted inside.

    Returns
    -------
    dict of str to object
        Numbers, strings, arrays, lists and dicts; arrays are copies.

    Raises
    ------
    ConfigError
        If an attribute is none of these.
    """
    return _Writer().state(estimator)


def relearn(estimator: Any, state: dict[str, Any]) -> None:
    """Give an estimator back what `learned` returned.

    Raises
    ------
    ConfigError
        If the state names a class that is no estimator, or its parts do not fit each other.
    """
    _Reader().take(estimator, state)


class _Writer:
    """Writes values; what occurs more than once is written once and has a number."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._alive: list[Any] = []  # an id is another object's once its own is gone

    def state(self, estimator: Any) -> dict[str, Any]:
        given = parameters(type(estimator))
        return {
            name: self.plain(value, f"{type(estimator).__name__}.{name}", estimator)
            for name, value in vars(estimator).items()
            if (name not in given or _holds_estimator(value)) and name not in _MADE_AGAIN
        }

    def plain(self, value: Any, where: str, owner: Any = None) -> Any:
        if value is None or isinstance(value, bool | int | float | str | np.generic):
            return value
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
            told = {k: self.plain(v, f"{where}.{k}") for k, v in params}
            code = encode(type(value))["$code"]
            return {"$fitted": code, "params": told, "state": self.state(value)}
        try:
            return {"$config": encode(value)}
        except ConfigError as error:
            raise ConfigError(
                f"{where} is a {type(value).__name__} and cannot be stored as plain data; "
                "give the class get_state() and set_state(state), or fit it again after loading"
            ) from error

    def _listed(self, value: Any, where: str, owner: Any) -> Any:
        """Return an object of one of the kinds above as data; None for others."""
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        if hasattr(value, "tocsr") and getattr(value, "format", "") in ("csr", "csc"):
            parts = [self._array(getattr(value, p), where) for p in _SPARSE]
            return {"$sparse": value.format, "shape": list(value.shape), "parts": parts}
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
        if _is_in(NAMED, name):
            return {"$named": name, "items": [self.plain(item, where) for item in value]}
        if _is_in(PARTS, name):
            told = {k: self.plain(v, f"{where}.{k}", value) for k, v in vars(value).items()}
            return {"$part": name, "state": told}
        if _is_in(MADE, name):
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
            return {"$columns_first": value.T.copy()}  # products differ by an ulp in another order
        return value.copy()

    @staticmethod
    def _record(value: Any) -> dict[str, Any]:
        """Return columns of one dtype together: bytes between them would be random."""
        fields = {n: (f[0].str, f[1]) for n, f in (value.dtype.fields or {}).items()}
        kinds = sorted({kind for kind, _ in fields.values()})
        columns = {k: [value[n] for n in fields if fields[n][0] == k] for k in kinds}
        return {
            "$record": [[name, *told] for name, told in fields.items()],
            "size": value.dtype.itemsize,
            "columns": {k: np.stack(found, axis=-1) for k, found in columns.items()},
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
        """Return what the tree was made of; it comes out the same when it is made again."""
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


class _Reader:
    """Reads what `_Writer` wrote, in the same order."""

    def __init__(self) -> None:
        self._numbered: list[Any] = []

    def take(self, estimator: Any, state: dict[str, Any]) -> None:
        self._set(estimator, state)
        check_estimator(estimator)
        if "X_thresholds_" in state and hasattr(estimator, "_build_f"):
            estimator._build_f(estimator.X_thresholds_, estimator.y_thresholds_)
        if isinstance(state.get("root_"), dict) and "$birch" in state["root_"]:
            estimator.dummy_leaf_ = first_leaf(estimator.root_)

    def _set(self, target: Any, state: dict[str, Any]) -> None:
        for name, value in state.items():
            revived, own = self.revived(value), getattr(type(target), name, None)
            if not name.isidentifier() or name.startswith("__") or inspect.isroutine(own):
                raise ConfigError(f"{name!r:.60} is no attribute that is learned")
            if not isinstance(own, property):
                setattr(target, name, revived)

    def revived(self, value: Any) -> Any:
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
        made = self._object(value)
        self._numbered.append(made)
        return made

    def _object(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.copy()
        for tag, read in _OBJECTS.items():
            if tag in value:
                return read(self, value)
        if "$config" not in value:
            raise ConfigError(f"{sorted(value)!r:.80} is no part of a state")
        return decode(value["$config"])

    def _record(self, value: dict[str, Any]) -> Any:
        names, kinds, offsets = zip(*value["$record"], strict=True)
        if any(np.dtype(kind).kind not in "biuf" for kind in kinds):
            raise ConfigError("a table of a tree holds something else than numbers")
        told = {"names": names, "formats": kinds, "offsets": offsets, "itemsize": value["size"]}
        if not 0 < value["size"] <= 8 * len(names) + 8:
            raise ConfigError("a table of a tree has rows of another size than its columns")
        columns = value["columns"]
        shape = next(iter(columns.values())).shape[:-1]
        out: Any = np.zeros(shape, np.dtype(told))  # type: ignore[call-overload]
        for kind, found in columns.items():
            mine = [n for n, k in zip(names, kinds, strict=True) if k == kind]
            for name, column in zip(mine, np.moveaxis(found, -1, 0), strict=True):
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
        made = cls((data, indices, indptr), shape=tuple(value["shape"]))
        made.check_format(full_check=True)
        return made

    def _check_array(self, value: dict[str, Any]) -> Any:
        check = require("sklearn.utils.validation").check_array
        return partial(check, **self.revived(value["$check_array"]))

    def _spline(self, value: dict[str, Any]) -> Any:
        t, c = (self._object(part) for part in value["$spline"])
        return require("scipy.interpolate").BSpline(t, c, value["k"], value["extrapolate"])

    def _tree(self, value: dict[str, Any]) -> Any:
        told = value["$tree"]
        nodes, values = self._object(told["nodes"]), self._object(told["values"])
        n_classes = np.asarray(told["n_classes"], np.intp)
        check_tree(told["n_features"], n_classes, told["max_depth"], nodes, values)
        made = require("sklearn.tree._tree").Tree(told["n_features"], n_classes, len(n_classes))
        state = {"max_depth": told["max_depth"], "node_count": len(nodes)}
        made.__setstate__({**state, "nodes": nodes, "values": values})
        return made

    def _neighbours(self, value: dict[str, Any]) -> Any:
        cls = getattr(require("sklearn.neighbors"), value["$neighbours"])
        if value["$neighbours"] not in NEIGHBOURS.values():
            raise ConfigError(f"{value['$neighbours']!r:.60} is no tree of neighbours")
        data = self.revived(value["data"])
        metric, kwargs = self.revived(value["metric"]), self.revived(value["kwargs"])
        weights = {} if value["weights"] is None else {"sample_weight": value["weights"]}
        return cls(data, value["leaf_size"], metric=metric, **weights, **kwargs)

    def _part(self, value: dict[str, Any]) -> Any:
        cls = _found(PARTS, value["$part"])
        made = cls.__new__(cls)
        vars(made).update({k: self.revived(v) for k, v in value["state"].items()})
        if cls.__name__ == "TreePredictor":
            check_predictor(made)
        return made

    def _made(self, value: dict[str, Any]) -> Any:
        return _found(MADE, value["$made"])(*map(float, value["args"]))

    def _fitted(self, value: dict[str, Any]) -> Any:
        cls = find_code(value["$fitted"])
        if not (isinstance(cls, type) and hasattr(cls, "fit") and hasattr(cls, "get_params")):
            raise ConfigError(f"{value['$fitted']!r} is no estimator, so it is no part of a state")
        made = cls(**{name: self.revived(item) for name, item in value["params"].items()})
        self.take(made, value["state"])
        return made

    def _bunch(self, value: dict[str, Any]) -> Any:
        made = require("sklearn.utils").Bunch()
        made.update({self.revived(k): self.revived(v) for k, v in value["$bunch"]})
        return made


_MADE_AGAIN = ("f_", "dummy_leaf_")
"""What follows from others: the function of an isotonic regression, the first leaf of a Birch."""

_SPARSE = ("data", "indices", "indptr")

_PLAIN: dict[str, Callable[[_Reader, dict[str, Any]], Any]] = {
    "$tuple": lambda r, v: tuple(r.revived(item) for item in v["$tuple"]),
    "$dict": lambda r, v: {r.revived(key): r.revived(item) for key, item in v["$dict"]},
    "$bunch": _Reader._bunch,
    "$slice": lambda r, v: slice(*v["$slice"]),
    "$dtype": lambda r, v: np.dtype(v["$dtype"]),
}

_OBJECTS: dict[str, Callable[[_Reader, dict[str, Any]], Any]] = {
    "$objects": _Reader._objects,
    "$columns_first": _Reader._columns_first,
    "$masked": _Reader._masked,
    "$record": _Reader._record,
    "$random": lambda r, v: generator_from(r.revived(v["$random"])),
    "$sparse": _Reader._sparse,
    "$check_array": _Reader._check_array,
    "$spline": _Reader._spline,
    "$tree": _Reader._tree,
    "$birch": lambda r, v: grown({k: r.revived(i) for k, i in v["$birch"].items()}),
    "$neighbours": _Reader._neighbours,
    "$part": _Reader._part,
    "$made": _Reader._made,
    "$named": lambda r, v: _found(NAMED, v["$named"])(*map(r.revived, v["items"])),
    "$fitted": _Reader._fitted,
}


def is_estimator(value: Any) -> bool:
    """Tell whether a value is an object that learns."""
    return hasattr(value, "get_params") and hasattr(value, "fit") and not isinstance(value, type)


def _holds_estimator(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_estimator(item) for item in value)
    return is_estimator(value)


def _is_in(kinds: dict[str, str], name: Any) -> bool:
    module, _, cls = str(name).partition(":")
    return cls in kinds.get(module, "").split()


def _found(kinds: dict[str, str], name: Any) -> Any:
    if not _is_in(kinds, name):
        raise ConfigError(f"{name!r:.80} is no part of an estimator that this version knows")
    module, _, cls = name.partition(":")
    return getattr(require(module), cls)
