"""Settings of an experiment by path, such as ``graph.optimizer.lr``."""

from __future__ import annotations

import difflib
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from modularml.backends import Backend, adapter_for
from modularml.config import Configurable
from modularml.errors import ConfigError, UnknownNameError
from modularml.experiment import Experiment, FitPhase, PhaseGroup, TrainPhase
from modularml.graph.model_node import ModelNode
from modularml.graph.weighted_node import is_fittable
from modularml.models.base import BaseModel
from modularml.models.layered import ModelWrapper
from modularml.phases.phase import ExperimentPhase
from modularml.training import AppliedLoss, LRSchedule, Optimizer

GRAPH = 0
"""The scope of what belongs to the graph and the experiment, not to a phase."""


_OTHER_NAMES = {
    "learning_rate": "lr",
    "epochs": "n_epochs",
    "max_epochs": "n_epochs",
    "units": "hidden_dim",
    "hidden_size": "hidden_dim",
}
"""Names of other libraries for settings."""


@dataclass(frozen=True)
class Setting:
    """An argument of an object's constructor, or one entry of that argument.

    Parameters
    ----------
    scope : int
        Id of the phase that the object belongs to: a sampler that two phases share may have
        another setting in each of them. `GRAPH` for other objects.
    owner : object
        Of the experiment that is rebuilt.
    argument : str
    key : str, optional
        Entry of the argument: a key of a dict, or a parameter of an estimator.
    """

    scope: int
    owner: Any
    argument: str
    key: str | None = None


Edits = dict[tuple[int, int], dict[str, Any]]
"""New arguments for the constructors of an experiment's parts, by scope and id of the object."""


def settings_of(experiment: Experiment, plan: ExperimentPhase | PhaseGroup) -> dict[str, Any]:
    """Return all settings of an experiment by path; ``seed`` belongs to no object.

    Parameters
    ----------
    experiment : Experiment
        With a built graph, which knows the arguments of its optimizers.
    plan : phase or PhaseGroup
        Phases go by their label, or by ``group/label`` within a group.

    Returns
    -------
    dict of str to list of Setting
        Several if objects of several phases go by one path.
        ``graph.optimizer`` (a name keeps the other arguments), ``graph.optimizer.<argument>``,
        ``nodes.<label>.model``, ``nodes.<label>.<argument of the model>``,
        ``nodes.<label>.optimizer...``, ``phases.<label>.<argument>``,
        ``phases.<label>.sampler.<argument>``, ``phases.<label>.losses.<label>.weight``,
        ``phases.<label>.callbacks.<label>.<argument>``, and ``losses...`` and ``callbacks...``
        for those of all phases that learn.
    """
    found: dict[str, list[Setting]] = defaultdict(list)
    found["seed"] = []
    pairs: list[tuple[str, Setting]] = []
    graph = experiment.model_graph
    if graph is not None:
        pairs += _of_optimizer("graph.optimizer", graph)
        for node in graph.nodes.values():
            pairs += _of_node(f"nodes.{node.label}", node)
    for callback in experiment.exp_callbacks:
        pairs += _of_arguments(f"callbacks.{callback.label}", GRAPH, callback)
    above = f"{plan.label}/" if isinstance(plan, PhaseGroup) else ""
    for path, phase in plan.paths():
        pairs += _of_phase(path.removeprefix(above), phase)
    for path, setting in pairs:
        found[path].append(setting)
    return dict(found)


def edits_of(
    experiment: Experiment, plan: ExperimentPhase | PhaseGroup, changes: Mapping[str, Any]
) -> Edits:
    """Return the edits that give settings new values by path.

    Raises
    ------
    UnknownNameError
        If a path names no setting; the closest ones are listed.
    ConfigError
        If a setting cannot change; see `check_paths`.
    """
    edits: Edits = defaultdict(dict)
    settings = settings_of(experiment, plan)
    check_paths(experiment, plan, {path: [value] for path, value in changes.items()}, settings)
    for path in sorted(changes, key=len):  # an optimizer's name before its arguments
        for setting in settings[path]:
            value, owner, argument = changes[path], setting.owner, setting.argument
            if argument == "optimizer" and isinstance(value, str):  # others are as before
                if owner.optimizer is None or owner.optimizer.opt is None:
                    value = Optimizer(value)
                else:
                    owner, argument = owner.optimizer, "opt"
            arguments = edits[setting.scope, id(owner)]
            if setting.key is not None:
                current = arguments.get(argument, owner._params().get(argument))
                if hasattr(current, "set_params"):
                    estimator = adapter_for(Backend.SCIKIT).copied(current, {})
                    value = estimator.set_params(**{setting.key: value})
                else:
                    value = {**(current or {}), setting.key: value}
            arguments[argument] = value
    return dict(edits)


def check_paths(
    experiment: Experiment,
    plan: ExperimentPhase | PhaseGroup,
    changes: Mapping[str, Iterable[Any]],
    settings: Mapping[str, list[Setting]] | None = None,
) -> None:
    """Refuse paths that name no setting, or one that cannot have these values.

    Raises
    ------
    UnknownNameError
        If a path names no setting; the closest ones are listed.
    ConfigError
        If the setting is of a model that was passed as an object, of a frozen node, or within an
        object that another path replaces.
    """
    settings = settings_of(experiment, plan) if settings is None else settings
    refits = any(isinstance(phase, FitPhase) for phase in plan.flatten())
    for path, values in changes.items():
        if path not in settings:
            _refuse_object(experiment, path)
            above, _, last = path.rpartition(".")
            last = _OTHER_NAMES.get(last, last)
            likeness = {  # of the paths to settings of the same last name elsewhere
                name: difflib.SequenceMatcher(None, name.rpartition(".")[0], above).ratio()
                for name in settings
                if name.rpartition(".")[2] == last
            }
            meant = sorted(likeness, key=likeness.__getitem__, reverse=True)[:3]
            raise UnknownNameError("setting", path, settings, meant=meant)
        for value in values if path == "seed" else ():
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
                raise ConfigError(f"seed must be an int of at least 0, got {value!r:.40}")
        # settings of an object that this path replaces
        objects = {id(s.owner._params().get(s.argument)) for s in settings[path] if s.key is None}
        within = [
            other
            for other in changes
            if other.startswith(f"{path}.")
            or any(id(s.owner) in objects for s in settings.get(other, ()))
        ]
        is_name = path.endswith("optimizer") and all(isinstance(value, str) for value in values)
        if within and not is_name:
            raise ConfigError(
                f"{within[0]!r} is a setting of what {path!r} replaces, so it would have no "
                "effect; omit one of them"
                + (", or give optimizers by name" if path.endswith("optimizer") else "")
            )
        _refuse_frozen(experiment, path, settings[path], refits=refits)


def _refuse_object(experiment: Experiment, path: str) -> None:
    """Explain that arguments of a model passed as an object cannot change."""
    graph = experiment.model_graph
    for node in () if graph is None else graph.nodes.values():
        model = getattr(node, "model", None)
        if not path.startswith(f"nodes.{node.label}.") or model is None:
            continue
        if isinstance(model, ModelWrapper) and model._params()["model"] is not None:
            name = path.removeprefix(f"nodes.{node.label}.")
            raise ConfigError(
                f"{path!r} cannot change: node {node.label!r} holds a {model.shown_name} that was "
                f"passed as an object. Pass its class, modularml.{type(model).__name__}("
                f"model_class=..., model_kwargs={{{name!r}: ...}}), or choose between objects with "
                f"'nodes.{node.label}.model'"
            )


def _refuse_frozen(
    experiment: Experiment, path: str, settings: Iterable[Setting], *, refits: bool
) -> None:
    """Refuse settings of a model whose learned state is kept."""
    graph = experiment.model_graph
    owners = {id(setting.owner) for setting in settings}
    for node in () if graph is None else graph.nodes.values():
        if not isinstance(node, ModelNode) or not node.is_frozen:
            continue
        replaces = path == f"nodes.{node.label}.model"
        if (replaces or id(node.model) in owners) and not (refits and is_fittable(node.model)):
            raise ConfigError(
                f"{path!r} cannot change: node {node.label!r} is frozen and keeps what it has "
                "learned; call unfreeze() on it, or omit the path"
            )


# -- settings of each part -----------------------------------------------------------------------


def _of_optimizer(path: str, owner: Any) -> Iterator[tuple[str, Setting]]:
    yield path, Setting(GRAPH, owner, "optimizer")
    optimizer = owner.optimizer
    if optimizer is None:
        return
    names = set() if optimizer.factory is not None else _keyword_names(optimizer.opt_kwargs)
    if optimizer.factory is None and optimizer.backend is not None:
        names |= _argument_names(optimizer.cls) - {"params", "name"}
        if "learning_rate" in names:  # Keras optimizers accept the names of torch
            names |= {"lr", "betas", "eps"}
    for name in sorted(names):
        yield f"{path}.{name}", Setting(GRAPH, optimizer, "opt_kwargs", name)
    yield from _of_arguments(path, GRAPH, optimizer, {"opt_kwargs", "backend", "factory", *names})
    if isinstance(optimizer.schedule, LRSchedule):
        schedule = optimizer.schedule
        names = _keyword_names(schedule.schedule_kwargs)
        for name in sorted(names):
            yield f"{path}.schedule.{name}", Setting(GRAPH, schedule, "schedule_kwargs", name)
        skipped = {"schedule_kwargs", *names}
        yield from _of_arguments(f"{path}.schedule", GRAPH, schedule, skipped)


def _of_node(path: str, node: Any) -> Iterator[tuple[str, Setting]]:
    if not isinstance(node, ModelNode):
        skipped = {"label", "upstream_ref", "upstream_refs"}
        yield from _of_arguments(path, GRAPH, node, skipped)
        return
    yield f"{path}.model", Setting(GRAPH, node, "model")
    if adapter_for(node.backend).gradients:
        yield from _of_optimizer(f"{path}.optimizer", node)
    model = node.model
    params = model._params()
    if isinstance(model, ModelWrapper):
        if params["model_class"] is not None:
            names = _argument_names(params["model_class"]) | _keyword_names(params["model_kwargs"])
            for name in sorted(names - {"model", "optimizer"}):
                yield f"{path}.{name}", Setting(GRAPH, model, "model_kwargs", name)
        return
    names = set()
    if node.backend is Backend.SCIKIT and hasattr(params.get("model"), "get_params"):
        names = set(params["model"].get_params(deep=True)) - {"model", "optimizer"}
        for name in sorted(names):
            yield f"{path}.{name}", Setting(GRAPH, model, "model", name)
    yield from _of_arguments(path, GRAPH, model, {"model", "optimizer", *names})


def _of_phase(label: str, phase: ExperimentPhase) -> Iterator[tuple[str, Setting]]:
    path, scope = f"phases.{label}", id(phase)
    parts = {"label", "input_sources", "losses", "callbacks", "active_nodes"}
    yield from _of_arguments(path, scope, phase, parts)
    samplers = {id(b.sampler): b.sampler for b in phase.input_sources if b.sampler is not None}
    for sampler in samplers.values():
        yield from _of_arguments(f"{path}.sampler", scope, sampler)
    for applied in phase.losses:
        yield from _of_loss(f"{path}.losses.{applied.label}", scope, applied)
        if isinstance(phase, TrainPhase | FitPhase):
            yield from _of_loss(f"losses.{applied.label}", scope, applied)
    for callback in phase.callbacks:
        for above in (f"{path}.", ""):
            name = f"{above}callbacks.{callback.label}"
            yield from _of_arguments(name, scope, callback, {"label"})


def _of_loss(path: str, scope: int, applied: AppliedLoss) -> Iterator[tuple[str, Setting]]:
    for argument in ("weight", "sample_weight", "class_weight"):
        yield f"{path}.{argument}", Setting(scope, applied, argument)
    for name in sorted(_keyword_names(applied.loss.loss_kwargs) - {"weight", "sample_weight"}):
        yield f"{path}.{name}", Setting(scope, applied.loss, "loss_kwargs", name)


def _of_arguments(
    path: str, scope: int, owner: Configurable | BaseModel, skipped: Iterable[str] = ()
) -> Iterator[tuple[str, Setting]]:
    for argument in owner._params():
        if argument not in skipped:
            yield f"{path}.{argument}", Setting(scope, owner, argument)


def _keyword_names(kwargs: Mapping[str, Any] | None) -> set[str]:
    return set(map(str, kwargs or {}))


def _argument_names(function: Callable[..., Any] | None) -> set[str]:
    """Return the names of the arguments of a class, without those it collects."""
    if function is None:
        return set()
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
