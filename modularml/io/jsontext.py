"""JSON, written one way only and read strictly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from modularml.errors import MMLError
from modularml.io import limits

__all__ = ["dump_json", "load_json", "mapped"]


def dump_json(tree: Any, *, sort: bool = False) -> bytes:
    """Write plain data; equal data gives equal bytes, and floats come back exactly.

    Parameters
    ----------
    tree : object
        None, bool, int, float, str, and lists and dicts of them; NaN and infinities are wrapped.
    sort : bool
        Whether keys are sorted; otherwise their order is part of the data.
    """
    text = json.dumps(_wrapped(tree), separators=(",", ":"), sort_keys=sort, allow_nan=False)
    return text.encode("ascii") + b"\n"


def load_json(data: bytes, path: object, member: str) -> Any:
    """Read what `dump_json` wrote.

    Raises
    ------
    MMLError
        If it is no JSON, has duplicate keys, NaN, more than 64 levels or too many parts.
    """
    if len(data) > limits.MAX_JSON:
        raise MMLError(limits.TOO_LARGE, path, member, f"JSON of {len(data)} bytes", _LIMIT)
    nests = data.count(b"[") + data.count(b"{")
    if nests > limits.MAX_JSON_NESTS or data.count(b",") > limits.MAX_JSON_PARTS:
        raise MMLError(limits.TOO_LARGE, path, member, "JSON of too many parts", _LIMIT)
    try:
        tree = json.loads(
            data.decode("ascii"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        reason = "too deep" if isinstance(error, RecursionError) else str(error)
        raise MMLError(limits.DAMAGED, path, member, f"not the JSON we write: {reason}") from None
    if _depth(tree) > limits.MAX_JSON_DEPTH:
        raise MMLError(limits.TOO_LARGE, path, member, "JSON of more than 64 levels", _LIMIT)
    return mapped(tree, _unwrapped)


def mapped(tree: Any, change: Callable[[dict[str, Any]], Any]) -> Any:
    """Return plain data in which each dict has been changed, outer ones first."""
    if isinstance(tree, list):
        return [mapped(item, change) for item in tree]
    made = change(tree) if isinstance(tree, dict) else tree
    if not isinstance(made, dict):
        return made
    return {key: mapped(item, change) for key, item in made.items()}


_LIMIT = "Files of this library stay below"


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no number that we write")
    return value


def _depth(tree: Any) -> int:
    depth, level = 0, [tree]
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        nested = any(isinstance(item, dict | list) for item in level)
        depth, level = depth + nested, inner
    return depth


def _wrapped(tree: Any) -> Any:
    if isinstance(tree, float) and not math.isfinite(tree):
        return {"$float": repr(tree)}
    if isinstance(tree, dict):
        return {key: _wrapped(item) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return [_wrapped(item) for item in tree]
    return tree


def _unwrapped(tree: dict[str, Any]) -> Any:
    wraps = tree.keys() == {"$float"} and tree["$float"] in _FLOATS
    return float(tree["$float"]) if wraps else tree


_FLOATS = ("nan", "inf", "-inf")
