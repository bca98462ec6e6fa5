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
from operator import methodcaller
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from modularml._arguments import (
    Checked,
    arguments_of,
    estimator_from,
    is_like_estimator,
    origin,
    parameters,
    same,
    takes_any,
)
from modularml._registry import Registry
from modularml.errors import ConfigError, ModularMLError, UnknownNameError

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
        if inspect.isabstract(cls) or cls.__name__.startswith("_"):
            return
        taken = config_registry.get(name := name_of(cls))
        # a newer class replaces an older one of the user's, but never one of our own
        is_ours = taken is not None and taken.__module__.split(".")[0] == "modularml"
        if not is_ours or taken.__module__ == cls.__module__:
            config_registry.register(name, cls, overwrite=True)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data."""
        config = self._params()
        for name, value in config.items():
            config[name] = encode(value)
        return config

    def encoded(self) -> dict[str, Any]:
        """Return the name of the class and the config, as they stand in a file."""
        cls, known = type(self), config_registry.get(name := name_of(type(self)))
        if known is not cls:
            _refuse_older(cls, known)
            raise ConfigError(
                f"{cls.__module__}:{cls.__qualname__} cannot be found again by name, as another "
                f"class is called {name!r} too; rename it"
            )
        return {"$type": name, "params": self.get_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make an object from `get_config` output; state is not restored."""
        known = parameters(cls)
        for name in config:
            if name not in known and not takes_any(cls):
                raise UnknownNameError(f"parameter of {cls.__name__}", name, known)
        return cls(**{name: decode(value) for name, value in config.items()})

    def clone(self) -> Self:
        """Make an object with the same config and no state."""
        return type(self).from_config(self.get_config())

    def _params(self) -> dict[str, Any]:
        return {
            name: getattr(self, name)
            for name in parameters(type(self))
            if name not in self.not_config
        }

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not isinstance(other, Configurable):
            return NotImplemented
        mine, theirs = self._params(), other._params()
        return mine.keys() == theirs.keys() and all(same(mine[k], theirs[k]) for k in mine)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        defaults = parameters(type(self))
        shown = [
            f"{name}={value!r}"
            for name, value in self._params().items()
            if defaults[name] is inspect.Parameter.empty or not same(value, defaults[name])
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
    if type(value) in PLAIN:
        return value
    for kind, write in _WRITERS:
        if isinstance(value, kind):
            return write(value)
    if isinstance(value, dict | list | tuple):
        items: Any = {**value} if isinstance(value, dict) else [*value]
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            items[key] = encode(item)
        return tagged(value, items, encode)
    name = getattr(value, "__name__", "") if isinstance(value, np.ufunc) else ""
    if name and getattr(np, name, None) is value:
        return {"$code": f"numpy:{name}"}  # which a ufunc does not tell before numpy 2.1
    if hasattr(value, "__qualname__") and hasattr(value, "__module__"):
        return {"$code": _code_name(value)}
    if (params := arguments_of(value)) is not None:
        return {"$estimator": _code_name(type(value)), "params": encode(params)} | origin(value)
    raise ConfigError(
        f"a {type(value).__name__} cannot be part of a config: {value!r}. Give numbers, strings, "
        "lists, dicts, importable functions and classes, or Configurable objects"
    )


def decode(value: Any) -> Any:
    """Turn the output of `encode` back into the value it came from.

    An object's config is attached to errors of building it, to say where they come from.
    """
    if not isinstance(value, dict):
        return decode_items(value, decode)
    if "$type" in value:
        try:
            return find_class(value["$type"]).from_config(value["params"])
        except (ModularMLError, TypeError) as error:
            if not hasattr(error, "of_config"):
                error.of_config = value  # type: ignore[union-attr]
            raise
    for tag, read in _READERS.items():
        if tag in value:
            return read(value)
    tags = [key for key in value if str(key).startswith("$")]
    if tags and tags[0] not in ("$tuple", "$dict"):
        raise ConfigError(f"{tags[0]!r} is no part of a config that this version knows")
    return decode_items(value, decode)


PLAIN = frozenset({type(None), bool, int, float, str})
"""Types of values that JSON holds as they are."""


def tagged(value: Any, items: Any, write: Callable[[Any], Any]) -> Any:
    """Return a list, tuple or dict of any keys as plain data.

    Parameters
    ----------
    value : list, tuple or dict
    items : list or dict
        Its items, encoded, by index or key.
    write : callable
        Encodes a key.
    """
    if isinstance(value, tuple):
        return {"$tuple": items}
    if isinstance(value, list) or all(isinstance(k, str) and k[:1] != "$" for k in value):
        return items
    return {"$dict": [[write(key), item] for key, item in items.items()]}


def decode_items(tree: Any, read: Callable[[Any], Any]) -> Any:
    """Turn the output of `tagged` back; `read` decodes an item."""
    if isinstance(tree, list):
        return [read(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tuple" in tree:
        return tuple(map(read, tree["$tuple"]))
    if "$dict" in tree:
        return {read(key): read(item) for key, item in tree["$dict"]}
    return {key: read(item) for key, item in tree.items()}


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
    (slice, lambda v: {"$slice": [encode(item) for item in (v.start, v.stop, v.step)]}),
    (set | frozenset, lambda v: {"$set": sorted((encode(item) for item in v), key=repr)}),
    (Path, lambda v: {"$path": v.as_posix()}),
    (dt.datetime, lambda v: {"$time": v.isoformat()}),
    (dt.date, lambda v: {"$date": v.isoformat()}),
]
"""How values of a kind become plain data; the first that fits is taken."""

_READERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "$enum": lambda v: _class_of(v["$enum"], enum.Enum.__subclasscheck__, "Enum")(
        decode(v["value"])
    ),
    "$instant": lambda v: _read_array(v["$instant"])[()],
    "$array": _read_array,
    "$slice": lambda v: slice(*map(decode, v["$slice"])),
    "$set": lambda v: {decode(item) for item in v["$set"]},
    "$path": lambda v: Path(v["$path"]),
    "$time": lambda v: dt.datetime.fromisoformat(v["$time"]),
    "$date": lambda v: dt.date.fromisoformat(v["$date"]),
    "$code": lambda v: find_code(v["$code"]),
    "$estimator": lambda v: estimator_from(
        _class_of(v["$estimator"], is_like_estimator, "estimator"),
        decode(v["params"]),
        v,
        foreign=reads_file(),
    ),
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


def reads_file() -> bool:
    """Return whether names mean what `names_mean` says, as while a file is read."""
    return _meanings.get() is not None


def find_class(name: str) -> Any:
    """Find a `Configurable` class by its name."""
    found = _meanings.get()
    if found is None:
        return config_registry[name]
    if name not in found:
        raise ConfigError(f"class {name!r} was not resolved beforehand")
    return found[name]


FORMER_MODULES = {
    "modularml.backends.sklearn_losses": "modularml.backends.sklearn",
    "modularml.backends.torch_losses": "modularml.backends.torch",
    "modularml.callbacks.csv_logger": "modularml.callbacks.loggers",
    "modularml.callbacks.early_stopping": "modularml.callbacks.stopping",
    "modularml.callbacks.evaluation": "modularml.callbacks.evaluations",
    "modularml.callbacks.evaluation_metric": "modularml.callbacks.evaluations",
    "modularml.callbacks.evaluation_metrics": "modularml.callbacks.evaluations",
    "modularml.callbacks.gradient_norms": "modularml.callbacks.loggers",
    "modularml.callbacks.learning_rate_finder": "modularml.callbacks.learning_rate",
    "modularml.callbacks.learning_rate_monitor": "modularml.callbacks.learning_rate",
    "modularml.callbacks.live_plot": "modularml.callbacks.loggers",
    "modularml.callbacks.max_time": "modularml.callbacks.stopping",
    "modularml.callbacks.rates": "modularml.callbacks.learning_rate",
    "modularml.callbacks.score_metric": "modularml.callbacks.evaluations",
    "modularml.callbacks.unfreezing": "modularml.callbacks.weights",
    "modularml.callbacks.weight_averaging": "modularml.callbacks.weights",
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
    "modularml.graph.function": "modularml.graph.merge_nodes",
    "modularml.models.sklearn_fitting": "modularml.models.sklearn_estimators",
    "modularml.models.tensorflow.cnn": "modularml.models.tensorflow.networks",
    "modularml.models.tensorflow.heads": "modularml.models.tensorflow.networks",
    "modularml.models.tensorflow.mlp": "modularml.models.tensorflow.networks",
    "modularml.models.tensorflow.rnn": "modularml.models.tensorflow.networks",
    "modularml.models.tensorflow.sequences": "modularml.models.tensorflow.networks",
    "modularml.models.tensorflow.tabular": "modularml.models.tensorflow.networks",
    "modularml.models.tensorflow.tcn": "modularml.models.tensorflow.networks",
    "modularml.models.tensorflow.transformer": "modularml.models.tensorflow.networks",
    "modularml.models.torch.cnn": "modularml.models.torch.networks",
    "modularml.models.torch.heads": "modularml.models.torch.networks",
    "modularml.models.torch.mlp": "modularml.models.torch.networks",
    "modularml.models.torch.rnn": "modularml.models.torch.networks",
    "modularml.models.torch.sequences": "modularml.models.torch.networks",
    "modularml.models.torch.tabular": "modularml.models.torch.networks",
    "modularml.models.torch.tcn": "modularml.models.torch.networks",
    "modularml.models.torch.transformer": "modularml.models.torch.networks",
    "modularml.samplers.condition": "modularml.samplers.search",
    "modularml.results.storage": "modularml.results.recording",
    "modularml.results.survival": "modularml.results.scores",
    "modularml.scalers.absolute": "modularml.scalers.elementary",
    "modularml.scalers.negate": "modularml.scalers.elementary",
    "modularml.scalers.per_sample_min_max": "modularml.scalers.elementary",
    "modularml.scalers.per_sample_zero": "modularml.scalers.elementary",
    "modularml.scalers.segmented_scaler": "modularml.scalers.elementary",
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


def _class_of(name: str, is_kind: Callable[[Any], bool], kind: str) -> Any:
    """Return the class of a name, if it is of a kind."""
    found = find_code(name)
    if not (isinstance(found, type) and is_kind(found)):
        raise ConfigError(f"{name!r} is no {kind}")
    return found


def _code_name(code: Any) -> str:
    name = f"{code.__module__}:{code.__qualname__}"
    found = _imported(name)
    if found is not code and not (inspect.ismethod(code) and found == code):
        _refuse_older(code, found)
        raise ConfigError(
            f"{name} cannot be found again by name; define it with `def` or `class` "
            "at the top level of a module"
        )
    return name


def _refuse_older(code: Any, found: Any) -> None:
    """Refuse a class or function if its module has another one where it was defined."""
    same_module = type(found) is type(code) and getattr(found, "__module__", "") == code.__module__
    if same_module and found.__qualname__ == code.__qualname__:
        raise ConfigError(
            f"{code.__module__}:{code.__qualname__} is an older one than that of its module, which "
            "was loaded or run again since (importlib.reload, autoreload, a cell); import "
            f"{code.__qualname__!r} again, and make what uses it again"
        )


def name_of(cls: type) -> str:
    """Return what a config calls a class."""
    return str(vars(cls).get("config_name", cls.__name__))
