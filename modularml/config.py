"""Config and state of all classes.

A class that stores its constructor's arguments under their own names has a config, a ``repr``,
equality and ``clone``. What it computes later ends with an underscore and is its state.
"""

from __future__ import annotations

import base64
import datetime as dt
import enum
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from operator import methodcaller
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from modularml._arguments import Checked
from modularml._registry import Registry
from modularml.errors import ConfigError, ModularMLError, UnknownNameError

__all__ = [
    "Configurable",
    "Stateful",
    "config_registry",
    "decode",
    "encode",
    "find_code",
    "is_like_estimator",
    "name_of",
    "names_mean",
]

config_registry: Registry[type] = Registry("class")
"""Every class that a config may name; subclasses of `Configurable` enter when defined."""


class Configurable(Checked):
    """The constructor's arguments, stored under their own names, are the config."""

    not_config: ClassVar[frozenset[str]] = frozenset()
    """Constructor arguments that are no part of the config (an id, say)."""

    config_name: ClassVar[str]
    """What a config calls the class, where that is not its own name."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
            _enter(cls)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data."""
        config = self._params()
        for name, value in config.items():
            config[name] = encode(value)
        return config

    def encoded(self) -> dict[str, Any]:
        """Return the name of the class and the config, as they stand in a file."""
        return {"$type": _class_name(type(self)), "params": self.get_config()}

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
    if value is None or type(value) in {bool, int, float, str}:
        return value
    for kind, write in _WRITERS:
        if isinstance(value, kind):
            return write(value)
    name = getattr(value, "__name__", "") if isinstance(value, np.ufunc) else ""
    if name and getattr(np, name, None) is value:
        return {"$code": f"numpy:{name}"}  # which a ufunc does not tell before numpy 2.1
    if hasattr(value, "__qualname__") and hasattr(value, "__module__"):
        return {"$code": _code_name(value)}
    if (params := _arguments_of(value)) is not None:
        return {"$estimator": _code_name(type(value)), "params": encode(params)} | origin(value)
    raise ConfigError(
        f"a {type(value).__name__} cannot be part of a config: {value!r}. Give numbers, strings, "
        "lists, dicts, importable functions and classes, or Configurable objects"
    )


def decode(value: Any) -> Any:
    """Turn the output of `encode` back into the value it came from."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    for tag, read in _READERS.items():
        if tag in value:
            return read(value)
    if unknown := [key for key in value if str(key).startswith("$")]:
        raise ConfigError(f"{unknown[0]!r} is no part of a config that this version knows")
    return {key: decode(item) for key, item in value.items()}


def _write_items(value: list[Any] | tuple[Any, ...]) -> Any:
    items = [*value]
    for i, item in enumerate(items):
        items[i] = encode(item)
    return {"$tuple": items} if isinstance(value, tuple) else items


def _write_dict(value: dict[Any, Any]) -> dict[str, Any]:
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: encode(item) for key, item in value.items()}
    return {"$dict": [[encode(key), encode(item)] for key, item in value.items()]}


def _write_array(value: np.ndarray[Any, Any]) -> dict[str, Any]:
    if value.dtype.hasobject:
        raise ConfigError(
            "an array of Python objects cannot be part of a config; use numbers or strings"
        )
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
    return {"$array": data, "dtype": value.dtype.str, "shape": list(value.shape)}


def _read_array(value: dict[str, Any]) -> np.ndarray[Any, Any]:
    raw = base64.b64decode(value["$array"], validate=True)
    return np.frombuffer(raw, dtype=np.dtype(value["dtype"])).reshape(value["shape"]).copy()


_WRITERS: list[tuple[Any, Callable[[Any], Any]]] = [
    (Configurable, methodcaller("encoded")),
    (enum.Enum, lambda v: {"$enum": _code_name(type(v)), "value": encode(v.value)}),
    (float, float),  # subclasses too, such as logged metrics
    (bool | int | str, lambda v: v),
    (np.datetime64 | np.timedelta64, lambda v: {"$instant": _write_array(np.asarray(v))}),
    (np.generic, lambda v: encode(v.item())),
    (np.ndarray, _write_array),
    (list | tuple, _write_items),
    (slice, lambda v: {"$slice": [encode(item) for item in (v.start, v.stop, v.step)]}),
    (set | frozenset, lambda v: {"$set": sorted((encode(item) for item in v), key=repr)}),
    (dict, _write_dict),
    (Path, lambda v: {"$path": v.as_posix()}),
    (dt.datetime, lambda v: {"$time": v.isoformat()}),
    (dt.date, lambda v: {"$date": v.isoformat()}),
]
"""How values of a kind become plain data; the first that fits is taken."""


def _read_object(value: dict[str, Any]) -> Any:
    """Build an object; its config is attached to an error, to say where that comes from."""
    try:
        return find_class(value["$type"]).from_config(value["params"])
    except (ModularMLError, TypeError) as error:
        if not hasattr(error, "of_config"):
            error.of_config = value  # type: ignore[union-attr]
        raise


_READERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "$type": _read_object,
    "$enum": lambda v: _of_class(v["$enum"], enum.Enum)(decode(v["value"])),
    "$instant": lambda v: _read_array(v["$instant"])[()],
    "$array": _read_array,
    "$tuple": lambda v: tuple(decode(item) for item in v["$tuple"]),
    "$slice": lambda v: slice(*map(decode, v["$slice"])),
    "$set": lambda v: {decode(item) for item in v["$set"]},
    "$dict": lambda v: {decode(key): decode(item) for key, item in v["$dict"]},
    "$path": lambda v: Path(v["$path"]),
    "$time": lambda v: dt.datetime.fromisoformat(v["$time"]),
    "$date": lambda v: dt.date.fromisoformat(v["$date"]),
    "$code": lambda v: find_code(v["$code"]),
    "$estimator": lambda v: estimator_from(_estimator(v["$estimator"]), decode(v["params"]), v),
}


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


FORMER_MODULES = {
    "modularml.callbacks.evaluation_metric": "modularml.callbacks.evaluation_metrics",
    "modularml.callbacks.rates": "modularml.callbacks.learning_rate_monitor",
    "modularml.callbacks.score_metric": "modularml.callbacks.evaluation_metrics",
    "modularml.experiment.binding": "modularml.engine.binding",
    "modularml.experiment.callback": "modularml.engine.callback",
    "modularml.experiment.checkpointing": "modularml.engine.checkpointing",
    "modularml.experiment.fit_phase": "modularml.phases.fit",
    "modularml.experiment.group": "modularml.phases.group",
    "modularml.experiment.phases": "modularml.phases.train_eval",
    "modularml.experiment.recording": "modularml.results.recording",
    "modularml.experiment.schedule": "modularml.engine.batch_schedule",
    "modularml.graph.concat": "modularml.graph.merge_nodes",
    "modularml.graph.elementwise": "modularml.graph.merge_nodes",
    "modularml.graph.flatten": "modularml.graph.merge_nodes",
    "modularml.models.tensorflow.cnn": "modularml.models.tensorflow.sequences",
    "modularml.models.tensorflow.heads": "modularml.models.tensorflow.tabular",
    "modularml.models.tensorflow.mlp": "modularml.models.tensorflow.tabular",
    "modularml.models.tensorflow.rnn": "modularml.models.tensorflow.sequences",
    "modularml.models.tensorflow.tcn": "modularml.models.tensorflow.sequences",
    "modularml.models.tensorflow.transformer": "modularml.models.tensorflow.sequences",
    "modularml.models.torch.cnn": "modularml.models.torch.sequences",
    "modularml.models.torch.heads": "modularml.models.torch.tabular",
    "modularml.models.torch.mlp": "modularml.models.torch.tabular",
    "modularml.models.torch.rnn": "modularml.models.torch.sequences",
    "modularml.models.torch.tcn": "modularml.models.torch.sequences",
    "modularml.models.torch.transformer": "modularml.models.torch.sequences",
    "modularml.scalers.absolute": "modularml.scalers.elementary",
    "modularml.scalers.negate": "modularml.scalers.elementary",
    "modularml.scalers.per_sample_min_max": "modularml.scalers.elementary",
    "modularml.scalers.per_sample_zero": "modularml.scalers.elementary",
    "modularml.strategies.sweeps.pruning": "modularml.strategies.sweeps.trials",
}
"""Modules by the names that older files know them by."""


def current_name(name: str) -> str:
    """Return today's ``module:qualname`` of what an older file names."""
    module, colon, path = name.partition(":")
    return f"{FORMER_MODULES.get(module, module)}{colon}{path}"


def find_code(name: str) -> Any:
    """Find a class or function by ``module:qualname`` among what is imported already.

    Nothing is imported: a config is data and must not choose what code gets loaded.
    """
    known = _meanings.get()
    if known is not None:
        if name not in known:
            raise ConfigError(f"{name!r} was not resolved beforehand")
        return known[name]
    name = current_name(name)
    module, _, path = name.partition(":")
    if module not in sys.modules:
        raise ConfigError(f"{name!r} cannot be found: import {module!r} first, then try again")
    found = _imported(name)
    if found is None:
        raise ConfigError(f"{name!r} cannot be found: module {module!r} has no {path!r}")
    return found


def _imported(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _of_class(name: str, base: type) -> Any:
    found = find_code(name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{name!r} is no {base.__name__}")
    return found


def _estimator(name: str) -> Any:
    found = find_code(name)
    if not (isinstance(found, type) and is_like_estimator(found)):
        raise ConfigError(f"{name!r} is no estimator")
    return found


OF_THE_MACHINE = ("memory", "n_jobs", "n_threads")
"""Arguments that reach a folder, or start threads and processes: they are not taken from files."""


def origin(estimator: Any) -> dict[str, Any]:
    """Return the version of an estimator's library, and its arguments that have their default."""
    library = type(estimator).__module__.split(".")[0]
    known, given = _parameters(type(estimator)), _arguments_of(estimator) or {}
    known = {n: v for n, v in known.items() if n not in OF_THE_MACHINE}
    same = [n for n, v in given.items() if n in known and _same(v, known[n])]
    return {"defaults": same, "version": _version_of(library)}


def estimator_from(cls: Any, params: dict[str, Any], facts: Mapping[str, Any]) -> Any:
    """Make an estimator that may have been written by another version of its library.

    Parameters
    ----------
    cls : type
    params : dict of str to object
        Arguments. Those that the installed version does not know are left out where they had
        their default; in a file, so are those that belong to the machine of its author.
    facts : mapping
        What `origin` returned; older files have none. Arguments that had a default which the
        installed version refuses, or which stands for another one, get the default of that.

    Raises
    ------
    ConfigError
        If an argument with another value is not known; both versions are named.
    """
    known = _parameters(cls)
    if _meanings.get() is not None:
        params = {n: v for n, v in params.items() if n not in OF_THE_MACHINE or n not in known}
    same = set(facts.get("defaults", ()))
    other = [n for n in same & params.keys() & known.keys() if not _same(params[n], known[n])]
    params = {n: v for n, v in params.items() if n not in other or _takes(cls, n, v)}
    for name in () if _takes_any(cls) else [n for n in params if n not in known]:
        value, library = params.pop(name), cls.__module__.split(".")[0]
        if name in same or _stands_for_another(value):
            continue
        raise ConfigError(
            f"{cls.__name__} of {_version_of(library)} has no argument {name!r}, and was written "
            f"with {name}={value!r} by {facts.get('version', 'another version')}; install that one"
        )
    return cls(**params)


def _takes(cls: Any, name: str, value: Any) -> bool:
    """Tell whether what was the default of an argument is a value that this version takes."""
    allowed = getattr(cls, "_parameter_constraints", {}).get(name, "no_validation")
    if _stands_for_another(value) or allowed == "no_validation":
        return not _stands_for_another(value)
    rule = sys.modules["sklearn.utils._param_validation"].make_constraint
    return any(rule(each).is_satisfied_by(value) for each in allowed)


def _stands_for_another(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value in ("deprecated", "warn"))


def _version_of(library: str) -> str:
    version = getattr(sys.modules.get(library), "__version__", "")
    return f"{'scikit-learn' if library == 'sklearn' else library} {version}".strip()


def is_like_estimator(value: Any) -> bool:
    """Tell whether this is an estimator, a kernel or a cross-validator, or a class of one."""
    return hasattr(value, "get_params") or hasattr(value, "get_n_splits")


def _arguments_of(value: Any) -> dict[str, Any] | None:
    """Return what such an object was made with; None where it does not tell."""
    if hasattr(value, "get_params"):
        found: dict[str, Any] = value.get_params(deep=False)
        return found
    names = _parameters(type(value)) if hasattr(value, "get_n_splits") else {}
    is_known = names and all(hasattr(value, name) for name in names)
    return {name: getattr(value, name) for name in names} if is_known else None


def _code_name(code: Any) -> str:
    name = f"{code.__module__}:{code.__qualname__}"
    found = _imported(name)
    if found is not code and not (inspect.ismethod(code) and found == code):
        if _is_again(found, code):
            raise _is_older(code)
        raise ConfigError(
            f"{name} cannot be found again by name; define it with `def` or `class` "
            "at the top level of a module"
        )
    return name


def _is_older(code: Any) -> ConfigError:
    name = f"{code.__module__}:{code.__qualname__}"
    return ConfigError(
        f"{name} is an older one than that of its module, which was loaded or run again since "
        f"(importlib.reload, autoreload, a cell); import {code.__qualname__!r} again, and make "
        "what uses it again"
    )


def _is_again(found: Any, code: Any) -> bool:
    """Tell whether a module has another object where this one was defined."""
    same = type(found) is type(code) and getattr(found, "__module__", "") == code.__module__
    return same and found.__qualname__ == code.__qualname__


def _class_name(cls: type) -> str:
    name = name_of(cls)
    if _is_again(known := config_registry.get(name), cls) and known is not cls:
        raise _is_older(cls)
    if known is not cls:
        raise ConfigError(
            f"{cls.__module__}:{cls.__qualname__} cannot be found again by name, as another class "
            f"is called {name!r} too; rename it"
        )
    return name


def name_of(cls: type) -> str:
    """Return what a config calls a class."""
    return str(vars(cls).get("config_name", cls.__name__))


def _enter(cls: type) -> None:
    """Register a class, in place of an older one of the user's, but never of our own."""
    name = name_of(cls)
    taken = config_registry.get(name)
    if taken is None or taken.__module__ == cls.__module__ or not _is_ours(taken):
        config_registry.register(name, cls, overwrite=True)


def _is_ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "modularml"


def _read_parameters(cls: Any) -> dict[str, Any]:
    skipped = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    found = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return {p.name: p.default for p in found if p.kind not in skipped}


def _reads_any(cls: Any) -> bool:
    found = inspect.signature(cls.__init__).parameters.values()
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found)


_parameters: Callable[[Any], dict[str, Any]] = cache(_read_parameters)
_takes_any: Callable[[Any], bool] = cache(_reads_any)


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    if isinstance(a, list | tuple) and type(a) is type(b):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if hasattr(a, "get_params") and type(a) is type(b):
        return _same(a.get_params(deep=False), b.get_params(deep=False))
    if isinstance(a, float) and isinstance(b, float) and a != a and b != b:  # noqa: PLR0124
        return True
    return bool(a == b)
