"""Monitored metrics: who watches one, who logs it, and which of its values are better."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from modularml.errors import MetricNotLoggedError, closest
from modularml.results.scores import greater_is_better

__all__ = [
    "base_name",
    "check_logged",
    "direction",
    "log_all",
    "loggers_of",
    "monitors_of",
    "schedules_of",
]


def base_name(monitor: str) -> str:
    """Return the name of a metric without the role or group that it is of."""
    return re.split(r"[\[/]", monitor)[0]


def loggers_of(monitor: str, callbacks: Iterable[Any]) -> list[Any]:
    """Return the callbacks that log a metric, or the metric that it is a role or group of."""
    names = {monitor, base_name(monitor)}
    return [c for c in callbacks if names & set(getattr(c, "logs", ()))]


def log_all(callbacks: Iterable[Any]) -> bool:
    """Tell whether callbacks say what they log; those of the user's own may log any metric."""
    return all(hasattr(c, "logs") for c in callbacks)


def check_logged(monitor: str, phase: Any, who: str) -> None:
    """Refuse a metric that nobody can log in a phase.

    Raises
    ------
    MetricNotLoggedError
    """
    names = {"train_loss", *(n for c in phase.callbacks for n in getattr(c, "logs", ()))}
    if not {monitor, base_name(monitor)} & names and log_all(phase.callbacks):
        raise MetricNotLoggedError(
            f"{who} watches the metric {monitor!r}, which nobody logs in phase {phase.label!r} "
            f"({closest(monitor, names)}). Add an Evaluation with EvalLossMetric, or monitor "
            "another metric"
        )


def direction(monitor: str, callbacks: Iterable[Any]) -> bool | None:
    """Return whether greater values of a metric are better; None where that is not known.

    Parameters
    ----------
    monitor : str
        Name under which it is logged.
    callbacks : iterable of Callback
        Of the phase. What logs the metric is asked first, by ``direction_of(name)``; then the
        name decides, with or without what stands before an underscore: ``val_r2`` is an ``r2``.
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
    """Return the learning-rate schedules of a graph that watch a metric."""
    nodes = () if graph is None else graph.nodes.values()
    owners = [graph, *(node for node in nodes if hasattr(node, "optimizer"))]
    optimizers = [owner.optimizer for owner in owners if owner is not None]
    found = [optimizer.lr_schedule for optimizer in optimizers if optimizer is not None]
    return [s for s in found if s is not None and s.monitor is not None]


def monitors_of(phase: Any, graph: Any) -> dict[str, list[str]]:
    """Return the metrics by which callbacks and schedules choose, with the names of these."""
    found: dict[str, list[str]] = {}
    for callback in phase.callbacks:
        if isinstance(monitor := getattr(callback, "monitor", None), str):
            found.setdefault(monitor, []).append(callback.label)
    for schedule in schedules_of(graph):
        found.setdefault(schedule.monitor, []).append("the learning-rate schedule")
    return found
