"""What an evaluation in the course of a training leaves, and numbers drawn from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from modularml.config import Configurable
from modularml.data.execution import ExecutionContext
from modularml.engine.callback import CallbackResult, MetricResult
from modularml.errors import ConfigError
from modularml.phases.train_eval import EvalPhase
from modularml.results.train_eval import EvalResults
from modularml.training import AppliedLoss

__all__ = ["EvalLossMetric", "EvaluationCallbackResult", "EvaluationMetric"]


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
        self.name = name

    def logged_as(self, label: str) -> str:
        """Return the name of the metric in an evaluation with this label."""
        return self.name

    @property
    def greater_is_better(self) -> bool | None:
        """Whether greater values are better; None where that is not known."""
        return None

    def attach(self, phase: EvalPhase) -> None:
        """Prepare the evaluation that this metric reads; nothing by default."""

    @abstractmethod
    def extract(
        self, *, eval_result: EvaluationCallbackResult, exec_ctx: ExecutionContext | None = None
    ) -> MetricResult | list[MetricResult] | None:
        """Return the metric of one evaluation, several, or None."""


class EvalLossMetric(EvaluationMetric):
    """A loss over all rows of an evaluation.

    As ``val_loss`` of Keras it has what Keras models add themselves (regularizers, ``add_loss``).

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
        self, *, loss: AppliedLoss, reducer: Literal["sum", "mean"] = "mean", name: str = "val_loss"
    ) -> None:
        super().__init__(name)
        if not isinstance(loss, AppliedLoss):
            raise TypeError(f"loss must be an AppliedLoss, got a {type(loss).__name__}")
        self.loss, self.reducer = loss, reducer

    @property
    def greater_is_better(self) -> bool:
        """A loss is better where it is lower."""
        return False

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
        """Return the loss over all rows, with what models that it depends on add to it."""
        results = eval_result.results
        found = results.aggregated_losses(self.loss.on, reducer=self.reducer)
        value = found[self.loss.label] + results.model_losses(self.loss.on, reducer=self.reducer)
        return MetricResult(self.name, value)
