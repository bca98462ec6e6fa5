"""Whether what was read about an estimator fits: a wild index would crash Python."""

from __future__ import annotations

from typing import Any

import numpy as np

from modularml._typing import Array
from modularml.errors import ConfigError

__all__ = ["check_estimator", "check_predictor", "check_tree"]


def check_tree(
    n_features: Any, n_classes: Array, max_depth: Any, nodes: Array, values: Array
) -> None:
    """Refuse the nodes of a decision tree that are no tree, or point out of it.

    A child comes after its only parent, features are there, `max_depth` is at least that of the
    longest path (scikit-learn makes room for so many steps), and shapes fit.
    """
    _expect(type(n_features) is int and 0 < n_features < 2**31, "n_features")
    _expect(n_classes.ndim == 1 and 0 < len(n_classes) < 2**20, "n_classes")
    _expect(bool(((n_classes > 0) & (n_classes < 2**31)).all()), "n_classes")
    shape = (len(nodes), len(n_classes), int(n_classes.max()))
    _expect(values.shape == shape and values.dtype == np.float64, "values")
    leaf = nodes["left_child"] == -1
    depth = _check_children(nodes["left_child"], nodes["right_child"], leaf)
    _expect(type(max_depth) is int and depth <= max_depth <= len(nodes), "depth")
    _expect(bool((nodes["right_child"][leaf] == -1).all()), "leaves")
    _check_features(nodes["feature"][~leaf], n_features)


def check_predictor(predictor: Any) -> None:
    """Refuse a tree of histogram gradient boosting whose nodes point out of it."""
    nodes = predictor.nodes
    leaf = nodes["is_leaf"].astype(bool)
    _check_children(nodes["left"], nodes["right"], leaf)
    used = nodes["bitset_idx"][(nodes["is_categorical"] != 0) & ~leaf]
    for name in ("raw_left_cat_bitsets", "binned_left_cat_bitsets"):
        bitsets = getattr(predictor, name)
        _expect(bitsets.ndim == 2 and bitsets.shape[1] == 8, name)
        _expect(len(used) == 0 or int(used.max()) < len(bitsets), name)


def check_estimator(estimator: Any) -> None:
    """Refuse an estimator whose parts do not fit each other, where its code would not notice.

    Raises
    ------
    ConfigError
        If a shape or a number is not what its other parts ask for.
    """
    found = vars(estimator)
    width = found.get("n_features_in_")
    for name in ("_fit_X", "cluster_centers_", "components_"):
        ours = width is not None or type(estimator).__module__.startswith("sklearn.")
        if name in found and ours and getattr(found[name], "ndim", 0) == 2:
            _expect(found[name].shape[1] == width, name)
    if "_counts" in found and "cluster_centers_" in found:
        _expect(found["_counts"].shape == found["cluster_centers_"].shape[:1], "_counts")
    if "tree_" in found and hasattr(found["tree_"], "n_features"):
        _expect(found["tree_"].n_features == width, "tree_")
        _expect(found["tree_"].n_outputs == found.get("n_outputs_"), "n_outputs_")
    if "estimators_" in found and type(estimator).__module__.startswith("sklearn.ensemble."):
        _check_trees(estimator)
    if "_predictors" in found:
        _check_boosting(estimator)
    if "_n_support" in found:
        _check_vectors(estimator)


def _check_children(left: Array, right: Array, leaf: Array) -> int:
    """Return the length of the longest path of a tree whose children come after their parents."""
    n = len(leaf)
    _expect(n > 0 and leaf.ndim == 1, "nodes")
    at = np.flatnonzero(~leaf)
    children = np.concatenate([left[at], right[at]]).astype(np.int64)
    rising = (children > np.concatenate([at, at])) & (children < n)
    whole = len(children) == n - 1 and len(np.unique(children)) == n - 1
    _expect(bool(rising.all()) and whole, "children of nodes")
    depth, level = 0, np.zeros(1, np.int64)
    while len(level := level[~leaf[level]]):
        level = np.concatenate([left[level], right[level]]).astype(np.int64)
        depth += 1
    return depth


def _check_features(features: Array, n_features: int) -> None:
    _expect(bool(((features >= 0) & (features < n_features)).all()), "features of nodes")


def _check_trees(ensemble: Any) -> None:
    """Hold the trees of a forest together: it checks the rows once, for all of them."""
    members = np.asarray(ensemble.estimators_, dtype=object)
    trees = [m for m in members.ravel() if "tree_" in vars(m)]
    by_hand = type(ensemble).__name__.startswith(
        ("RandomForest", "ExtraTrees", "RandomTrees", "Gradient", "Isolation")
    )
    if not by_hand:
        return
    columns = vars(ensemble).get("_max_features", ensemble.n_features_in_)
    _expect(len(trees) == members.size > 0, "estimators_")
    _expect(all(tree.n_features_in_ == columns for tree in trees), "estimators_")
    for drawn in vars(ensemble).get("_estimators_features", []):
        _expect(len(drawn) == columns, "_estimators_features")
    if type(ensemble).__name__.startswith("Gradient"):
        _expect(members.ndim == 2, "estimators_")
        _expect(members.shape[1] == ensemble.n_trees_per_iteration_, "estimators_")
        _expect(all(tree.tree_.value.shape[1:] == (1, 1) for tree in trees), "estimators_")
        start = ensemble._raw_predict_init(np.zeros((1, ensemble.n_features_in_)))
        _expect(start.shape == (1, members.shape[1]) and start.dtype == np.float64, "init_")


def _check_boosting(model: Any) -> None:
    width = model.n_features_in_
    for trees in model._predictors:
        _expect(len(trees) == model.n_trees_per_iteration_, "_predictors")
        for tree in trees:
            check_predictor(tree)
            leaf = tree.nodes["is_leaf"].astype(bool)
            _check_features(tree.nodes["feature_idx"][~leaf], width)
            _expect(_known_bins(tree.nodes[~leaf], model), "categories of nodes")
    mapper = model._bin_mapper
    for name in ("is_categorical_", "bin_thresholds_", "n_bins_non_missing_"):
        _expect(len(getattr(mapper, name)) == width, name)


def _known_bins(nodes: Array, model: Any) -> bool:
    """Tell whether nodes that ask for categories ask of columns that have some."""
    asked = nodes["feature_idx"][nodes["is_categorical"] != 0]
    flags = np.asarray(model._bin_mapper.is_categorical_, dtype=bool)
    return bool(flags[asked].all()) if len(flags) == model.n_features_in_ else False


def _check_vectors(machine: Any) -> None:
    """Hold the arrays of a support vector machine together; libsvm reads as many as it is told."""
    found = vars(machine)
    counts, kind = np.asarray(found["_n_support"]), type(machine).__name__
    classes = len(counts) if kind in ("SVC", "NuSVC") else 2
    n, pairs = len(found["support_"]), classes * (classes - 1) // 2
    _expect(counts.ndim == 1 and bool((counts >= 0).all()) and classes > 1, "_n_support")
    _expect(kind not in ("SVC", "NuSVC") or int(counts.sum()) == n, "_n_support")
    rows, width = found["shape_fit_"]
    _expect(callable(machine.kernel) or width == found["n_features_in_"], "shape_fit_")
    if machine.kernel == "precomputed" or callable(machine.kernel):
        known = found.get("_BaseLibSVM__Xfit")
        _expect(known is None or known.shape[0] == rows, "rows of a kernel")
        _check_features(np.asarray(found["support_"]), rows)
    else:
        _expect(found["support_vectors_"].shape == (n, width), "support_vectors_")
    for name in ("dual_coef_", "_dual_coef_"):
        _expect(found[name].shape == (classes - 1, n), name)
    for name in ("intercept_", "_intercept_"):
        _expect(found[name].shape == (pairs,), name)
    for name in ("_probA", "_probB"):
        _expect(len(found.get(name, ())) in (0, pairs), name)


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ConfigError(f"{what} of an estimator does not fit its other parts")
