"""Pruning of trials: a callback that reports the objective of a sweep after each epoch."""

from __future__ import annotations

from typing import Any

from modularml.data.execution import ExecutionContext
from modularml.engine.callback import Callback, callback_registry
from modularml.errors import MetricNotLoggedError
from modularml.strategies.sweeps.studies import report

__all__ = ["TrialPruning"]


class TrialPruning(Callback):
    """Report a metric to Optuna after each epoch, and stop the phase if the pruner says so.

    A `Sweep` with a pruner adds it to the training phase that logs its objective. Epochs without
    the metric, and NaN, are not reported.

    Parameters
    ----------
    metric : str
        Name of the metric.
    study : str
        Name of the study.
    url : str, optional
        Of the study's storage, for worker processes.
    trial : int
        Optuna's id of the trial; -1 reports nothing.
    pruner : optuna.pruners.BasePruner, optional
        For worker processes.
    label : str, optional
    execution_order : int
        Must be higher than that of the callback that logs the metric.
    """

    logs: tuple[str, ...] = ()
    changes_weights = False

    def __init__(
        self,
        *,
        metric: str,
        study: str,
        url: str | None = None,
        trial: int = -1,
        pruner: Any = None,
        label: str | None = None,
        execution_order: int = 1,
    ) -> None:
        super().__init__(label, execution_order)
        self.metric, self.study, self.url = metric, study, url
        self.trial, self.pruner = trial, pruner

    def on_epoch_end(
        self, *, experiment: Any, phase: Any, exec_ctx: ExecutionContext, results: Any = None
    ) -> None:
        """Report the metric of the epoch."""
        if self.trial < 0 or exec_ctx.epoch_idx is None:
            return
        try:
            value = results._metrics.epoch_value(self.metric, exec_ctx.epoch_idx, "last")
        except MetricNotLoggedError:  # evaluations may run every n-th epoch
            return
        step = exec_ctx.epoch_idx
        if report(self.study, self.url, self.trial, value, step, self.pruner):
            phase.request_stop()


callback_registry.register("TrialPruning", TrialPruning)
