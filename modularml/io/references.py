"""References in files, by label instead of by id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modularml.io.jsontext import mapped

__all__ = ["with_ids", "with_labels"]


def with_labels(tree: Any, labels: Mapping[str, str]) -> Any:
    """Return a tree whose references have current labels and no ids.

    Parameters
    ----------
    tree : object
        Plain data; a reference is a dict with ``node_id`` and ``node_label``.
    labels : mapping of str to str
        By id.
    """

    def change(tree: dict[str, Any]) -> dict[str, Any]:
        if not _refers(tree):
            return tree
        return {
            **tree,
            "node_id": "",
            "node_label": labels.get(tree["node_id"], tree["node_label"]),
        }

    return mapped(tree, change)


def with_ids(tree: Any, ids: Mapping[str, str]) -> Any:
    """Return a tree whose references have the id of their label, if known."""

    def change(tree: dict[str, Any]) -> dict[str, Any]:
        found = ids.get(tree["node_label"], tree["node_id"]) if _refers(tree) else ""
        return {**tree, "node_id": found} if found else tree

    return mapped(tree, change)


def _refers(tree: dict[str, Any]) -> bool:
    return isinstance(tree.get("node_id"), str) and isinstance(tree.get("node_label"), str)
