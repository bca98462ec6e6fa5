"""Validation of constructor arguments by their annotations."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

import numpy as np

from modularml.errors import ConfigError

__all__ = ["Checked", "at_least"]


class _NoArguments:
    """The signature of a class without a constructor, which is not that of `__new__`."""

    def __get__(self, instance: object, owner: Any) -> inspect.Signature | None:
        return inspect.Signature() if owner.__init__ is object.__init__ else None


class Checked:
    """Base class that checks the types of constructor arguments.

    Annotations of this package for bool, int, float, str, paths, lists of names, callables, None
    and literals are checked before the constructor runs. Other annotations, ranges, and
    constructors of user-defined classes are not checked.
    """

    refusal: ClassVar[type[Exception]] = ConfigError
    """Exception to raise."""
    may_be_empty: ClassVar[frozenset[str]] = frozenset()
    """Strings that may be empty."""
    __signature__ = _NoArguments()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if args or kwargs:
            _check(cls, args, kwargs)
        new: Any = super().__new__
        instance: Self = new(cls) if new is object.__new__ else new(cls, *args, **kwargs)
        return instance


def _check(cls: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    signature, hints = _constructor(cls)
    try:
        arguments = signature.bind_partial(None, *args, **kwargs).arguments
    except TypeError as error:
        takes = ", ".join(list(signature.parameters)[1:]) or "nothing"
        raise TypeError(f"{cls.__name__}() {error}; it takes {takes}") from None
    for name, value in arguments.items():
        if name not in hints or value is signature.parameters[name].default:
            continue
        if not (_fits(value, hints[name]) or (name in cls.may_be_empty and value == "")):
            raise cls.refusal(f"{name} must be {_allowed(hints[name])}, got {value!r:.80}")


def at_least(least: float, error: type[Exception] = ConfigError, /, **values: float | None) -> None:
    """Refuse arguments that are smaller, or NaN; None is accepted."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise error(f"{name} must be at least {least}, got {value!r}")


@cache
def _constructor(cls: Any) -> tuple[inspect.Signature, dict[str, Any]]:
    """Return the signature of a constructor and the annotations that can be checked."""
    if cls.__init__ is object.__init__:
        return inspect.signature(lambda self: None), {}
    signature = inspect.signature(cls.__init__)
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__[:-1]):  # **kwargs are annotated in base classes
        if "__init__" in vars(base):
            ours = base.__module__.startswith("modularml.")
            hints = {**hints, **get_type_hints(base.__init__)} if ours else {}
    skipped = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    named = [p for p in signature.parameters.values() if p.kind not in skipped]
    known = {p.name: hints.get(p.name, Any) for p in named if p.annotation is not p.empty}
    return signature, {name: hint for name, hint in known.items() if all(_kinds(hint))}


def _fits(value: Any, hint: Any) -> bool:
    return any(kind[1](value) for kind in _kinds(hint) if kind)


def _allowed(hint: Any) -> str:
    return " or ".join(kind[0] for kind in _kinds(hint) if kind)


Kind = tuple[str, Callable[[Any], bool]]
"""Description and test of allowed values."""

_KINDS: dict[Any, Kind] = {
    bool: ("True or False", lambda v: isinstance(v, bool | np.bool_)),
    int: ("an int", lambda v: isinstance(v, Integral) and not isinstance(v, bool)),
    float: ("a number", lambda v: isinstance(v, Real) and not isinstance(v, bool)),
    str: ("a non-empty string", lambda v: isinstance(v, str) and bool(v)),
    Path: ("a path", lambda v: isinstance(v, os.PathLike)),
    list[str]: ("a list of strings", lambda v: isinstance(v, list | tuple) and _are_names(v)),
    **dict.fromkeys(
        [dict[str, Any], Mapping[str, Any]],
        ("a dict", lambda v: isinstance(v, Mapping) and all(isinstance(k, str) for k in v)),
    ),
    Callable: ("a callable", callable),
    NoneType: ("None", lambda v: v is None),
}


def _are_names(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(v, str) and v for v in values)


def _kinds(hint: Any) -> list[Kind | None]:
    """Return the allowed kind of each part of an annotation; None if not checked."""
    if get_origin(hint) in (Union, UnionType):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    if get_origin(hint) is Literal:
        names = get_args(hint)
        description = f"one of {', '.join(map(repr, names))}"
        return [(description, lambda v: isinstance(v, str | int) and v in names)]
    return [_KINDS.get(get_origin(hint) if get_origin(hint) is Callable else hint)]
