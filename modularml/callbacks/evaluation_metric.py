"""Results of evaluations during training, and metrics computed from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from modularml.config import Configurable
from modularml.data.execution import ExecutionContext
from modularml.engine.callback import CallbackResult, MetricResult
from modularml.errors import ConfigError
from modularml.phases.train_eval import EvalPhase
from modularml.results.eval_results import EvalResults
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
    """Base class of metrics computed from the results of an evaluation.

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
        """Whether greater values are better; None if unknown."""
        return None

    def attach(self, phase: EvalPhase) -> None:
        """Prepare the evaluation phase for this metric; does nothing by default."""

    @abstractmethod
    def extract(
        self, *, eval_result: EvaluationCallbackResult, exec_ctx: ExecutionContext | None = None
    ) -> MetricResult | list[MetricResult] | None:
        """Return one metric of an evaluation, several, or None."""


class EvalLossMetric(EvaluationMetric):
    """A loss over all rows of an evaluation.

    Like ``val_loss`` of Keras, it includes losses that models add (regularizers, ``add_loss``).

    Parameters
    ----------
    loss : AppliedLoss
        Added to the evaluation phase if it is missing.
    reducer : {'mean', 'sum'}
        ``mean`` is over samples; ``sum`` over batches.
    name : str
        The metric is logged under this name.

    Examples
    --------
    >>> from modularml import AppliedLoss, EvalLossMetric, Loss
    >>> mse = AppliedLoss(Loss("mse"), on="net", inputs=["outputs", "targets"])
    >>> EvalLossMetric(loss=mse).name
    'val_loss'
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
        """False: a lower loss is better."""
        return False

    def attach(self, phase: EvalPhase) -> None:
        """Add the loss to the evaluation phase."""
        if all(applied is not self.loss for applied in phase.losses):
            if any(
                applied.label == self.loss.label and applied != self.loss
                for applied in phase.losses
            ):
                raise ConfigError(
                    f"phase {phase.label!r} has another loss {self.loss.label!r}; pass label= to "
                    "AppliedLoss"
                )
            if all(applied != self.loss for applied in phase.losses):
                phase.losses.append(self.loss)

    def extract(
        self, *, eval_result: EvaluationCallbackResult, exec_ctx: ExecutionContext | None = None
    ) -> MetricResult | None:
        """Return the loss over all rows, including losses that models add."""
        results = eval_result.results
        losses = results.aggregated_losses(self.loss.on, reducer=self.reducer)
        value = losses[self.loss.label] + results.model_losses(self.loss.on, reducer=self.reducer)
        return MetricResult(self.name, value)
