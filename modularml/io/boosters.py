"""Boosters of xgboost and lightgbm in the libraries' text formats, with checks.

Both libraries read their formats in C++ without checking the numbers of nodes and columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml.errors import ConfigError

XGBOOST, LIGHTGBM = "xgboost.core:Booster", "lightgbm.basic:Booster"
_PURPOSE = "to read boosted trees"
_MOST_GROUPS = 2**16


def booster_text(value: Any) -> dict[str, Any] | None:
    """Return a booster as plain data; None for other objects.

    Raises
    ------
    ConfigError
        If the booster has parts that `booster_from` would refuse.
    """
    kind = f"{type(value).__module__}:{type(value).__qualname__}"
    if kind == XGBOOST:
        tree = {"$booster": "xgboost", "text": _bytes(bytes(value.save_raw("json")))}
        _check_xgboost(_text(tree))
        return tree
    if kind == LIGHTGBM:
        text = value.model_to_string(num_iteration=-1)
        tree = {"$booster": "lightgbm", "text": _bytes(text.encode()), "best": value.best_iteration}
        _check_lightgbm(_text(tree))
        return tree
    return None


def booster_from(tree: Mapping[str, Any]) -> Any:
    """Return the booster that `booster_text` wrote.

    Raises
    ------
    ConfigError
        If nodes, columns or classes in the text do not fit each other.
    MissingDependencyError
        If the library is not installed.
    """
    text = _text(tree)
    if tree["$booster"] == "xgboost":
        _check_xgboost(text)
        return require("xgboost", purpose=_PURPOSE).Booster(model_file=bytearray(text.encode()))
    if tree["$booster"] != "lightgbm":
        raise ConfigError(f"{tree['$booster']!r:.40} is not a library of boosted trees")
    booster = require("lightgbm", purpose=_PURPOSE).Booster(model_str=_check_lightgbm(text))
    booster.best_iteration = int(tree["best"])
    return booster


def _bytes(data: bytes) -> Array:
    return np.frombuffer(data, np.uint8).copy()


def _text(tree: Mapping[str, Any]) -> str:
    try:
        return np.asarray(tree["text"], np.uint8).tobytes().decode()
    except (KeyError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError("the text of boosted trees is not valid text") from error


def _guarded(check: Callable[[str], str]) -> Callable[[str], str]:
    """Convert errors of a check on invalid text to a ConfigError."""

    def run(text: str) -> str:
        try:
            return check(text)
        except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as e:
            raise ConfigError(f"boosted trees do not fit together: {e}") from e

    return run


def _expect(holds: Any, what: str) -> None:
    if not bool(holds):
        raise ValueError(what)


def _check_nodes(left: Sequence[int], right: Sequence[int], n: int) -> None:
    """Refuse inner nodes, by index of their children, that are not a tree."""
    seen, level = set[int](), [0] if n else []
    while level:
        node = level.pop()
        _expect(0 <= node < n and node not in seen, "nodes are no tree")
        seen.add(node)
        level += [child for child in (left[node], right[node]) if child >= 0]


# -- xgboost ------------------------------------------------------------------------------------

_PER_NODE = (
    *("left_children", "right_children", "parents", "split_indices", "split_conditions"),
    *("split_type", "default_left", "base_weights", "loss_changes", "sum_hessian"),
)


@_guarded
def _check_xgboost(text: str) -> str:
    learner = json.loads(text)["learner"]
    facts, booster = learner["learner_model_param"], learner["gradient_booster"]
    columns, targets = int(facts["num_feature"]), int(facts.get("num_target", 1))
    groups = max(1, int(facts["num_class"])) * targets
    _expect(0 < columns < 2**31 and 0 < groups < _MOST_GROUPS, "numbers of columns or classes")
    scores = str(facts["base_score"]).strip("[]").split(",")
    _expect(
        len(scores) in (1, groups) and np.isfinite(list(map(float, scores))).all(), "base_score"
    )
    if booster["name"] == "gblinear":
        _expect(len(booster["model"]["weights"]) == (columns + 1) * groups, "weights")
        return text
    _expect(booster["name"] in ("gbtree", "dart"), "kind of booster")
    model = (booster if booster["name"] == "gbtree" else booster["gbtree"])["model"]
    trees, owners = model["trees"], model["tree_info"]
    _expect(not any(model.get("cats", {}).get("enc", [])), "categories of a frame")
    _expect(int(model["gbtree_model_param"]["num_trees"]) == len(trees) == len(owners), "num_trees")
    _expect(all(0 <= group < groups for group in owners), "tree_info")
    rounds = model.get("iteration_indptr", [0, len(trees)])
    _expect(rounds[0] == 0 and rounds[-1] == len(trees) and rounds == sorted(rounds), "rounds")
    parallel = int(model["gbtree_model_param"]["num_parallel_tree"])
    _expect(parallel > 0 and len(trees) % parallel == 0, "num_parallel_tree")
    if booster["name"] == "dart":
        _expect(len(booster["weight_drop"]) == len(trees), "weight_drop")
    for tree in trees:
        _check_xgboost_tree(tree, columns)
    return text


def _check_xgboost_tree(tree: Mapping[str, Any], columns: int) -> None:
    n = int(tree["tree_param"]["num_nodes"])
    _expect(n > 0 and int(tree["tree_param"]["num_feature"]) == columns, "tree_param")
    _expect(int(tree["tree_param"].get("size_leaf_vector", 1)) <= 1, "leaves of several numbers")
    _expect(int(tree["tree_param"].get("num_deleted", 0)) >= 0, "num_deleted")
    _expect(all(len(tree[name]) == n for name in _PER_NODE), "numbers of nodes")
    left, right = tree["left_children"], tree["right_children"]
    _expect(
        all((a == -1) == (b == -1) and a >= -1 <= b for a, b in zip(left, right, strict=True)),
        "source_columns_of",
    )
    _check_nodes(left, right, n)
    _expect(all(0 <= column < columns for column in tree["split_indices"]), "columns of splits")
    segments, sizes = tree["categories_segments"], tree["categories_sizes"]
    nodes, categories = tree["categories_nodes"], tree["categories"]
    by_category = [i for i, kind in enumerate(tree["split_type"]) if kind != 0]
    _expect(nodes == by_category and len(nodes) == len(segments) == len(sizes), "categories")
    ends = [0, *(start + size for start, size in zip(segments, sizes, strict=True))]
    _expect(segments == ends[:-1] and ends[-1] == len(categories), "categories")
    _expect(all(0 <= category < 2**24 for category in categories), "categories")


# -- lightgbm -----------------------------------------------------------------------------------


@_guarded
def _check_lightgbm(text: str) -> str:
    """Return the text without the offsets of its trees, which would be trusted."""
    head, *blocks = text.split("\nTree=")
    _expect(head.startswith("tree\n") and "end of trees" in text, "head")
    facts = _pairs(head)
    columns, groups = int(facts["max_feature_idx"]) + 1, int(facts["num_tree_per_iteration"])
    _expect(0 < columns < 2**31 and 0 < groups < _MOST_GROUPS, "numbers of columns or classes")
    _expect(int(facts["num_class"]) == groups and len(blocks) % groups == 0, "num_class")
    for name in ("feature_names", "feature_infos"):
        _expect(len(facts[name].split(" ")) == columns, name)
    for place, block in enumerate(blocks):
        _expect(block.startswith(f"{place}\n"), "order of trees")
        _check_lightgbm_tree(_pairs(block.split("end of trees")[0]), columns)
    lines = [line for line in head.split("\n") if not line.startswith("tree_sizes=")]
    return "\n".join(lines) + "".join(f"\nTree={block}" for block in blocks)


def _pairs(block: str) -> dict[str, str]:
    pairs = dict(line.split("=", 1) for line in block.split("\n") if "=" in line)
    _expect(len(pairs) == sum("=" in line for line in block.split("\n")), "a duplicate name")
    return pairs


def _check_lightgbm_tree(tree: Mapping[str, str], columns: int) -> None:
    def numbers(name: str, n: int, kind: Any = int) -> list[Any]:
        found = [kind(item) for item in tree.get(name, "").split(" ") if item]
        _expect(len(found) == n, name)
        return found

    leaves, n_sets = int(tree["num_leaves"]), int(tree["num_cat"])
    _expect(leaves > 0 and tree.get("is_linear", "0") == "0", "kind of leaves")
    numbers("leaf_value", leaves, float)
    if leaves == 1:
        return
    inner = leaves - 1
    left, right = numbers("left_child", inner), numbers("right_child", inner)
    _check_nodes(left, right, inner)
    _expect(all(child >= -leaves for child in (*left, *right)), "leaves")
    _expect(all(0 <= c < columns for c in numbers("split_feature", inner)), "columns of splits")
    kinds, thresholds = numbers("decision_type", inner), numbers("threshold", inner, float)
    by_set = [t for kind, t in zip(kinds, thresholds, strict=True) if kind & 1]
    _expect(all(0 <= t < n_sets and t == int(t) for t in by_set), "sets of categories")
    if n_sets:
        bounds = numbers("cat_boundaries", n_sets + 1)
        _expect(bounds[0] == 0 and bounds == sorted(bounds), "cat_boundaries")
        numbers("cat_threshold", bounds[-1])
