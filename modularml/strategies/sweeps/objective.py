"""What trials are judged by: an objective, and the folds that it is computed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from modularml._arguments import Checked
from modularml.engine.monitoring import base_name, declare_logs, direction
from modularml.errors import ConfigError, MetricNotLoggedError, UnknownNameError, closest
from modularml.experiment import Experiment, PhaseGroup, TrainPhase
from modularml.phases.phase import ExperimentPhase
from modularml.results.scores import find_scores, greater_is_better
from modularml.strategies.cross_validation import CrossValidation
from modularml.strategies.folds import CVBinding
from modularml.strategies.held_out_checks import (
    check_scored_rows,
    held_out_scores,
    logged_figures,
)
from modularml.strategies.variants.variant import Plan, Variant, template_of


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
        logged = [(self.metric_in(phase), phase) for phase in plan.flatten()]
        known = [direction(name, phase.callbacks) for name, phase in logged if name is not None]
        phases = [phase for name, phase in logged if name is not None]
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
        phases = [phase for phase in plan.flatten() if self.metric_in(phase) is not None]
        if not phases or not isinstance(phases[-1], TrainPhase):
            raise ConfigError(
                f"pruner needs values of the objective {self.name!r} before a trial ends, and no "
                "training phase logs it after its epochs: add an Evaluation with this metric to "
                "the phase, pass cv= to prune by fold, or omit pruner"
            )
        return phases[-1]

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
        rows = held_out_scores(experiment, fold, [score], None)
        values_of = {name: value for name, group, value in rows if group is None}
        if len(values_of) > 1 and self.source not in values_of:
            raise UnknownNameError("objective", self.source, values_of)
        return float(values_of.get(self.name, next(iter(values_of.values()))))

    def _held_out_score(self, val_names: list[str]) -> str | None:
        """Return the score of a name such as ``val.r2``; None for other names."""
        first, dot, _ = str(self.source).partition(".")
        return str(self.source).rpartition(".")[2] if dot and first in val_names else None

    def metric_in(self, phase: ExperimentPhase) -> str | None:
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


# -- folds ---------------------------------------------------------------------------------------

_OPTIONS = ("n_folds", "seed", "splitter", "n_repeats")


class SweepFolds:
    """The folds of each trial, by labels of FeatureSets, for any copy of an experiment.

    Parameters
    ----------
    cv : CVBinding, list of CVBinding, dict or CrossValidation
        Bindings get five folds; a dict holds arguments of `CrossValidation`.

    Raises
    ------
    ConfigError
        If it is none of these, or has arguments that a sweep determines itself.
    """

    def __init__(self, cv: Any) -> None:
        if isinstance(cv, CrossValidation):
            if cv.search is not None or cv.phase is not None:
                raise ConfigError("cv of a sweep runs the whole plan without a search; omit both")
            cv = {name: getattr(cv, name) for name in ("bindings", *_OPTIONS)}
        if isinstance(cv, CVBinding | list | tuple):
            cv = {"bindings": cv}
        if not isinstance(cv, Mapping) or "bindings" not in cv:
            raise ConfigError(
                "cv must be a CVBinding, a list of them, a dict of arguments of CrossValidation "
                f"with 'bindings', or a CrossValidation, got {cv!r:.80}"
            )
        for name in cv:
            if name not in ("bindings", *_OPTIONS):
                raise UnknownNameError("argument of cv", name, ["bindings", *_OPTIONS])
        given = cv["bindings"]
        bindings = list(given) if isinstance(given, list | tuple) else [given]
        if not bindings or not all(isinstance(binding, CVBinding) for binding in bindings):
            raise ConfigError(f"bindings of cv must be CVBinding objects, got {given!r:.80}")
        self.bindings = {
            b.featureset.label: {k: v for k, v in vars(b).items() if k != "featureset"}
            for b in bindings
        }
        self.options = {name: cv[name] for name in _OPTIONS if name in cv}

    def val_names(self) -> list[str]:
        """Return the names of the splits that folds are scored on."""
        return sorted({str(binding["val_split_name"]) for binding in self.bindings.values()})

    def split_names(self, label: str) -> set[str]:
        """Return the names of the splits of a FeatureSet that folds replace."""
        binding = self.bindings.get(label)
        if binding is None:
            return set()
        names = ["train_split_name", "val_split_name"]
        names += ["stop_split_name"] * (binding["stop_size"] is not None)
        return {str(binding[name]) for name in names}

    def folds(self, experiment: Experiment) -> list[Variant]:
        """Return the folds of an experiment."""
        bindings: Any = self._bound(experiment)
        return CrossValidation(experiment=experiment, bindings=bindings, **self.options).folds

    def check(self, experiment: Experiment, plan: Plan) -> None:
        """Warn of phases that learn or select by rows that trials are judged by; or refuse."""
        check_scored_rows(
            experiment,
            plan,
            self._bound(experiment),
            "Trials are judged by these rows, so their values are too optimistic; pass, for "
            "example, stop_size=0.15 to CVBinding, which holds out training rows of each fold for "
            "this",
        )

    def describe(self) -> dict[str, Any]:
        """Return what defines the folds, as plain text."""
        return {"bindings": self.bindings, **{k: repr(v) for k, v in self.options.items()}}

    def _bound(self, experiment: Experiment) -> list[CVBinding]:
        with experiment.ctx.activate():
            return [CVBinding(label, **options) for label, options in self.bindings.items()]


def inner_experiment(experiment: Experiment, folds: SweepFolds | None) -> Experiment:
    """Return a copy of a fold's experiment, none of whose splits hold rows it is scored on.

    Without inner folds, the rows held out for stopping (`CVBinding(stop_size=)`) take the place of
    the validation split.

    Parameters
    ----------
    experiment : Experiment
        Of a fold; that of none is copied as it is.
    folds : SweepFolds or None
        Of the trials of the search.

    Raises
    ------
    ConfigError
        If a phase or evaluation would read no other rows, or reads whole FeatureSets.
    """
    inner = template_of(experiment, experiment.execution_plan)
    inner._checkpoint_dir = experiment._checkpoint_dir
    replaced: dict[str, set[str]] = {}
    for label, side in experiment._sides.items():
        fs: Any = inner.ctx.get_node(label=label)
        state = fs.get_state()
        rows = {name: fs.get_split(name).valid_indices for name in fs.available_splits}
        splits = {name: some[~np.isin(some, side.val)] for name, some in rows.items()}
        if side.stop is not None and folds is None:
            splits[side.val_name] = side.stop
        state["splits"] |= splits
        fs.set_state(state)
        replaced[label] = set() if folds is None else folds.split_names(label)

    def check_rows(reader: str, label: str, split: str | None) -> None:
        fs: Any = inner.ctx.get_node(label=label)
        if label not in replaced or split in replaced[label]:
            return
        if split is not None and len(fs.get_split(split)):
            return
        rows = "all rows" if split is None else f"{split!r}"
        raise ConfigError(
            f"{reader!r} reads {rows} of {label!r}, which the fold is scored on, so a search must "
            f"not use them. Pass cv=CVBinding({label!r}, [...]) to the Sweep, which judges trials "
            f"by folds of the training rows, or stop_size= to the CVBinding of {label!r}, which "
            "holds out rows for this"
            + ("" if split is not None else "; name the split that is read")
        )

    for phase in inner.execution_plan.flatten():
        evaluations = [getattr(callback, "eval_phase", None) for callback in phase.callbacks]
        for reader in (phase, *filter(None, evaluations)):
            for source in reader.input_sources:
                check_rows(reader.label, source.upstream_ref.node_label, source.split)
    return inner
