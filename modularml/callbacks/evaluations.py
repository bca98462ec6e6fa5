"""Evaluation during training, and what it logs: losses, and scores of outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeAlias

from modularml._arguments import at_least
from modularml.config import Configurable
from modularml.data.execution_context import ExecutionContext
from modularml.engine.batch_feed import BatchFeed
from modularml.engine.callback import Callback, CallbackResult, MetricResult, registered
from modularml.engine.display import Display
from modularml.engine.loop import run_phase
from modularml.errors import ConfigError
from modularml.phases.train_eval import EvalPhase
from modularml.results.eval_results import EvalResults
from modularml.results.scores import Meaning, find_score, greater_is_better, name_of_score
from modularml.results.scoring import Reduce, check_reduce, logged_scores
from modularml.training import AppliedLoss

Metric: TypeAlias = "EvaluationMetric | str | Callable[..., float]"


@registered
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
        self.eval_phase, self.every_n_epochs = eval_phase, every_n_epochs
        self.run_on_start = run_on_start
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

    def on_epoch_end(self, *, experiment: Any, exec_ctx: ExecutionContext, **facts: Any) -> Any:
        """Evaluate after every n-th epoch."""
        if (exec_ctx.epoch_idx + 1) % self.every_n_epochs:
            return None
        return self._evaluate(experiment, exec_ctx)

    def on_phase_end(self, **facts: Any) -> None:
        """Release the batch feed."""
        if self._feed is not None:
            self._feed.release()
            self._feed = None

    def on_exception(self, **facts: Any) -> None:
        """Release the batch feed."""
        self.on_phase_end()

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
        if any(applied is self.loss for applied in phase.losses):
            return
        namesakes = [applied for applied in phase.losses if applied.label == self.loss.label]
        if any(applied != self.loss for applied in namesakes):
            raise ConfigError(
                f"phase {phase.label!r} has another loss {self.loss.label!r}; pass label= to "
                "AppliedLoss"
            )
        if self.loss not in phase.losses:
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
