"""Closed lists of objects within fitted estimators that files may hold."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from modularml._optional import require
from modularml.errors import ConfigError

__all__ = [
    "BIRCH",
    "CHECK_ARRAY",
    "MADE",
    "MADE_AGAIN",
    "NAMED",
    "NEIGHBOURS",
    "PARTS",
    "SPARSE",
    "SPLINE",
    "TREE",
    "found_in",
    "full_name",
    "holds_estimator",
    "is_estimator",
    "is_listed",
    "parameters",
    "parts_of",
]

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
