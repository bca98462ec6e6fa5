"""Variants of an experiment: copies in separate contexts that share rows."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from modularml._typing import IntArray
from modularml.backends import Backend, adapter_for, backend_of
from modularml.config import Configurable
from modularml.context import ExperimentContext, ExperimentNode
from modularml.data.featureset import FeatureSet
from modularml.engine.monitoring import loggers_of, monitors_of, schedules_of
from modularml.experiment import Experiment, FitPhase, PhaseGroup
from modularml.graph.files import check_ties
from modularml.graph.model_graph import ModelGraph
from modularml.graph.model_node import ModelNode
from modularml.graph.weighted_node import is_fittable
from modularml.io.randomness import derived_seed, seed_all
from modularml.models.base import BaseModel
from modularml.phases.phase import ExperimentPhase
from modularml.samplers import BaseSampler
from modularml.strategies.variants.settings import GRAPH, Edits, edits_of
from modularml.training import Loss

Plan = ExperimentPhase | PhaseGroup


@dataclass(frozen=True)
class Sides:
    """The parts of a fold in one FeatureSet: ascending rows, and split names.

    `pool` holds the rows that are split into folds, `stop` those held out for early stopping.
    """

    train: IntArray = field(repr=False)
    val: IntArray = field(repr=False)
    pool: IntArray = field(repr=False)
    train_name: str = "train"
    val_name: str = "val"
    stop: IntArray | None = field(default=None, repr=False)
    stop_name: str = "stop"

    @property
    def splits(self) -> dict[str, IntArray]:
        """Rows by split name."""
        splits = {self.train_name: self.train, self.val_name: self.val}
        return splits if self.stop is None else {**splits, self.stop_name: self.stop}

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields, with ascending rows as the bits of a mask, if that is smaller."""
        state = dict(vars(self))
        for name, value in vars(self).items():
            if not isinstance(value, np.ndarray) or len(value) * 64 <= value.max(initial=0):
                continue
            if value.dtype == np.int64 and (np.diff(value) > 0).all():
                mask = np.zeros(value[-1] + 1, dtype=bool)
                mask[value] = True
                state[name] = np.packbits(mask)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            is_packed = isinstance(value, np.ndarray) and value.dtype == np.uint8
            rows = np.flatnonzero(np.unpackbits(value)) if is_packed else value
            object.__setattr__(self, name, rows)


@dataclass(frozen=True)
class Variant:
    """One of many runs of an experiment: a fold, a member of an ensemble, or a trial.

    Parameters
    ----------
    label : str
    seed : int
        Determines weights, and the order of rows of samplers without a seed.
    repeat : int
        0-based repeat of a fold.
    sides : mapping of str to Sides
        Rows of a fold by FeatureSet label; without it, splits and scalers stay.
    changes : mapping of str to object
        New values by config path, such as ``graph.optimizer.lr``; see `settings_of`. ``seed``
        replaces the seed.
    """

    label: str
    seed: int
    repeat: int = 0
    sides: Mapping[str, Sides] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)


def checked_experiment(experiment: Any, phase: Any) -> Experiment:
    """Return an experiment, by default that of the active context; check it and the phase."""
    chosen = ExperimentContext.get_active().get_experiment() if experiment is None else experiment
    if not isinstance(chosen, Experiment):
        how = "create one first"
        if isinstance(chosen, str | Path | list | tuple):
            how = "read one with Experiment.load; ExperimentCollection takes several files"
        raise TypeError(f"experiment must be an Experiment, got {chosen!r:.200}; {how}")
    if phase is not None and not isinstance(phase, ExperimentPhase | PhaseGroup):
        raise TypeError(f"phase must be a phase or a PhaseGroup, got {phase!r}")
    return chosen


def template_of(experiment: Experiment, plan: Plan) -> Experiment:
    """Return a copy of an experiment with this plan and without history."""
    return _copied(experiment, plan, experiment.label, {}, {})


def variant_experiment(
    experiment: Experiment, plan: Plan, variant: Variant, label: str | None
) -> Experiment:
    """Return a separate experiment for a variant, ready to run.

    Its FeatureSets share their raw columns with those of the experiment. Scalers are refitted on
    the training rows of a fold, and weights are drawn from its seed. Frozen nodes keep their
    learned weights, unless the plan fits them. The random states of the process are set. Without a
    label, it writes to the files of the experiment.

    Raises
    ------
    UnknownNameError, ConfigError
        If the changes name no setting, or one that cannot change; see `edits_of`.
    """
    changes = dict(variant.changes)
    seed = changes.pop("seed", variant.seed)
    edits = edits_of(experiment, plan, changes) if changes else {}
    seed_all(seed)
    new = _copied(experiment, plan, label or experiment.label, variant.sides, edits)
    new._sides = dict(variant.sides)
    phases = new.execution_plan.flatten()
    _monitor_held_out_rows(new, variant)
    _seed_samplers(plan.flatten(), phases, seed)
    if label is not None:
        writers: list[Any] = [*new.exp_callbacks, *(c for p in phases for c in p.callbacks)]
        writers += [getattr(owner, "checkpointing", None) for owner in (new, *phases)]
        for writer in filter(None, writers):
            writer.separate_files(label)
    return new


def changed_experiment(experiment: Experiment, changes: Mapping[str, Any], seed: int) -> Experiment:
    """Return a copy of a fold's experiment with new settings and weights, ready to run.

    Rows, splits, scalers and the files it writes to are the same. The random states of the process
    are set.
    """
    variant = Variant(experiment.label, seed, changes=changes)
    new = variant_experiment(experiment, experiment.execution_plan, variant, None)
    new._sides = dict(experiment._sides)
    return new


def _copied(
    experiment: Experiment, plan: Plan, label: str, sides: Mapping[str, Sides], edits: Edits
) -> Experiment:
    ctx = ExperimentContext(registration_policy="error")
    with ctx.activate():
        for fs in experiment.ctx.available_featuresets.values():
            _copy_rows(fs, sides.get(str(fs.label)))
        if experiment.model_graph is not None:
            refit = any(isinstance(p, FitPhase) for p in plan.flatten())
            _rebuild_graph(experiment.model_graph, edits, refit=refit)
        new = Experiment(
            label,
            ctx=ctx,
            checkpointing=_rebuilt(experiment.checkpointing),
            callbacks=[_rebuilt(callback, edits=edits) for callback in experiment.exp_callbacks],
            audit="off",
            deterministic=experiment.deterministic,
            results_config=experiment.results_config,
        )
        items = plan.all if isinstance(plan, PhaseGroup) else [plan]
        new.execution_plan.add_items(_rebuilt(item, edits=edits) for item in items)
    return new


_PLAIN = frozenset({str, int, float, bool, type(None)})


def _rebuilt(
    value: Any,
    memo: dict[int, Any] | None = None,
    edits: Edits | None = None,
    scope: int = GRAPH,
) -> Any:
    """Rebuild a value from its constructor's arguments, without learned state.

    Objects shared by several values are shared again if one `memo` is used for all. `edits` are
    those of a scope: a phase, or the graph.
    """
    if type(value) in _PLAIN:
        return value
    memo, edits = {} if memo is None else memo, edits or {}
    if isinstance(value, ExperimentPhase) and scope == GRAPH:
        scope = id(value)
    if isinstance(value, ExperimentNode):
        return ExperimentContext.get_active().get_node(label=value.label)
    if isinstance(value, PhaseGroup):
        return PhaseGroup(value.label, [_rebuilt(item, memo, edits) for item in value.all])
    if isinstance(value, BaseModel) and id(value) in memo:
        return memo[id(value)]
    is_configured = isinstance(value, Configurable)
    if is_configured or type(value) is dict:
        params = (
            {**value._params(), **edits.get((scope, id(value)), {})} if is_configured else value
        )
        new: Any = {
            key: item if type(item) in _PLAIN else _rebuilt(item, memo, edits, scope)
            for key, item in params.items()
        }
        if is_configured:
            memo[id(value)] = new = type(value)(**new)
        if isinstance(value, Loss):
            new.begin_like(value)
        return new
    if type(value) in (list, tuple):
        return type(value)([_rebuilt(item, memo, edits, scope) for item in value])
    with warnings.catch_warnings():  # Keras copies its models through a file
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        if isinstance(value, type) or (backend := backend_of(value)) is Backend.NONE:
            return copy.deepcopy(value, memo)
        return adapter_for(backend).copied(value, memo)


# -- rows ---------------------------------------------------------------------------------------


def _copy_rows(fs: FeatureSet, sides: Sides | None) -> None:
    """Copy a FeatureSet, with the splits and scalers of a fold if given."""
    records = fs.scaler_records if sides is not None else ()
    new = fs.copy(label=fs.label, restore_splits=True, restore_scalers=not records, register=True)
    if sides is None:
        return
    state = new.get_state()
    state["splits"] |= sides.splits
    new.set_state(state)
    for record in records:
        name = record.fit_to_split
        is_other = name is not None and name in new.available_splits and name not in sides.splits
        if not is_other or np.isin(new.get_split(str(name)).valid_indices, sides.pool).any():
            name = sides.train_name  # unless it was fitted outside the pool
        new.fit_transform(
            record.scaler,
            domain=record.domain,
            keys=list(record.keys),
            fit_to_split=name,
            merged_axes=record.merged_axes,
            targets=list(record.targets) or None,
            per=list(record.per) or None,
            unseen=record.unseen,
        )


# -- graph --------------------------------------------------------------------------------------


def _rebuild_graph(graph: ModelGraph, edits: Edits, *, refit: bool) -> None:
    check_ties(graph)
    nodes: list[Any] = []
    objects: list[ModelNode] = []
    memo: dict[int, Any] = {}
    for node in graph.nodes.values():
        arguments = {**node._params(), **edits.get((GRAPH, id(node)), {})}
        params: dict[str, Any] = _rebuilt(arguments, memo, edits)
        nodes.append(type(node)(**params, node_id=node.node_id))
        if not isinstance(node, ModelNode):
            continue
        fittable = is_fittable(nodes[-1].model)
        if node.is_frozen and not (refit and fittable):
            nodes[-1].set_state(node.get_state())
        elif fittable:  # shapes come from the fit of this fold
            nodes[-1].reset_weights()
        elif any(
            not inspect.isclass(value) and backend_of(value) is not Backend.NONE
            for value in nodes[-1].model._params().values()
        ):
            objects.append(nodes[-1])
    optimizer = edits.get((GRAPH, id(graph)), {}).get("optimizer", graph.optimizer)
    ModelGraph(nodes, _rebuilt(optimizer, edits=edits), graph.label).build()
    for node in objects:  # a model passed as an object comes with weights
        node.reset_weights()
    for node, new in zip(graph.nodes.values(), nodes, strict=True):
        if not isinstance(node, ModelNode) or "model" in edits.get((GRAPH, id(node)), {}):
            continue
        if node.is_built and not node.is_frozen:
            adapter_for(node.backend).keep_fixed(node.model.module, new.model.module)


# -- plan ---------------------------------------------------------------------------------------


def _monitor_held_out_rows(new: Experiment, variant: Variant) -> None:
    """Make callbacks and schedules monitor the rows held out for stopping."""
    stops = {k: s.stop_name for k, s in variant.sides.items() if s.stop is not None}
    vals = {k: variant.sides[k].val_name for k in stops}
    if not stops:
        return
    prefix = f"{next(iter(stops.values()))}_"
    for phase in new.execution_plan.flatten():
        for name in monitors_of(phase, new.model_graph, checkpoints=True):
            monitor = name.removeprefix(prefix)  # schedules may have it from earlier phases
            for evaluation in loggers_of(monitor, phase.callbacks):
                if not reads_only(evaluation, vals):
                    continue
                with new.ctx.activate():
                    stop_evaluation = evaluation.of_splits(stops, prefix)
                if not loggers_of(prefix + monitor, phase.callbacks):
                    phase.callbacks.insert(phase.callbacks.index(evaluation) + 1, stop_evaluation)
                if loggers_of(prefix + monitor, [stop_evaluation]):
                    _set_monitor(phase, new.model_graph, monitor, prefix + monitor)


def reads_only(callback: Any, splits: Mapping[str, str]) -> bool:
    """Return whether a callback evaluates only these splits, by FeatureSet label."""
    sources = callback.eval_phase.input_sources if hasattr(callback, "of_splits") else []
    return bool(sources) and all(splits.get(s.upstream_ref.node_label) == s.split for s in sources)


def _set_monitor(phase: ExperimentPhase, graph: Any, old: str, new: str) -> None:
    """Replace the metric that callbacks and schedules monitor."""
    for schedule in schedules_of(graph):
        if schedule.monitor == old:
            schedule.monitor = new
    for i, callback in enumerate(phase.callbacks):
        if getattr(callback, "monitor", None) == old:
            phase.callbacks[i] = type(callback)(**{**callback._params(), "monitor": new})
    checkpointing = getattr(phase, "checkpointing", None)
    if checkpointing is not None and checkpointing.monitor == old:
        checkpointing.monitor = new


def _seed_samplers(
    old: Iterable[ExperimentPhase], new: Iterable[ExperimentPhase], seed: int
) -> None:
    """Share samplers as in the original, and seed those without a seed."""
    replaced: list[tuple[BaseSampler, BaseSampler, BaseSampler]] = []
    for old_phase, new_phase in zip(old, new, strict=True):
        for i, (old_binding, new_binding) in enumerate(
            zip(old_phase.input_sources, new_phase.input_sources, strict=True)
        ):
            if old_binding.sampler is None or new_binding.sampler is None:
                continue
            shared = (
                seeded
                for old_sampler, new_sampler, seeded in replaced
                if old_sampler == old_binding.sampler
                and old_sampler.seed_ == old_binding.sampler.seed_
                and new_sampler == new_binding.sampler
            )
            sampler = next(shared, new_binding.sampler)
            if sampler is new_binding.sampler:
                replaced.append((old_binding.sampler, copy.copy(sampler), sampler))
                if sampler.seed is None:
                    sampler.seed = sampler.seed_ = derived_seed(seed, len(replaced))
            new_phase.input_sources[i] = replace(new_binding, sampler=sampler)
