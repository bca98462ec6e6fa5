"""Trials of a sweep: the variants that they run, and what they are judged by."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from modularml.context import ExperimentContext
from modularml.data.execution_context import ExecutionContext
from modularml.engine.callback import Callback, callback_registry
from modularml.engine.stacked import pays
from modularml.errors import ConfigError, MetricNotLoggedError
from modularml.experiment import Experiment
from modularml.io.randomness import derived_seed, seed_all, unchanged_randomness
from modularml.strategies.sweeps.objective import Objective, mean_of, plan_of
from modularml.strategies.sweeps.studies import TrialQueue, is_prune_request, is_pruned, report
from modularml.strategies.variants.runs import Outcome, Work
from modularml.strategies.variants.variant import Variant, template_of


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
    values : list of float
        Of each fold, or of the only run.
    experiment : Experiment, optional
        That has run; none within folds.
    error : Exception, optional
    pruned : bool
    seconds : float
        Of all runs of the trial.
    """

    trial: Any
    values: list[float] = field(default_factory=list)
    experiment: Experiment | None = None
    error: Exception | None = None
    pruned: bool = False
    seconds: float = 0.0

    @property
    def value(self) -> float:
        """Mean over folds; NaN without a value."""
        has_value = not self.pruned and self.error is None
        return mean_of(self.values) if has_value else float("nan")


Ends: TypeAlias = Generator[End]


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a sweep share.

    Parameters
    ----------
    label : str
    objective : Objective
    queue : TrialQueue
    flags : dict
        Display flags of `Experiment.run`.
    url : str or None
        Of the storage, for worker processes.
    has_pruner : bool
    jobs : dict
        ``n_jobs``, ``timeout`` and ``stacked``.
    make_folds : callable, optional
        Returns the folds of an experiment; None without folds.
    """

    label: str
    objective: Objective
    queue: TrialQueue
    flags: dict[str, Any]
    url: str | None
    has_pruner: bool
    jobs: dict[str, Any]
    make_folds: Callable[[Experiment], Sequence[Variant]] | None

    def variant(self, trial: Any, changes: Mapping[str, Any]) -> Variant:
        """Return the variant of a trial, whose seed follows from its number."""
        seed = derived_seed(self.queue.seed, "trial", trial.number) % 2**32
        return Variant(f"trial_{trial.number}", seed, changes=changes)

    def outcomes(self, experiment: Experiment, variants: Sequence[Variant]) -> Generator[Outcome]:
        """Run variants of an experiment; yield each as it ends."""
        folder = experiment._checkpoint_dir
        work = Work(self.label, self.flags, None, folder and folder.absolute(), None)
        return work.outcomes(experiment, experiment.execution_plan, variants, **self.jobs)

    def pruning(self, experiment: Experiment) -> tuple[str, TrialPruning] | None:
        """Add the callback that ends trials by epoch to its phase; return both, with the path.

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
        metric, study = str(self.objective.metric_in(phase)), self.queue.study.study_name
        callback = TrialPruning(metric=metric, study=study, url=self.url, execution_order=order)
        phase.add_callback(callback)
        path = next(path for path, each in plan.paths() if each is phase)
        return path.removeprefix(f"{plan.label}/"), callback

    def add(self, end: End, outcome: Experiment | Exception, fold: Variant | None = None) -> End:
        """Add the outcome of a run to the end of its trial, and return it."""
        if isinstance(outcome, Exception):
            error: Exception | None = outcome
        else:
            error = None
            end.seconds += outcome.history[-1].seconds
            if fold is None:
                end.experiment = outcome
                end.pruned = self.has_pruner and is_pruned(end.trial)
            try:
                if not end.pruned:
                    end.values.append(self.objective.value(outcome, fold))
            except Exception as raised:  # noqa: BLE001 - the user's, or a metric not logged
                error = raised
        if error is not None and is_prune_request(error):
            end.pruned = True
        else:
            end.error = error
        return end

    def in_folds(
        self, experiment: Experiment, variants: Sequence[tuple[Any, Variant]], folds: Any
    ) -> Ends:
        """Run trials and their variants on all folds; yield each trial as it ends.

        With a pruner, all trials run on the first fold, then those that are left on the second. A
        trial has the mean over folds, and NaN or an error if one fold has.
        """
        waiting = {variant.label: End(trial) for trial, variant in variants}
        rounds = [[fold] for fold in folds] if self.has_pruner else [list(folds)]
        for step, some in enumerate(rounds):
            jobs = {}
            for variant in (variant for _, variant in variants if variant.label in waiting):
                seed = variant.changes.get("seed", variant.seed)
                changes = {k: value for k, value in variant.changes.items() if k != "seed"}
                for fold in some:
                    name = f"{variant.label}_{fold.label}"
                    fold_seed = derived_seed(seed, fold.label) % 2**32
                    part = Variant(name, fold_seed, fold.repeat, fold.sides, changes)
                    jobs[name] = variant.label, part
            with closing(self.outcomes(experiment, [part for _, part in jobs.values()])) as runs:
                for part, outcome in runs:
                    label = jobs[part.label][0]
                    if label not in waiting:  # it has failed on another fold
                        continue
                    end = self.add(waiting[label], outcome, part)
                    is_complete = len(end.values) == len(folds) and not self.has_pruner
                    if end.error is not None or end.pruned or is_complete:
                        yield waiting.pop(label)
            for label in list(waiting) if self.has_pruner else ():
                end, study = waiting[label], self.queue.study.study_name
                mean = mean_of(end.values)
                end.pruned = report(study, self.url, end.trial._trial_id, mean, step)
                if end.pruned or len(end.values) == len(folds):
                    yield waiting.pop(label)


class SpaceTrials:
    """Trials that change settings of one experiment by path.

    Parameters
    ----------
    setup : TrialSetup
    experiment : Experiment
        It is copied, and not changed.
    """

    def __init__(self, setup: TrialSetup, experiment: Experiment) -> None:
        self.setup = setup
        with unchanged_randomness():
            self.template = template_of(experiment, plan_of(experiment))
        self.template._checkpoint_dir = experiment._checkpoint_dir
        self.folds = [] if setup.make_folds is None else list(setup.make_folds(self.template))
        self._pruning_path: str | None = None
        if (pruning := setup.pruning(self.template)) is not None:
            self._pruning_path = f"phases.{pruning[0]}.callbacks.{pruning[1].label}"

    def run(self, trials: Sequence[Any]) -> Ends:
        """Run trials; yield each as it ends."""
        variants = [(trial, self.variant(trial, reports=not self.folds)) for trial in trials]
        if self.folds:
            yield from self.setup.in_folds(self.template, variants, self.folds)
            return
        by_label = {variant.label: trial for trial, variant in variants}
        run = self.setup.outcomes(self.template, [variant for _, variant in variants])
        with closing(run) as outcomes:
            for variant, outcome in outcomes:
                yield self.setup.add(End(by_label[variant.label]), outcome)

    def stacks(self, n_workers: int, n: int) -> bool:
        """Return whether a batch of this many trials is trained as one."""
        stacked, plan = self.setup.jobs["stacked"], self.template.execution_plan
        if stacked == "auto":
            return n_workers == 1 and pays(self.template, plan, n * max(1, len(self.folds)))
        return bool(stacked)

    def variant(self, trial: Any, *, reports: bool = False) -> Variant:
        """Return the variant of a trial, that may report its values by epoch."""
        changes = self.setup.queue.settings(trial)
        if reports and self._pruning_path is not None:
            changes[f"{self._pruning_path}.trial"] = trial._trial_id
            changes[f"{self._pruning_path}.pruner"] = self.setup.queue.study.pruner
        return self.setup.variant(trial, changes)

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

    def __init__(self, setup: TrialSetup, build: Callable[[Any], Experiment]) -> None:
        self.setup, self.build = setup, build
        self._is_checked = False

    def run(self, trials: Sequence[Any]) -> Ends:
        """Run trials one after another; yield each as it ends."""
        for trial in trials:
            with unchanged_randomness(), ExperimentContext().activate():
                end = self._end_of(trial)
            yield end

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
        setup, end = self.setup, End(trial)
        try:
            experiment = self._built(trial)
        except Exception as error:  # noqa: BLE001 - one trial's failure is that trial's alone
            return setup.add(end, error)
        folds = [] if setup.make_folds is None else setup.make_folds(experiment)
        if not self._is_checked:  # refuses what cannot work before the first trial runs
            vals = sorted({s.val_name for fold in folds for s in fold.sides.values()})
            setup.objective.check(experiment, plan_of(experiment), vals)
            self._is_checked = True
        if folds:
            return next(setup.in_folds(experiment, [(trial, setup.variant(trial, {}))], folds))
        if (pruning := setup.pruning(experiment)) is not None:
            pruning[1].trial = trial._trial_id
        try:
            experiment.run(**setup.flags)
        except Exception as error:  # noqa: BLE001
            return setup.add(end, error)
        return setup.add(end, experiment)

    def _built(self, trial: Any) -> Experiment:
        """Build the experiment of a trial, with its seed."""
        seed_all(self.setup.variant(trial, {}).seed)
        experiment: Any = self.build(trial)
        if not isinstance(experiment, Experiment):
            raise ConfigError(f"build(trial) must return an Experiment, got {experiment!r:.80}")
        if experiment.history:
            raise ConfigError(
                "build(trial) must return an Experiment that has not run, and a new one for each "
                f"trial; {experiment.label!r} has run already"
            )
        return experiment
