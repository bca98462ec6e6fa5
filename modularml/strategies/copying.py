"""An experiment made again in a context of its own: rows are shared, all else is new."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from modularml.backends import Backend, adapter_for, backend_of
from modularml.config import Configurable
from modularml.context import ExperimentContext, ExperimentNode
from modularml.data import FeatureSet
from modularml.engine.monitoring import loggers_of, monitors_of, schedules_of
from modularml.experiment import Experiment, FitPhase, PhaseGroup
from modularml.graph.fitting import is_fittable
from modularml.graph.model_graph import ModelGraph
from modularml.graph.model_node import ModelNode
from modularml.io.randomness import derived_seed, seed_all
from modularml.models.base import BaseModel
from modularml.phases.phase import ExperimentPhase
from modularml.samplers import BaseSampler
from modularml.strategies.folds import Fold, Sides
from modularml.training import Loss

__all__ = ["fold_experiment", "template_of"]

Plan = ExperimentPhase | PhaseGroup


def template_of(experiment: Experiment, plan: Plan) -> Experiment:
    """Return an experiment with this plan, the same rows and scalers, and no history."""
    return _made_again(experiment, plan, experiment.label, _rows_of)


def fold_experiment(experiment: Experiment, plan: Plan, fold: Fold, label: str) -> Experiment:
    """Return an experiment of its own for a fold, ready to run.

    Its FeatureSets share their raw columns with those of the experiment. Scalers are fitted again
    on the rows that the fold trains on, weights are drawn from its seed. Frozen nodes keep what
    they have learned, unless the plan fits them. The random states of the process are set.
    """
    seed_all(fold.seed)
    new = _made_again(experiment, plan, label, lambda fs: _rows_of(fs, fold.sides.get(fs.label)))
    _stop_by_rows_held_back(new, fold)
    _own_samplers(plan.flatten(), new.execution_plan.flatten(), fold.seed)
    _own_files(new, label)
    return new


def _made_again(
    experiment: Experiment, plan: Plan, label: str, rows: Callable[[FeatureSet], FeatureSet]
) -> Experiment:
    ctx = ExperimentContext(registration_policy="error")
    with ctx.activate():
        for fs in experiment.ctx.available_featuresets.values():
            rows(fs)
        graph = experiment.model_graph
        if graph is not None:
            _graph_again(graph, refit=any(isinstance(p, FitPhase) for p in plan.flatten()))
        callbacks = [_again(callback) for callback in experiment.exp_callbacks]
        kept = _again(experiment.checkpointing)
        new = Experiment(label, ctx=ctx, checkpointing=kept, callbacks=callbacks, audit="off")
        items = plan.all if isinstance(plan, PhaseGroup) else [plan]
        new.execution_plan.add_items(_again(item) for item in items)
    return new


def _again(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """Make a value again from its constructor's arguments, without what it has learned.

    What is one in several values that are made with one `memo` is one again.
    """
    memo = {} if memo is None else memo
    if isinstance(value, ExperimentNode):
        return ExperimentContext.get_active().get_node(label=value.label)
    if isinstance(value, PhaseGroup):
        return PhaseGroup(value.label, [_again(item, memo) for item in value.all])
    if isinstance(value, BaseModel) and id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Configurable):
        params = {name: _again(given, memo) for name, given in value._params().items()}
        made = type(value)(**params)
        if isinstance(value, Loss) and isinstance(made, Loss):
            made.begin_like(value)
        memo[id(value)] = made
        return made
    if type(value) in (list, tuple):
        return type(value)(_again(item, memo) for item in value)
    if type(value) is dict:
        return {key: _again(item, memo) for key, item in value.items()}
    with warnings.catch_warnings():  # Keras copies its models by way of a file
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        if isinstance(value, type) or (backend := backend_of(value)) is Backend.NONE:
            return copy.deepcopy(value, memo)
        return adapter_for(backend).copied(value, memo)


# -- rows ---------------------------------------------------------------------------------------


def _rows_of(fs: FeatureSet, sides: Sides | None = None) -> FeatureSet:
    """Copy a set; its splits and scalers become those of a fold, where one is given."""
    records = fs.scaler_records if sides is not None else ()
    new = fs.copy(label=fs.label, restore_splits=True, restore_scalers=not records, register=True)
    if sides is None:
        return new
    state = new.get_state()
    state["splits"] |= sides.splits
    new.set_state(state)
    for record in records:
        new.fit_transform(
            record.scaler,
            domain=record.domain,
            keys=list(record.keys),
            fit_to_split=_split_to_fit(new, record.fit_to_split, sides),
            merged_axes=record.merged_axes,
            targets=list(record.targets) or None,
        )
    return new


def _split_to_fit(fs: FeatureSet, name: str | None, sides: Sides) -> str:
    """Return the fold's own rows, unless a scaler was fitted on rows that no fold cuts."""
    elsewhere = name is not None and name in fs.available_splits and name not in sides.splits
    if elsewhere and not np.isin(fs.get_split(name).valid_indices, sides.pool).any():
        return str(name)
    return sides.train_name


# -- graph --------------------------------------------------------------------------------------


def _graph_again(graph: ModelGraph, *, refit: bool) -> None:
    graph._check_ties()
    nodes: list[Any] = []
    objects: list[ModelNode] = []
    memo: dict[int, Any] = {}
    for node in graph.nodes.values():
        params: dict[str, Any] = _again(node._params(), memo)
        nodes.append(type(node)(**params, node_id=node.node_id))
        if not isinstance(node, ModelNode):
            continue
        fittable = is_fittable(node.model)
        if node.is_frozen and not (refit and fittable):
            nodes[-1].set_state(node.get_state())
        elif fittable:  # shapes come from the fit of this fold
            nodes[-1].reset_weights()
        elif any(map(_is_object, node.model._params().values())):
            objects.append(nodes[-1])
    ModelGraph(nodes, _again(graph.optimizer), graph.label).build()
    for node in objects:  # a model that was given as an object came with its weights
        node.reset_weights()
    for node, new in zip(graph.nodes.values(), nodes, strict=True):
        if isinstance(node, ModelNode) and node.is_built and not node.is_frozen:
            adapter_for(node.backend).keep_fixed(node.model.module, new.model.module)


def _is_object(value: Any) -> bool:
    return not inspect.isclass(value) and backend_of(value) is not Backend.NONE


# -- plan ---------------------------------------------------------------------------------------


def _stop_by_rows_held_back(new: Experiment, fold: Fold) -> None:
    """Let what chooses by the validation rows choose by those held back for it."""
    stops = {k: s.stop_name for k, s in fold.sides.items() if s.stop is not None}
    vals = {k: s.val_name for k, s in fold.sides.items() if s.stop is not None}
    prefix = f"{next(iter(stops.values()), '')}_"
    for phase in new.execution_plan.flatten():
        for found in monitors_of(phase, new.model_graph):
            monitor = found.removeprefix(prefix)  # a schedule may watch it since an earlier phase
            for watch in loggers_of(monitor, phase.callbacks):
                if not reads_only(watch, vals):
                    continue
                with new.ctx.activate():
                    other = watch.of_splits(stops, prefix)
                if not loggers_of(prefix + monitor, phase.callbacks):
                    phase.callbacks.insert(phase.callbacks.index(watch) + 1, other)
                if loggers_of(prefix + monitor, [other]):
                    _watch(phase, new.model_graph, monitor, prefix + monitor)


def reads_only(callback: Any, splits: Mapping[str, str]) -> bool:
    """Tell whether a callback evaluates these splits, by label of the FeatureSet, and no others."""
    sources = callback.eval_phase.input_sources if hasattr(callback, "of_splits") else []
    return bool(sources) and all(splits.get(s.upstream_ref.node_label) == s.split for s in sources)


def _watch(phase: ExperimentPhase, graph: Any, old: str, new: str) -> None:
    """Let callbacks and schedules watch another metric."""
    for schedule in schedules_of(graph):
        if schedule.monitor == old:
            schedule.monitor = new
    for i, callback in enumerate(phase.callbacks):
        if getattr(callback, "monitor", None) == old:
            phase.callbacks[i] = type(callback)(**{**callback._params(), "monitor": new})


def _own_samplers(
    old: Iterable[ExperimentPhase], new: Iterable[ExperimentPhase], seed: int
) -> None:
    """Let what was one sampler be one again, with a seed of the fold where it had none."""
    known: list[tuple[BaseSampler, BaseSampler]] = []
    for theirs, mine in zip(old, new, strict=True):
        for i, (a, b) in enumerate(zip(theirs.input_sources, mine.input_sources, strict=True)):
            if a.sampler is None or b.sampler is None:
                continue
            same = (t for s, t in known if s == a.sampler and s.seed_ == a.sampler.seed_)
            sampler = next(same, b.sampler)
            if sampler is b.sampler:
                known.append((a.sampler, sampler))
                if sampler.seed is None:
                    sampler.seed = sampler.seed_ = derived_seed(seed, len(known))
            mine.input_sources[i] = replace(b, sampler=sampler)


def _own_files(new: Experiment, label: str) -> None:
    """Let each fold write where no other does."""
    phases = new.execution_plan.flatten()
    writers: list[Any] = [*new.exp_callbacks, *(c for p in phases for c in p.callbacks)]
    writers += [getattr(owner, "checkpointing", None) for owner in (new, *phases)]
    for writer in filter(None, writers):
        writer.keep_apart(label)
