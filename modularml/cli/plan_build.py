"""From a checked plan to FeatureSets and an experiment."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from modularml.cli.plan import Plan, Where, walk
from modularml.config import decode, name_of, names_mean
from modularml.context import ExperimentContext
from modularml.data.featureset import FeatureSet
from modularml.data.featureset_yaml import apply_split, fit_scaler, moved, read_rows, relative
from modularml.errors import ModularMLError, NotFittedError, PlanError, UnknownNameError
from modularml.experiment import Experiment, TrainPhase
from modularml.io.classes import Resolver, names_in
from modularml.io.jsontext import with_labels
from modularml.io.randomness import unchanged_randomness
from modularml.io.yamltext import dump_yaml
from modularml.strategies import CrossValidation, CVBinding, Sweep
from modularml.strategies.sweeps import space

_RANGES = ("log_float", "float_", "int_")
"""Functions of `modularml.space` for ranges of numbers."""


def build_data(plan: Plan) -> dict[str, FeatureSet]:
    """Read, split and scale the tables of a plan in the active context.

    Raises
    ------
    PlanError
        If rows cannot be read, split or scaled as asked; the message names the position.
    """
    sets: dict[str, FeatureSet] = {}
    for label, section in plan.tree["data"].items():
        path: Where = ("data", label)
        table = _decoded(plan, section, path)
        folder = plan.folders[label]
        with _located(plan, path):
            fs = sets[label] = read_rows(label, table, sets, folder, FeatureSet)
        for i, entry in enumerate(table.get("splits", ())):
            with _located(plan, (*path, "splits", i)):
                apply_split(fs, entry)
        for i, entry in enumerate(table.get("scalers", ())):
            with _located(plan, (*path, "scalers", i)):
                fit_scaler(fs, entry)
        fs.audit_allowed = tuple(table.get("allow", ()))
    return sets


def build_experiment(plan: Plan, sets: dict[str, FeatureSet]) -> Experiment:
    """Build the experiment of a plan beside its FeatureSets, in the active context.

    A copy is built first with its graph, so that shapes that do not fit are found before weights
    are drawn.
    """
    path: Where = ("experiment",)
    with _located(plan, path):
        tree = _expanded(plan, plan.tree["experiment"], sets)
        text = dump_yaml(tree)
        try:
            _build_copy(plan, text, sets)
            return Experiment.from_yaml(text, allow_import=plan.allow_import)
        except PlanError:
            raise
        except ModularMLError as error:
            cause = error.__cause__ or error  # what came before the text of a file's reader
            at = _find(tree, getattr(cause, "of_config", None))
            raise plan.error((*path, *at), cause) from error


def _build_copy(plan: Plan, text: str, sets: Mapping[str, FeatureSet]) -> None:
    """Build an experiment and its graph, and look for what is bound to fail in a run."""
    quiet = warnings.catch_warnings(action="ignore")  # the run itself warns
    with quiet, unchanged_randomness(), ExperimentContext().activate():
        for fs in sets.values():
            fs.copy(label=fs.label, restore_splits=True, restore_scalers=True, register=True)
        experiment = Experiment.from_yaml(text, allow_import=plan.allow_import)
        graph = experiment.model_graph
        if graph is not None:
            with _located(plan, ("experiment", "model_graph")):
                graph.build()
        for phase in experiment.execution_plan.flatten():
            kind = name_of(type(phase))
            at = (
                path
                for path, part in walk(plan.tree["experiment"])
                if isinstance(part, dict)
                and part.get("$type") == kind
                and part["params"].get("label") == phase.label
            )
            with _located(plan, ("experiment", *next(at, ()))):
                for callback in phase.callbacks:
                    callback.check_ready(experiment, phase)
                if not isinstance(phase, TrainPhase) or graph is None:
                    continue
                samplers = [b.sampler for b in phase.input_sources]
                roles = {
                    role for sampler in samplers if sampler is not None for role in sampler.roles
                }
                labels = {b.upstream_ref.node_label for b in phase.input_sources}
                if len(labels) == len(roles) == 1:  # rows of one set as they are, without pairs
                    with suppress(NotFittedError):  # by an earlier phase
                        graph.plan(phase.losses, training=True, active_nodes=phase.active_nodes)


def build_folds(plan: Plan, experiment: Experiment) -> CrossValidation:
    """Build the cross-validation of the section ``folds``."""
    section = _decoded(plan, plan.tree["folds"], ("folds",))
    bindings = []
    for i, binding in enumerate(section.pop("bindings")):
        with _located(plan, ("folds", "bindings", i)):
            bindings.append(CVBinding(**binding))
    with _located(plan, ("folds",)):
        return CrossValidation(bindings=bindings, experiment=experiment, **section)


def build_sweep(plan: Plan, experiment: Experiment, storage: Path | None) -> Sweep:
    """Build the sweep of the section ``sweep``, within folds if there is a section ``folds``."""
    section = _decoded(plan, plan.tree["sweep"], ("sweep",))
    with _located(plan, ("sweep", "space")):
        ranges = section.pop("space")
        for name, values in ranges.items():
            if isinstance(values, dict):
                kind = next(n for n in _RANGES if n in values)
                ranges[name] = getattr(space, kind)(*values.pop(kind), **values)
    cv = build_folds(plan, experiment) if "folds" in plan.tree else None
    with _located(plan, ("sweep",)):
        return Sweep(experiment, ranges, cv=cv, storage=storage, label=experiment.label, **section)


def resolved_text(plan: Plan, sets: dict[str, FeatureSet], folder: Path) -> str:
    """Return the plan with references, rows of phases and changes, as one file in a folder."""
    tree = copy.deepcopy(plan.tree)
    tree["experiment"] = _expanded(plan, tree["experiment"], sets)
    tree.pop("output", None)
    for label, table in tree["data"].items():
        for kind in {"csv", "parquet", "file"} & table.keys():
            table[kind] = moved(table[kind], lambda p: relative(plan.folders[label] / p, folder))  # noqa: B023
    return dump_yaml(tree)


# -- within ----------------------------------------------------------------------------------------


@contextmanager
def _located(plan: Plan, path: Where) -> Iterator[None]:
    """Name a position in errors of a block."""
    try:
        yield
    except PlanError:
        raise
    except (ModularMLError, TypeError) as error:
        raise plan.error(path, error) from error


def _decoded(plan: Plan, section: Any, path: Where) -> Any:
    """Turn a section into objects; only classes that a file may name are found."""
    with _located(plan, path):
        resolver = Resolver(Path(plan.name), [], None, plan.allow_import)
        names = resolver.resolve(names_in(section))
        try:
            with names_mean(names):
                return decode(section)
        except (ModularMLError, ValueError, LookupError, AttributeError) as error:
            at = _find(section, getattr(error, "of_config", None))
            raise plan.error((*path, *at), error) from error


def _find(tree: Any, wanted: Any) -> Where:
    """Return the path of an equal part of a tree, where ids of nodes do not count; else ()."""
    shown = with_labels(wanted, {})
    parts = (
        (path, part)
        for path, part in walk(tree)
        if wanted is not None and isinstance(part, dict | list)
    )
    return next((at for at, p in parts if p == wanted or with_labels(p, {}) == shown), ())


def _expanded(plan: Plan, tree: Any, sets: dict[str, FeatureSet]) -> Any:
    """Write out references to columns, and the rows of phases, of a hand-written experiment."""
    experiment = copy.deepcopy(tree)
    graph = experiment["params"]["model_graph"]["params"]
    heads: list[tuple[str, Any]] = []
    for i, node in enumerate(graph["nodes"]):
        path: Where = ("experiment", "model_graph", "nodes", i)
        with _located(plan, path):
            params = node["params"]
            for name in {"upstream_ref", "upstream_refs"} & params.keys():
                params[name] = _reference(params[name], sets)
                heads += [(params["label"], ref) for ref in _feature_refs(params[name])]
    phases = experiment["params"]["execution_plan"]["params"]["phases"]
    at: Where = ("experiment", "execution_plan", "phases")
    _bind(plan, phases, heads, at)
    # splits that exist, and those that folds will have
    known = {label: list(fs.available_splits) for label, fs in sets.items()}
    for binding in plan.tree.get("folds", {}).get("bindings", ()):
        for side in ("train", "val", "stop"):
            name = binding.get(f"{side}_split_name", side)
            known.setdefault(binding["fs"], []).append(name)
    for path, part in walk(phases, at):
        if not isinstance(part, dict) or part.get("$type") != "InputBinding":
            continue
        split, ref = part["params"].get("split"), part["params"]["upstream_ref"]
        label = str(ref["params"].get("node_label")) if isinstance(ref, dict) else ""
        if split is not None and label in known and split not in known[label]:
            at = path[:-2] if (*path, "split") not in plan else path
            raise plan.error(
                (*at, "split"), UnknownNameError(f"split of {label!r}", split, known[label])
            )
    return experiment


def _reference(value: Any, sets: dict[str, FeatureSet]) -> Any:
    """Return a reference by label, or by columns, as a config that needs no context."""
    if isinstance(value, list):
        return [_reference(item, sets) for item in value]
    if isinstance(value, str):
        if value not in sets:
            return {"$type": "GraphNodeReference", "params": {"node_id": "", "node_label": value}}
        return with_labels(sets[value].reference().encoded(), {})
    if not isinstance(value, dict):
        return value
    if value.get("$type") == "FeatureSetReference" and "node_id" not in value["params"]:
        chosen = dict(value["params"])
        fs = sets.get(chosen.pop("node_label"))
        if fs is None:
            return value
        return with_labels(fs.reference(**decode(chosen)).encoded(), {})
    return value if "$type" in value else {k: _reference(v, sets) for k, v in value.items()}


def _feature_refs(value: Any) -> list[Any]:
    if isinstance(value, dict) and value.get("$type") == "FeatureSetReference":
        return [value]
    is_many = isinstance(value, dict | list) and "$type" not in value
    items = value.values() if isinstance(value, dict) else value
    return [ref for item in items for ref in _feature_refs(item)] if is_many else []


def _bind(plan: Plan, phases: Any, heads: list[tuple[str, Any]], path: Where) -> None:
    """Bind every head node of phases with ``split`` to this split, as `from_split` does."""
    for i, phase in enumerate(phases):
        params, at = phase["params"], (*path, i)
        if phase["$type"] == "PhaseGroup":
            _bind(plan, params["phases"], heads, (*at, "phases"))
            continue
        for j, callback in enumerate(params.get("callbacks") or ()):
            inner = callback["params"].get("eval_phase") if "params" in callback else None
            if isinstance(inner, dict):
                _bind(plan, [inner], heads, (*at, "callbacks", j))
        if params.get("input_sources") is not None:
            if {"split", "sampler"} & params.keys():
                raise plan.error(at, "input_sources name the split and sampler; omit these here")
            continue
        if "split" not in params:
            raise plan.error(at, f"phase {params.get('label')!r} needs split, or input_sources")
        split, sampler = params.pop("split"), params.pop("sampler", None)
        params.pop("input_sources", None)
        active = params.get("active_nodes")
        if active is not None:
            raise plan.error((*at, "active_nodes"), "active_nodes needs input_sources; omit split")
        params["input_sources"] = [
            {
                "$type": "InputBinding",
                "params": {
                    "node_id": label,
                    "upstream_ref": ref,
                    "split": split,
                    "sampler": sampler,
                    "stream": "default",
                },
            }
            for label, ref in heads
        ]
