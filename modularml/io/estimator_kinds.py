"""Kinds of objects within fitted estimators that a file may hold."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from modularml._optional import require
from modularml.errors import ConfigError

_OF_NODES = ("threshold", "branching_factor", "is_leaf")
_OF_PARTS = ("n_samples_", "linear_sum_", "squared_sum_", "centroid_", "sq_norm_")
_MAX_NODE_VALUES = 2**28  # values in a node


def first_leaf(root: Any) -> Any:
    """Return the empty leaf before all others."""
    while not root.is_leaf:
        root = root.subclusters_[0].child_
    while root.prev_leaf_ is not None:
        root = root.prev_leaf_
    return root


def flattened(root: Any) -> dict[str, Any]:
    """Return arrays of the nodes, parents first, and of their subclusters in order."""
    nodes = [root]
    for node in nodes:
        nodes += [part.child_ for part in node.subclusters_ if part.child_ is not None]
    places = {id(node): at for at, node in enumerate(nodes)}
    parts = [part for node in nodes for part in node.subclusters_]
    chain, leaf = [], first_leaf(root)
    while (leaf := leaf.next_leaf_) is not None:
        chain.append(places[id(leaf)])
    return {
        **{name: np.array([getattr(node, name) for node in nodes]) for name in _OF_NODES},
        **{name: np.array([getattr(part, name) for part in parts]) for name in _OF_PARTS},
        "sizes": np.array([len(node.subclusters_) for node in nodes]),
        "children": np.array([places.get(id(part.child_), -1) for part in parts]),
        "chain": np.array(chain),
        "dtype": root.init_centroids_.dtype.str,
    }


def grown(flat: Mapping[str, Any]) -> Any:
    """Return the root of a tree that `flattened` wrote.

    Raises
    ------
    ConfigError
        If the arrays do not fit each other, or the nodes are not a tree.
    """
    owners, width = _checked(flat), flat["centroid_"].shape[1]
    birch = require("sklearn.cluster._birch")
    kind = {"n_features": width, "dtype": np.dtype(flat["dtype"])}
    facts = zip(*(flat[name].tolist() for name in _OF_NODES), strict=True)
    node_arguments = [dict(zip(_OF_NODES, values, strict=True)) for values in facts]
    nodes = [birch._CFNode(**arguments, **kind) for arguments in node_arguments]
    for at, (owner, child) in enumerate(zip(owners, flat["children"], strict=True)):
        part = birch._CFSubcluster()
        vars(part).update({name: flat[name][at] for name in _OF_PARTS})
        part.n_samples_, part.child_ = int(part.n_samples_), nodes[child] if child >= 0 else None
        nodes[owner].append_subcluster(part)
    before = birch._CFNode(**{**node_arguments[0], "is_leaf": True}, **kind)
    for leaf in (nodes[at] for at in flat["chain"]):
        before.next_leaf_, leaf.prev_leaf_ = leaf, before
        before = leaf
    return nodes[0]


def _checked(flat: Mapping[str, Any]) -> Any:
    """Return the node of each subcluster, if everything fits."""
    sizes, children, leaf = flat["sizes"], flat["children"], flat["is_leaf"]
    n, width = len(sizes), flat["centroid_"].shape[-1]
    owners = np.repeat(np.arange(n), sizes)
    m, below = len(owners), children >= 0
    shapes: dict[str, Any] = {**dict.fromkeys(_OF_NODES, (n,)), **dict.fromkeys(_OF_PARTS, (m,))}
    shapes |= {"children": (m,), "linear_sum_": (m, width), "centroid_": (m, width)}
    fits = (
        all(flat[name].shape == shape for name, shape in shapes.items())
        and all(flat[name].dtype.kind in "iuf" for name in _OF_PARTS)
        and leaf.dtype == bool
        and np.dtype(flat["dtype"]).kind == "f"
        and bool((sizes > 0).all() and (sizes <= flat["branching_factor"] + 1).all())
        and (int(flat["branching_factor"].max()) + 1) * width <= _MAX_NODE_VALUES
        and np.array_equal(np.sort(children[below]), np.arange(1, n))
        and bool((children[below] > owners[below]).all() and (below != leaf[owners]).all())
        and np.array_equal(np.sort(flat["chain"]), np.flatnonzero(leaf))
    )
    if not fits:
        raise ConfigError("the tree of a Birch does not fit together")
    return owners


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
"""Classes of scikit-learn whose objects consist of their attributes only."""

MADE = {
    "sklearn._loss._loss": "CyHalfSquaredError CyAbsoluteError CyPinballLoss CyHuberLoss "
    "CyHalfPoissonLoss CyHalfGammaLoss CyHalfTweedieLoss CyHalfTweedieLossIdentity "
    "CyHalfBinomialLoss CyHalfMultinomialLoss CyExponentialLoss",
    "sklearn.linear_model._sgd_fast": "Hinge SquaredHinge ModifiedHuber EpsilonInsensitive "
    "SquaredEpsilonInsensitive",
}
"""C classes that can be rebuilt from a few numbers."""

NAMED = {"sklearn.impute._iterative": "_ImputerTriplet"}
CHECK_ARRAY = "sklearn.utils.validation:check_array"
SPLINE = "scipy.interpolate._bsplines:BSpline"
TREE = "sklearn.tree._tree:Tree"
BIRCH = "sklearn.cluster._birch:_CFNode"
NEIGHBOURS = {f"sklearn.neighbors._{k.lower()[:-4]}_tree:{k}": k for k in ("KDTree", "BallTree")}


MADE_AGAIN = ("f_", "dummy_leaf_", "_n_threads")
"""Attributes that are rebuilt from others (the function of an isotonic regression, the first leaf
of a Birch) or depend on the machine (the number of threads)."""

SPARSE = ("data", "indices", "indptr")


def full_name(value: Any) -> str:
    """Return ``module:name`` of an object's class."""
    module, name = type(value).__module__, type(value).__qualname__
    # scikit-learn 1.6 builds this module without the name of its package
    return f"{'sklearn._loss._loss' if module == '_loss' else module}:{name}"


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Return the constructor's parameters of a class, by name."""
    try:
        return dict(inspect.signature(cls).parameters)
    except ValueError:  # some C classes have no signature
        return {}


def is_estimator(value: Any) -> bool:
    """Return whether a value is an estimator."""
    return hasattr(value, "get_params") and hasattr(value, "fit") and not isinstance(value, type)


def holds_estimator(value: Any) -> bool:
    """Return whether a value is an estimator or has some in lists or tuples."""
    if isinstance(value, list | tuple):
        return any(holds_estimator(item) for item in value)
    return is_estimator(value)


def is_listed(kinds: dict[str, str], name: Any) -> bool:
    """Return whether ``module:name`` is on a list of classes by module."""
    module, _, cls = str(name).partition(":")
    return cls in kinds.get(module, "").split()


def found_in(kinds: dict[str, str], name: Any) -> Any:
    """Return the listed class ``module:name``; ConfigError if it is not listed."""
    if not is_listed(kinds, name):
        raise ConfigError(f"{name!r:.80} is not a part of estimators that this version supports")
    module, _, cls = name.partition(":")
    return getattr(require(module), cls)


def parts_of(value: Any) -> Iterator[Any]:
    """Yield an estimator and all nested estimators and listed parts, each once."""
    pending, seen = [value], set[int]()
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Mapping):
            pending += item.values()
        elif isinstance(item, list | tuple):
            pending += item
        elif isinstance(item, np.ndarray):
            pending += item.ravel().tolist() if item.dtype.hasobject else []
        elif is_estimator(item) or is_listed(PARTS, full_name(item)):
            yield item
            pending += vars(item).values()
