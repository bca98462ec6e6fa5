"""References within a file go by label; ids belong to one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["with_ids", "with_labels"]


def with_labels(tree: Any, labels: Mapping[str, str]) -> Any:
    """Return a tree whose references go by the label that a node has now, and have no id.

    Parameters
    ----------
    tree : object
        Plain data; a reference is a dict with ``node_id`` and ``node_label``.
    labels : mapping of str to str
        By id.
    """

    def change(ref: dict[str, Any]) -> dict[str, Any]:
        label = labels.get(ref["node_id"], ref["node_label"])
        return {**ref, "node_id": "", "node_label": label}

    return _changed(tree, change)


def with_ids(tree: Any, ids: Mapping[str, str]) -> Any:
    """Return a tree whose references carry the id of their label, where it is known."""

    def change(ref: dict[str, Any]) -> dict[str, Any]:
        return {**ref, "node_id": ids.get(ref["node_label"], ref["node_id"])}

    return _changed(tree, change)


def _changed(tree: Any, change: Any) -> Any:
    if isinstance(tree, list):
        return [_changed(item, change) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if isinstance(tree.get("node_id"), str) and isinstance(tree.get("node_label"), str):
        tree = change(tree)
    return {key: _changed(item, change) for key, item in tree.items()}
