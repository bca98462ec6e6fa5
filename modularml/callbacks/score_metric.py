"""Scores of evaluations during training, by name or function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modularml.callbacks.evaluation_metric import EvaluationCallbackResult, EvaluationMetric
from modularml.engine.callback import MetricResult
from modularml.results.replicates import Reduce, check_reduce
from modularml.results.scores import Meaning, find_score, greater_is_better, name_of_score
from modularml.results.scoring import logged_scores

__all__ = ["ScoreMetric"]


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
