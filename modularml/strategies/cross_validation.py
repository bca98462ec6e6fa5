"""Cross-validation: an experiment, or a part of its plan, run once for each fold."""

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
from modularml.experiment.auditing import RunAudit
from modularml.experiment.run import check_flags
from modularml.io.randomness import unchanged_randomness
from modularml.phases.phase import ExperimentPhase, all_of
from modularml.progress import bar
from modularml.splitters import FoldSplitter, ScikitSplitter
from modularml.strategies.binding import CVBinding
from modularml.strategies.copying import fold_experiment, reads_only
from modularml.strategies.cv_results import CVResults
from modularml.strategies.folds import Fold, make_folds
from modularml.strategies.jobs import Search, Work

__all__ = ["CrossValidation", "FoldFailedWarning", "SelectionWarning"]

BARS = ("show_sampler_progress", "show_training_progress", "show_eval_progress")


class FoldFailedWarning(UserWarning):
    """A fold ended with an error; the others are kept."""


class SelectionWarning(UserWarning):
    """An epoch or a learning rate is chosen by the rows that scores are taken on."""


class CrossValidation(Checked):
    """Run a plan once for each fold, each time in an experiment of its own.

    A fold has its own splits, scalers fitted on its own training rows, weights drawn from (seed,
    fold), and its own optimizers, samplers and callbacks. The experiment it was made from is not
    changed, nor are its FeatureSets or the random states of the process. Frozen nodes keep what
    they have learned, unless a `FitPhase` fits them.

    Parameters
    ----------
    label : str
    bindings : CVBinding or list of CVBinding
        One a FeatureSet. Sets that share samples, or are grouped by the same columns, are cut as
        one.
    n_folds : int
        At least 1, which needs ``val_size``; found from `splitter` where one is given.
    seed : int
        At least 0. It decides the folds, their weights and samplers without a seed.
    phase : phase or PhaseGroup, optional
        What is run; the experiment's plan where none is given.
    experiment : Experiment, optional
        That of the active context where none is given.
    splitter : FoldSplitter, or a splitter of scikit-learn, optional
        Makes the folds; one of scikit-learn is given the groups and strata of the bindings.
    n_repeats : int
        How often all folds are run, cut with ``seed``, ``seed + 1`` and so on.
    n_jobs : int, optional
        Processes that run folds; -1 is one for each core, and None what `joblib.parallel_config`
        says, or else 1. Its backends for clusters (Dask, Ray) work too. Results equal those of one
        process, bit for bit, where that computes with as many threads. Models of torch must be
        given by class, since a worker makes them again, and callbacks' results are kept where they
        are plain data.
    timeout : float, optional
        Seconds after which a fold in a process of its own is given up.
    search : callable, optional
        Called with each fold's experiment before it runs, to choose what is best on the fold's
        training rows alone, by an inner `CrossValidation` say. It may edit the graph; a phase or
        group that it returns is run in place of the plan.

    Raises
    ------
    TypeError
        If there is no experiment, or `phase` is none.
    AuditError
        By `run`, if rows that folds are scored on are learned from or chosen by and the experiment
        was made with ``audit='error'``.
    ConfigError
        If another argument cannot be used.

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
        found: Any = experiment
        if found is None:
            found = ExperimentContext.get_active().get_experiment()
        if not isinstance(found, Experiment):
            raise TypeError(f"experiment must be an Experiment; make one first, got {found!r}")
        if phase is not None and not isinstance(phase, ExperimentPhase | PhaseGroup):
            raise TypeError(f"phase must be a phase or a PhaseGroup, got {phase!r}")
        at_least(0, seed=seed, timeout=timeout)
        at_least(1, n_folds=n_folds, n_repeats=n_repeats)
        if n_jobs == 0:
            raise ConfigError("n_jobs must be an int other than 0, such as 2, or -1 for each core")
        self.label, self.experiment, self.phase = label, found, phase
        self.bindings = _checked(bindings, found)
        self.n_folds, self.seed, self.n_repeats = n_folds, seed, n_repeats
        self.splitter, self._splitter = splitter, _fold_splitter(splitter, self.bindings, n_repeats)
        self.n_jobs, self.timeout, self.search = n_jobs, timeout, search
        if splitter is None and n_folds == 1 and any(b.val_size is None for b in self.bindings):
            raise ConfigError("n_folds=1 needs val_size: one fold would validate on every row")
        if timeout is not None and effective_n_jobs(n_jobs) == 1:
            raise ConfigError("timeout needs n_jobs of at least 2: nobody else could stop a fold")
        self._done: dict[str, Experiment] = {}

    @cached_property
    def folds(self) -> list[Fold]:
        """Labels, seeds and rows of the folds; a SplitError where rows cannot be cut like that."""
        with self.experiment.ctx.activate():
            found = make_folds(
                self.bindings,
                n_folds=self.n_folds,
                n_repeats=self.n_repeats,
                seed=self.seed,
                splitter=self._splitter,
                graph=self.experiment.model_graph,
            )
        made = len(found) // self.n_repeats
        if self.n_folds not in (5, made):
            raise ConfigError(f"{self.splitter!r} makes {made} folds, not n_folds={self.n_folds}")
        return found

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
            Whether a progress bar counts folds.
        persist_progress : bool
            Whether progress bars stay.
        resume : 'auto', optional
            Folds write checkpoints to folders of their own within that of the experiment's
            checkpoints, and go on from those that an earlier process left there: folds that are
            done are not run again, nor are phases; within a phase, its own `Checkpointing` counts.
            What a search chose is kept in a file too, so models must be given by class then.
        **kwargs
            Display flags, as of `Experiment.run_phase`; processes of their own draw no bars.

        Returns
        -------
        CVResults
            Folds that failed are in its ``failed_folds`` and are warned of; calling `run` again
            runs only these.

        Raises
        ------
        ExecutionError
            If all folds failed; the first error is its cause.
        """
        flags = check_flags({**kwargs, "persist_progress": persist_progress})
        self._check_resume(resume)
        plan = self.experiment.execution_plan if self.phase is None else self.phase
        if isinstance(plan, PhaseGroup) and not len(plan):
            raise ConfigError("there is nothing to run: the plan is empty; pass phase=")
        missing = [fold for fold in self.folds if fold.label not in self._done]
        if missing:
            self._audit(plan, missing[0])
        self._warn_of_leaks(plan)
        chosen = self._selection(plan)
        if chosen:
            self._object(
                f"{'; '.join(chosen)}. Folds are scored on rows of it, so their scores are "
                "better than honest ones; pass stop_size=0.15, say, to CVBinding, which holds back "
                "training rows of each fold for it",
                SelectionWarning,
            )
        self._warn_of_rows_not_used(plan)
        failed: dict[str, Exception] = {}
        outcomes = closing(self._outcomes(plan, missing, flags, resume))
        shown = bar(
            len(missing), self.label, show=show_fold_progress, persist=persist_progress, unit="fold"
        )
        try:
            with shown as drawn, outcomes as found:
                for fold, own in found:
                    (failed if isinstance(own, Exception) else self._done)[fold.label] = own
                    drawn.update()
        except BaseException as error:
            if is_interruption(error):
                self._note_how_to_go_on(resume)
            raise
        self._tell(failed)
        return CVResults(
            self.label,
            self.bindings,
            self.folds,
            self._done,
            failed,
            selected_on_scored_rows=bool(chosen),
        )

    def _check_resume(self, resume: str | None) -> None:
        fits = resume == "auto" and self.experiment._checkpoint_dir is not None
        if resume is not None and not fits:
            raise ConfigError(
                "resume must be 'auto' or None, and needs a folder from set_checkpoint_dir(); "
                f"got {resume!r}"
            )

    def _outcomes(
        self, plan: Any, folds: Sequence[Fold], flags: dict[str, Any], resume: str | None
    ) -> Any:
        folder = self.experiment._checkpoint_dir
        folder = None if folder is None else folder.absolute()
        n_jobs = min(effective_n_jobs(self.n_jobs), len(folds))
        if effective_n_jobs(self.n_jobs) == 1 or not folds:
            work = Work(self.label, flags, self.search, folder, resume)
            return work.in_turn(self.experiment, plan, folds)
        quiet = {**flags, **dict.fromkeys(BARS, False)}
        work = Work(self.label, quiet, self.search, folder, resume)
        return work.on_workers(self.experiment, plan, folds, n_jobs, self.timeout)

    def _note_how_to_go_on(self, resume: str | None) -> None:
        how = "run(resume='auto') goes on from their checkpoints, in a new process too"
        if resume is None:
            how = (
                "run() does the others in this process; with set_checkpoint_dir(path) and "
                "run(resume='auto'), a new one could go on"
            )
        logging.getLogger(__name__).warning(
            "note: %r was stopped with %d of %d folds done; %s",
            self.label,
            len(self._done),
            len(self.folds),
            how,
        )

    def _tell(self, failed: dict[str, Exception]) -> None:
        """Warn of folds that failed; raise where all did."""
        told = "; ".join(
            f"{label}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            for label, error in failed.items()
        )
        if failed and not self._done:
            raise ExecutionError(f"all folds of {self.label!r} failed ({told})") from next(
                iter(failed.values())
            )
        if failed:
            warn(
                f"{len(failed)} of {len(self.folds)} folds failed; run() again does them ({told})",
                FoldFailedWarning,
            )

    def _audit(self, plan: Any, fold: Fold) -> None:
        """Look at the rows of one fold, for all of them are alike."""
        auditor = RunAudit(self.experiment.audit)
        if auditor.mode != "off":
            with unchanged_randomness():
                own = fold_experiment(self.experiment, plan, fold, fold.label)
            auditor.look(own.execution_plan, own.ctx, plan=False)

    def _selection(self, plan: Any) -> list[str]:
        """Say what chooses by rows that folds validate on, phase by phase."""
        bound = {b.featureset.label: b for b in self.bindings}
        stopped = {k: b.val_split_name for k, b in bound.items() if b.stop_size is not None}
        found = []
        for phase in plan.flatten():
            for monitor, who in monitors_of(phase, self.experiment.model_graph).items():
                for watch in loggers_of(monitor, phase.callbacks):
                    phase_of_it: Any = getattr(watch, "eval_phase", None)
                    sources = [] if phase_of_it is None else phase_of_it.input_sources
                    if reads_only(watch, stopped) or not any(_is_scored(bound, s) for s in sources):
                        continue
                    found.append(
                        f"{' and '.join(who)} of phase {phase.label!r} choose by {monitor!r}, "
                        f"which {watch.label!r} computes on {sources[0].split or 'all rows'!r}"
                    )
        return found

    def _warn_of_rows_not_used(self, plan: Any) -> None:
        """Warn of rows that are held back from training for nothing."""
        stopped = {b.featureset.label: b for b in self.bindings if b.stop_size is not None}
        vals = {label: b.val_split_name for label, b in stopped.items()}
        stops = {label: b.stop_split_name for label, b in stopped.items()}
        if not stopped or self.search is not None:
            return
        for phase in plan.flatten():
            watched = monitors_of(phase, self.experiment.model_graph)
            if any(reads_only(w, vals) for m in watched for w in loggers_of(m, phase.callbacks)):
                return
            evaluated = [getattr(callback, "eval_phase", None) for callback in phase.callbacks]
            for own in (phase, *filter(None, evaluated)):
                if any(stops.get(s.upstream_ref.node_label) == s.split for s in own.input_sources):
                    return
        warn(
            f"stop_size holds back training rows of {list(stopped)} in each fold, and nothing in "
            "the plan chooses by them; leave stop_size out, or let early stopping or a schedule "
            f"watch a metric of an Evaluation on {next(iter(vals.values()))!r}"
        )

    def _object(self, said: str, category: type[Warning]) -> None:
        """Warn of a plan whose scores would be too good, or refuse it."""
        if self.experiment.audit == "error":
            raise AuditError(f"{said}; Experiment(audit='warn') runs all the same")
        warn(said, category)

    def _warn_of_leaks(self, plan: Any) -> None:
        """Warn of trainings that read rows which folds validate on."""
        bound = {b.featureset.label: b for b in self.bindings}
        learning = [p for p in plan.flatten() if isinstance(p, TrainPhase | FitPhase)]
        for phase, source in ((p, s) for p in learning for s in p.input_sources):
            binding, name = bound.get(source.upstream_ref.node_label), source.split
            if binding is None or name == binding.train_split_name:
                continue
            fs = binding.featureset
            rows = fs if name is None else fs.splits.get(name)
            if rows is None or not rows.is_disjoint_with(binding.pool()):
                self._object(
                    f"phase {phase.label!r} learns from {name or 'all rows'!r} of {fs.label!r}, "
                    "and folds validate on some of these rows; let it read "
                    f"{binding.train_split_name!r}",
                    LeakWarning,
                )

    def __repr__(self) -> str:
        what = self.experiment.label if self.phase is None else self.phase.label
        return f"CrossValidation({self.label!r} of {what!r}, {self.bindings})"


def _is_scored(bound: dict[str, CVBinding], source: Any) -> bool:
    """Tell whether an input reads rows that some fold validates on."""
    binding = bound.get(source.upstream_ref.node_label)
    if binding is None or source.split == binding.train_split_name:
        return False
    if source.split in (None, binding.val_split_name):
        return True
    if binding.stop_size is not None and source.split == binding.stop_split_name:
        return False
    return not binding.featureset.get_split(source.split).is_disjoint_with(binding.pool())


def _checked(bindings: Any, experiment: Experiment) -> list[CVBinding]:
    found: list[CVBinding] = all_of(CVBinding, "bindings", bindings)
    if not found:
        raise ConfigError("bindings must hold at least one CVBinding, got none")
    known = experiment.ctx.available_featuresets.values()
    for i, binding in enumerate(found):
        fs = binding.featureset
        if fs not in known:
            raise ConfigError(f"{fs.label!r} is no FeatureSet of experiment {experiment.label!r}")
        if fs in [other.featureset for other in found[:i]]:
            raise ConfigError(f"{fs.label!r} is bound twice; give one binding all source_splits")
    return found


def _fold_splitter(splitter: Any, bindings: Sequence[CVBinding], n_repeats: int) -> Any:
    if splitter is None:
        return None
    lead = bindings[0]
    keys = any(k is not None for b in bindings for k in (b.group_by, b.stratify_by, b.bins))
    own = isinstance(splitter, FoldSplitter)
    if any(b.val_size is not None for b in bindings) or (own and keys):
        told = "group_by, stratify_by and val_size" if own else "val_size"
        raise ConfigError(f"give {told} to the splitter, not to bindings; got both")
    if any(b.bins is not None for b in bindings):
        raise ConfigError(
            f"bins cuts the strata of KFoldSplitter, and {splitter!r} reads the column as it is; "
            "leave bins out, or stratify by a column of bins"
        )
    found = splitter if own else ScikitSplitter(splitter, lead.group_by, lead.stratify_by)
    if n_repeats > 1 and not hasattr(found, "seed"):
        raise ConfigError(
            f"{splitter!r} has no seed, so its repeats would be alike; drop n_repeats"
        )
    return found
