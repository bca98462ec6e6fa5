"""The JSON schema of plan files, from the signatures of classes and methods."""

from __future__ import annotations

import enum
import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from modularml._optional import has, require
from modularml.cli.plan_classes import (
    ESTIMATORS,
    REQUIRED,
    Parameter,
    class_of_hint,
    nameable,
    parameters_of,
    subclasses,
)
from modularml.config import name_of
from modularml.data.featureset import FeatureSet
from modularml.data.featureset_yaml import DESCRIPTIONS, DOMAIN_KEYS
from modularml.graph.node import GraphNode
from modularml.io.classes import MODEL_PACKAGES, PACKAGES
from modularml.scalers.scaler import Scaler
from modularml.splitters import BaseSplitter
from modularml.strategies import CrossValidation, CVBinding, Sweep

Schema = dict[str, Any]

VALUE: Schema = {"$ref": "#/$defs/value"}
_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}
_PLAIN |= {types.NoneType: "null"}


def load_classes(*, models: bool = False) -> None:
    """Import the modules whose classes a plan may name; with `models` one framework too."""
    framework = next((name for name in MODEL_PACKAGES if has(name)), None)
    for name in (*PACKAGES, *((MODEL_PACKAGES[framework],) if framework and models else ())):
        module = require(name)
        for public in getattr(module, "__all__", ()):
            getattr(module, public)  # loads it


def plan_schema(classes: Iterable[type] | None = None) -> Schema:
    """Return the JSON schema (2020-12) of a plan.

    Parameters
    ----------
    classes : iterable of type, optional
        What a plan may name; by default all classes of this package that are loaded.

    Notes
    -----
    A tag is the object ``{"$type": name, "params": {...}}``. Editors do not see tags, so the
    arguments alone are valid as well.
    """
    if classes is None:
        classes = filter(_is_ours, nameable())
    named = {name_of(c): c for c in sorted(classes, key=name_of)}
    skipped = ("phase", "experiment", "search", "label")
    folds = _object(_arguments(CrossValidation.__init__, *skipped), CrossValidation.__doc__)
    binding = _object(_arguments(CVBinding.__init__), CVBinding.__doc__)
    binding["properties"]["fs"] = {"type": "string"}
    folds["properties"]["bindings"] = {"type": "array", "items": binding, "minItems": 1}
    folds["properties"]["splitter"] = _any_of(_of_hint(BaseSplitter), {"type": "null"})
    tagged: Schema = {}
    for name, cls in named.items():
        arguments = class_schema(cls)
        tag = _closed({"$type": {"const": name}, "params": arguments}, ["$type", "params"])
        if arguments["additionalProperties"] is not False:
            arguments = {**arguments, "not": {"required": ["$type"]}}
        tagged[name] = {"anyOf": [tag, arguments]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Plan of modularml",
        "type": "object",
        "properties": {
            "data": {"type": "object", "additionalProperties": _table(), "minProperties": 1},
            "experiment": _any_of({"$ref": "#/$defs/Experiment"}, {"type": "string"}),
            "folds": folds,
            "sweep": _sweep(),
            "output": _any_of(
                {"type": "string"},
                _closed(
                    {
                        "folder": {"type": "string"},
                        "rows": {"type": "boolean"},
                        "checkpoint_every": _any_of(
                            {"type": "integer", "minimum": 1}, {"type": "null"}
                        ),
                    },
                    [],
                ),
            ),
        },
        "required": ["data", "experiment"],
        "additionalProperties": False,
        "$defs": {
            "value": _value(named),
            **tagged,
        },
    }


@cache
def class_schema(cls: Any) -> Schema:
    """Return the schema of a class's arguments."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    own_nodes = issubclass(cls, GraphNode) or cls.__name__ in ("Experiment", "ModelGraph")
    return _object(parameters_of(cls), cls.__doc__, is_open=is_open and not own_nodes)


def _value(named: Iterable[str]) -> Schema:
    """Return the schema of any value, in which tags are checked wherever they stand."""
    packages = "|".join(re.escape(name) for name in ESTIMATORS)
    return {
        "if": {"type": "object", "required": ["$type"]},
        "then": {
            "anyOf": [
                *({"$ref": f"#/$defs/{name}/anyOf/0"} for name in named),
                _closed(
                    {"$type": {"pattern": f"^({packages})"}, "params": VALUE}, ["$type", "params"]
                ),
            ]
        },
        "else": {"items": VALUE, "additionalProperties": VALUE},
    }


def _object(
    parameters: Mapping[str, Parameter], doc: str | None = None, *, is_open: bool = False
) -> Schema:
    texts = _described(doc)
    properties: Schema = {}
    for name, parameter in parameters.items():
        found = _of_hint(parameter.hint)
        if name == "input_sources":
            found = _any_of({"type": "null"}, _list({"$ref": "#/$defs/InputBinding"}))
        elif parameter.default is None and found != VALUE:
            found = _any_of(found, {"type": "null"})
        properties[name] = {**found, "description": texts[name]} if name in texts else found
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name, p in parameters.items() if p.default is REQUIRED],
        "additionalProperties": VALUE if is_open else False,
    }


def _of_hint(hint: Any) -> Schema:
    """Return the schema of an annotation; anything goes where it says more than JSON can."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if origin in (Union, types.UnionType):
        return _any_of(*map(_of_hint, parts))
    if origin is Literal:
        return {"enum": list(parts)}
    if origin in (list, Sequence, tuple) or hint in (list, tuple):
        if origin is tuple and parts[1:] != (...,):
            return _list(VALUE)
        return _list(_of_hint(parts[0]) if parts else VALUE)
    if origin in (dict, Mapping) or hint is dict:
        return {"type": "object", "additionalProperties": VALUE}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        tagged = {"type": "object", "required": ["$enum", "value"]}
        return _any_of({"enum": [member.value for member in hint]}, tagged)
    if isinstance(hint, type) and (found := subclasses(hint)):
        refs = [{"$ref": f"#/$defs/{name_of(c)}"} for c in found if _is_ours(c)]
        more = () if class_of_hint(hint) is None else ({"type": "string"},)
        return _any_of(*refs, *more) if refs else VALUE
    return VALUE


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith("modularml.")


def _any_of(*parts: Schema) -> Schema:
    flat = [p for part in parts for p in (part["anyOf"] if set(part) == {"anyOf"} else [part])]
    unique = [part for i, part in enumerate(flat) if part not in flat[:i]]
    if VALUE in unique:
        return VALUE
    return unique[0] if len(unique) == 1 else {"anyOf": unique}


def _list(items: Schema) -> Schema:
    plain = {"type": "array", "items": items}
    return _any_of(plain, _closed({"$tuple": plain}, ["$tuple"]))


# -- sections ------------------------------------------------------------------------------------


def _arguments(function: Callable[..., Any], *skipped: str) -> dict[str, Parameter]:
    """Return the arguments of a function that have a default, or none of their own."""
    hints = get_type_hints(inspect.unwrap(function), localns=_NAMES)
    found = inspect.signature(function).parameters.values()
    named = [p for p in found if p.kind is not p.VAR_KEYWORD and p.name not in skipped]
    return {p.name: Parameter(hints.get(p.name, Any), p.default) for p in named if p.name != "self"}


_NAMES = {"pd": type("pd", (), {"DataFrame": type("DataFrame", (), {})})}
"""Types that are imported for annotations only."""

_NOT_IN_PLANS = ("self", "label", "paths", "register", "cls")


def _table() -> Schema:
    """Return the schema of a table: one of several sources, with splits and scalers."""
    text: Schema = {"type": "string"}
    splitter = _of_hint(BaseSplitter)
    nested = _closed({"of": text, "splitter": splitter}, ["of", "splitter"])
    scaler = _object(_arguments(FeatureSet.fit_transform), FeatureSet.fit_transform.__doc__)
    scaler["properties"]["scaler"] = _any_of(text, _of_hint(Scaler))
    scaler["properties"]["merged_axes"] = _any_of({"type": "integer"}, _list({"type": "integer"}))
    steps: Schema = {
        "splits": {"type": "array", "items": _any_of(splitter, nested)},
        "scalers": {"type": "array", "items": scaler},
        "allow": {"type": "array", "items": text},
    }
    names = {long: short for short, long in DOMAIN_KEYS.items()}
    tables = []
    for kind, read in (("csv", FeatureSet.from_csv), ("parquet", FeatureSet.from_parquet)):
        arguments = _arguments(read, *_NOT_IN_PLANS)
        found = _object({names.get(k, k): p for k, p in arguments.items()}, read.__doc__)
        paths = _any_of(text, {"type": "array", "items": text})
        described = {key: {"type": "object"} for key in DESCRIPTIONS}
        tables.append(_closed({kind: paths, **found["properties"], **described, **steps}, [kind]))
    tables.append(_closed({"file": text, **steps}, ["file"]))
    derived: list[tuple[str, Callable[..., Any], Schema]] = [
        ("windows", FeatureSet.windows, {}),
        ("join", FeatureSet.join, {"other": text}),
    ]
    for kind, method, more in derived:
        inner = _object(_arguments(method, *_NOT_IN_PLANS), method.__doc__)
        inner["properties"] |= {"of": text, **more}
        inner["required"] = ["of", *inner["required"]]
        tables.append(_closed({kind: inner, **steps}, [kind]))
    return {"anyOf": tables}


def _sweep() -> Schema:
    skipped = ("experiment_or_build", "space", "cv", "storage", "sampler", "pruner", "label")
    found = _object(_arguments(Sweep.__init__, *skipped), Sweep.__doc__)
    found["properties"]["objective"] = {"type": "string"}
    number = {"type": "number"}
    bounds = {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
    whole = {"type": "integer"}
    ranges = [
        {"type": "array", "items": VALUE, "minItems": 1},
        _closed({"log_float": bounds}, ["log_float"]),
        _closed({"float_": bounds, "step": number}, ["float_"]),
        _closed({"int_": bounds, "step": whole, "log": {"type": "boolean"}}, ["int_"]),
    ]
    space = {"type": "object", "additionalProperties": {"anyOf": ranges}, "minProperties": 1}
    found["properties"] = {"space": space, **found["properties"]}
    found["required"] = ["space"]
    return found


def _closed(properties: Schema, required: list[str]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _described(doc: str | None) -> dict[str, str]:
    """Return the texts of parameters from a docstring by numpydoc."""
    part = re.search(
        r"Parameters\n-+\n(.*?)(?:\n\n\w[\w ]*\n-+\n|\Z)", inspect.cleandoc(doc or ""), re.DOTALL
    )
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in part[1].splitlines() if part else ():
        if line and not line.startswith(" "):
            names = [name.strip(" *") for name in line.partition(" : ")[0].split(",")]
        else:
            for name in names:
                texts[name] = f"{texts.get(name, '')} {line.strip()}".strip()
    return texts
