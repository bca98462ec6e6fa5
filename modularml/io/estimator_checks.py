"""Checks of fitted estimators that are read: allowed attributes, and parts that fit each other.

A well-typed array of a wrong length would make libsvm, Cython loops or OpenMP read and write
outside of it, as compiled code does not look.
"""

from __future__ import annotations

import json
from collections import UserList
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from modularml._typing import Array
from modularml.errors import ConfigError
from modularml.io.estimator_kinds import MADE_AGAIN, is_estimator

_MOST_AXES = 3
_LABELS = ["O1<U0>", "U1", "b1", "f1", "i1"]
_VALUES = {"classes_": _LABELS, "categories_": [f"[{'|'.join(_LABELS)}]"]}
"""Attributes with values of the user's columns, which may be of any kind."""

OWNERS = ("sklearn.", "modularml.scalers.affine")
"""Modules whose classes have listed attributes only."""


@cache
def _list() -> dict[str, dict[str, list[str]]]:
    """Return the allowed kinds of value, by class and attribute."""
    kinds: dict[str, dict[str, list[str]]] = json.loads(
        Path(__file__).with_name("attributes.json").read_text(encoding="utf-8")
    )
    return kinds


def listed_base(cls: type) -> str | None:
    """Return the name of the listed class that a class is or derives from."""
    for base in cls.__mro__:
        if base.__module__.startswith(OWNERS) and base.__name__ in _list():
            return base.__name__
    return None


def check_attributes(owner: Any, given: Iterable[str] = ()) -> None:
    """Refuse attributes that are not listed for the class, or of another kind.

    Parameters
    ----------
    owner : object
        An estimator, or a part of one from scikit-learn.
    given : iterable of str
        Constructor arguments, which scikit-learn checks itself.

    Raises
    ------
    ConfigError
        The message names class, attribute, allowed kinds and the kind found. A class of
        scikit-learn that is not listed is refused too; a user's class may have further attributes
        in addition to those of its base class.
    """
    cls = type(owner)
    name, own = listed_base(cls), cls.__module__.startswith(OWNERS)
    if own and (name is None or name != cls.__name__):
        raise ConfigError(
            f"a fitted {cls.__name__} of scikit-learn is not supported by this version"
        )
    listed = _list().get(name or "", {})
    for attribute, value in vars(owner).items():
        if attribute in given or attribute in MADE_AGAIN:
            continue
        if attribute not in listed:
            if own:
                raise ConfigError(f"{cls.__name__} has no fitted attribute {attribute!r:.60}")
            continue
        kind = described(value)
        allowed = [*listed[attribute], *_VALUES.get(attribute, ())]
        if not _fits(kind, allowed):
            raise ConfigError(
                f"{cls.__name__}.{attribute} is of kind {kind:.60}, but must be one of {allowed}"
            )


def _fits(kind: str, allowed: list[str]) -> bool:
    """Return whether a kind is allowed, or one of the same dtype and variable rank."""
    if kind in allowed or kind == "none" or _is_like(kind, allowed):
        return True
    shell, inner = _parted(kind)
    if shell == kind:
        return False
    seen = [some for own, some in map(_parted, allowed) if own == shell]
    return any(all(k in some or _is_like(k, [*some] or ["f0"]) for k in inner) for some in seen)


def _is_like(kind: str, allowed: Iterable[str]) -> bool:
    """Return whether numbers or text of this dtype are allowed."""
    letter, rank = kind[0], kind[1:]
    if not rank.isdigit() or int(rank) > _MOST_AXES or letter not in "bifcU":
        return False
    if letter == "U":  # a text is not an array of texts
        return rank != "0" and any(k[0] == "U" and k[1:].strip("0").isdigit() for k in allowed)
    letters = {k[0] for k in allowed if k[1:].isdigit()}
    return (
        letter in letters
        or (letter in "bi" and "f" in letters)
        or (letter == "b" and "i" in letters)
    )


def _parted(kind: str) -> tuple[str, set[str]]:
    """Return the kind of a container without its items, and the kinds of these."""
    for start, end in ("[]", "()", "<>"):
        if start in kind and kind.endswith(end):
            shell, inner = kind[:-1].split(start, 1)
            return shell + start, set(filter(None, inner.split("|")))
    return (kind + "<", set()) if kind.startswith("O") else (kind, set())


def described(value: Any) -> str:
    """Return the kind of a value: type, dtype and rank of arrays, ignoring widths.

    Examples
    --------
    >>> described(np.zeros((3, 2))), described([1, 2]), described(None)
    ('f2', '[i0]', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, bool | np.bool_):
        return "b0"
    if isinstance(value, int | np.integer):
        return "i0"
    if isinstance(value, float | np.floating):
        return "f0"
    if isinstance(value, str):
        return "U0"
    if isinstance(value, np.ndarray):
        masked = "m" if isinstance(value, np.ma.MaskedArray) else ""
        kind = {"u": "i", "S": "U"}.get(value.dtype.kind, value.dtype.kind)
        inner = _kinds(value.ravel()) if kind == "O" else ""
        return f"{masked}{kind}{value.ndim}" + (f"<{inner}>" if inner else "")
    value = value.data if isinstance(value, UserList) else value
    if isinstance(value, list | tuple):
        start, end = "()" if isinstance(value, tuple) else "[]"
        return f"{start}{_kinds(value)}{end}"
    if isinstance(value, Mapping):
        return "dict"
    if is_estimator(value):
        return "estimator"
    if hasattr(value, "tocsr"):
        return "sparse"
    if isinstance(value, type):
        return "class"
    return "code" if callable(value) and hasattr(value, "__qualname__") else type(value).__name__


def _kinds(values: Iterable[Any]) -> str:
    return "|".join(sorted({described(value).replace("|", "/") for value in values}))


def check_tree(
    n_features: Any, n_classes: Array, max_depth: Any, nodes: Array, values: Array
) -> None:
    """Refuse the nodes of a decision tree that are no tree, or point out of it.

    A child comes after its only parent, features are there, `max_depth` is at least that of the
    longest path (scikit-learn allocates so many steps), and shapes fit.
    """
    _expect(type(n_features) is int and 0 < n_features < 2**31, "n_features")
    _expect(n_classes.ndim == 1 and 0 < len(n_classes) < 2**20, "n_classes")
    _expect(bool(((n_classes > 0) & (n_classes < 2**31)).all()), "n_classes")
    shape = (len(nodes), len(n_classes), int(n_classes.max()))
    _expect(values.shape == shape and values.dtype == np.float64, "values")
    leaf = nodes["left_child"] == -1
    depth = _check_children(nodes["left_child"], nodes["right_child"], leaf)
    _expect(type(max_depth) is int and depth <= max_depth <= len(nodes), "depth")
    _expect(bool((nodes["right_child"][leaf] == -1).all()), "source_columns_of")
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
    found, name = vars(estimator), listed_base(type(estimator))
    width = found.get("n_features_in_")
    for attribute in ("_fit_X", "cluster_centers_", "components_"):
        if attribute in found and name and getattr(found[attribute], "ndim", 0) == 2:
            _expect(found[attribute].shape[1] == width, attribute)
    if "_fit_X" in found and "n_samples_fit_" in found:  # scikit-learn divides by these rows
        _expect(found["n_samples_fit_"] == found["_fit_X"].shape[0] > 0, "n_samples_fit_")
    if "_counts" in found and "cluster_centers_" in found:
        _expect(found["_counts"].shape == found["cluster_centers_"].shape[:1], "_counts")
    if "tree_" in found and hasattr(found["tree_"], "n_features"):
        _expect(found["tree_"].n_features == width, "tree_")
        _expect(found["tree_"].n_outputs == found.get("n_outputs_"), "n_outputs_")
    known = found.get("classes_")  # None in a TargetEncoder of numbers
    if known is not None and (isinstance(known, str) or not hasattr(known, "__len__")):
        raise ConfigError("classes_ of an estimator are no list or array")
    _expect(getattr(known, "ndim", 1) == 1, "classes_")
    if "n_classes_" in found and "classes_" in found:
        _expect(np.array_equal(found["n_classes_"], _sizes(found["classes_"])), "n_classes_")
    if "_label_binarizer" in found and "classes_" in vars(found["_label_binarizer"]):
        _expect(len(found["_label_binarizer"].classes_) >= 1, "classes_")
    fitted = any(attribute.endswith("_") for attribute in found)
    for kind, check in _CHECKS.items():
        if fitted and name is not None and name.startswith(kind):
            check(estimator)


def _sizes(classes: Any) -> Any:
    return list(map(len, classes)) if isinstance(classes, list) else len(classes)


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
    columns = vars(ensemble).get("_max_features", ensemble.n_features_in_)
    _expect(len(trees) == members.size > 0, "estimators_")
    _expect(all(tree.n_features_in_ == columns for tree in trees), "estimators_")
    for drawn in vars(ensemble).get("_estimators_features", []):
        _expect(len(drawn) == columns, "_estimators_features")
    if "n_outputs_" in vars(ensemble):
        _expect(all(tree.n_outputs_ == ensemble.n_outputs_ for tree in trees), "n_outputs_")
    if listed_base(type(ensemble)).startswith("Gradient"):  # type: ignore[union-attr]
        _expect(members.ndim == 2, "estimators_")
        _expect(members.shape[1] == ensemble.n_trees_per_iteration_, "estimators_")
        _expect(all(tree.tree_.value.shape[1:] == (1, 1) for tree in trees), "estimators_")
        start = ensemble._raw_predict_init(np.zeros((1, ensemble.n_features_in_)))
        _expect(start.shape == (1, members.shape[1]) and start.dtype == np.float64, "init_")


def _check_boosting(model: Any) -> None:
    width = model.n_features_in_
    mapper = model._bin_mapper
    flags = np.asarray(mapper.is_categorical_, dtype=bool)
    for trees in model._predictors:
        _expect(len(trees) == model.n_trees_per_iteration_, "_predictors")
        for tree in trees:
            check_predictor(tree)
            leaf = tree.nodes["is_leaf"].astype(bool)
            _check_features(tree.nodes["feature_idx"][~leaf], width)
            asked = tree.nodes["feature_idx"][~leaf & (tree.nodes["is_categorical"] != 0)]
            _expect(len(flags) == width and bool(flags[asked].all()), "categories of nodes")
    for name in ("is_categorical_", "bin_thresholds_", "n_bins_non_missing_"):
        _expect(len(getattr(mapper, name)) == width, name)
    for column in np.flatnonzero(mapper.is_categorical_):  # bits of a set of 256
        values = np.asarray(mapper.bin_thresholds_[column])
        _expect(bool(((values >= 0) & (values < 256)).all()), "bin_thresholds_")
    start = np.asarray(model._baseline_prediction)
    _expect(start.size == model.n_trees_per_iteration_, "_baseline_prediction")


def _check_vectors(machine: Any) -> None:
    """Hold the arrays of a support vector machine together; libsvm reads as many as these say."""
    found, name = vars(machine), listed_base(type(machine))
    counts, classifies = np.asarray(found["_n_support"]), name in ("SVC", "NuSVC")
    classes = len(counts) if classifies else 2
    n, pairs = len(found["support_"]), classes * (classes - 1) // 2
    _expect(counts.ndim == 1 and bool((counts >= 0).all()) and classes > 1, "_n_support")
    _expect(not classifies or int(counts.sum()) == n, "_n_support")
    _expect(not classifies or len(found["classes_"]) == classes, "classes_")
    _expect(classifies or counts.tolist() == [n, n], "_n_support")
    rows, width = found["shape_fit_"]
    _expect(callable(machine.kernel) or width == found["n_features_in_"], "shape_fit_")
    sparse = hasattr(found["support_vectors_"], "indptr")
    _expect(bool(found["_sparse"]) is sparse, "_sparse")
    if machine.kernel == "precomputed" or callable(machine.kernel):
        known = found.get("_BaseLibSVM__Xfit")
        _expect(known is None or known.shape[0] == rows, "rows of a kernel")
        _check_features(np.asarray(found["support_"]), rows)
    else:
        _expect(found["support_vectors_"].shape == (n, width), "support_vectors_")
    for name in ("dual_coef_", "_dual_coef_"):
        _expect(found[name].shape == (classes - 1, n), name)
        _expect(hasattr(found[name], "indptr") is sparse, name)
        values = found[name].data if sparse else found[name]
        _expect(values.size == (classes - 1) * n and values.dtype == np.float64, name)
    for name in ("intercept_", "_intercept_"):
        _expect(found[name].shape == (pairs,), name)
    for name in ("_probA", "_probB"):
        _expect(len(found.get(name, ())) in (0, pairs), name)


def _check_neighbours(model: Any) -> None:
    """Hold labels of neighbours to the classes that they count."""
    found = vars(model)
    labels, classes = np.asarray(found["_y"]), _sizes(found["classes_"])
    rows = found["_fit_X"].shape[0]
    _expect(len(labels) == found["n_samples_fit_"] == rows, "_y")
    _expect(labels.dtype.kind in "iu" and bool((labels >= 0).all()), "_y")
    _expect(bool((labels < np.asarray(classes)).all()), "_y")


def _check_descent(model: Any) -> None:
    """Hold the weights that gradient descent writes to, to the width of rows."""
    found = vars(model)
    width, classes = found["n_features_in_"], len(found.get("classes_", (0, 1)))
    rows = 1 if classes <= 2 else classes
    for name, value in found.items():
        if name.endswith("coef_") or name in ("_standard_coef", "_average_coef"):
            _expect(value is None or value.size == rows * width, name)
            _expect(value is None or value.ndim < 2 or value.shape[1] == width, name)
        if "intercept" in name and isinstance(value, np.ndarray):
            _expect(value.size == rows, name)


def _check_one_hot(encoder: Any) -> None:
    """Hold the columns that each category may fill to those that there are; scipy writes beyond."""
    found = vars(encoder)
    if "_n_features_outs" not in found:
        return
    known = found["categories_"]
    n, rare = len(known), bool(found["_infrequent_enabled"])
    _expect(n == found["n_features_in_"], "categories_")
    _expect(found["_n_features_outs"] == encoder._compute_n_features_outs(), "_n_features_outs")
    groups = found["_infrequent_indices"] if rare else [None] * n
    mappings = found["_default_to_infrequent_mappings"] if rare else [None] * n
    dropped = found["_drop_idx_after_grouping"]
    dropped = [None] * n if dropped is None else dropped
    _expect(len(groups) == len(mappings) == len(dropped) == n, "infrequent categories")
    facts = zip(known, found["_n_features_outs"], groups, mappings, dropped, strict=True)
    for values, columns, group, mapping, drop in facts:
        _expect((group is None) == (mapping is None), "infrequent categories")
        places = np.arange(len(values)) if mapping is None else mapping
        _expect(len(places) == len(values), "infrequent categories")
        _expect(drop is None or 0 <= drop <= columns, "_drop_idx_after_grouping")
        most = columns + (drop is not None)
        _expect(bool(((places >= 0) & (places < most)).all()), "infrequent categories")


def _check_bisection(model: Any) -> None:
    """Hold the centers of a tree of clusters to the width of rows."""
    left, width = [model._bisecting_tree], model.n_features_in_
    while left:
        node = left.pop()
        _expect(np.shape(node.center) == (width,), "center")
        _expect((node.left is None) == (node.right is None), "children")
        left += [child for child in (node.left, node.right) if child is not None]


def _check_subclusters(birch: Any) -> None:
    centers, norms = birch.subcluster_centers_, birch._subcluster_norms
    _expect(centers.shape[1] == birch.n_features_in_, "subcluster_centers_")
    _expect(norms.shape == (len(centers),) and norms.dtype == centers.dtype, "_subcluster_norms")
    _expect(len(birch.subcluster_labels_) == len(centers), "subcluster_labels_")


def _check_powers(model: Any) -> None:
    """Hold the number of columns to the powers, of which scikit-learn goes through each."""
    low, high = model._min_degree, model._max_degree
    _expect(0 <= low <= high <= _MOST_POWERS, "_max_degree")
    facts = {"n_features": model.n_features_in_, "max_degree": high}
    facts |= {"include_bias": model.include_bias, "interaction_only": model.interaction_only}
    counted = model._num_combinations
    _expect(model._n_out_full == counted(min_degree=0, **facts), "_n_out_full")
    _expect(model.n_output_features_ == counted(min_degree=low, **facts), "n_output_features_")


def _check_splines(model: Any) -> None:
    splines, n = model.bsplines_, model.n_features_in_
    _expect(len(splines) == n > 0, "bsplines_")
    most = n * splines[0].c.shape[1]
    _expect(0 < model.n_features_out_ <= most, "n_features_out_")


_MOST_POWERS = 4096
_FORESTS = ("RandomForest", "ExtraTreesC", "ExtraTreesR", "RandomTrees", "Gradient", "Isolation")
_MACHINES = ("SVC", "NuSVC", "SVR", "NuSVR", "OneClassSVM")
_DESCENTS = ("SGD", "Perceptron", "PassiveAggressive")
_CHECKS: dict[str, Callable[[Any], None]] = {
    **dict.fromkeys(_FORESTS, _check_trees),
    **dict.fromkeys(_MACHINES, _check_vectors),
    **dict.fromkeys(_DESCENTS, _check_descent),
    "HistGradientBoosting": _check_boosting,
    "KNeighborsClassifier": _check_neighbours,
    "RadiusNeighborsClassifier": _check_neighbours,
    "OneHotEncoder": _check_one_hot,
    "BisectingKMeans": _check_bisection,
    "Birch": _check_subclusters,
    "PolynomialFeatures": _check_powers,
    "SplineTransformer": _check_splines,
}
"""What holds the parts of estimators together, by how the name of their class begins."""


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ConfigError(f"{what} of an estimator does not fit its other parts")
