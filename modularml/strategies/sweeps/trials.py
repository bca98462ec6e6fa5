"""Trials of a sweep: the variants that they run, and what they are judged by."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from modularml.context import ExperimentContext
from modularml.data.execution import ExecutionContext
from modularml.engine.callback import Callback, callback_registry
from modularml.engine.stacked import pays
from modularml.errors import ConfigError, MetricNotLoggedError
from modularml.experiment import Experiment
from modularml.io.randomness import derived_seed, seed_all, unchanged_randomness
from modularml.strategies.sweeps.objective import Objective, mean_of, plan_of
from modularml.strategies.sweeps.studies import TrialQueue, is_pruned, report, settings_in
from modularml.strategies.variants.jobs import Jobs, Outcome, Stacked, Work
from modularml.strategies.variants.variant import Variant, template_of

__all__ = ["BuiltTrials", "End", "SpaceTrials", "TrialPruning", "TrialSetup"]


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


@dataclass
class End:
    """How a trial ended.

    Parameters
    ----------
    trial : optuna.Trial
    value : float
        NaN without one.
    experiment : Experiment, optional
        That has run; none within folds.
    error : Exception, optional
    pruned : bool
    seconds : float
        Of all runs of the trial.
    """

    trial: Any
    value: float = float("nan")
    experiment: Experiment | None = None
    error: Exception | None = None
    pruned: bool = False
    seconds: float = 0.0


Ends: TypeAlias = Generator[End]


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a sweep share.

    Parameters
    ----------
    label : str
    objective : Objective
    seed : int
    flags : dict
        Display flags of `Experiment.run`.
    url : str or None
        Of the storage, for worker processes.
    has_pruner : bool
    n_jobs : int, 'auto' or None
    timeout : float or None
    stacked : bool or 'auto'
    make_folds : callable, optional
        Returns the folds of an experiment; None without folds.
    """

    label: str
    objective: Objective
    seed: int
    flags: dict[str, Any]
    url: str | None = None
    has_pruner: bool = False
    n_jobs: Jobs = 1
    timeout: float | None = None
    stacked: Stacked = False
    make_folds: Callable[[Experiment], Sequence[Variant]] | None = None

    def seed_of(self, trial: Any) -> int:
        """Return the seed of a trial, which follows from its number."""
        return derived_seed(self.seed, "trial", trial.number) % 2**32

    def outcomes(self, experiment: Experiment, variants: Sequence[Variant]) -> Generator[Outcome]:
        """Run variants of an experiment; yield each as it ends."""
        folder = experiment._checkpoint_dir
        work = Work(self.label, self.flags, None, folder and folder.absolute(), None)
        jobs: dict[str, Any] = {"n_jobs": self.n_jobs, "timeout": self.timeout}
        jobs["stacked"] = self.stacked
        return work.outcomes(experiment, experiment.execution_plan, variants, **jobs)

    def pruning(self, experiment: Experiment, study: Any) -> tuple[str, TrialPruning] | None:
        """Return the callback that ends trials by epoch, with the path of its phase.

        Raises
        ------
        ConfigError
            If the objective has no values by epoch.
        """
        if not self.has_pruner or self.make_folds is not None:
            return None
        plan = experiment.execution_plan
        phase = self.objective.pruning_phase(plan)
        order = 1 + max((c.execution_order for c in phase.callbacks), default=0)
        metric, names = self.objective.monitor(phase), (study.study_name, self.url)
        callback = TrialPruning(metric=metric, study=names[0], url=names[1], execution_order=order)
        path = next(path for path, each in plan.paths() if each is phase)
        return path.removeprefix(f"{plan.label}/"), callback


class SpaceTrials:
    """Trials that change settings of one experiment by path.

    Parameters
    ----------
    setup : TrialSetup
    experiment : Experiment
        It is copied, and not changed.
    queue : TrialQueue
    """

    def __init__(self, setup: TrialSetup, experiment: Experiment, queue: TrialQueue) -> None:
        self.setup, self.queue = setup, queue
        with unchanged_randomness():
            self.template = template_of(experiment, plan_of(experiment))
        self.template._checkpoint_dir = experiment._checkpoint_dir
        self.folds = [] if setup.make_folds is None else list(setup.make_folds(self.template))
        self._pruning_path: str | None = None
        if (pruning := setup.pruning(self.template, queue.study)) is not None:
            path, callback = pruning
            phases = dict(self.template.execution_plan.paths())
            phases[f"{self.template.execution_plan.label}/{path}"].add_callback(callback)
            self._pruning_path = f"phases.{path}.callbacks.{callback.label}"

    def run(self, trials: Sequence[Any]) -> Ends:
        """Run trials; yield each as it ends."""
        if self.folds:
            run = lambda variants: self.setup.outcomes(self.template, variants)  # noqa: E731
            variants = {trial.number: self.variant(trial) for trial in trials}
            yield from in_folds(self.setup, self.queue, trials, variants, self.folds, run)
            return
        by_label = {}
        for trial in trials:
            variant = self.variant(trial, reports=True)
            by_label[variant.label] = (trial, variant)
        variants_to_run = [variant for _, variant in by_label.values()]
        with closing(self.setup.outcomes(self.template, variants_to_run)) as outcomes:
            for variant, outcome in outcomes:
                yield judged(self.setup, self.queue, by_label[variant.label][0], outcome)

    def stacks(self, n_workers: int, n: int) -> bool:
        """Return whether a batch of this many trials is trained as one."""
        stacked, plan = self.setup.stacked, self.template.execution_plan
        if stacked == "auto":
            return n_workers == 1 and pays(self.template, plan, n * max(1, len(self.folds)))
        return stacked

    def variant(self, trial: Any, *, reports: bool = False) -> Variant:
        """Return the variant of a trial, that may report its values by epoch."""
        changes = settings_in(self.queue.space, trial.params)
        if reports and self._pruning_path is not None:
            changes[f"{self._pruning_path}.trial"] = trial._trial_id
            changes[f"{self._pruning_path}.pruner"] = self.queue.study.pruner
        return Variant(f"trial_{trial.number}", self.setup.seed_of(trial), changes=changes)

    def retrained(self, trial: Any) -> Experiment:
        """Train with the settings of a trial again."""
        folder = self.template._checkpoint_dir
        work = Work(self.setup.label, self.setup.flags, None, folder, None)
        return work.run(self.template, self.template.execution_plan, self.variant(trial))


class BuiltTrials:
    """Trials whose experiments are built by a function of the trial; see `SpaceTrials`.

    An experiment is run as it was built, in this process. Within folds it is copied, with new
    weights.
    """

    def __init__(
        self, setup: TrialSetup, build: Callable[[Any], Experiment], queue: TrialQueue
    ) -> None:
        self.setup, self.build, self.queue = setup, build, queue
        self._is_checked = False

    def run(self, trials: Sequence[Any]) -> Ends:
        """Run trials one after another; yield each as it ends."""
        for trial in trials:
            yield self._end_of(trial)

    def stacks(self, n_workers: int, n: int) -> bool:
        """Return whether trials are trained as one: never, as any may have another graph."""
        return False

    def retrained(self, trial: Any) -> Experiment:
        """Build and train the experiment of a trial again."""
        with unchanged_randomness(), ExperimentContext().activate():
            experiment = self._built(trial)
            experiment.run(**self.setup.flags)
        return experiment

    def _end_of(self, trial: Any) -> End:
        with unchanged_randomness(), ExperimentContext().activate():
            try:
                experiment = self._built(trial)
            except Exception as error:  # noqa: BLE001 - one trial's failure is that trial's alone
                return judged(self.setup, self.queue, trial, error)
            folds = [] if self.setup.make_folds is None else self.setup.make_folds(experiment)
            self._check(experiment, folds)
            if folds:
                run = lambda variants: self.setup.outcomes(experiment, variants)  # noqa: E731
                variant = Variant(f"trial_{trial.number}", self.setup.seed_of(trial))
                variants = {trial.number: variant}
                return next(in_folds(self.setup, self.queue, [trial], variants, folds, run))
            self._add_pruning(experiment, trial)
            try:
                experiment.run(**self.setup.flags)
            except Exception as error:  # noqa: BLE001
                return judged(self.setup, self.queue, trial, error)
            return judged(self.setup, self.queue, trial, experiment)

    def _built(self, trial: Any) -> Experiment:
        """Build the experiment of a trial, with its seed."""
        seed_all(self.setup.seed_of(trial))
        experiment: Any = self.build(trial)
        if not isinstance(experiment, Experiment):
            raise ConfigError(f"build(trial) must return an Experiment, got {experiment!r:.80}")
        if experiment.history:
            raise ConfigError(
                "build(trial) must return an Experiment that has not run, and a new one for each "
                f"trial; {experiment.label!r} has run already"
            )
        return experiment

    def _check(self, experiment: Experiment, folds: Sequence[Variant]) -> None:
        """Refuse an objective or a pruner that cannot work, before the first trial runs."""
        if not self._is_checked:
            vals = sorted({s.val_name for fold in folds for s in fold.sides.values()})
            self.setup.objective.check(experiment, plan_of(experiment), vals)
            self.setup.pruning(experiment, self.queue.study)
            self._is_checked = True

    def _add_pruning(self, experiment: Experiment, trial: Any) -> None:
        """Add the callback that ends a trial by epoch to the experiment of the trial."""
        if (pruning := self.setup.pruning(experiment, self.queue.study)) is not None:
            path, callback = pruning
            callback.trial = trial._trial_id
            plan = experiment.execution_plan
            dict(plan.paths())[f"{plan.label}/{path}"].add_callback(callback)


def judged(setup: TrialSetup, queue: TrialQueue, trial: Any, outcome: Any) -> End:
    """Return how a trial ended, given its experiment or an error."""
    if isinstance(outcome, Exception):
        if queue.is_prune_request(outcome):
            return End(trial, pruned=True)
        return End(trial, error=outcome)
    end = End(trial, experiment=outcome, seconds=outcome.history[-1].seconds)
    if setup.has_pruner and is_pruned(trial):
        end.pruned = True
        return end
    try:
        end.value = setup.objective.value(outcome)
    except Exception as error:  # noqa: BLE001 - a function of the user's, or a metric not logged
        end.error = error
    return end


def in_folds(
    setup: TrialSetup,
    queue: TrialQueue,
    trials: Sequence[Any],
    variants: Mapping[int, Variant],
    folds: Sequence[Variant],
    run: Callable[[list[Variant]], Generator[Outcome]],
) -> Ends:
    """Run each trial on all folds; yield each trial as it ends.

    With a pruner, all trials run on the first fold, then those that are left on the second. A trial
    has the mean over folds, and NaN or an error if one fold has.
    """
    waiting = {trial.number: _Folds(trial, len(folds)) for trial in trials}
    rounds = [[fold] for fold in folds] if setup.has_pruner else [list(folds)]
    for step, some in enumerate(rounds):
        jobs = {}
        for number in waiting:
            for fold in some:
                variant = fold_of(variants[number], fold)
                jobs[variant.label] = (number, variant)
        with closing(run([variant for _, variant in jobs.values()])) as outcomes:
            for variant, outcome in outcomes:
                number = jobs[variant.label][0]
                if number not in waiting:  # it has failed on another fold
                    continue
                waiting[number].add(setup, variant, outcome)
                if waiting[number].error is not None or (
                    waiting[number].is_complete and not setup.has_pruner
                ):
                    yield waiting.pop(number).end(queue)
        for number in list(waiting) if setup.has_pruner else ():
            trial, mean = waiting[number].trial, mean_of(waiting[number].values)
            ends = report(queue.study.study_name, setup.url, trial._trial_id, mean, step)
            if ends or waiting[number].is_complete:
                yield waiting.pop(number).end(queue, pruned=ends)


@dataclass
class _Folds:
    """A trial that runs on folds, and its values so far."""

    trial: Any
    n_folds: int
    values: list[float] = field(default_factory=list)
    seconds: float = 0.0
    error: Exception | None = None

    @property
    def is_complete(self) -> bool:
        """Whether it has a value of each fold."""
        return len(self.values) == self.n_folds

    def add(self, setup: TrialSetup, variant: Variant, outcome: Any) -> None:
        """Add the outcome of one fold."""
        if isinstance(outcome, Exception):
            self.error = outcome
            return
        self.seconds += outcome.history[-1].seconds
        try:
            self.values.append(setup.objective.value(outcome, variant))
        except Exception as error:  # noqa: BLE001 - a function of the user's, or no such metric
            self.error = error

    def end(self, queue: TrialQueue, *, pruned: bool = False) -> End:
        """Return how the trial ended."""
        if self.error is not None and queue.is_prune_request(self.error):
            pruned, self.error = True, None
        value = float("nan") if pruned or self.error is not None else mean_of(self.values)
        return End(self.trial, value, error=self.error, pruned=pruned, seconds=self.seconds)


def fold_of(variant: Variant, fold: Variant) -> Variant:
    """Return the variant of a trial on a fold."""
    seed = variant.changes.get("seed", variant.seed)
    changes = {path: value for path, value in variant.changes.items() if path != "seed"}
    return Variant(
        f"{variant.label}_{fold.label}",
        derived_seed(seed, fold.label) % 2**32,
        fold.repeat,
        fold.sides,
        changes,
    )
