"""Metrics that an evaluation during training logs: losses, and scores of outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from modularml.config import Configurable
from modularml.data.execution import ExecutionContext
from modularml.engine.callback import CallbackResult, MetricResult
from modularml.errors import ConfigError
from modularml.phases.train_eval import EvalPhase
from modularml.results.eval_results import EvalResults
from modularml.results.scores import Meaning, find_score, greater_is_better, name_of_score
from modularml.results.scoring import Reduce, check_reduce, logged_scores
from modularml.training import AppliedLoss

__all__ = ["EvalLossMetric", "EvaluationCallbackResult", "EvaluationMetric", "ScoreMetric"]


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

    Examples
    --------
    >>> class LastLoss(EvaluationMetric):
    ...     def extract(self, **facts):
    ...         return 0.0
    >>> LastLoss("last_loss").name
    'last_loss'
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


class ScoreMetric(EvaluationMetric):
    """A metric by its name in scikit-learn or torchmetrics, or a function.

    It is logged as ``name``, as ``name/role`` if the node has several roles, and for each group as
    ``name[group]``.

    Parameters
    ----------
    score : str or callable
        Such as ``"r2"``, ``"mean_absolute_error"``, ``"MeanAbsoluteError"``, or a function of
        targets and outputs, which may have an attribute ``greater_is_better``; see
        `modularml.results.scores.find_score`.
    on : str, optional
        Label of a node; by default the only tail node.
    name : str, optional
        By default ``label_score``, with the label of the `Evaluation`.
    options : dict, optional
        Passed to the function or class.
    role : str, optional
        By default all roles.
    group_by : str, optional
        Column of the FeatureSet for whose values separate metrics are logged, such as a patient.
    unscale : bool
        Whether outputs and targets are converted to the target's original units.
    outputs : {'auto', 'values', 'logits', 'probabilities'}
        What the outputs are.
    per : str, optional
        Column whose equal values are replicates of one sample, which are reduced to one row before
        scoring; see `EvalResults.scores`.
    reduce : {'mean', 'median', 'min', 'max'}
        How replicates are reduced.

    Examples
    --------
    >>> ScoreMetric("balanced_accuracy", group_by="patient", outputs="logits")
    ScoreMetric(score='balanced_accuracy', group_by='patient', outputs='logits')
    """

    name: str | None  # type: ignore[assignment]

    def __init__(
        self,
        score: str | Callable[..., float],
        *,
        on: str | None = None,
        name: str | None = None,
        options: Mapping[str, Any] | None = None,
        role: str | None = None,
        group_by: str | None = None,
        unscale: bool = True,
        outputs: Meaning = "auto",
        per: str | None = None,
        reduce: Reduce = "mean",
    ) -> None:
        check_reduce(reduce, per)
        self.score, self.on, self.name, self.options = score, on, name, options
        self.role, self.group_by, self.unscale, self.outputs = role, group_by, unscale, outputs
        self.per, self.reduce = per, reduce
        self._call = find_score(score, options, outputs)

    def __getstate__(self) -> dict[str, Any]:
        """Omit the function, which is looked up again."""
        return {name: value for name, value in vars(self).items() if name != "_call"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Look the function up again."""
        vars(self).update(state)
        self._call = find_score(self.score, self.options, self.outputs)

    def logged_as(self, label: str) -> str:
        """Return its name, by default the evaluation's label and the score."""
        return self.name or f"{label}_{name_of_score(self.score)}"

    @property
    def greater_is_better(self) -> bool | None:
        """Whether greater values are better; None if the score does not tell."""
        return greater_is_better(self.score)

    def extract(
        self, *, eval_result: EvaluationCallbackResult, exec_ctx: Any = None
    ) -> list[MetricResult]:
        """Return the score of all rows and of each group, for each role."""
        name = self.logged_as(eval_result.label)
        rows = eval_result.results.scored(
            {name: self._call},
            self.on,
            role=self.role,
            group_by=self.group_by,
            unscale=self.unscale,
            per=self.per,
            reduce=self.reduce,
        )
        return [MetricResult(name, value) for name, value in logged_scores(rows).items()]
