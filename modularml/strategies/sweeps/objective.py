"""Objectives of sweeps: a logged metric, a score of held-out rows, or a function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from modularml._arguments import Checked
from modularml.engine.monitoring import base_name, declare_logs, direction
from modularml.errors import ConfigError, MetricNotLoggedError, UnknownNameError, closest
from modularml.experiment import Experiment, PhaseGroup, TrainPhase
from modularml.phases.phase import ExperimentPhase
from modularml.results.scores import find_scores, greater_is_better
from modularml.strategies.folds.folds import held_out_scores, logged_figures
from modularml.strategies.variants.variant import Plan, Variant

__all__ = ["Objective", "mean_of", "plan_of"]


class Objective(Checked):
    """A number for each trained experiment.

    Parameters
    ----------
    source : str or callable
        A logged metric: ``val_loss``, or ``phase.metric`` if several phases log it (otherwise the
        last of these counts); its value is that of the weights that were kept. Within folds, also
        ``val.r2``: a score of the held-out rows, as `CVResults.to_pandas` names it. A function
        gets the experiment.
    is_greater_better : bool
    """

    def __init__(
        self, source: str | Callable[[Experiment], float], is_greater_better: bool
    ) -> None:
        self.source, self.is_greater_better = source, is_greater_better

    @property
    def name(self) -> str:
        """Name of the metric or function."""
        source = self.source
        return source if isinstance(source, str) else getattr(source, "__qualname__", repr(source))

    def check(self, experiment: Experiment, plan: Plan, val_names: list[str]) -> None:
        """Refuse an objective that no phase logs, or one with the wrong direction.

        Parameters
        ----------
        experiment : Experiment
        plan : phase or PhaseGroup
        val_names : list of str
            Names of the validation splits of folds; empty without folds.
        """
        if not isinstance(self.source, str):
            return
        phases = [phase for phase in plan.flatten() if self._metric_in(phase) is not None]
        known = [direction(self.monitor(phase), phase.callbacks) for phase in phases]
        score = self._held_out_score(val_names)
        if not phases and score is not None:
            find_scores([score])
            known = [greater_is_better(score)]
        elif not phases and all(declare_logs(phase.callbacks) for phase in plan.flatten()):
            names = [name for phase in plan.flatten() for name in sorted(_names_of(phase))]
            raise MetricNotLoggedError(
                f"objective {self.source!r} is logged by no phase of the plan "
                f"({closest(self.source, names)}). Add an Evaluation with this metric to a "
                "training phase, name another metric, or pass a function of the experiment"
            )
        greater = known[-1] if known else None
        if greater is not None and greater is not self.is_greater_better:
            right, wrong = ("maximize", "minimize") if greater else ("minimize", "maximize")
            raise ConfigError(
                f"direction={wrong!r}, but {self.source!r} is better when it is "
                f"{'greater' if greater else 'lower'}; pass direction={right!r}"
            )

    def pruning_phase(self, plan: Plan) -> TrainPhase:
        """Return the training phase whose epochs have values of the objective.

        Raises
        ------
        ConfigError
            If there is none.
        """
        phase = self.phase(plan)
        if phase is None:
            raise ConfigError(
                f"pruner needs values of the objective {self.name!r} before a trial ends, and no "
                "training phase logs it after its epochs: add an Evaluation with this metric to "
                "the phase, pass cv= to prune by fold, or omit pruner"
            )
        return phase

    def phase(self, plan: Plan) -> TrainPhase | None:
        """Return the training phase that logs the objective after each epoch, if there is one."""
        phases = [p for p in plan.flatten() if self._metric_in(p) is not None]
        last = phases[-1] if phases else None
        return last if isinstance(last, TrainPhase) else None

    def monitor(self, phase: ExperimentPhase) -> str:
        """Return the name of the metric in a phase that logs it."""
        return str(self._metric_in(phase))

    def value(self, experiment: Experiment, fold: Variant | None = None) -> float:
        """Return the objective of an experiment that has run, NaN included."""
        if not isinstance(self.source, str):
            with experiment.ctx.activate():
                value = self.source(experiment)
            try:
                return float(value)
            except (TypeError, ValueError):
                raise ConfigError(
                    f"objective {self.name!r} must return a number, got a {type(value).__name__} "
                    f"({value!r:.60})"
                ) from None
        values, groups, _ = logged_figures({"trial": experiment.history[-1].results}, "kept")
        found = dict(values.get("trial", {}))
        found |= {f"{name}[{group}]": value for _, name, group, value in groups}
        named = {name: v for name, v in found.items() if name.endswith(f".{self.source}")}
        if self.source in found or named:
            return found.get(self.source, next(reversed(named.values()), math.nan))
        vals = [] if fold is None else sorted({s.val_name for s in fold.sides.values()})
        score = self._held_out_score(vals)
        if fold is None or score is None:
            names = [name.partition(".")[2] for name in found]
            raise MetricNotLoggedError(
                f"objective {self.source!r} was not logged ({closest(self.source, names)})"
            )
        return self._score(experiment, fold, score)

    def _score(self, experiment: Experiment, fold: Variant, score: str) -> float:
        rows = held_out_scores(experiment, fold, [score], None)
        values = {name: value for name, group, value in rows if group is None}
        if len(values) > 1 and self.source not in values:
            raise UnknownNameError("objective", self.source, values)
        return float(values.get(self.name, next(iter(values.values()))))

    def _held_out_score(self, val_names: list[str]) -> str | None:
        """Return the score of a name such as ``val.r2``; None for other names."""
        first, dot, _ = str(self.source).partition(".")
        return str(self.source).rpartition(".")[2] if dot and first in val_names else None

    def _metric_in(self, phase: ExperimentPhase) -> str | None:
        """Return the name that a phase logs the objective under; None if it does not."""
        if not isinstance(self.source, str):
            return None
        for name in (self.source, self.source.removeprefix(f"{phase.label}.")):
            if {name, base_name(name)} & _names_of(phase):
                return name
        return None


def mean_of(values: list[float]) -> float:
    """Return the mean of the values of folds; NaN if one is."""
    return math.fsum(values) / len(values) if values else math.nan


def _names_of(phase: Any) -> set[str]:
    """Return the names of metrics and losses that the results of a phase hold."""
    names = {name for callback in phase.callbacks for name in getattr(callback, "logs", ())}
    if isinstance(phase, TrainPhase):
        return names | {"train_loss"}
    names |= set(getattr(phase, "scores", ()))
    return names | {applied.label for applied in phase.losses}


def plan_of(experiment: Experiment) -> PhaseGroup:
    """Return the plan of an experiment; ConfigError if it is empty."""
    if not len(experiment.execution_plan):
        raise ConfigError(
            f"the plan of experiment {experiment.label!r} is empty; add phases with "
            "experiment.execution_plan.add_phase(phase)"
        )
    return experiment.execution_plan
