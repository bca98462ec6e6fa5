"""Cross-validation of an experiment or a part of its plan."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from modularml._arguments import Checked, at_least
from modularml._warning import warn
from modularml.engine.monitoring import loggers_of, monitors_of
from modularml.errors import ConfigError
from modularml.experiment import Experiment, PhaseGroup
from modularml.phases.phase import ExperimentPhase, all_of
from modularml.splitters import FoldSplitter, ScikitSplitter
from modularml.strategies.cv_results import CVResults
from modularml.strategies.folds import CVBinding, make_folds
from modularml.strategies.held_out_checks import (
    SelectionWarning,
    audit_variant,
    check_scored_rows,
)
from modularml.strategies.variants.runs import (
    FoldFailedWarning,
    Jobs,
    Search,
    Stacked,
    VariantRuns,
)
from modularml.strategies.variants.variant import Variant, checked_experiment, reads_only

__all__ = ["CrossValidation", "FoldFailedWarning", "SelectionWarning"]


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
    n_jobs : int or 'auto', optional
        Number of processes that run folds; -1 for one per core. None uses
        `joblib.parallel_config`, or else 1. Its cluster backends (Dask, Ray) work too. 'auto' runs
        the first fold in this process, and the others there or in as many processes as
        `joblib.parallel_config` says (by default one per core), whichever its time lets expect to
        be faster, unless `stacked` trains all as one; the choice is logged at level INFO. Results
        equal those of one process bit for bit, given the same number of threads. Torch models must
        be given by class, since workers rebuild them, and results of callbacks are returned only
        if they are plain data.
    timeout : float, optional
        Seconds after which a fold in a worker process fails.
    search : callable, optional
        Called with each fold's experiment before it runs, to select settings on the fold's training
        rows alone: a `Sweep`, a function that returns one, or, for example, a function with an
        inner `CrossValidation`. It may edit the graph; a phase or group that it returns is run
        instead of the plan, an experiment that it returns instead of the fold's.
    stacked : bool or 'auto'
        Whether folds are trained as one in this process: the weights of small torch models get a
        leading axis, and each step trains all folds. Rows and batches are those of folds trained
        one after another; losses and weights are equal up to rounding. What cannot be trained so is
        trained one fold after another, and a line in the log says why. ``'auto'`` stacks small
        torch models where it is faster and neither `n_jobs` nor `search` is given; False gives
        equal bits whatever else runs.

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
    >>> cv = mml.CrossValidation(
    ...     bindings=mml.CVBinding("rows", "train"), n_folds=3, phase=phase, experiment=experiment
    ... )
    >>> results = cv.run(show_fold_progress=False, show_training_progress=False)
    >>> results.n_folds
    3
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
        n_jobs: Jobs = None,
        timeout: float | None = None,
        search: Search | None = None,
        stacked: Stacked = "auto",
    ) -> None:
        chosen = checked_experiment(experiment, phase)
        at_least(0, seed=seed)
        at_least(1, n_folds=n_folds, n_repeats=n_repeats)
        self.label, self.experiment, self.phase = label, chosen, phase
        self.bindings = checked_bindings(bindings, chosen)
        self.n_folds, self.seed, self.n_repeats = n_folds, seed, n_repeats
        self.splitter, self._splitter = splitter, _fold_splitter(splitter, self.bindings, n_repeats)
        self.n_jobs, self.timeout, self.search = n_jobs, timeout, search
        if splitter is None and n_folds == 1 and any(b.val_size is None for b in self.bindings):
            raise ConfigError("n_folds=1 needs val_size: one fold would validate on every row")
        self.stacked = stacked
        self._runs = VariantRuns(self, "fold", search)

    @property
    def phase_template(self) -> ExperimentPhase | PhaseGroup:
        """What each fold runs: `phase`, or the plan of the experiment."""
        return self._runs.plan

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
        flags = self._runs.check(resume, {**kwargs, "persist_progress": persist_progress})
        plan = self._runs.plan
        if missing := self._runs.missing(self.folds):
            audit_variant(self.experiment, plan, missing[0])
        selects = check_scored_rows(
            self.experiment,
            plan,
            self.bindings,
            "Folds are scored on these rows, so their scores are too optimistic; pass, for "
            "example, stop_size=0.15 to CVBinding, which holds out training rows of each fold for "
            "this",
        )
        self._warn_of_unused_rows(plan)
        failed = self._runs.run(self.folds, show=show_fold_progress, resume=resume, flags=flags)
        return CVResults(
            self.label,
            self.bindings,
            self.folds,
            self._runs.done,
            failed,
            selected_on_scored_rows=selects,
        )

    def fresh(self, folds: Sequence[Variant] | None = None) -> CrossValidation:
        """Return the same cross-validation before it ran, with other folds if given."""
        names = "label phase experiment splitter bindings n_folds seed n_repeats n_jobs timeout"
        kept = {name: getattr(self, name) for name in [*names.split(), "search", "stacked"]}
        new = type(self)(**kept)
        if folds is not None:
            new.folds = list(folds)
        return new

    def _warn_of_unused_rows(self, plan: Any) -> None:
        """Warn of `stop_size` if nothing in the plan uses the rows held out by it."""
        stopped = {b.featureset.label: b for b in self.bindings if b.stop_size is not None}
        vals = {label: b.val_split_name for label, b in stopped.items()}
        stops = {label: b.stop_split_name for label, b in stopped.items()}
        if not stopped or self.search is not None:
            return
        for phase in plan.flatten():
            monitors = monitors_of(phase, self.experiment.model_graph, checkpoints=True)
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

    def __repr__(self) -> str:
        what = self.experiment.label if self.phase is None else self.phase.label
        return f"CrossValidation({self.label!r} of {what!r}, {self.bindings})"


def checked_bindings(bindings: Any, experiment: Experiment) -> list[CVBinding]:
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
