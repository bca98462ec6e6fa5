"""Resuming a stopped run: finding a checkpoint, checking it and restoring it."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modularml._warning import warn
from modularml.config import FORMER_MODULES, Configurable, encode
from modularml.engine.checkpoint_callback import checkpoint_folder
from modularml.errors import ConfigError, MMLError
from modularml.experiment.phase_states import PlanState
from modularml.io.artifact import Contents, read_artifact
from modularml.io.jsontext import with_labels
from modularml.io.values import IfPlain
from modularml.phases.group import PhaseGroup
from modularml.phases.phase import ExperimentPhase


def config_hash(
    experiment: Any,
    item: ExperimentPhase | PhaseGroup,
    optional: Collection[Argument] | None = None,
) -> str:
    """Return a hash of what defines a run: phases, graph, seeds, rows of splits.

    Checkpointing settings are not included, nor are arguments at their defaults, so that a later
    version with more arguments has the same hash. A model passed as an object counts by its class;
    its weights are checked when they are restored.

    Parameters
    ----------
    experiment : Experiment
    item : phase or PhaseGroup
    optional : collection of (str, str), optional
        Names of classes and arguments that are left out at their defaults, instead of all.
    """
    graph, ctx = experiment.model_graph, experiment.ctx
    _plain = partial(_as_plain, optional=optional)
    labels = {node_id: node.label for node_id, node in ctx.available_nodes.items()}
    nodes = [] if graph is None else list(graph.nodes.values())
    tree = {
        "paths": [path for path, _ in item.paths()],
        "phases": [_plain(phase) for phase in item.flatten()],
        "nodes": [_plain(node) for node in nodes],
        "optimizer": None if graph is None else _plain(graph.optimizer),
        "seed": experiment.seed,
        "splits": {
            fs.label: {
                name: hashlib.sha256(
                    np.ascontiguousarray(view.indices, dtype=np.int64).tobytes()
                ).hexdigest()
                for name, view in fs.splits.items()
            }
            for fs in ctx.available_featuresets.values()
        },
    }
    text = json.dumps(with_labels(tree, labels), sort_keys=True, default=str)
    for node_id, label in labels.items():
        text = text.replace(node_id, label)
    # without the modules of this package, as classes may move
    text = (
        re.sub(r'"modularml(\.\w+)+:', '"modularml:', text)
        if optional is None
        else _with_former_modules(text)
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _with_former_modules(text: str) -> str:
    """Return JSON with the modules that hold classes of this package in older versions."""
    for module, names in _MOVED.items():
        package = re.escape(module.rpartition(".")[0])
        for name in names:
            text = re.sub(rf'"{package}\.\w+:{name}"', f'"{module}:{name}"', text)
    for former, module in FORMER_MODULES.items():
        text = text.replace(f"{module}:", f"{former}:")
    return text


_MOVED = {
    "modularml.callbacks.csv_logger": ("CSVLogger",),
    "modularml.callbacks.early_stopping": ("EarlyStopping",),
    "modularml.callbacks.evaluation": ("Evaluation", "MetricCallback"),
    "modularml.callbacks.evaluation_metric": ("EvalLossMetric",),
    "modularml.callbacks.gradient_norms": ("GradientNorms",),
    "modularml.callbacks.live_plot": ("LivePlot",),
    "modularml.callbacks.max_time": ("MaxTime",),
    "modularml.callbacks.rates": ("LearningRateMonitor",),
    "modularml.callbacks.score_metric": ("ScoreMetric",),
    "modularml.callbacks.unfreezing": ("ProgressiveUnfreezing",),
    "modularml.callbacks.weight_averaging": ("EMA", "SWA"),
    "modularml.graph.concat": ("PadMode", "ConcatNode"),
    "modularml.graph.elementwise": ("SumNode", "MeanNode"),
    "modularml.graph.flatten": ("FlattenNode",),
    "modularml.graph.function": ("FunctionNode",),
    "modularml.strategies.sweeps.pruning": ("TrialPruning",),
    **{
        f"modularml.models.{framework}.{module}": names
        for framework in ("torch", "tensorflow")
        for module, names in {
            "cnn": ("SequentialCNN",),
            "heads": ("GaussianHead", "GaussianNetwork"),
            "mlp": ("SequentialMLP",),
            "rnn": ("SequentialRNN",),
            "tabular": ("TabularMLP",),
            "tcn": ("SequentialTCN",),
            "transformer": ("SequentialTransformer",),
        }.items()
    },
}
"""Classes whose modules have changed since hashes leave modules out, by former module."""


def earlier_hashes(experiment: Any, item: ExperimentPhase | PhaseGroup) -> Iterator[str]:
    """Yield the hashes of a run in older versions, which included defaults, newest first."""
    for n in range(len(_ADDED), -1, -1):
        yield config_hash(experiment, item, _ADDED[n:])


def described_run(
    runner: Any, item: ExperimentPhase | PhaseGroup, position: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the identity and position of a run, and its state, for a checkpoint."""
    experiment = runner.experiment
    about: dict[str, Any] = {
        "item": item.label,
        "number": runner.number,
        "config": runner.config,
        "phases": _shape(item),
        "told": runner.n_fired,
        "done": runner.done,
    }
    if position is not None:
        about["in_phase"] = position
    checkpointings = _checkpointings(experiment, item, runner.done)
    plan = None if item is experiment.execution_plan else PlanState(item)
    return about, {
        "parts": None if plan is None else plan.get(),
        "part_names": None if plan is None else plan.names,
        "callbacks": [IfPlain(callback.get_state()) for callback in experiment.exp_callbacks],
        "keeping": [
            None if checkpointing is None else checkpointing.disk_state()
            for checkpointing in checkpointings
        ],
    }


def resume_from(
    runner: Any, item: ExperimentPhase | PhaseGroup, resume: str | Path, strict: bool
) -> dict[str, Any] | None:
    """Restore a checkpoint and return its state; None if none is found.

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
    run_info = _checked(contents, runner, item, strict)
    own_plan = item is experiment.execution_plan
    state: dict[str, Any] = experiment._restore(contents, strict, whole=True, same_plan=own_plan)
    run = state["run"]
    if run["parts"] is not None:
        PlanState(item).set(run["parts"], run.get("part_names"), strict=strict)
    for callback, saved in zip(experiment.exp_callbacks, run["callbacks"], strict=False):
        if saved:
            callback.set_state(saved)
    keys = [None, contents.config["meta"].get("key")]
    labels = [phase.label for phase in item.flatten()]
    checkpointings = _checkpointings(experiment, item, run_info["done"])
    for checkpointing, saved, key in zip(
        checkpointings,
        run["keeping"],
        keys if "in_phase" in run_info else keys[::-1],
        strict=True,
    ):
        if checkpointing is not None and saved is not None:
            newest = Path(contents.path)
            folder = newest.parent
            if checkpointing.mode == "disk" and key is None:
                label = (
                    "" if checkpointing is experiment.checkpointing else labels[run_info["done"]]
                )
                folder = checkpoint_folder(checkpointing, experiment._checkpoint_dir, label)
            checkpointing.set_disk_state(saved, folder, newest, key)
    experiment._history[-1].status = "running"
    runner.resume(run_info)
    return state


def _usable(runner: Any, item: ExperimentPhase | PhaseGroup) -> Iterator[Contents]:
    """Yield checkpoints of this run, newest first; warn of damaged files."""
    folders = runner.experiment._checkpoint_folders(item.flatten())
    if not folders:
        raise ConfigError(
            "resume='auto' needs a folder with checkpoints; call set_checkpoint_dir(path)"
        )
    paths = {path for folder in folders for path in folder.glob("*.ckpt.mml")}
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            contents = read_artifact(path, "ckpt")
            run_info = contents.config.get("run")
            if not run_info or (run_info["item"], run_info["number"]) != (
                item.label,
                runner.number,
            ):
                continue
            contents.read_log()
        except MMLError as error:
            warn(f"{error}; the run resumes from an older checkpoint, or starts from the beginning")
            continue
        yield contents


def _checked(
    contents: Contents, runner: Any, item: ExperimentPhase | PhaseGroup, strict: bool
) -> dict[str, Any]:
    run_info: dict[str, Any] | None = contents.config.get("run")
    name = Path(contents.path).name
    if run_info is None or run_info["item"] != item.label:
        problem = (
            "was not taken by Checkpointing" if run_info is None else f"is of {run_info['item']!r}"
        )
        raise ConfigError(f"{name} {problem}, so {item.label!r} cannot resume from it")
    current, saved = _shape(item), run_info["phases"]
    n_started = run_info["done"] + ("in_phase" in run_info)
    if [path for path, _ in saved[:n_started]] != [path for path, _ in current[:n_started]]:
        raise ConfigError(
            f"{name} is of a run with other phases so far: {[p for p, _ in saved[:n_started]]}; "
            "now "
            f"they are {[p for p, _ in current[:n_started]]}. Define them as they were, or pass "
            "resume=None to start from the beginning"
        ).with_code("MML-505")
    if strict and saved != current:
        raise ConfigError(
            f"{name} is of a run with other phases, or other numbers of inputs and callbacks: "
            f"{saved}; now they are {current}. Define them as they were, pass strict=False to "
            "restore what fits, or resume=None to start from the beginning"
        ).with_code("MML-505")
    if (
        strict
        and run_info["config"] != runner.config
        and run_info["config"] not in earlier_hashes(runner.experiment, item)
    ):
        raise ConfigError(
            f"{name} is of a run of {item.label!r} with another config (phases, graph, splits or "
            "seed). Define them as they were, pass strict=False, or resume=None to start from the "
            "beginning"
        ).with_code("MML-505")
    if strict and not run_info["is_whole"]:
        raise ConfigError(
            f"{name} lacks the state of a sampler or callback that was not plain data; let its "
            "get_state() return numbers, strings and arrays, or pass strict=False to resume "
            "without it"
        )
    return run_info


def _checkpointings(experiment: Any, item: Any, done: int) -> list[Any]:
    """Return the checkpointing of the experiment and of the current phase."""
    phases = item.flatten()
    phase = phases[done] if done < len(phases) else None
    return [experiment.checkpointing, getattr(phase, "checkpointing", None)]


def _shape(item: Any) -> list[list[Any]]:
    """Return the path of each phase with its number of inputs and callbacks."""
    return [[path, len(p.input_sources) + len(p.callbacks)] for path, p in item.paths()]


def _as_plain(value: Any, optional: Collection[Argument] | None) -> Any:
    """Return a value as plain data; other objects as their class name."""
    plain = partial(_as_plain, optional=optional)
    if isinstance(value, Configurable):
        params = {n: plain(param) for n, param in value._params().items() if n not in _NOT_HASHED}
        return {"class": _class_of(value), **_without_defaults(type(value), params, optional)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    try:
        return encode(value)
    except ConfigError:
        return _class_of(value)


def _without_defaults(
    cls: type, params: dict[str, Any], optional: Collection[Argument] | None
) -> dict[str, Any]:
    """Return arguments without those that may be omitted and are at their defaults."""
    defaults = {n: p.default for n, p in inspect.signature(cls).parameters.items()}
    names = [base.__name__ for base in cls.__mro__]

    def is_omitted(name: str, value: Any) -> bool:
        default = defaults.get(name, inspect.Parameter.empty)
        if optional is not None and not any((base, name) in optional for base in names):
            return False
        return value == _as_plain(default, None) or (default is None and value in ([], {}))

    return {name: value for name, value in params.items() if not is_omitted(name, value)}


Argument = tuple[str, str]

_ADDED: Sequence[Argument] = (
    ("ConcatNode", "flatten"),
    ("ScikitModelWrapper", "group_by"),
    ("ConcatNode", "align_on"),
    ("ConcatNode", "strict"),
    ("MergeNode", "align_on"),
    ("MergeNode", "strict"),
    ("Loss", "over"),
    ("Loss", "weight_by"),
    ("ModelNode", "targets"),
    ("ModelNode", "mask_as"),
    ("BaseSampler", "bins"),
    ("EvalPhase", "metrics"),
    ("EvalPhase", "group_by"),
    ("ModelNode", "input_layout"),
    ("ScoreMetric", "per"),
    ("ScoreMetric", "reduce"),
    ("EvalPhase", "per"),
    ("EvalPhase", "reduce"),
    ("AppliedLoss", "class_weight"),
    ("TrainPhase", "freeze"),
    ("BaseSampler", "source"),
    ("LRSchedule", "warmup"),
    ("TrainPhase", "limit_batches"),
    ("EvalPhase", "limit_batches"),
    ("ModelWrapper", "output"),
    ("BaseSampler", "shuffle_window"),
)
"""Arguments that classes gained since hashes included all arguments, oldest first.

Add to them what a class gains, as long as checkpoints of those versions are in use.
"""

_NOT_HASHED = {"checkpointing", "backend"}  # the backend of an optimizer is filled in by its graph


def _class_of(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"
