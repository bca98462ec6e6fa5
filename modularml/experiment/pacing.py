"""Letting learning-rate schedules go on after each epoch."""

from __future__ import annotations

import math
from typing import Any

from modularml._warning import warn
from modularml.errors import MetricNotLoggedError
from modularml.experiment.callback import Callback
from modularml.experiment.monitoring import direction
from modularml.graph.model_graph import ModelGraph
from modularml.training import Optimizer

__all__ = ["Pacer", "pacers"]


def pacers(graph: ModelGraph) -> list[Callback]:
    """Return what lets schedules go on, where an optimizer of a graph has one by epoch."""
    models = [n for n in graph.nodes.values() if hasattr(n, "optimizer")]
    optimizers = [graph.optimizer, *(n.optimizer for n in models)]
    return [Pacer()] if any(o is not None and o.goes_on_every("epoch") for o in optimizers) else []


class Pacer(Callback):
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
