"""Config and state, written once for all classes.

A class that stores its constructor's arguments under their own names has a config, a ``repr``,
equality and ``clone``. What it computes later ends with an underscore and is its state.
"""

from __future__ import annotations

import base64
import enum
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from modularml._registry import Registry
from modularml.errors import ConfigError, UnknownNameError

__all__ = [
    "Configurable",
    "Stateful",
    "config_registry",
    "decode",
    "encode",
    "find_code",
    "names_mean",
]

config_registry: Registry[type] = Registry("class")
"""Every class that a config may name; subclasses of `Configurable` enter when defined."""


class Configurable:
    """The constructor's arguments, stored under their own names, are the config."""

    not_config: ClassVar[frozenset[str]] = frozenset()
    """Constructor arguments that are no part of the config (an id, say)."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
            config_registry.register(cls.__name__, cls, overwrite=True)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data."""
        return {name: encode(value) for name, value in self._params().items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make an object from `get_config` output; state is not restored."""
        known = _parameters(cls)
        for name in config:
            if name not in known and not _takes_any(cls):
                raise UnknownNameError(f"parameter of {cls.__name__}", name, known)
        return cls(**{name: decode(value) for name, value in config.items()})

    def clone(self) -> Self:
        """Make an object with the same config and no state."""
        return type(self).from_config(self.get_config())

    def _params(self) -> dict[str, Any]:
        return {
            name: getattr(self, name)
            for name in _parameters(type(self))
            if name not in self.not_config
        }

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not isinstance(other, Configurable):
            return NotImplemented
        mine, theirs = self._params(), other._params()
        return mine.keys() == theirs.keys() and all(_same(mine[k], theirs[k]) for k in mine)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        defaults = _parameters(type(self))
        shown = [
            f"{name}={value!r}"
            for name, value in self._params().items()
            if defaults[name] is inspect.Parameter.empty or not _same(value, defaults[name])
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


class Stateful:
    """Attributes whose name ends with one underscore are the state."""

    def get_state(self) -> dict[str, Any]:
        """Return what was computed or learned since construction."""
        return {
            name: value
            for name, value in vars(self).items()
            if name.endswith("_") and not name.startswith("_")
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_state` returned."""
        for name, value in state.items():
            if not name.endswith("_") or name.startswith("_"):
                raise ConfigError(f"{name!r} is no state of {type(self).__name__}")
            setattr(self, name, value)


def encode(value: Any) -> Any:
    """Turn a value into plain data: what JSON can hold.

    Raises
    ------
    ConfigError
        If the value, or a part of it, cannot be found again from its name.
    """
    if (
        value is None
        or (isinstance(value, bool | int | float | str)
        and not isinstance(value, enum.Enum))
    ):
        return value
    if isinstance(value, Configurable):
        return {"$type": type(value).__name__, "params": value.get_config()}
    if isinstance(value, enum.Enum):
        return {"$enum": _code_name(type(value)), "value": value.value}
    if isinstance(value, np.generic):
        return encode(value.item())
    if isinstance(value, np.ndarray):
        return _encode_array(value)
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"$tuple": [encode(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {"$set": sorted((encode(item) for item in value), key=repr)}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: encode(item) for key, item in value.items()}
        return {"$dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, Path):
        return {"$path": value.as_posix()}
    if hasattr(value, "__qualname__") and hasattr(value, "__module__"):
        return {"$code": _code_name(value)}
    if hasattr(value, "get_params") and hasattr(value, "fit"):
        return {
            "$estimator": _code_name(type(value)),
            "params": encode(value.get_params(deep=False)),
        }
    raise ConfigError(
        f"a {type(value).__name__} cannot be part of a config: {value!r}. "
        "Give numbers, strings, lists, dicts, importable functions and classes, or Configurable objects"
    )


def decode(value: Any) -> Any:
    """Turn the output of `encode` back into the value it came from."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$type" in value:
        return find_class(value["$type"]).from_config(value["params"])
    if "$enum" in value:
        return _of_class(value["$enum"], enum.Enum)(value["value"])
    if "$tuple" in value:
        return tuple(decode(item) for item in value["$tuple"])
    if "$set" in value:
        return {decode(item) for item in value["$set"]}
    if "$dict" in value:
        return {decode(key): decode(item) for key, item in value["$dict"]}
    if "$path" in value:
        return Path(value["$path"])
    if "$array" in value:
        return _decode_array(value)
    if "$code" in value:
        return find_code(value["$code"])
    if "$estimator" in value:
        return _estimator(value["$estimator"])(**decode(value["params"]))
    return {key: decode(item) for key, item in value.items()}


_meanings: ContextVar[Mapping[str, Any] | None] = ContextVar("modularml_names", default=None)


@contextmanager
def names_mean(found: Mapping[str, Any]) -> Iterator[None]:
    """Let names mean these objects, and all other names nothing, within a ``with`` block."""
    token = _meanings.set(found)
    try:
        yield
    finally:
        _meanings.reset(token)


def find_class(name: str) -> Any:
    """Find a `Configurable` class by its name."""
    found = _meanings.get()
    if found is None:
        return config_registry[name]
    if name not in found:
        raise ConfigError(f"class {name!r} was not resolved beforehand")
    return found[name]


def find_code(name: str) -> Any:
    """Find a class or function by ``module:qualname`` among what is imported already.

    Nothing is imported: a config is data and must not choose what code gets loaded.
    """
    known = _meanings.get()
    if known is not None:
        if name not in known:
            raise ConfigError(f"{name!r} was not resolved beforehand")
        return known[name]
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    if found is None:
        raise ConfigError(f"{name!r} cannot be found: import {module!r} first, then try again")
    for part in path.split("."):
        found = getattr(found, part, None)
        if found is None:
            raise ConfigError(f"{name!r} cannot be found: module {module!r} has no {path!r}")
    return found


def _of_class(name: str, base: type) -> Any:
    found = find_code(name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{name!r} is no {base.__name__}")
    return found


def _estimator(name: str) -> Any:
    found = find_code(name)
    if not (isinstance(found, type) and hasattr(found, "get_params") and hasattr(found, "fit")):
        raise ConfigError(f"{name!r} is no estimator")
    return found


def _code_name(code: Any) -> str:
    name = f"{code.__module__}:{code.__qualname__}"
    if "<" in name:
        raise ConfigError(
            f"{name} cannot be found again by name; define it with `def` or `class` "
            "at the top level of a module"
        )
    return name


def _encode_array(value: np.ndarray[Any, Any]) -> dict[str, Any]:
    if value.dtype.hasobject:
        raise ConfigError(
            "an array of Python objects cannot be part of a config; use numbers or strings"
        )
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
    return {"$array": data, "dtype": value.dtype.str, "shape": list(value.shape)}


def _decode_array(value: dict[str, Any]) -> np.ndarray[Any, Any]:
    raw = base64.b64decode(value["$array"], validate=True)
    return np.frombuffer(raw, dtype=np.dtype(value["dtype"])).reshape(value["shape"]).copy()


@cache
def _parameters(cls: Any) -> dict[str, Any]:
    skipped = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    found = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
    return {p.name: p.default for p in found if p.kind not in skipped}


@cache
def _takes_any(cls: Any) -> bool:
    found = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found)


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    if isinstance(a, list | tuple) and type(a) is type(b):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return bool(a == b)
