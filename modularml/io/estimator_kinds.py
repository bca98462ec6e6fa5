"""Objects within fitted estimators that files may hold, by a closed list of kinds."""

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


MADE_AGAIN = ("f_", "dummy_leaf_", "_n_threads")
"""What follows from others (the function of an isotonic regression, the first leaf of a Birch) or
from the machine (the number of threads)."""

SPARSE = ("data", "indices", "indptr")


def full_name(value: Any) -> str:
    """Return ``module:name`` of an object's class."""
    module, name = type(value).__module__, type(value).__qualname__
    # scikit-learn 1.6 builds this module without the name of its package
    return f"{'sklearn._loss._loss' if module == '_loss' else module}:{name}"


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Return what a class's constructor takes, by name."""
    try:
        return dict(inspect.signature(cls).parameters)
    except ValueError:  # some classes written in C do not tell
        return {}


def is_estimator(value: Any) -> bool:
    """Tell whether a value is an object that learns."""
    return hasattr(value, "get_params") and hasattr(value, "fit") and not isinstance(value, type)


def holds_estimator(value: Any) -> bool:
    """Tell whether a value is an estimator or holds some in lists or tuples."""
    if isinstance(value, list | tuple):
        return any(holds_estimator(item) for item in value)
    return is_estimator(value)


def is_listed(kinds: dict[str, str], name: Any) -> bool:
    """Tell whether ``module:name`` is on a list of classes by module."""
    module, _, cls = str(name).partition(":")
    return cls in kinds.get(module, "").split()


def found_in(kinds: dict[str, str], name: Any) -> Any:
    """Return the class of a list that ``module:name`` means; ConfigError where it is not there."""
    if not is_listed(kinds, name):
        raise ConfigError(f"{name!r:.80} is no part of an estimator that this version knows")
    module, _, cls = name.partition(":")
    return getattr(require(module), cls)


def parts_of(value: Any) -> Iterator[Any]:
    """Yield an estimator and all estimators and listed parts within it, each once."""
    left, seen = [value], set[int]()
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Mapping):
            left += item.values()
        elif isinstance(item, list | tuple):
            left += item
        elif isinstance(item, np.ndarray):
            left += item.ravel().tolist() if item.dtype.hasobject else []
        elif is_estimator(item) or is_listed(PARTS, full_name(item)):
            yield item
            left += vars(item).values()
