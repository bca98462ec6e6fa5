"""Evaluation during training, and user-defined metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from modularml._arguments import at_least
from modularml.callbacks.evaluation_metrics import (
    EvaluationCallbackResult,
    EvaluationMetric,
    ScoreMetric,
)
from modularml.data.execution import ExecutionContext
from modularml.engine.batch_feed import BatchFeed
from modularml.engine.callback import Callback, CallbackResult, MetricResult, callback_registry
from modularml.engine.loop import Display, run_phase
from modularml.errors import ConfigError
from modularml.phases.train_eval import EvalPhase
from modularml.results.eval_results import EvalResults
from modularml.results.scores import greater_is_better
from modularml.training import AppliedLoss

__all__ = ["Evaluation", "MetricCallback"]

Metric: TypeAlias = "EvaluationMetric | str | Callable[..., float]"


class Evaluation(Callback):
    """Run an evaluation at the end of epochs, without changing any state.

    Parameters
    ----------
    eval_phase : EvalPhase
    every_n_epochs : int
        At least 1.
    run_on_start : bool
        Whether to evaluate before the first epoch too.
    label : str, optional
        By default the phase's label.
    metrics : list of EvaluationMetric, str or callable, optional
        Logged after each evaluation; names (``"r2"``) and functions of targets and outputs as
        `ScoreMetric`, under ``label_name``.
    execution_order : int
        Callbacks with higher numbers run later.
    group_by : str, optional
        Column of the FeatureSet: metrics given by name are also logged for each of its values, as
        ``label_name[value]``.

    Examples
    --------
    >>> from modularml import AppliedLoss, EvalLossMetric, Evaluation, Loss
    >>> mse = AppliedLoss(Loss("mse"), on="net", inputs=["outputs", "targets"])
    >>> metric = EvalLossMetric(loss=mse, name="val_loss")
    >>> metric.name
    'val_loss'

    ``Evaluation.from_split("watch", split="val", metrics=[metric])`` in the callbacks of a training
    phase then logs ``val_loss`` after each epoch.
    """

    def __init__(
        self,
        *,
        eval_phase: EvalPhase,
        every_n_epochs: int = 1,
        run_on_start: bool = False,
        label: str | None = None,
        metrics: Sequence[Metric] | None = None,
        execution_order: int = 0,
        group_by: str | None = None,
    ) -> None:
        if not isinstance(eval_phase, EvalPhase):
            raise TypeError(f"eval_phase must be an EvalPhase, got a {type(eval_phase).__name__}")
        at_least(1, every_n_epochs=every_n_epochs)
        if not isinstance(metrics, list | tuple | None):
            raise ConfigError(f"metrics must be a list, got {metrics!r}; write [{metrics!r}]")
        super().__init__(label or eval_phase.label, execution_order)
        self.eval_phase, self.every_n_epochs, self.run_on_start = (
            eval_phase,
            every_n_epochs,
            run_on_start,
        )
        self.metrics, self.group_by = list(metrics or []), group_by
        self._metrics = [_metric(metric, group_by) for metric in self.metrics]
        for metric in self._metrics:
            metric.attach(eval_phase)
        self._feed: BatchFeed | None = None

    @classmethod
    def from_split(
        cls,
        label: str,
        *,
        split: str,
        losses: list[AppliedLoss] | None = None,
        batch_size: int | None = None,
        every_n_epochs: int = 1,
        run_on_start: bool = False,
        metrics: Sequence[Metric] | None = None,
        group_by: str | None = None,
    ) -> Evaluation:
        """Evaluate one split; see `EvalPhase.from_split`."""
        phase = EvalPhase.from_split(label, split=split, losses=losses, batch_size=batch_size)
        return cls(
            eval_phase=phase,
            every_n_epochs=every_n_epochs,
            run_on_start=run_on_start,
            metrics=metrics,
            group_by=group_by,
        )

    def of_splits(self, splits: Mapping[str, str], prefix: str) -> Evaluation:
        """Return the same evaluation on other splits, with prefixed metric names.

        Parameters
        ----------
        splits : mapping of str to str
            Split names by FeatureSet label.
        prefix : str
            Prepended to its label and the names of its metrics; user-defined metrics whose
            constructor has no ``name`` are omitted.
        """
        params = self.eval_phase._params()
        params["input_sources"] = [
            replace(source, split=splits[source.upstream_ref.node_label])
            for source in self.eval_phase.input_sources
        ]
        params["label"] = prefix + self.eval_phase.label
        metrics = [
            type(m)(**{**m._params(), "name": prefix + m.logged_as(self.label)})
            for m in self._metrics
            if "name" in m._params()
        ]
        changes = {"eval_phase": type(self.eval_phase)(**params), "metrics": metrics}
        return type(self)(**{**self._params(), **changes, "label": prefix + self.label})

    def __getstate__(self) -> dict[str, Any]:
        """Omit the batch feed, which is created again in the next run."""
        return {**vars(self), "_feed": None}

    @property
    def logs(self) -> list[str]:
        """Names of the metrics that this callback logs."""
        of_phase = [f"{self.label}_{name}" for name in self.eval_phase.scores]
        return [*(metric.logged_as(self.label) for metric in self._metrics), *of_phase]

    def direction_of(self, name: str) -> bool | None:
        """Return whether greater values of a metric are better; None if unknown."""
        metrics = {metric.logged_as(self.label): metric for metric in self._metrics}
        if name in metrics:
            return metrics[name].greater_is_better
        of_phase = self.eval_phase.scores.get(name.removeprefix(f"{self.label}_"))
        return None if of_phase is None else greater_is_better(of_phase)

    def on_phase_start(self, *, experiment: Any, phase: Any, results: Any = None) -> Any:
        """Evaluate before the first epoch if `run_on_start` is set."""
        self._feed = None
        return self._evaluate(experiment, None) if self.run_on_start else None

    def on_epoch_end(
        self, *, experiment: Any, phase: Any, exec_ctx: ExecutionContext, results: Any = None
    ) -> Any:
        """Evaluate after every n-th epoch."""
        if (exec_ctx.epoch_idx + 1) % self.every_n_epochs:
            return None
        return self._evaluate(experiment, exec_ctx)

    def on_phase_end(self, *, experiment: Any, phase: Any, results: Any = None) -> None:
        """Release the batch feed."""
        if self._feed is not None:
            self._feed.release()
            self._feed = None

    def on_exception(
        self, *, experiment: Any, phase: Any, exception: Any, results: Any = None
    ) -> None:
        """Release the batch feed."""
        self.on_phase_end(experiment=experiment, phase=phase)

    def _evaluate(self, experiment: Any, exec_ctx: ExecutionContext | None) -> list[CallbackResult]:
        eval_results = EvalResults(self.eval_phase.label)
        if self._feed is None or not self._feed.is_current:  # as the data have changed
            self._feed = self.eval_phase.feed()
        run_phase(self.eval_phase, experiment, eval_results, Display(), self._feed)
        result = EvaluationCallbackResult(label=self.label, results=eval_results)
        logged: list[MetricResult | None] = []
        for metric in self._metrics:
            value = metric.extract(eval_result=result, exec_ctx=exec_ctx)
            logged += value if isinstance(value, list) else [value]
        for name, score in eval_results._metrics.at_epoch(0).items():
            logged.append(MetricResult(f"{self.label}_{name}", score))
        if exec_ctx is None:  # before the first epoch there is no epoch to log under
            return [result]
        return [result, *(metric for metric in logged if metric is not None)]


class MetricCallback(Callback):
    """Log a metric computed by a function at the end of each epoch.

    Parameters
    ----------
    name : str
    fn : callable
        Takes ``experiment``, ``phase``, ``exec_ctx`` and ``results`` by keyword and returns a
        number, or None to log no value. It may have an attribute ``greater_is_better``.
    label : str, optional
    execution_order : int

    Examples
    --------
    >>> def n_batches(**facts):
    ...     return 1.0
    >>> MetricCallback("n_batches", n_batches).name
    'n_batches'
    """

    def __init__(
        self,
        name: str,
        fn: Callable[..., float | None],
        *,
        label: str | None = None,
        execution_order: int = 0,
    ) -> None:
        super().__init__(label or name, execution_order)
        self.name, self.fn = name, fn

    @property
    def logs(self) -> list[str]:
        """Names of the metrics that this callback logs."""
        return [self.name]

    def direction_of(self, name: str) -> bool | None:
        """Return whether greater values are better, if the function has it."""
        known: bool | None = getattr(self.fn, "greater_is_better", None)
        return known

    def on_epoch_end(self, **facts: Any) -> MetricResult | None:
        """Compute and log the metric."""
        value = self.fn(**facts)
        return None if value is None else MetricResult(self.name, float(value))


def _metric(metric: Any, group_by: str | None) -> EvaluationMetric:
    if isinstance(metric, EvaluationMetric):
        return metric
    if callable(metric) and not hasattr(getattr(metric, "func", metric), "__name__"):
        raise ConfigError(
            f"metrics must be names, functions of targets and outputs, or EvaluationMetrics; for a "
            f"{type(metric).__name__} object pass its name, such as 'r2', or a function"
        )
    if isinstance(metric, str) or callable(metric):
        return ScoreMetric(metric, group_by=group_by)
    raise TypeError(f"metrics must be names, functions or EvaluationMetrics, got {metric!r}")


for _cls in (Evaluation, MetricCallback):
    callback_registry.register(_cls.__name__, _cls)
