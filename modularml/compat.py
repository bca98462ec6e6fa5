"""Names of ModularML 1.0, for scripts that have not been changed yet.

``import modularml.compat`` before other imports makes them usable in this process: modules such as
``modularml.core``, from which classes are imported whatever the module was called, and attributes,
methods and arguments that have other names here. Each warns once and names the new place;
`modularml.migrate.check` lists them without running a script.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from modularml._warning import warn
from modularml.errors import ConfigError, closest
from modularml.migrate.scripts import (
    ARGUMENTS,
    ATTRIBUTES,
    METHODS,
    NO_EFFECT,
    PACKAGES,
    place_of,
    public_names,
)

__all__ = ["OldNameWarning"]


class OldNameWarning(FutureWarning):
    """A name of ModularML 1.0 was used."""


_warned: set[str] = set()


def _warn(old: str, new: str) -> None:
    """Warn once of an old name."""
    if old not in _warned:
        _warned.add(old)
        verb = "has" if new.startswith(NO_EFFECT) else "is"
        warn(f"{old} is a name of ModularML 1.0; here it {verb} {new}", OldNameWarning)


# -- modules ----------------------------------------------------------------------------------


class _OldModule(ModuleType):
    """A module of 1.0: gives public classes by their name, wherever they are now."""

    def __getattr__(self, name: str) -> Any:
        place = None if name.startswith("_") else place_of(name)
        if place is None:
            problem = f"{self.__name__}.{name} is not known here; {closest(name, public_names())}"
            is_module = name.islower() or name.startswith("_")
            raise (AttributeError if is_module else ImportError)(problem)
        _warn(f"{self.__name__}.{name}", place)
        return getattr(importlib.import_module(place.rpartition(".")[0]), name)


class _OldModules:
    """Finds and loads modules below the packages of 1.0."""

    _roots = tuple(f"modularml.{package}" for package in PACKAGES)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of 1.0; None for a class, and for all other modules."""
        root = ".".join(name.split(".")[:2])
        if root not in self._roots or not name.rpartition(".")[2].islower():
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return an empty module."""
        return _OldModule(spec.name, "Names of ModularML 1.0.")

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: names are looked up when they are used."""


# -- attributes and methods -------------------------------------------------------------------


def _attribute(cls: Any, old: str, new: str) -> None:
    """Give a class an attribute of 1.0."""

    def read(self: Any) -> Any:
        _warn(f"{cls.__name__}.{old}", f"{cls.__name__}.{new}")
        return getattr(self, new)

    setattr(cls, old, property(read, doc=f"`{new}`, as ModularML 1.0 calls it."))


def _method(cls: Any, old: str, new: str) -> None:
    """Give a class a method of 1.0."""
    call = _METHODS[old]

    @functools.wraps(call)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        _warn(f"{cls.__name__}.{old}()", f"{cls.__name__}.{new}")
        return call(self, *args, **kwargs)

    setattr(cls, old, method)


def _build(node: Any, input_shapes: Any, output_shape: Any = None, *, force: bool = False) -> Any:
    """Build a node for the shapes of one sample of each input."""
    return node.build_from([tuple(shape) for shape in input_shapes], output_shape, force=force)


_METHODS: dict[str, Callable[..., Any]] = {
    "get_upstream_refs": lambda node: node.upstream_refs,
    "build": _build,
    "build_samples": lambda sampler: sampler.materialize_batches(),
    "to_dict": lambda predicate: predicate.get_config(),
}


# -- arguments --------------------------------------------------------------------------------


def _arguments(cls: Any, renamed: Mapping[str, str]) -> None:
    """Let the constructor of a class accept arguments of 1.0."""
    init, new = cls.__init__, cls.__new__

    @functools.wraps(init)
    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **_translated(cls, renamed, kwargs))

    def create(owner: Any, *args: Any, **kwargs: Any) -> Any:
        return new(owner, *args, **_translated(cls, renamed, kwargs))

    cls.__init__ = initialize
    if new is not object.__new__:  # it checks the arguments
        cls.__new__ = create


def _translated(cls: Any, renamed: Mapping[str, str], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments under their names here; those without an effect are left out."""
    result: dict[str, Any] = {}
    for name, value in kwargs.items():
        old = name if name in renamed else "save_*" if name.startswith("save_") else name
        if old not in renamed:
            result[name] = value
            continue
        new = renamed[old]
        if old == "save_*" and value is False:
            raise ConfigError(
                f"{cls.__name__}({name}=False) of ModularML 1.0 is not supported; pass "
                "result_recording='none' to the phases whose outputs are not to be recorded"
            )
        if new in kwargs:
            raise ConfigError(f"pass {new} or {name} (its name in ModularML 1.0), not both")
        has_effect = not new.startswith(NO_EFFECT)
        _warn(f"{cls.__name__}({name}=)", f"{cls.__name__}({new}=)" if has_effect else new)
        if has_effect:
            result[new] = value
    return result


def _find(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def _activate() -> None:
    sys.meta_path.append(_OldModules())
    for package in PACKAGES:
        importlib.import_module(f"modularml.{package}")
    for where, attributes in ATTRIBUTES.items():
        for old, new in attributes.items():
            _attribute(_find(where), old, new)
    for where, methods in METHODS.items():
        for old, new in methods.items():
            _method(_find(where), old.partition("(")[0], new)
    for where, arguments in ARGUMENTS.items():
        _arguments(_find(where), arguments)


_activate()
