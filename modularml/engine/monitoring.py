"""Monitored metrics: their loggers, their better direction, and schedules that step by them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from modularml._warning import warn
from modularml.engine.callback import Callback
from modularml.errors import ConfigError, MetricNotLoggedError, closest
from modularml.graph.model_graph import ModelGraph
from modularml.results.scores import greater_is_better
from modularml.training import Optimizer
from modularml.training.schedule import main_of


def base_name(monitor: str) -> str:
    """Return the name of a metric without its role or group."""
    return re.split(r"[\[/]", monitor)[0]


def loggers_of(monitor: str, callbacks: Iterable[Any]) -> list[Any]:
    """Return the callbacks that log a metric, or the metric it is a part of."""
    names = {monitor, base_name(monitor)}
    return [c for c in callbacks if names & set(getattr(c, "logs", ()))]


def declare_logs(callbacks: Iterable[Any]) -> bool:
    """Return whether all callbacks declare the metrics they log."""
    return all(hasattr(c, "logs") for c in callbacks)


def check_logged(monitor: str, phase: Any, who: str) -> None:
    """Refuse a metric that no callback can log in a phase.

    Raises
    ------
    MetricNotLoggedError
        If all callbacks declare what they log, and none logs this metric.
    """
    names = {"train_loss", *(n for c in phase.callbacks for n in getattr(c, "logs", ()))}
    if not {monitor, base_name(monitor)} & names and declare_logs(phase.callbacks):
        raise MetricNotLoggedError(
            f"{who} monitors the metric {monitor!r}, which is not logged in phase "
            f"{phase.label!r} ({closest(monitor, names)}). Add an Evaluation with EvalLossMetric, "
            "or monitor another metric"
        )


def direction(monitor: str, callbacks: Iterable[Any]) -> bool | None:
    """Return whether greater values of a metric are better; None if unknown.

    Parameters
    ----------
    monitor : str
        Name under which it is logged.
    callbacks : iterable of Callback
        Those of the phase. ``direction_of(name)`` of the callback that logs the metric comes
        first; then the name decides, with or without a prefix: ``val_r2`` is an ``r2``.
    """
    name = base_name(monitor)
    for logger in loggers_of(monitor, callbacks):
        if hasattr(logger, "direction_of"):
            known: bool | None = logger.direction_of(name)
            if known is not None:
                return known
    words = name.split("_")
    for i in range(len(words)):
        known = greater_is_better("_".join(words[i:]))
        if known is not None:
            return known != bool({"neg", "negative"} & set(words[:i]))
    return None


def schedules_of(graph: Any) -> list[Any]:
    """Return the learning-rate schedules of a graph that monitor a metric."""
    schedules = [optimizer.lr_schedule for optimizer in _optimizers_of(graph)]
    return [s for s in schedules if s is not None and s.monitor is not None]


def _optimizers_of(graph: Any) -> list[Optimizer]:
    owners = () if graph is None else (graph, *graph.nodes.values())
    optimizers = [getattr(owner, "optimizer", None) for owner in owners]
    return [optimizer for optimizer in optimizers if optimizer is not None]


def monitors_of(phase: Any, graph: Any, *, checkpoints: bool = False) -> dict[str, list[str]]:
    """Return the monitored metrics, each with its callbacks and schedules.

    With `checkpoints`, also the metric by which checkpoints of the phase are kept.
    """
    monitors: dict[str, list[str]] = {}
    for callback in phase.callbacks:
        if isinstance(monitor := getattr(callback, "monitor", None), str):
            monitors.setdefault(monitor, []).append(callback.label)
    for schedule in schedules_of(graph):
        monitors.setdefault(schedule.monitor, []).append("the learning-rate schedule")
    monitor = getattr(getattr(phase, "checkpointing", None), "monitor", None)
    if checkpoints and monitor is not None:
        monitors.setdefault(monitor, []).append("checkpointing")
    return monitors


def lr_scheduler_callbacks(graph: ModelGraph) -> list[Callback]:
    """Return a scheduler callback if an optimizer has a schedule by epoch."""
    by_epoch = [o for o in _optimizers_of(graph) if o.steps_every("epoch")]
    return [LRSchedulerCallback()] if by_epoch else []


def check_lengths(phases: Iterable[Any], graph: ModelGraph) -> None:
    """Refuse schedules that are shorter than the training phases of a run.

    Nothing is checked where batches cannot be counted. A phase that may stop early counts as no
    steps for the phases after it.
    """
    steps_taken = Counter[int]()
    for phase in phases:
        for optimizer in moving(phase, graph) if phase.training else ():
            if _steps_left(optimizer) is None:
                continue
            n_batches = phase.count_batches() if optimizer.steps_every("batch") else 1
            if n_batches is None:
                return
            needed = check_length(
                phase, optimizer, n_batches, phase.n_epochs, steps_taken[id(optimizer)]
            )
            may_stop = phase.on_nonfinite == "stop" or not declare_logs(phase.callbacks)
            may_stop |= any(hasattr(c, "monitor") or c.measures_time for c in phase.callbacks)
            steps_taken[id(optimizer)] += 0 if may_stop else needed


def check_monitors(phase: Any, graph: ModelGraph) -> None:
    """Refuse schedules of a phase that monitor a metric which no callback logs."""
    for optimizer in graph.moving_optimizers(phase.active_nodes):
        schedule = optimizer.lr_schedule
        if schedule is not None and schedule.monitor is not None:
            check_logged(schedule.monitor, phase, f"the schedule of {optimizer.name!r}")


def moving(phase: Any, graph: ModelGraph) -> list[Optimizer]:
    """Return the optimizers that update weights in a phase."""
    with graph.frozen_within(phase.freeze) if phase.freeze else nullcontext():
        return graph.moving_optimizers(phase.active_nodes)


def begin_schedules(phase: Any, feed: Any) -> bool:
    """Start the schedules that take their length from a phase; return whether there are any."""
    optimizers = feed.graph.moving_optimizers(phase.active_nodes)
    optimizers = [optimizer for optimizer in optimizers if optimizer.takes_length]
    for optimizer in optimizers:
        per_epoch = 1
        if optimizer.steps_every("batch"):
            per_epoch = math.ceil(feed.n_batches(0) / phase.step_options().accumulate)
        optimizer.begin_schedule(phase.n_epochs * per_epoch)
    return bool(optimizers)


def check_length(
    phase: Any, optimizer: Optimizer, n_batches: int, n_epochs: int, taken: int = 0
) -> int:
    """Return the steps a training phase needs; refuse a schedule with fewer left.

    `taken` is the number of steps that earlier phases will have taken.
    """
    by_batch = optimizer.steps_every("batch")
    needed = n_epochs * (math.ceil(n_batches / phase.step_options().accumulate) if by_batch else 1)
    steps_left = _steps_left(optimizer)
    if steps_left is not None and steps_left - taken < needed:
        raise ConfigError(
            f"phase {phase.label!r}: the schedule of {optimizer.name!r} has {steps_left - taken} "
            f"steps left, and the training needs {needed}; raise total_steps (or epochs and "
            "steps_per_epoch), or train for fewer epochs"
        )
    return needed


def _steps_left(optimizer: Optimizer) -> int | None:
    """Return the steps a schedule has left; None if it has no end."""
    if optimizer.takes_length:
        return None
    if optimizer.scheduler is not None:
        total = getattr(optimizer.scheduler, "total_steps", None)
        return None if total is None else total - optimizer.scheduler.last_epoch
    schedule = optimizer.lr_schedule
    options = {} if schedule is None else schedule.schedule_kwargs or {}
    total_steps: int | None = options.get("total_steps")
    if total_steps is None and {"epochs", "steps_per_epoch"} <= options.keys():
        total_steps = options["epochs"] * options["steps_per_epoch"]
    return total_steps


class LRSchedulerCallback(Callback):
    """Steps schedulers, after metrics are logged and before states are saved."""

    def __init__(self) -> None:
        super().__init__("learning rates", execution_order=999_999)

    def on_phase_start(self, *, experiment: Any, phase: Any, results: Any = None) -> None:
        """Set the mode of schedulers that monitor a metric: min or max."""
        for optimizer in phase.graph().moving_optimizers(phase.active_nodes):
            schedule = optimizer.lr_schedule
            if schedule is None or schedule.monitor is None:
                continue
            greater = direction(schedule.monitor, phase.callbacks)
            scheduler = main_of(optimizer.scheduler)
            mode = getattr(scheduler, "mode", None)
            if greater is None or mode not in ("min", "max") or greater is (mode == "max"):
                continue
            better, other = ("greater", "max") if greater else ("lower", "min")
            message = (
                f"the schedule of {optimizer.name!r} has mode={mode!r}, but {schedule.monitor!r}"
            )
            if "mode" not in (schedule.schedule_kwargs or {}):
                worst = -math.inf if greater else math.inf
                changes = {"mode": other, "mode_worse": worst, "best": worst}
                scheduler.load_state_dict(scheduler.state_dict() | changes)
                message += f" is better when it is {better}, so mode={other!r} is used; pass it in"
            else:
                message += f" is better when it is {better}, and it is used as given; correct it in"
            warn(f"{message} schedule_kwargs", UserWarning)

    def on_epoch_end(
        self, *, experiment: Any, phase: Any, exec_ctx: Any, results: Any = None
    ) -> None:
        """Step the scheduler of each optimizer that updates weights.

        Raises
        ------
        MetricNotLoggedError
            If no callback logs the metric that a schedule monitors.
        """
        declared = [name for callback in phase.callbacks for name in getattr(callback, "logs", ())]
        for optimizer in phase.graph().moving_optimizers(phase.active_nodes):
            schedule = optimizer.lr_schedule
            if schedule is None or schedule.every != "epoch":
                continue
            if (name := schedule.monitor) is None:
                optimizer.advance()
            elif (value := results._metrics.epoch_values(name).get(exec_ctx.epoch_idx)) is not None:
                optimizer.advance(value)
            elif name not in declared and name not in results.metric_names():
                raise MetricNotLoggedError(
                    f"the schedule of {optimizer.name!r} monitors {name!r}, which is not logged in "
                    f"phase {phase.label!r}; add an Evaluation with EvalLossMetric, or monitor "
                    "train_loss"
                )
