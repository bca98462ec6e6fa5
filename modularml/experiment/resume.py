"""Going on with a run that was stopped: which checkpoint, whether it fits, and taking it up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from modularml._warning import warn
from modularml.config import FORMER_MODULES, Configurable, encode
from modularml.engine.run_state import Start
from modularml.errors import ConfigError, MMLError
from modularml.experiment.plan_state import PlanState
from modularml.io.artifact import Contents, read_artifact
from modularml.io.references import with_labels
from modularml.io.values import IfPlain
from modularml.phases.group import PhaseGroup
from modularml.phases.phase import ExperimentPhase

__all__ = ["config_hash", "described_run", "phases_of", "resume_from"]


def phases_of(item: ExperimentPhase | PhaseGroup) -> list[ExperimentPhase]:
    """Return the phases of a run, in order."""
    return item.flatten() if isinstance(item, PhaseGroup) else [item]


def config_hash(experiment: Any, item: ExperimentPhase | PhaseGroup) -> str:
    """Return a hash of all that a run is made from: phases, graph, seeds, rows of splits.

    When checkpoints are kept is no part of it. Of a model that was given as an object, its class
    is; that its weights fit is seen when they are put back.
    """
    graph, ctx = experiment.model_graph, experiment.ctx
    labels = {node_id: node.label for node_id, node in ctx.available_nodes.items()}
    nodes = [] if graph is None else list(graph.nodes.values())
    tree = {
        "paths": [path for path, _ in item.paths()],
        "phases": [_told(phase) for phase in phases_of(item)],
        "nodes": [_told(node) for node in nodes],
        "optimizer": None if graph is None else _told(graph.optimizer),
        "seed": experiment.seed,
        "splits": {
            fs.label: {name: _digest(view.indices) for name, view in fs.splits.items()}
            for fs in ctx.available_featuresets.values()
        },
    }
    text = json.dumps(with_labels(tree, labels), sort_keys=True, default=str)
    for node_id, label in labels.items():
        text = text.replace(node_id, label)
    for former, module in FORMER_MODULES.items():  # as checkpoints of older versions have it
        text = text.replace(f"{module}:", f"{former}:")
    return hashlib.sha256(text.encode()).hexdigest()


def described_run(
    runner: Any, item: ExperimentPhase | PhaseGroup, at: Start | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return which run it is and where it is, to be read before all else, and its state."""
    experiment = runner.experiment
    about: dict[str, Any] = {
        "item": item.label,
        "number": runner.number,
        "config": runner.config,
        "phases": _shape(item),
        "told": runner.told,
        "done": runner.done,
    }
    if at is not None:
        about["in_phase"] = vars(at)
    checkpoint_callbacks = _checkpoint_callbacks(experiment, item, runner.done)
    plan = None if item is experiment.execution_plan else PlanState(item)
    return about, {
        "parts": None if plan is None else plan.get(),
        "part_names": None if plan is None else plan.names,
        "callbacks": [IfPlain(callback.get_state()) for callback in experiment.exp_callbacks],
        "keeping": [None if kept is None else kept.disk_state() for kept in checkpoint_callbacks],
    }


def resume_from(
    runner: Any, item: ExperimentPhase | PhaseGroup, resume: str | Path, strict: bool
) -> dict[str, Any] | None:
    """Put the state of a checkpoint back and return it; None where there is none to be found.

    Raises
    ------
    ConfigError
        If it is of another run, or (where `strict`) of another config.
    MMLError
        If it is damaged, or does not fit. Nothing has changed then.
    """
    experiment = runner.experiment
    if resume == "auto":
        contents = next(_usable(runner, item), None)
    else:
        contents = read_artifact(experiment._checkpoint_path(resume), "ckpt")
    if contents is None:
        return None
    about = _checked(contents, runner, item, strict)
    own_plan = item is experiment.execution_plan
    state: dict[str, Any] = experiment._go_back(contents, strict, whole=True, same_plan=own_plan)
    run = state["run"]
    if run["parts"] is not None:
        PlanState(item).set(run["parts"], run.get("part_names"), strict=strict)
    for callback, own in zip(experiment.exp_callbacks, run["callbacks"], strict=False):
        if own:
            callback.set_state(own)
    keys = [None, contents.config["meta"].get("key")]
    checkpoint_callbacks = _checkpoint_callbacks(experiment, item, about["done"])
    for kept, own, key in zip(
        checkpoint_callbacks,
        run["keeping"],
        keys if "in_phase" in about else keys[::-1],
        strict=True,
    ):
        if kept is not None and own is not None:
            kept.set_disk_state(own, Path(contents.path), key)
    experiment._history[-1].status = "running"
    runner.go_on(about)
    return state


def _usable(runner: Any, item: ExperimentPhase | PhaseGroup) -> Iterator[Contents]:
    """Yield checkpoints of this run, the newest first; damaged files are warned of."""
    folders = runner.experiment._checkpoint_folders(phases_of(item))
    if not folders:
        raise ConfigError(
            "resume='auto' needs a folder with checkpoints; call set_checkpoint_dir(path)"
        )
    found = {path for folder in folders for path in folder.glob("*.ckpt.mml")}
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            contents = read_artifact(path, "ckpt")
            about = contents.config.get("run")
            if not about or (about["item"], about["number"]) != (item.label, runner.number):
                continue
            contents.read_log()
        except MMLError as error:
            told = f"{error}; the run goes on from an older checkpoint, or begins anew"
            warn(told)
            continue
        yield contents


def _checked(
    contents: Contents, runner: Any, item: ExperimentPhase | PhaseGroup, strict: bool
) -> dict[str, Any]:
    about: dict[str, Any] | None = contents.config.get("run")
    name = Path(contents.path).name
    if about is None or about["item"] != item.label:
        what = "was not taken by Checkpointing" if about is None else f"is of {about['item']!r}"
        raise ConfigError(f"{name} {what}, so {item.label!r} cannot resume from it")
    mine, theirs = _shape(item), about["phases"]
    begun = about["done"] + ("in_phase" in about)
    if [path for path, _ in theirs[:begun]] != [path for path, _ in mine[:begun]]:
        raise ConfigError(
            f"{name} is of a run whose phases so far were {[p for p, _ in theirs[:begun]]}; now "
            f"they are {[p for p, _ in mine[:begun]]}. Make them as they were, or start anew"
        )
    if strict and theirs != mine:
        raise ConfigError(
            f"{name} is of a run whose phases, and how many inputs and callbacks they have, were "
            f"{theirs}; now they are {mine}. Make them as they were, pass strict=False to go on "
            "with what fits, or start anew"
        )
    if strict and about["config"] != runner.config:
        raise ConfigError(
            f"{name} is of a run of {item.label!r} with another config (phases, graph, splits or "
            "seed). Make them as they were, pass strict=False, or resume=None to start anew"
        )
    if strict and not about["is_whole"]:
        raise ConfigError(
            f"{name} lacks the state of a sampler or callback that was no plain data; let its "
            "get_state() return numbers, strings and arrays, or pass strict=False to go on without"
        )
    return about


def _checkpoint_callbacks(experiment: Any, item: Any, done: int) -> list[Any]:
    """Return what keeps states of the experiment, and of the phase under way."""
    phases = phases_of(item)
    phase = phases[done] if done < len(phases) else None
    return [experiment.checkpointing, getattr(phase, "checkpointing", None)]


def _shape(item: Any) -> list[list[Any]]:
    """Return the path of each phase, and how many inputs and callbacks it has."""
    return [[path, len(p.input_sources) + len(p.callbacks)] for path, p in item.paths()]


def _told(value: Any) -> Any:
    """Return a value as plain data, whatever it is."""
    if isinstance(value, Configurable):
        params = {n: _told(own) for n, own in value._params().items() if n not in _NOT_TOLD}
        return {"class": _class_of(value), **params}
    if isinstance(value, list | tuple):
        return [_told(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _told(item) for key, item in value.items()}
    try:
        return encode(value)
    except ConfigError:
        return _class_of(value)


_NOT_TOLD = {"checkpointing", "backend"}  # the backend of an optimizer is filled in by its graph


def _class_of(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _digest(rows: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows, dtype=np.int64).tobytes()).hexdigest()
