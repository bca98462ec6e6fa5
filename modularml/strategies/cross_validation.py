"""Cross-validation of an experiment or a part of its plan."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from functools import cached_property
from typing import Any, Literal

from joblib import effective_n_jobs

from modularml._arguments import Checked, at_least
from modularml._warning import warn
from modularml.context import ExperimentContext
from modularml.data.scaling import LeakWarning
from modularml.engine.interruption import is_interruption
from modularml.engine.monitoring import loggers_of, monitors_of
from modularml.errors import AuditError, ConfigError, ExecutionError
from modularml.experiment import Experiment, FitPhase, PhaseGroup, TrainPhase
from modularml.experiment.run import check_flags
from modularml.experiment.run_audit import RunAudit
from modularml.io.randomness import unchanged_randomness
from modularml.phases.phase import ExperimentPhase, all_of
from modularml.progress import bar
from modularml.splitters import FoldSplitter, ScikitSplitter
from modularml.strategies.cv_binding import CVBinding
from modularml.strategies.cv_results import CVResults
from modularml.strategies.folds import make_folds
from modularml.strategies.jobs import Search, Work
from modularml.strategies.variants import Variant, reads_only, variant_experiment

__all__ = ["CrossValidation", "FoldFailedWarning", "SelectionWarning"]


class FoldFailedWarning(UserWarning):
    """A fold failed with an error; the other folds are not affected."""


class SelectionWarning(UserWarning):
    """An epoch or a learning rate is selected on the rows used for scores."""


class CrossValidation(Checked):
    """Run a plan once for each fold, each time in a separate experiment.

    A fold has its own splits, scalers fitted on its own training rows, weights drawn from (seed,
    fold), and its own optimizers, samplers and callbacks. The original experiment is not changed,
    nor are its FeatureSets or the random states of the process. Frozen nodes keep their learned
    weights, unless a `FitPhase` fits them.

    Parameters
    ----------
    label : str
    bindings : CVBinding or list of CVBinding
        One per FeatureSet. FeatureSets that share samples, or are grouped by the same columns, are
        split together.
    n_folds : int
        At least 1, which needs ``val_size``; determined by `splitter` if one is given.
    seed : int
        At least 0. It determines the folds, their weights, and samplers without a seed.
    phase : phase or PhaseGroup, optional
        What is run; by default the experiment's plan.
    experiment : Experiment, optional
        By default that of the active context.
    splitter : FoldSplitter, or a splitter of scikit-learn, optional
        Makes the folds; one of scikit-learn gets the groups and strata of the bindings.
    n_repeats : int
        How often all folds are run, split with ``seed``, ``seed + 1`` and so on.
    n_jobs : int, optional
        Number of processes that run folds; -1 for one per core. None uses
        `joblib.parallel_config`, or else 1. Its cluster backends (Dask, Ray) work too. Results
        equal those of one process bit for bit, given the same number of threads. Torch models must
        be given by class, since workers rebuild them, and results of callbacks are returned only
        if they are plain data.
    timeout : float, optional
        Seconds after which a fold in a worker process fails.
    search : callable, optional
        Called with each fold's experiment before it runs, to select settings on the fold's training
        rows alone, for example by an inner `CrossValidation`. It may edit the graph; a phase or
        group that it returns is run instead of the plan.

    Raises
    ------
    TypeError
        If there is no experiment, or `phase` is not a phase or group.
    AuditError
        By `run`, if rows that folds are scored on are used for training or selection and the
        experiment has ``audit='error'``.
    ConfigError
        If another argument is not as described.

    Examples
    --------
    ``CrossValidation(bindings=CVBinding("cells", ["train", "val"], group_by="cell")).run()``
    """

    def __init__(
        self,
        *,
        label: str = "CV",
        bindings: CVBinding | list[CVBinding],
        n_folds: int = 5,
        seed: int = 13,
        phase: ExperimentPhase | PhaseGroup | None = None,
        experiment: Experiment | None = None,
        splitter: Any = None,
        n_repeats: int = 1,
        n_jobs: int | None = None,
        timeout: float | None = None,
        search: Search | None = None,
    ) -> None:
        chosen: Any = experiment
        if chosen is None:
            chosen = ExperimentContext.get_active().get_experiment()
        if not isinstance(chosen, Experiment):
            raise TypeError(f"experiment must be an Experiment, got {chosen!r}; create one first")
        if phase is not None and not isinstance(phase, ExperimentPhase | PhaseGroup):
            raise TypeError(f"phase must be a phase or a PhaseGroup, got {phase!r}")
        at_least(0, seed=seed, timeout=timeout)
        at_least(1, n_folds=n_folds, n_repeats=n_repeats)
        if n_jobs == 0:
            raise ConfigError("n_jobs must be an int other than 0, such as 2, or -1 for each core")
        self.label, self.experiment, self.phase = label, chosen, phase
        self.bindings = _checked(bindings, chosen)
        self.n_folds, self.seed, self.n_repeats = n_folds, seed, n_repeats
        self.splitter, self._splitter = splitter, _fold_splitter(splitter, self.bindings, n_repeats)
        self.n_jobs, self.timeout, self.search = n_jobs, timeout, search
        if splitter is None and n_folds == 1 and any(b.val_size is None for b in self.bindings):
            raise ConfigError("n_folds=1 needs val_size: one fold would validate on every row")
        if timeout is not None and effective_n_jobs(n_jobs) == 1:
            raise ConfigError(
                "timeout needs n_jobs of at least 2: a fold in this process cannot be stopped"
            )
        self._done: dict[str, Experiment] = {}

    @cached_property
    def folds(self) -> list[Variant]:
        """Labels, seeds and rows of the folds; SplitError if rows cannot be split so."""
        with self.experiment.ctx.activate():
            folds = make_folds(
                self.bindings,
                n_folds=self.n_folds,
                n_repeats=self.n_repeats,
                seed=self.seed,
                splitter=self._splitter,
                graph=self.experiment.model_graph,
            )
        n_folds = len(folds) // self.n_repeats
        if self.n_folds not in (5, n_folds):
            raise ConfigError(
                f"{self.splitter!r} makes {n_folds} folds, not n_folds={self.n_folds}"
            )
        return folds

    def run(
        self,
        *,
        show_fold_progress: bool = True,
        persist_progress: bool = False,
        resume: Literal["auto"] | None = None,
        **kwargs: Any,
    ) -> CVResults:
        """Run all folds that have not succeeded yet.

        Parameters
        ----------
        show_fold_progress : bool
            Whether to show a progress bar over folds.
        persist_progress : bool
            Whether progress bars stay.
        resume : 'auto', optional
            Folds write checkpoints to separate subfolders of the experiment's checkpoint folder,
            and resume from those of an earlier process: completed folds and phases are not run
            again; within a phase, its own `Checkpointing` decides. The result of a search is saved
            too, so models must be given by class then.
        **kwargs
            Display flags, see `Experiment.run_phase`; worker processes draw no bars.

        Returns
        -------
        CVResults
            Failed folds are in its ``failed_folds``, with a warning; calling `run` again runs only
            these.

        Raises
        ------
        ExecutionError
            If all folds failed; the first error is its cause.
        """
        flags = check_flags({**kwargs, "persist_progress": persist_progress})
        self._check_resume(resume)
        plan = self.experiment.execution_plan if self.phase is None else self.phase
        if isinstance(plan, PhaseGroup) and not len(plan):
            raise ConfigError("the plan is empty; add phases to it, or pass phase=")
        missing = [fold for fold in self.folds if fold.label not in self._done]
        if missing:
            self._audit(plan, missing[0])
        self._warn_of_leaks(plan)
        selections = self._selection(plan)
        if selections:
            self._warn_or_refuse(
                f"{'; '.join(selections)}. Folds are scored on these rows, so their scores are "
                "too optimistic; pass, for example, stop_size=0.15 to CVBinding, which holds out "
                "training rows of each fold for this",
                SelectionWarning,
            )
        self._warn_of_unused_rows(plan)
        failed: dict[str, Exception] = {}
        folder = self.experiment._checkpoint_dir
        work = Work(self.label, flags, self.search, folder and folder.absolute(), resume)
        outcomes = work.outcomes(
            self.experiment, plan, missing, n_jobs=self.n_jobs, timeout=self.timeout
        )
        progress = bar(
            len(missing), self.label, show=show_fold_progress, persist=persist_progress, unit="fold"
        )
        try:
            with progress as fold_bar, closing(outcomes) as results:
                for fold, outcome in results:
                    if isinstance(outcome, Exception):
                        failed[fold.label] = outcome
                    else:
                        self._done[fold.label] = outcome
                    fold_bar.update()
        except BaseException as error:
            if is_interruption(error):
                self._log_how_to_resume(resume)
            raise
        self._check_failures(failed)
        return CVResults(
            self.label,
            self.bindings,
            self.folds,
            self._done,
            failed,
            selected_on_scored_rows=bool(selections),
        )

    def _check_resume(self, resume: str | None) -> None:
        is_possible = resume == "auto" and self.experiment._checkpoint_dir is not None
        if resume is not None and not is_possible:
            raise ConfigError(
                "resume must be 'auto' or None, and needs a folder from set_checkpoint_dir(); "
                f"got {resume!r}"
            )

    def _log_how_to_resume(self, resume: str | None) -> None:
        how = "run(resume='auto') resumes from their checkpoints, also in a new process"
        if resume is None:
            how = (
                "run() runs the others in this process; with set_checkpoint_dir(path) and "
                "run(resume='auto'), a new process could resume"
            )
        logging.getLogger(__name__).warning(
            "note: %r was stopped with %d of %d folds complete; %s",
            self.label,
            len(self._done),
            len(self.folds),
            how,
        )

    def _check_failures(self, failed: dict[str, Exception]) -> None:
        """Warn of failed folds; raise if all failed."""
        messages = "; ".join(
            f"{label}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            for label, error in failed.items()
        )
        if failed and not self._done:
            raise ExecutionError(f"all folds of {self.label!r} failed ({messages})") from next(
                iter(failed.values())
            )
        if failed:
            warn(
                f"{len(failed)} of {len(self.folds)} folds failed; call run() again to retry them "
                f"({messages})",
                FoldFailedWarning,
            )

    def _audit(self, plan: Any, fold: Variant) -> None:
        """Audit the rows of one fold, as all folds are similar."""
        auditor = RunAudit(self.experiment.audit)
        if auditor.mode != "off":
            with unchanged_randomness():
                new = variant_experiment(self.experiment, plan, fold, fold.label)
            auditor.check(new.execution_plan, new.ctx, plan=False)

    def _selection(self, plan: Any) -> list[str]:
        """Describe what is selected on validation rows of folds, phase by phase."""
        bound = {b.featureset.label: b for b in self.bindings}
        stopped = {k: b.val_split_name for k, b in bound.items() if b.stop_size is not None}
        messages = []
        for phase in plan.flatten():
            for monitor, names in monitors_of(phase, self.experiment.model_graph).items():
                for logger in loggers_of(monitor, phase.callbacks):
                    evaluation: Any = getattr(logger, "eval_phase", None)
                    sources = [] if evaluation is None else evaluation.input_sources
                    if reads_only(logger, stopped) or not any(
                        _is_scored(bound, s) for s in sources
                    ):
                        continue
                    messages.append(
                        f"{' and '.join(names)} of phase {phase.label!r} select by {monitor!r}, "
                        f"which {logger.label!r} computes on {sources[0].split or 'all rows'!r}"
                    )
        return messages

    def _warn_of_unused_rows(self, plan: Any) -> None:
        """Warn of `stop_size` if nothing in the plan uses the rows held out by it."""
        stopped = {b.featureset.label: b for b in self.bindings if b.stop_size is not None}
        vals = {label: b.val_split_name for label, b in stopped.items()}
        stops = {label: b.stop_split_name for label, b in stopped.items()}
        if not stopped or self.search is not None:
            return
        for phase in plan.flatten():
            monitors = monitors_of(phase, self.experiment.model_graph)
            if any(reads_only(c, vals) for m in monitors for c in loggers_of(m, phase.callbacks)):
                return
            evaluated = [getattr(callback, "eval_phase", None) for callback in phase.callbacks]
            for reader in (phase, *filter(None, evaluated)):
                sources = reader.input_sources
                if any(stops.get(s.upstream_ref.node_label) == s.split for s in sources):
                    return
        warn(
            f"stop_size holds out training rows of {list(stopped)} in each fold, but nothing in "
            "the plan uses them; omit stop_size, or make early stopping or a schedule monitor a "
            f"metric of an Evaluation on {next(iter(vals.values()))!r}"
        )

    def _warn_or_refuse(self, message: str, category: type[Warning]) -> None:
        """Warn of a plan whose scores would be too optimistic, or refuse it."""
        if self.experiment.audit == "error":
            raise AuditError(f"{message}; pass Experiment(audit='warn') to run anyway")
        warn(message, category)

    def _warn_of_leaks(self, plan: Any) -> None:
        """Warn of training phases that read validation rows of folds."""
        bound = {b.featureset.label: b for b in self.bindings}
        learning = [p for p in plan.flatten() if isinstance(p, TrainPhase | FitPhase)]
        for phase, source in ((p, s) for p in learning for s in p.input_sources):
            binding, name = bound.get(source.upstream_ref.node_label), source.split
            if binding is None or name == binding.train_split_name:
                continue
            fs = binding.featureset
            rows = fs if name is None else fs.splits.get(name)
            if rows is None or not rows.is_disjoint_with(binding.pool()):
                self._warn_or_refuse(
                    f"phase {phase.label!r} learns from {name or 'all rows'!r} of {fs.label!r}, "
                    "but folds validate on some of these rows; make it read "
                    f"{binding.train_split_name!r}",
                    LeakWarning,
                )

    def __repr__(self) -> str:
        what = self.experiment.label if self.phase is None else self.phase.label
        return f"CrossValidation({self.label!r} of {what!r}, {self.bindings})"


def _is_scored(bound: dict[str, CVBinding], source: Any) -> bool:
    """Return whether an input reads rows that some fold validates on."""
    binding = bound.get(source.upstream_ref.node_label)
    if binding is None or source.split == binding.train_split_name:
        return False
    if source.split in (None, binding.val_split_name):
        return True
    if binding.stop_size is not None and source.split == binding.stop_split_name:
        return False
    return not binding.featureset.get_split(source.split).is_disjoint_with(binding.pool())


def _checked(bindings: Any, experiment: Experiment) -> list[CVBinding]:
    checked: list[CVBinding] = all_of(CVBinding, "bindings", bindings)
    if not checked:
        raise ConfigError("bindings must contain at least one CVBinding, got none")
    featuresets = experiment.ctx.available_featuresets.values()
    for i, binding in enumerate(checked):
        fs = binding.featureset
        if fs not in featuresets:
            raise ConfigError(
                f"{fs.label!r} is not a FeatureSet of experiment {experiment.label!r}"
            )
        if fs in [other.featureset for other in checked[:i]]:
            raise ConfigError(f"{fs.label!r} is bound twice; pass all source_splits to one binding")
    return checked


def _fold_splitter(splitter: Any, bindings: Sequence[CVBinding], n_repeats: int) -> Any:
    if splitter is None:
        return None
    first = bindings[0]
    has_keys = any(k is not None for b in bindings for k in (b.group_by, b.stratify_by, b.bins))
    is_own = isinstance(splitter, FoldSplitter)
    if any(b.val_size is not None for b in bindings) or (is_own and has_keys):
        names = "group_by, stratify_by and val_size" if is_own else "val_size"
        raise ConfigError(f"pass {names} to the splitter, not to the bindings; got both")
    if any(b.bins is not None for b in bindings):
        raise ConfigError(
            f"bins is for the strata of KFoldSplitter, but {splitter!r} uses the column as it is; "
            "omit bins, or stratify by a binned column"
        )
    fold_splitter = (
        splitter if is_own else ScikitSplitter(splitter, first.group_by, first.stratify_by)
    )
    if n_repeats > 1 and not hasattr(fold_splitter, "seed"):
        raise ConfigError(
            f"{splitter!r} has no seed, so all repeats would be equal; omit n_repeats"
        )
    return fold_splitter
