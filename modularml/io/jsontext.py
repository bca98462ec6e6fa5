"""Canonical JSON with strict reading, and references in it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from modularml.errors import MMLError
from modularml.io import limits


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
        node_id, label = tree.get("node_id"), tree.get("node_label")
        if not isinstance(node_id, str) or not isinstance(label, str):
            return tree
        return {**tree, "node_id": "", "node_label": labels.get(node_id, label)}

    return mapped(tree, change)


def with_ids(tree: Any, ids: Mapping[str, str]) -> Any:
    """Return a tree whose references have the id of their label, if known."""

    def change(tree: dict[str, Any]) -> dict[str, Any]:
        node_id, label = tree.get("node_id"), tree.get("node_label")
        if not isinstance(node_id, str) or not isinstance(label, str):
            return tree
        found = ids.get(label, node_id)
        return {**tree, "node_id": found} if found else tree

    return mapped(tree, change)


def dump_json(tree: Any, *, sort: bool = False) -> bytes:
    """Write plain data as canonical JSON; floats are read back exactly.

    Parameters
    ----------
    tree : object
        None, bool, int, float, str, and lists and dicts of them; NaN and infinities are wrapped.
    sort : bool
        Whether keys are sorted; otherwise their order is part of the data.
    """
    options: dict[str, Any] = {"separators": (",", ":"), "sort_keys": sort, "allow_nan": False}
    try:
        text = json.dumps(tree, **options)
    except ValueError:  # NaN or an infinity somewhere
        text = json.dumps(_wrapped(tree), **options)
    return text.encode("ascii") + b"\n"


def load_json(data: bytes, path: object, member: str) -> Any:
    """Read what `dump_json` wrote.

    Raises
    ------
    MMLError
        If it is not JSON, has duplicate keys, NaN, more than 64 levels or too many parts.
    """
    if len(data) > limits.MAX_JSON:
        raise MMLError(limits.TOO_LARGE, path, member, f"JSON of {len(data)} bytes", _LIMIT)
    dicts, parts = data.count(b"{"), data.count(b",")
    nests = dicts + data.count(b"[")
    most = limits.MAX_JSON_NESTS, limits.MAX_JSON_DICTS, limits.MAX_JSON_PARTS
    if any(count > limit for count, limit in zip((nests, dicts, parts), most, strict=True)):
        raise MMLError(limits.TOO_LARGE, path, member, "JSON of too many parts", _LIMIT)
    try:
        tree = json.loads(
            data.decode("ascii"),
            object_pairs_hook=_unwrapped,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        reason = "too deep" if isinstance(error, RecursionError) else str(error)
        raise MMLError(limits.DAMAGED, path, member, f"not the JSON we write: {reason}") from None
    depth, level = 0, [tree]
    while level:
        inner: list[Any] = []
        nested = False
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
            else:
                continue
            nested = True
        depth, level = depth + nested, inner
    if depth > limits.MAX_JSON_DEPTH:
        raise MMLError(limits.TOO_LARGE, path, member, "JSON of more than 64 levels", _LIMIT)
    return tree


def mapped(tree: Any, change: Callable[[dict[str, Any]], Any]) -> Any:
    """Return plain data with a function applied to each dict, outer ones first."""
    tree = change(tree) if isinstance(tree, dict) else tree
    if not isinstance(tree, dict | list):
        return tree
    copy = tree.copy()
    for place, item in copy.items() if isinstance(copy, dict) else enumerate(copy):
        if isinstance(item, dict | list):
            copy[place] = mapped(item, change)
    return copy


_LIMIT = "Files of this library stay below"


def _unwrapped(pairs: list[tuple[str, Any]]) -> Any:
    items = dict(pairs)
    if len(items) != len(pairs):
        raise ValueError("a key comes twice")
    wraps = len(items) == 1 and items.get("$float") in _FLOATS
    return float(items["$float"]) if wraps else items


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a number that we write")
    return value


def _wrapped(tree: Any) -> Any:
    if isinstance(tree, float) and not math.isfinite(tree):
        return {"$float": repr(tree)}
    if isinstance(tree, dict):
        return {key: _wrapped(item) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return [_wrapped(item) for item in tree]
    return tree


_FLOATS = ("nan", "inf", "-inf")
