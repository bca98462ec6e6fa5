"""Allowed attributes of fitted estimators: by class, with kinds of values."""

from __future__ import annotations

import json
from collections import UserList
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from modularml.errors import ConfigError
from modularml.io.estimator_kinds import MADE_AGAIN

__all__ = ["OWNERS", "check_attributes", "described", "listed_base"]


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
    if hasattr(value, "get_params") and hasattr(value, "fit") and not isinstance(value, type):
        return "estimator"
    if hasattr(value, "tocsr"):
        return "sparse"
    if isinstance(value, type):
        return "class"
    return "code" if callable(value) and hasattr(value, "__qualname__") else type(value).__name__


def _kinds(values: Iterable[Any]) -> str:
    return "|".join(sorted({described(value).replace("|", "/") for value in values}))
