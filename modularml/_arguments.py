"""Arguments of constructors: validation by annotations, and those of estimators."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

import numpy as np

from modularml._private.sklearn import may_take
from modularml.errors import ConfigError


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
        kinds = [kind for kind in _kinds(hints[name]) if kind]
        if not any(fits(value) for _, fits in kinds) and not (
            name in cls.may_be_empty and value == ""
        ):
            allowed = " or ".join(description for description, _ in kinds)
            raise cls.refusal(f"{name} must be {allowed}, got {value!r:.80}")


def at_least(least: float, error: type[Exception] = ConfigError, /, **values: float | None) -> None:
    """Refuse arguments that are smaller, or NaN; None is accepted."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise error(f"{name} must be at least {least}, got {value!r}")


def with_arguments_of(other: Any, function: Any, without: Sequence[str] = ()) -> None:
    """Name the arguments of another function in one that passes on its ``**kwargs`` to it."""
    signature = inspect.signature(function)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if len(named) < len(signature.parameters):
        known = list(inspect.signature(other).parameters.values())[1:]  # without self
        others = [p for p in known if p.name not in {*signature.parameters, *without}]
        rest = [p.replace(kind=p.KEYWORD_ONLY) for p in others]
        function.__signature__ = signature.replace(parameters=[*named, *rest])


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


Kind = tuple[str, Callable[[Any], bool]]
"""Description and test of allowed values."""

_KINDS: dict[Any, Kind] = {
    bool: ("True or False", lambda v: isinstance(v, bool | np.bool_)),
    int: ("an int", lambda v: isinstance(v, Integral) and not isinstance(v, bool)),
    float: ("a number", lambda v: isinstance(v, Real) and not isinstance(v, bool)),
    str: ("a non-empty string", lambda v: isinstance(v, str) and bool(v)),
    Path: ("a path", lambda v: isinstance(v, os.PathLike)),
    list[str]: (
        "a list of strings",
        lambda v: (
            isinstance(v, list | tuple) and bool(v) and all(isinstance(s, str) and s for s in v)
        ),
    ),
    **dict.fromkeys(
        [dict[str, Any], Mapping[str, Any]],
        ("a dict", lambda v: isinstance(v, Mapping) and all(isinstance(k, str) for k in v)),
    ),
    Callable: ("a callable", callable),
    NoneType: ("None", lambda v: v is None),
}


def _kinds(hint: Any) -> list[Kind | None]:
    """Return the allowed kind of each part of an annotation; None if not checked."""
    if get_origin(hint) in (Union, UnionType):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    if get_origin(hint) is Literal:
        names = get_args(hint)
        description = f"one of {', '.join(map(repr, names))}"
        return [(description, lambda v: isinstance(v, str | int) and v in names)]
    return [_KINDS.get(get_origin(hint) if get_origin(hint) is Callable else hint)]


OF_THE_MACHINE = ("memory", "n_jobs", "n_threads")
"""Arguments that reach a folder, or start threads and processes: they are not taken from files."""


def origin(estimator: Any) -> dict[str, Any]:
    """Return the version of an estimator's library, and its arguments that have their default."""
    library = type(estimator).__module__.split(".")[0]
    known, given = parameters(type(estimator)), arguments_of(estimator) or {}
    known = {n: v for n, v in known.items() if n not in OF_THE_MACHINE}
    defaults = [n for n, v in given.items() if n in known and same(v, known[n])]
    return {"defaults": defaults, "version": _version_of(library)}


def estimator_from(
    cls: Any, params: dict[str, Any], facts: Mapping[str, Any], *, foreign: bool
) -> Any:
    """Make an estimator that may have been written by another version of its library.

    Parameters
    ----------
    cls : type
    params : dict of str to object
        Arguments. Those that the installed version does not know are left out where they had
        their default.
    facts : mapping
        What `origin` returned; older files have none. Arguments that had a default which the
        installed version refuses, or which stands for another one, get the default of that.
    foreign : bool
        Whether they come from a file: those that belong to the machine of its author are left out.

    Raises
    ------
    ConfigError
        If an argument with another value is not known; both versions are named.
    """
    known = parameters(cls)
    dropped = known.keys() & OF_THE_MACHINE if foreign else ()
    params = {name: value for name, value in params.items() if name not in dropped}
    at_default = set(facts.get("defaults", ()))
    common = at_default & params.keys() & known.keys()
    other = [n for n in common if not same(params[n], known[n])]
    for name in other:  # unless what was the default is a value that this version takes
        value = params[name]
        if _stands_for_another(value) or may_take(cls, name, value) is False:
            del params[name]
    for name in () if takes_any(cls) else [n for n in params if n not in known]:
        value, library = params.pop(name), cls.__module__.split(".")[0]
        if name in at_default or _stands_for_another(value):
            continue
        raise ConfigError(
            f"{cls.__name__} of {_version_of(library)} has no argument {name!r}, and was written "
            f"with {name}={value!r} by {facts.get('version', 'another version')}; install that one"
        )
    return cls(**params)


def _stands_for_another(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value in ("deprecated", "warn"))


def _version_of(library: str) -> str:
    version = getattr(sys.modules.get(library), "__version__", "")
    return f"{'scikit-learn' if library == 'sklearn' else library} {version}".strip()


def is_like_estimator(value: Any) -> bool:
    """Tell whether this is an estimator, a kernel or a cross-validator, or a class of one."""
    return hasattr(value, "get_params") or hasattr(value, "get_n_splits")


def arguments_of(value: Any) -> dict[str, Any] | None:
    """Return what such an object was made with; None where it does not tell."""
    if hasattr(value, "get_params"):
        found: dict[str, Any] = value.get_params(deep=False)
        return found
    names = parameters(type(value)) if hasattr(value, "get_n_splits") else {}
    is_known = names and all(hasattr(value, name) for name in names)
    return {name: getattr(value, name) for name in names} if is_known else None


parameters: Callable[[Any], dict[str, Any]] = cache(
    lambda cls: {
        p.name: p.default
        for p in list(inspect.signature(cls.__init__).parameters.values())[1:]
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
)
"""Returns the arguments of a class's constructor, and their defaults."""

takes_any: Callable[[Any], bool] = cache(
    lambda cls: any(
        p.kind is p.VAR_KEYWORD for p in inspect.signature(cls.__init__).parameters.values()
    )
)
"""Returns whether a constructor takes arguments of any name."""


def same(a: Any, b: Any) -> bool:
    """Return whether two values are equal, with arrays in them by value, and NaN equal to NaN."""
    if a is b:
        return True
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    if isinstance(a, list | tuple) and type(a) is type(b):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if hasattr(a, "get_params") and type(a) is type(b):
        return same(a.get_params(deep=False), b.get_params(deep=False))
    if isinstance(a, float) and isinstance(b, float) and a != a and b != b:  # noqa: PLR0124
        return True
    return bool(a == b)
