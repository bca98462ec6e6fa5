"""Letting learning-rate schedules go on after each epoch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from modularml._warning import warn
from modularml.engine.callback import Callback
from modularml.engine.monitoring import direction, log_all
from modularml.errors import ConfigError, MetricNotLoggedError
from modularml.graph.model_graph import ModelGraph
from modularml.training import Optimizer

__all__ = ["LRSchedulerCallback", "check_length", "check_lengths", "lr_scheduler_callbacks"]


def lr_scheduler_callbacks(graph: ModelGraph) -> list[Callback]:
    """Return what lets schedules go on, where an optimizer of a graph has one by epoch."""
    models = [n for n in graph.nodes.values() if hasattr(n, "optimizer")]
    optimizers = [graph.optimizer, *(n.optimizer for n in models)]
    return (
        [LRSchedulerCallback()]
        if any(o is not None and o.goes_on_every("epoch") for o in optimizers)
        else []
    )


def check_lengths(phases: Iterable[Any], graph: ModelGraph) -> None:
    """Refuse schedules that end before the trainings of a run do, where batches can be counted.

    A training that a callback may stop counts for nothing in those after it.
    """
    taken = Counter[int]()
    for phase in phases:
        for optimizer in graph.moving_optimizers(phase.active_nodes) if phase.training else ():
            if _steps_left(optimizer) is None:
                continue
            n_batches = phase.count_batches() if optimizer.goes_on_every("batch") else 1
            if n_batches is None:
                return
            needed = check_length(phase, optimizer, n_batches, phase.n_epochs, taken[id(optimizer)])
            may_end = phase.on_nonfinite == "stop" or not log_all(phase.callbacks)
            may_end |= any(hasattr(callback, "monitor") for callback in phase.callbacks)
            taken[id(optimizer)] += 0 if may_end else needed


def check_length(
    phase: Any, optimizer: Optimizer, n_batches: int, n_epochs: int, taken: int = 0
) -> int:
    """Return the steps that a schedule goes on in a training; refuse one that has fewer left.

    `taken` are those that trainings before it will have taken.
    """
    by_batch = optimizer.goes_on_every("batch")
    needed = n_epochs * (math.ceil(n_batches / phase.step_options().accumulate) if by_batch else 1)
    left = _steps_left(optimizer)
    if left is not None and left - taken < needed:
        raise ConfigError(
            f"phase {phase.label!r}: the schedule of {optimizer.name!r} has {left - taken} steps "
            f"left, and the training needs {needed}; raise total_steps (or epochs and "
            "steps_per_epoch), or train for fewer epochs"
        )
    return needed


def _steps_left(optimizer: Optimizer) -> int | None:
    """Return how often a schedule can go on; None where it has no end."""
    if optimizer.scheduler is not None:
        total = getattr(optimizer.scheduler, "total_steps", None)
        return None if total is None else total - optimizer.scheduler.last_epoch
    schedule = optimizer.lr_schedule
    given = {} if schedule is None else schedule.schedule_kwargs or {}
    found: int | None = given.get("total_steps")
    if found is None and {"epochs", "steps_per_epoch"} <= given.keys():
        found = given["epochs"] * given["steps_per_epoch"]
    return found


class LRSchedulerCallback(Callback):
    """Lets schedules go on, after the callbacks that log metrics and before states are kept."""

    def __init__(self) -> None:
        super().__init__("learning rates", execution_order=999_999)

    def on_phase_start(self, *, experiment: Any, phase: Any, results: Any = None) -> None:
        """Have schedules that watch a metric know which of its values are better."""
        for optimizer in phase.graph().moving_optimizers(phase.active_nodes):
            schedule = optimizer.lr_schedule
            if schedule is None or schedule.monitor is None:
                continue
            greater = direction(schedule.monitor, phase.callbacks)
            mode = getattr(optimizer.scheduler, "mode", None)
            if greater is None or mode not in ("min", "max") or greater is (mode == "max"):
                continue
            better, other = ("greater", "max") if greater else ("lower", "min")
            told = f"the schedule of {optimizer.name!r} has mode={mode!r}, but {schedule.monitor!r}"
            if "mode" not in (schedule.schedule_kwargs or {}):
                worst = -math.inf if greater else math.inf
                changes = {"mode": other, "mode_worse": worst, "best": worst}
                optimizer.scheduler.load_state_dict(optimizer.scheduler.state_dict() | changes)
                told += f" is better when it is {better}, so mode={other!r} is used; pass it in"
            else:
                told += f" is better when it is {better}, and it is honoured; correct it in"
            warn(f"{told} schedule_kwargs", UserWarning)

    def on_epoch_end(
        self, *, experiment: Any, phase: Any, exec_ctx: Any, results: Any = None
    ) -> None:
        """Let the schedule of each optimizer that moves weights go on.

        Raises
        ------
        MetricNotLoggedError
            If nobody logs the metric that a schedule watches.
        """
        for optimizer in phase.graph().moving_optimizers(phase.active_nodes):
            if optimizer.goes_on_every("epoch"):
                self._advance(optimizer, phase, results, exec_ctx.epoch_idx)

    def _advance(self, optimizer: Optimizer, phase: Any, results: Any, epoch: int) -> None:
        name = None if optimizer.lr_schedule is None else optimizer.lr_schedule.monitor
        if name is None:
            optimizer.advance()
            return
        value = results._metrics.epoch_values(name).get(epoch)
        announced = [n for c in phase.callbacks for n in getattr(c, "logs", ())]
        if value is not None:
            optimizer.advance(value)
        elif name not in announced and name not in results.metric_names():
            raise MetricNotLoggedError(
                f"the schedule of {optimizer.name!r} watches {name!r}, which nobody logs in phase "
                f"{phase.label!r}; add an Evaluation with EvalLossMetric, or monitor train_loss"
            )
