"""Classes that a plan may name: their parameters, and what follows from a place."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, TypeAlias, Union, get_args, get_origin, get_type_hints

from modularml._optional import require
from modularml.config import config_registry, name_of
from modularml.context import ExperimentNode
from modularml.data.references import FeatureSetReference
from modularml.engine.checkpointing import Checkpointing
from modularml.errors import MissingDependencyError, MMLError
from modularml.experiment import Experiment, TrainPhase
from modularml.graph.model_graph import ModelGraph
from modularml.graph.model_node import ModelNode
from modularml.graph.node import GraphNode
from modularml.io.classes import Resolver
from modularml.phases.group import PhaseGroup
from modularml.phases.phase import ExperimentPhase
from modularml.samplers import BaseSampler

REQUIRED: Any = inspect.Parameter.empty
ESTIMATORS = ("sklearn.", "xgboost.", "lightgbm.")
"""Packages whose estimators are tags by their import path, ``!sklearn.linear_model.Ridge``."""

Hint: TypeAlias = Any


class Parameter(NamedTuple):
    """The annotation and the default of an argument."""

    hint: Hint
    default: Any


_BY_NAME = {"Loss": "loss", "Optimizer": "opt", "Scaler": "scaler", "LRSchedule": "schedule"}
"""The argument that a plain name stands for, where one class is expected."""

_INNER = {
    "ModelNode": "model",
    "Optimizer": "opt_kwargs",
    "LRSchedule": "schedule_kwargs",
    "AppliedLoss": "loss",
    "Loss": "loss_kwargs",
    "TorchModelWrapper": "model_kwargs",
    "TensorflowModelWrapper": "model_kwargs",
    "ScikitModelWrapper": "model",
}
"""The argument that other config paths lead through, as in ``nodes.net.hidden_dim``."""


def inner_of(cls: type, arguments: Any) -> str | None:
    """Return the argument of a class that a path leads through, if it is given."""
    name = _INNER.get(cls.__name__)
    is_dict = isinstance(arguments, dict) and name is not None
    plain = is_dict and not isinstance(arguments.get(name), dict | None)
    return None if plain or not is_dict else name


@cache
def _found(role: str, name: str, allow_import: tuple[str, ...]) -> Any:
    resolver = Resolver(Path("plan"), [], None, allow_import)
    return resolver.resolve([(role, name)])[name]


def find_class(tree: Any, allow_import: tuple[str, ...] = ()) -> Any:
    """Return the class of a tagged value; None if it has no tag, or its class is unknown."""
    tags = tree if isinstance(tree, dict) else {}
    role = "estimator" if "$estimator" in tags else "type"
    name = tags.get(f"${role}")
    if not isinstance(name, str) or (role == "type" and name.startswith(ESTIMATORS)):
        return None
    try:
        return _found(role, name, allow_import)
    except (MMLError, MissingDependencyError):
        return None


@cache
def parameters_of(cls: Any) -> dict[str, Parameter]:
    """Return the parameters of a class by name, as they may stand in a plan."""
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__[:-1]):  # **kwargs are annotated in base classes
        if "__init__" in vars(base):
            with suppress(NameError):  # a name that is imported for annotations only
                hints |= get_type_hints(base.__init__)
    skipped = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    signature = inspect.signature(cls.__init__).parameters.values()
    found = {
        p.name: Parameter(hints.get(p.name, Any), p.default)
        for p in list(signature)[1:]
        if p.kind not in skipped
    }
    is_part = issubclass(cls, ExperimentNode | ModelGraph | Experiment)
    for name in ("ctx", "register", "node_id") if is_part else ():
        found.pop(name, None)
    found |= {k: p for base, more in _MORE.items() if issubclass(cls, base) for k, p in more}
    if "node_id" in found:  # follows from the label
        found["node_id"] = Parameter(str, "")
    return found


_PHASES: Any = list[ExperimentPhase | PhaseGroup]
_MORE: dict[Any, list[tuple[str, Parameter]]] = {
    Experiment: [
        ("model_graph", Parameter(ModelGraph, REQUIRED)),
        ("execution_plan", Parameter(PhaseGroup, REQUIRED)),
        ("checkpointing", Parameter(Checkpointing | None, None)),
    ],
    ModelGraph: [("nodes", Parameter(list[GraphNode], REQUIRED))],
    ModelNode: [("frozen", Parameter(bool, False)), ("paired", Parameter(Any, None))],
    PhaseGroup: [("label", Parameter(str, None)), ("phases", Parameter(_PHASES, REQUIRED))],
    ExperimentPhase: [
        ("split", Parameter(str | None, None)),
        ("input_sources", Parameter(list[Any], None)),
    ],
    FeatureSetReference: [
        (domain, Parameter(str | list[str], ())) for domain in ("features", "targets", "tags")
    ],
    TrainPhase: [("sampler", Parameter(BaseSampler | None, None))],
}
"""What stands in the config of a class beside, or other than, its constructor's arguments."""


def subclasses(cls: Any) -> list[type]:
    """Return the registered classes that may stand where one of this class is expected."""
    return [c for c in nameable() if issubclass(c, cls)]


def nameable() -> list[type]:
    """Return the registered classes that a plan may name."""
    found = {config_registry[name]: None for name in sorted(config_registry)}
    return [c for c in found if not inspect.isabstract(c) and c.__name__ not in _INTERNAL]


_INTERNAL = (
    *("FeatureSet", "SampleSource", "Interruption", "UnavailableCallback", "UnavailablePhase"),
    *("CheckpointCallback", "ExperimentCheckpointCallback", "LRSchedulerCallback"),
    *("TrialPruning", "Flattening", "FittedEstimator"),
)
"""Classes that stand in no config that users write."""


def _is_union(hint: Hint) -> bool:
    origin: Any = get_origin(hint)
    return origin in (Union, UnionType)


def class_of_hint(hint: Hint) -> Any:
    """Return the one class of our own that an annotation names; None if several fit."""
    if _is_union(hint):
        found = [c for part in get_args(hint) if (c := class_of_hint(part)) is not None]
        return found[0] if len(found) == 1 else None
    if hint is GraphNode:
        return ModelNode
    return hint if isinstance(hint, type) and subclasses(hint) == [hint] else None


def completed(tree: Any, allow_import: Iterable[str] = (), cls: Any = Experiment) -> Any:
    """Return a tree with the tags that follow from a place, and with needed defaults.

    Parameters
    ----------
    tree : object
        As it was written.
    allow_import : iterable of str
    cls : type, optional
        The one class that may stand here.
    """
    allowed = tuple(allow_import)
    if isinstance(tree, str) and cls is not None and cls.__name__ in _BY_NAME:
        return {"$type": name_of(cls), "params": {_BY_NAME[cls.__name__]: tree}}
    if isinstance(tree, list):
        return [completed(item, allowed, cls) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "$type" not in tree and cls is not None and not any(str(k).startswith("$") for k in tree):
        tree = {"$type": name_of(cls), "params": tree}
    name, params = tree.get("$type"), tree.get("params")
    if not isinstance(params, dict) or not isinstance(name, str):
        return {key: completed(value, allowed, None) for key, value in tree.items()}
    if name.startswith(ESTIMATORS) and (code := _estimator(name)) is not None:
        return {"$estimator": code, "params": completed(params, allowed, None)}
    found = find_class(tree, allowed)
    known = {} if found is None else parameters_of(found)
    new = {k: completed(v, allowed, _expected(known, k)) for k, v in params.items()}
    if found is Experiment:
        defaults: dict[str, Any] = {
            "registration_policy": "error",
            "checkpointing": None,
            "callbacks": [],
        }
        new = {**defaults, **new}
        group = new.get("execution_plan")
        if isinstance(group, dict) and isinstance(group.get("params"), dict):
            group["params"].setdefault("label", new.get("label"))
    elif found is ModelGraph:
        new = {"label": "model-graph", "optimizer": None, **new}
    return {"$type": name, "params": new}


def _expected(known: dict[str, Parameter], name: str) -> Any:
    if name not in known:
        return None
    if name == "input_sources":
        return config_registry["InputBinding"]
    hint = known[name].hint
    parts = get_args(hint) if _is_union(hint) else (hint,)
    items = [get_args(part)[0] for part in parts if get_origin(part) in (list, Sequence)]
    return class_of_hint(items[0] if items else hint)


def _estimator(name: str) -> str | None:
    """Return ``module:qualname`` of an estimator by its public name."""
    module, _, cls = name.rpartition(".")
    try:
        found = getattr(require(module), cls, None)
    except MissingDependencyError:
        return None
    return None if found is None else f"{found.__module__}:{found.__qualname__}"
