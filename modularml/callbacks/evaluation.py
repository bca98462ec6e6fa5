"""Evaluation in the course of a training, and metrics of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from modularml.config import Configurable
from modularml.data.execution import ExecutionContext
from modularml.errors import ConfigError
from modularml.experiment.callback import (
    Callback,
    CallbackResult,
    MetricResult,
    callback_registry,
)
from modularml.experiment.loop import Display, run_phase
from modularml.experiment.phases import EvalPhase
from modularml.experiment.results import EvalResults
from modularml.training import AppliedLoss

__all__ = [
    "EvalLossMetric",
    "Evaluation",
    "EvaluationCallbackResult",
    "EvaluationMetric",
    "MetricCallback",
]


@dataclass
class EvaluationCallbackResult(CallbackResult):
    """Results of one evaluation; has every accessor of `EvalResults`."""

    kind: ClassVar[str] = "evaluation"

    results: EvalResults = field(default_factory=lambda: EvalResults("evaluation"))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "results":
            raise AttributeError(name)
        return getattr(self.results, name)


class EvaluationMetric(Configurable, ABC):
    """A number drawn from the results of an evaluation.

    Parameters
    ----------
    name : str
        The metric is logged under this name.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"name must be a string that is not empty, got {name!r}")
        self.name = name

    def attach(self, phase: EvalPhase) -> None:
        """Prepare the evaluation that this metric reads; nothing by default."""

    @abstractmethod
    def extract(
        self, *, eval_result: EvaluationCallbackResult, exec_ctx: ExecutionContext | None = None
    ) -> MetricResult | None:
        """Return the metric of one evaluation, or None."""


class EvalLossMetric(EvaluationMetric):
    """A loss over all rows of an evaluation.

    Parameters
    ----------
    loss : AppliedLoss
        Added to the evaluation's phase where it is not there.
    reducer : {'mean', 'sum'}
        ``mean`` is over samples; ``sum`` over batches.
    name : str
        The metric is logged under this name.
    """

    def __init__(
        self,
        *,
        loss: AppliedLoss,
        reducer: Literal["sum", "mean"] = "mean",
        name: str = "val_loss",
    ) -> None:
        super().__init__(name)
        if not isinstance(loss, AppliedLoss):
            raise TypeError(f"loss must be an AppliedLoss, got a {type(loss).__name__}")
        if reducer not in ("sum", "mean"):
            raise ConfigError(f"reducer must be 'mean' or 'sum', got {reducer!r}")
        self.loss, self.reducer = loss, reducer

    def attach(self, phase: EvalPhase) -> None:
        """Have the evaluation compute the loss."""
        if all(own is not self.loss for own in phase.losses):
            if any(own.label == self.loss.label and own != self.loss for own in phase.losses):
                raise ConfigError(
                    f"phase {phase.label!r} has another loss {self.loss.label!r}; pass label="
                )
            if all(own != self.loss for own in phase.losses):
                phase.losses.append(self.loss)

    def extract(
        self, *, eval_result: EvaluationCallbackResult, exec_ctx: ExecutionContext | None = None
    ) -> MetricResult | None:
        """Return the loss over all rows."""
        found = eval_result.results.aggregated_losses(self.loss.on, reducer=self.reducer)
        return MetricResult(self.name, found[self.loss.label])

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> EvalLossMetric:
        """Make one from its config."""
        return super().from_config(config)


class Evaluation(Callback):
    """Run an evaluation at the end of epochs, changing nothing.

    Parameters
    ----------
    eval_phase : EvalPhase
    every_n_epochs : int
        At least 1.
    run_on_start : bool
        Whether to evaluate before the first epoch too.
    label : str, optional
        The phase's label where it is not given.
    metrics : list of EvaluationMetric, optional
        Logged after each evaluation.
    execution_order : int
        Callbacks with higher numbers run later.
    """

    def __init__(
        self,
        *,
        eval_phase: EvalPhase,
        every_n_epochs: int = 1,
        run_on_start: bool = False,
        label: str | None = None,
        metrics: list[EvaluationMetric] | None = None,
        execution_order: int = 0,
    ) -> None:
        if not isinstance(eval_phase, EvalPhase):
            raise TypeError(f"eval_phase must be an EvalPhase, got a {type(eval_phase).__name__}")
        if not isinstance(every_n_epochs, int) or every_n_epochs < 1:
            raise ConfigError(
                f"every_n_epochs must be an int of at least 1, got {every_n_epochs!r}"
            )
        super().__init__(label or eval_phase.label, execution_order)
        self.eval_phase, self.every_n_epochs, self.run_on_start = (
            eval_phase,
            every_n_epochs,
            run_on_start,
        )
        self.metrics = list(metrics or [])
        for metric in self.metrics:
            if not isinstance(metric, EvaluationMetric):
                raise TypeError(f"metrics must hold EvaluationMetric objects, got {metric!r}")
        for metric in self.metrics:
            metric.attach(eval_phase)

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
        metrics: list[EvaluationMetric] | None = None,
    ) -> Evaluation:
        """Evaluate one split; see `EvalPhase.from_split`."""
        phase = EvalPhase.from_split(label, split=split, losses=losses, batch_size=batch_size)
        return cls(
            eval_phase=phase,
            every_n_epochs=every_n_epochs,
            run_on_start=run_on_start,
            metrics=metrics,
        )

    @property
    def logs(self) -> list[str]:
        """Names of the metrics that this callback logs."""
        return [metric.name for metric in self.metrics]

    def on_phase_start(self, *, experiment: Any, phase: Any, results: Any = None) -> Any:
        """Evaluate before the first epoch, where asked."""
        return self._evaluate(experiment, None) if self.run_on_start else None

    def on_epoch_end(
        self, *, experiment: Any, phase: Any, exec_ctx: ExecutionContext, results: Any = None
    ) -> Any:
        """Evaluate after every n-th epoch."""
        if (exec_ctx.epoch_idx + 1) % self.every_n_epochs:
            return None
        return self._evaluate(experiment, exec_ctx)

    def _evaluate(self, experiment: Any, exec_ctx: ExecutionContext | None) -> list[CallbackResult]:
        found = EvalResults(self.eval_phase.label)
        run_phase(self.eval_phase, experiment, found, Display())
        result = EvaluationCallbackResult(results=found)
        numbers = [m.extract(eval_result=result, exec_ctx=exec_ctx) for m in self.metrics]
        if exec_ctx is None:  # before the first epoch there is no epoch to log under
            return [result]
        return [result, *(n for n in numbers if n is not None)]


class MetricCallback(Callback):
    """Log a number computed at the end of each epoch.

    Parameters
    ----------
    name : str
    fn : callable
        Takes ``experiment``, ``phase``, ``exec_ctx`` and ``results`` by keyword and returns a
        number, or None for no value this time.
    label : str, optional
    execution_order : int
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

    def on_epoch_end(self, **facts: Any) -> MetricResult | None:
        """Compute and log the number."""
        value = self.fn(**facts)
        return None if value is None else MetricResult(self.name, float(value))


for _cls in (Evaluation, MetricCallback):
    callback_registry.register(_cls.__name__, _cls)
