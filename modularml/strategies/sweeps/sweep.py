"""Sweeps: many trainings with other settings, proposed by Optuna."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, Literal

from modularml._arguments import Checked, at_least
from modularml._warning import warn
from modularml.engine.display import check_flags
from modularml.engine.interruption import is_interruption
from modularml.errors import ConfigError, ExecutionError
from modularml.experiment import Experiment
from modularml.io.randomness import drawn_seed, unchanged_randomness
from modularml.progress import bar
from modularml.strategies.held_out_checks import audit_variant
from modularml.strategies.sweeps.objective import (
    Objective,
    SweepFolds,
    inner_experiment,
    plan_of,
)
from modularml.strategies.sweeps.results import SweepResults
from modularml.strategies.sweeps.space import Choice, Dimension, as_space
from modularml.strategies.sweeps.studies import (
    ERROR,
    RESUMED,
    SECONDS,
    TrialQueue,
    check_identity,
    check_proposals,
    identity_of,
    open_study,
    register_study,
    storage_url,
)
from modularml.strategies.sweeps.trials import BuiltTrials, End, SpaceTrials, TrialSetup
from modularml.strategies.variants.clusters import count_jobs, most_jobs
from modularml.strategies.variants.runs import Jobs, Stacked, announced, check_jobs
from modularml.strategies.variants.settings import check_paths
from modularml.strategies.variants.variant import Variant, changed_experiment, template_of

logger = logging.getLogger(__name__)

BATCH = 8
"""Trials that are asked for at once for each worker, if proposals need no earlier values."""
TOGETHER, MOST_TOGETHER = 10, 60
"""Trials that are trained as one, if proposals need earlier values, and if they do not."""


class TrialFailedWarning(UserWarning):
    """Trials of a sweep failed, or their objective was not finite; the others are not affected."""


class Sweep(Checked):
    """Train an experiment with many settings, and compare them by an objective.

    Each trial is a separate experiment with weights of its own, drawn from (seed, number of the
    trial); the original is not changed. `optuna <https://optuna.org>`_ proposes the settings.

    Parameters
    ----------
    experiment_or_build : Experiment or callable
        An experiment whose settings change, or a function of Optuna's trial that returns a new
        `Experiment`, which is run as it is. The trial then suggests values: ``lr =
        trial.suggest_float("lr", 1e-4, 1e-1, log=True)``. The function is called in a new context:
        it reads its rows, or copies them by ``fs.copy(label="rows", restore_splits=True,
        restore_scalers=True, register=True)``.
    space : dict of str to list or range, optional
        Values by config path; needed with an experiment. A list is a choice, see `modularml.space`
        for ranges. Paths are ``graph.optimizer.lr`` and other arguments of the optimizer,
        ``graph.optimizer`` (its name), ``nodes.<label>.<argument of the model>``,
        ``nodes.<label>.model``, ``phases.<label>.n_epochs`` and other arguments,
        ``phases.<label>.sampler.batch_size``, ``losses.<label>.weight`` (of phases that learn),
        ``callbacks.<label>.<argument>``, ``phases.<label>.callbacks.<label>.<argument>`` and
        ``seed``, which replaces the trial's seed.
    objective : str or callable
        A metric that is logged (``val_loss``, ``phase.metric`` if several phases log it, otherwise
        the last of these counts), taken with the weights that were kept; or a function that takes
        the trained experiment and returns a number. Within folds also ``val.r2``, a score of the
        held-out rows as in `CVResults.to_pandas`; the objective is then the mean over folds.
    direction : {'minimize', 'maximize'}
    n_trials : int, optional
        By default every combination, if all settings are lists; otherwise needed.
    sampler : optuna.samplers.BaseSampler, optional
        By default the grid, if all settings are lists and `n_trials` covers it, else
        ``TPESampler``. The default proposals follow from the seed and the earlier trials, so that
        a resumed sweep proposes what an uninterrupted one does. A sampler that is given gets new
        random numbers in a new process.
    pruner : optuna.pruners.BasePruner, optional
        Ends poor trials early: by epoch, if a training phase logs the objective, or after each fold
        with `cv`. By default none.
    cv : CVBinding, list of CVBinding, dict or CrossValidation, optional
        Trials run on folds. Bindings get five; a dict holds ``bindings`` and other arguments of
        `CrossValidation` (``n_folds``, ``seed``, ``splitter``, ``n_repeats``).
    stacked : {'auto'} or bool
        Whether trials are trained as one in this process, where they differ only in numbers such as
        rates, decays, weights of losses and seeds; trials of other shapes are grouped by shape. See
        `CrossValidation`: values equal those of trials trained alone up to rounding.
    n_jobs : int or 'auto', optional
        Number of processes that run trials; see `CrossValidation`. Needs an experiment, not a
        function. With a pruner by epoch, it needs a storage that other processes can open.
    storage : str, Path or optuna.storages.BaseStorage, optional
        Where trials are stored: the path of a SQLite file such as ``"sweep.db"``, a URL, or a
        storage of Optuna; by default in memory. One process at a time runs a sweep.
    seed : int, optional
        At least 0. By default drawn from numpy's global generator, and stored.
    label : str
        Name of the study in the storage, and first part of the labels of runs.
    timeout : float, optional
        Seconds after which a trial in a worker process fails.

    Raises
    ------
    UnknownNameError
        If a path names no setting; the closest ones are listed.
    MetricNotLoggedError
        If no phase logs the objective.
    ConfigError
        If another argument is not as described, or `direction` is not that of the metric.

    Notes
    -----
    Trials that are trained as one are asked for in batches of 10, or of 60 if proposals need no
    earlier values (a grid, random and quasi-random samplers). Otherwise, and with a function, they
    are asked for one for each worker at a time, or in batches of eight for each of several workers
    if proposals need no earlier values and there is no pruner.

    Examples
    --------
    ``Sweep(experiment, {"nodes.net.hidden_dim": [16, 32, 64]}).run().best``

    Examples
    --------
    >>> import numpy as np
    >>> import modularml as mml
    >>> from modularml.models.torch import SequentialMLP
    >>> experiment = mml.Experiment("demo", seed=0)
    >>> a, b, noise = np.random.default_rng(0).normal(size=(3, 60)).astype("float32")
    >>> rows = {"a": a, "b": b, "y": a + b + noise}
    >>> fs = mml.FeatureSet.from_dict("rows", rows, ["a", "b"], "y")
    >>> fs.split_random({"train": 0.8, "test": 0.2})
    >>> net = mml.ModelNode("net", SequentialMLP(), fs)
    >>> graph = mml.ModelGraph([net], mml.Optimizer("adam"))
    >>> mse = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
    >>> phase = mml.TrainPhase.from_split(
    ...     "train", split="train", sampler=mml.SimpleSampler(batch_size=16), losses=[mse]
    ... )
    >>> watch = mml.Evaluation.from_split(
    ...     "watch", split="test", metrics=[mml.EvalLossMetric(loss=mse)]
    ... )
    >>> phase.add_callback(watch)
    >>> group = experiment.execution_plan.add_phase(phase)
    >>> space = {"graph.optimizer.lr": mml.space.log_float(1e-4, 1e-1)}
    >>> sweep = mml.Sweep(experiment, space, n_trials=3, seed=0)
    >>> results = sweep.run(show_progress=False, show_training_progress=False)
    >>> len(results.to_pandas())
    3
    """

    def __init__(
        self,
        experiment_or_build: Experiment | Callable[[Any], Experiment],
        space: Mapping[str, Any] | None = None,
        *,
        objective: str | Callable[[Experiment], float] = "val_loss",
        direction: Literal["minimize", "maximize"] = "minimize",
        n_trials: int | None = None,
        sampler: Any = None,
        pruner: Any = None,
        cv: Any = None,
        stacked: Stacked = "auto",
        n_jobs: int | Literal["auto"] | None = 1,
        storage: Any = None,
        seed: int | None = None,
        label: str = "sweep",
        timeout: float | None = None,
    ) -> None:
        at_least(1, n_trials=n_trials)
        at_least(0, seed=seed)
        check_jobs(n_jobs, timeout, stacked, "trial")
        self.experiment, self.build = _experiment_or_build(experiment_or_build, space, n_jobs)
        self.space: dict[str, Dimension] | None = None if space is None else as_space(space)
        self.objective = Objective(objective, is_greater_better=direction == "maximize")
        self.direction, self.n_trials, self.seed, self.label = direction, n_trials, seed, label
        self.sampler, self.pruner = sampler, pruner
        self.cv = None if cv is None else SweepFolds(cv)
        self.stacked, self.n_jobs, self.timeout = stacked, n_jobs, timeout
        self.storage, self._url = storage, storage_url(storage)
        check_proposals(self.space, n_trials, sampler, pruner)
        self._study: Any = None
        self._best: tuple[int, Experiment] | None = None
        if self.experiment is not None:
            self._check(self.experiment)
        is_shared = self._url is not None and ":memory:" not in self._url
        if pruner is not None and cv is None and not is_shared and _count_workers(n_jobs) > 1:
            raise ConfigError(
                "a pruner by epoch with n_jobs needs a storage that worker processes can open; "
                "pass storage='sweep.db', or n_jobs=1"
            )

    def run(
        self,
        *,
        resume: bool = False,
        show_progress: bool = True,
        persist_progress: bool = False,
        **kwargs: Any,
    ) -> SweepResults:
        """Run all trials.

        Parameters
        ----------
        resume : bool
            Whether trials that the storage holds already, or an earlier call has left, count: what
            is missing is run. Trials that were stopped run again with the same settings and seed;
            finished ones do not, including those that failed.
        show_progress : bool
            Whether to show a progress bar over trials.
        persist_progress : bool
            Whether progress bars stay.
        **kwargs
            Display flags, see `Experiment.run_phase`; bars of phases are off by default.

        Returns
        -------
        SweepResults

        Raises
        ------
        ConfigError
            If the storage holds another sweep, or trials of this one and `resume` is false.
        ExecutionError
            If all trials failed; the first error is its cause.
        """
        bars = {"show_training_progress": False, "show_sampler_progress": False}
        flags = check_flags({**bars, **kwargs, "persist_progress": persist_progress})
        if self.experiment is not None:
            self._check(self.experiment)
            self._audit(self.experiment)
        queue, trials = self._opened(flags, resume=resume)
        errors: list[tuple[int, Exception | None]] = []
        options = {"show": show_progress, "persist": persist_progress, "unit": "trial"}
        best: dict[str, Experiment] = {}
        hooks: AbstractContextManager[None] = nullcontext()
        if isinstance(trials, SpaceTrials):
            assert self.experiment is not None
            trials.template._audit.reports = self.experiment._audit.reports
            hooks = announced(trials.template, self.label, best, resume=resume)
        try:
            with (
                hooks,
                bar(queue.missing(), self.label, **options) as progress,  # type: ignore[arg-type]
            ):
                while asked := self._asked(queue, trials):
                    with closing(trials.run(asked)) as ends:
                        for end in ends:
                            if self._finish(queue, end, is_batch=len(asked) > 1):
                                errors.append((end.trial.number, end.error))
                            progress.show(best=queue.best_value)
                            progress.update()
                if self._best is not None:
                    best["best"] = self._best[1]
        except BaseException as error:
            if is_interruption(error):
                logger.warning(
                    "note: %r was stopped with %d of %d trials complete; run(resume=True) runs the "
                    "others%s",
                    self.label,
                    len(queue.done()),
                    queue.n_trials,
                    "" if self.storage is None else ", also in a new process",
                )
            raise
        self._report(queue, errors)
        return SweepResults(trials, self._best)

    def __call__(self, experiment: Experiment) -> Experiment:
        """Return a fold's experiment with the best settings: a search for `CrossValidation`.

        Trials use the fold's training rows alone: no split of theirs holds a row that the fold is
        scored on.
        """
        if self.space is None:
            raise ConfigError(
                "a Sweep of a function cannot search within folds, as the function builds its own "
                "rows; pass the experiment and a space"
            )
        inner = copy.copy(self)
        with unchanged_randomness():
            inner.experiment = inner_experiment(experiment, self.cv)
        inner._study = inner._best = None
        if self.storage is not None:
            inner.label = f"{self.label}_{experiment.label}"
        best = inner.run(resume=self.storage is not None, show_progress=False).best
        shown = ", ".join(f"{path}={value!r}" for path, value in best.params.items())
        logger.info("%s: %s of trial %d", experiment.label, shown, best.number)
        return changed_experiment(experiment, best.params, drawn_seed())

    def __getstate__(self) -> dict[str, Any]:
        """Omit the experiment and the study: as a search, it gets the experiment of each fold."""
        return {**vars(self), "experiment": None, "_study": None, "_best": None}

    def __repr__(self) -> str:
        what = getattr(self.build, "__qualname__", self.build)
        what = what if self.experiment is None else self.experiment.label
        names = "" if self.space is None else f", {list(self.space)}"
        return f"Sweep({self.label!r} of {what!r}{names}, {self.objective.name!r})"

    # -- internals ----------------------------------------------------------------------------

    def _check(self, experiment: Experiment) -> None:
        """Refuse paths that name nothing, and an objective or pruner that cannot work."""
        assert self.space is not None
        with unchanged_randomness():
            template = template_of(experiment, plan_of(experiment))  # its optimizers are built
        plan = template.execution_plan
        choices = {p: d.values if isinstance(d, Choice) else () for p, d in self.space.items()}
        check_paths(template, plan, choices)
        self.objective.check(template, plan, [] if self.cv is None else self.cv.val_names())
        if self.pruner is not None and self.cv is None:
            self.objective.pruning_phase(plan)

    def _audit(self, experiment: Experiment) -> None:
        plan = plan_of(experiment)
        if self.cv is None:
            audit_variant(experiment, plan, Variant("audit", 0))
            return
        audit_variant(experiment, plan, self.cv.folds(experiment)[0])
        self.cv.check(experiment, plan)

    def _opened(
        self, flags: dict[str, Any], *, resume: bool
    ) -> tuple[TrialQueue, SpaceTrials | BuiltTrials]:
        """Open the study; return its queue of trials, and what runs them."""
        study = self._study
        if study is None:
            study = open_study(self.storage, self.label, self.direction, self.sampler, self.pruner)
            if self.sampler is not None and study.get_trials(deepcopy=False):
                self.sampler.reseed_rng()  # it would propose what it has proposed already
        facts = {"objective": self.objective.name, "direction": self.direction, "seed": self.seed}
        folds = None if self.cv is None else self.cv.describe()
        identity = identity_of(self.experiment, self.build, self.space, folds=folds, **facts)
        seed = drawn_seed() if self.seed is None else self.seed
        seed = check_identity(study, identity, seed, label=self.label, resume=resume)
        self._study = study
        register_study(study, self._url)
        queue = TrialQueue(study, seed, self.n_trials, self.space, self.sampler)
        setup = TrialSetup(
            self.label,
            self.objective,
            queue,
            flags,
            self._url,
            self.pruner is not None,
            {"n_jobs": self.n_jobs, "timeout": self.timeout, "stacked": self.stacked},
            None if self.cv is None else self.cv.folds,
        )
        if self.experiment is not None:
            return queue, SpaceTrials(setup, self.experiment)
        assert self.build is not None
        return queue, BuiltTrials(setup, self.build)

    def _asked(self, queue: TrialQueue, trials: Any) -> list[Any]:
        """Ask for the next batch of trials."""
        n_workers = _count_workers(self.n_jobs)
        if trials.stacks(n_workers, TOGETHER):
            n = TOGETHER if queue.is_adaptive else MOST_TOGETHER
        else:
            waits = queue.is_adaptive or self.pruner is not None or n_workers == 1
            n = n_workers if waits else BATCH * n_workers
        return [queue.ask() for _ in range(min(n, queue.missing()))]

    def _finish(self, queue: TrialQueue, end: End, *, is_batch: bool) -> bool:
        """Store how a trial ended, and keep the best experiment; return whether it failed."""
        if end.seconds and (is_batch or RESUMED in end.trial.user_attrs):
            end.trial.set_user_attr(SECONDS, end.seconds)
        if end.pruned:
            queue.finish(end.trial, "PRUNED")
            return False
        if end.error is not None or not math.isfinite(end.value):
            message = "the objective is " + ("NaN" if math.isnan(end.value) else str(end.value))
            if end.error is not None:
                first_line = str(end.error).partition("\n")[0]
                message = f"{type(end.error).__name__}: {first_line}"
            end.trial.set_user_attr(ERROR, message)
            queue.finish(end.trial, "FAIL")
            return True
        is_best = queue.is_best(end.value)
        queue.finish(end.trial, "COMPLETE", end.value)
        facts = end.trial.number, queue.n_trials, self.objective.name, end.value, queue.best_value
        logger.info("trial %d of %d: %s %.5g, best %.5g", *facts)
        if is_best:
            self._best = None if end.experiment is None else (end.trial.number, end.experiment)
        return False

    def _report(self, queue: TrialQueue, failed: Sequence[tuple[int, Exception | None]]) -> None:
        """Warn of failed trials; raise if all failed."""
        if not failed:
            return
        problems = [
            "the objective is not finite" if error is None else f"{type(error).__name__}: {error}"
            for _, error in failed[:5]
        ]
        shown = "; ".join(
            f"trial {number}: {problem}".partition("\n")[0]
            for (number, _), problem in zip(failed, problems, strict=False)
        )
        shown += "; ..." if len(failed) > 5 else ""
        if all(trial.state.name == "FAIL" for trial in queue.done()):
            raise ExecutionError(f"all trials of {self.label!r} failed ({shown})") from failed[0][1]
        warn(f"{len(failed)} trials of {self.label!r} failed ({shown})", TrialFailedWarning)


def _experiment_or_build(
    value: Any, space: Any, n_jobs: Jobs
) -> tuple[Experiment | None, Callable[[Any], Experiment] | None]:
    if isinstance(value, Experiment):
        if space is None:
            raise ConfigError(
                "space is needed with an experiment: a dict of config paths to lists or ranges, "
                "such as {'graph.optimizer.lr': mml.space.log_float(1e-4, 1e-1)}"
            )
        return value, None
    if not callable(value):
        raise ConfigError(
            f"experiment_or_build must be an Experiment or a function of a trial, got {value!r:.80}"
        )
    if space is not None:
        raise ConfigError(
            "a space needs an Experiment, whose settings it names; a function of the trial "
            f"suggests its own values, without space. Got a {type(value).__name__} and a space"
        )
    if _count_workers(n_jobs) > 1:
        raise ConfigError(
            "n_jobs needs an experiment and a space of config paths, as a function builds its "
            "experiments in this process; omit n_jobs"
        )
    return None, value


def _count_workers(n_jobs: Jobs) -> int:
    """Return how many trials may run at once."""
    return most_jobs() if n_jobs == "auto" else count_jobs(n_jobs)
