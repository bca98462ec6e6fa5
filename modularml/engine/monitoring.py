"""Monitored metrics: their monitors, their loggers, and the better direction."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from modularml.errors import MetricNotLoggedError, closest
from modularml.results.scores import greater_is_better

__all__ = [
    "base_name",
    "check_logged",
    "declare_logs",
    "direction",
    "loggers_of",
    "monitors_of",
    "schedules_of",
]


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
    nodes = () if graph is None else graph.nodes.values()
    owners = [graph, *(node for node in nodes if hasattr(node, "optimizer"))]
    optimizers = [owner.optimizer for owner in owners if owner is not None]
    schedules = [optimizer.lr_schedule for optimizer in optimizers if optimizer is not None]
    return [s for s in schedules if s is not None and s.monitor is not None]


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
