"""Running of variants of an experiment: in this process, as one, in workers or on clusters."""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from joblib import effective_n_jobs

from modularml._arguments import at_least
from modularml._warning import warn
from modularml.context import ExperimentContext
from modularml.engine.callback import EXPERIMENT_HOOKS, ExperimentCallback, Hooks
from modularml.engine.display import check_flags
from modularml.engine.interruption import exit_on_signals, is_interruption
from modularml.engine.stacked import SideBySide, pays
from modularml.errors import ConfigError, ExecutionError, ModularMLError
from modularml.experiment import Checkpointing, Experiment, PhaseGroup
from modularml.experiment.resume import config_hash
from modularml.graph.files import check_storable
from modularml.io.atomic import temporary_folder
from modularml.io.inspection import inspect
from modularml.io.randomness import unchanged_randomness
from modularml.progress import bar
from modularml.strategies.variants.clusters import (
    count_jobs,
    ends_on_cluster,
    is_cluster,
    most_jobs,
)
from modularml.strategies.variants.variant import Plan, Variant, template_of, variant_experiment
from modularml.strategies.variants.workers import Job, LocalWorkers, seconds_to_start

logger = logging.getLogger(__name__)

Base = tuple[Experiment, Plan]
"""What all variants are variants of."""
Outcome = tuple[Variant, Experiment | Exception]
Stacked = bool | Literal["auto"]
Jobs = int | Literal["auto"] | None
Resume = Literal["auto"] | None
Search = Callable[[Experiment], Any]
"""Returns the plan or the experiment to run, another search, or None; see `CrossValidation`."""
_SEND_S = 0.05
"""About what it takes to send a variant to a worker, and to read its results."""
_GAIN = 0.8
"""Largest ratio of forecast times at which workers are worth their cores."""
_BARS = ("show_sampler_progress", "show_training_progress", "show_eval_progress")


class FoldFailedWarning(UserWarning):
    """A fold, or a member of an ensemble, failed with an error; the others are not affected."""


def check_jobs(n_jobs: Jobs, timeout: float | None, stacked: Stacked, noun: str) -> None:
    """Refuse numbers of processes, timeouts and values of `stacked` that cannot be honoured."""
    at_least(0, timeout=timeout)
    is_number = isinstance(n_jobs, Integral) and not isinstance(n_jobs, bool) and n_jobs != 0
    if not (is_number or n_jobs is None or n_jobs == "auto"):
        raise ConfigError(
            "n_jobs must be an int other than 0, such as 2, or -1 for each core; 'auto'; or None; "
            f"got {n_jobs!r}"
        )
    if timeout is not None and (n_jobs == "auto" or effective_n_jobs(n_jobs) == 1):
        raise ConfigError(
            f"timeout needs n_jobs of at least 2: a {noun} in this process cannot be stopped"
        )
    if not isinstance(stacked, bool) and stacked != "auto":
        raise ConfigError(f"stacked must be True, False or 'auto', got {stacked!r}")
    if stacked is True and n_jobs not in (None, 1, "auto"):
        raise ConfigError(
            f"stacked=True trains all in this process, got n_jobs={n_jobs!r}; omit one of them"
        )


@dataclass(frozen=True)
class Work:
    """What every variant of an experiment runs.

    Parameters
    ----------
    label : str
        First part of the label of each run.
    flags : dict
        Display flags of `Experiment.run`.
    search : callable, optional
        See `CrossValidation`.
    folder : Path, optional
        Folder for the checkpoints of variants.
    resume : str, optional
        As in `Experiment.run`.
    """

    label: str
    flags: dict[str, Any]
    search: Search | None = None
    folder: Path | None = None
    resume: str | None = None

    def prepared(self, experiment: Experiment, plan: Plan, variant: Variant) -> Experiment:
        """Return the experiment of a variant; random states of the process are set."""
        new = variant_experiment(experiment, plan, variant, f"{self.label}_{variant.label}")
        if self.folder is not None:
            new.set_checkpoint_dir(self.folder / new.label)  # a search may use it
        return new

    def run(self, experiment: Experiment, plan: Plan, variant: Variant) -> Experiment:
        """Run a variant and return its experiment; random states are restored."""
        with unchanged_randomness():
            return self._run(experiment, plan, variant)

    def _run(self, experiment: Experiment, plan: Plan, variant: Variant) -> Experiment:
        new = self.prepared(experiment, plan, variant)
        folder = None if self.folder is None else self.folder / new.label
        if self.search is not None:
            new = self._searched(self.search, new, folder)
        if folder is not None:
            new.set_checkpoint_dir(folder)
        if self.resume is not None and new.checkpointing is None:
            new.set_checkpointing(Checkpointing(mode="disk", save_on="phase_end", max_to_keep=1))
        new.run(resume=self.resume, **self.flags)
        for fs in new.ctx.available_featuresets.values():
            if fs.scaler_records:  # its columns are not shared with other variants
                fs.collection.tensors.clear()
        return new

    def _searched(self, search: Search, new: Experiment, folder: Path | None) -> Experiment:
        """Return a variant's experiment after the search; save it if it may be resumed."""
        path = None
        if self.resume is not None and folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            key = f"{config_hash(new, new.execution_plan, ())} {new._fingerprints()}"
            name = f"searched-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
            path = folder / f"{name}.exp.mml"
            if path.exists():
                with ExperimentContext().activate():
                    return Experiment.load(path)
        with new.ctx.activate(), unchanged_randomness():
            chosen = search(new)
            while callable(chosen):  # a function that returns a search
                chosen = chosen(new)
        if isinstance(chosen, Experiment):
            new = chosen
        elif chosen is not None:
            items = chosen.all if isinstance(chosen, PhaseGroup) else [chosen]
            new.execution_plan.clear().add_items(items)
        if path is not None:
            new.save(path)
        return new

    def outcomes(
        self,
        experiment: Experiment,
        plan: Plan,
        variants: Sequence[Variant],
        *,
        n_jobs: Jobs = None,
        timeout: float | None = None,
        stacked: Stacked = False,
    ) -> Generator[Outcome]:
        """Run variants; yield each as it ends, with its experiment or its error.

        With `stacked`, small models are trained as one in this process; see `SideBySide`.
        """
        base, loud = (experiment, plan), stacked is True
        as_one = stacked is not False and self.search is None and len(variants) > 1
        if as_one and not loud:
            alone = n_jobs in (None, 1, "auto") and count_jobs(None) == 1
            as_one = alone and pays(experiment, plan, len(variants))
        timed = [c.label for p in plan.flatten() for c in p.callbacks if c.measures_time]
        if as_one and timed:
            message = "note: runs are not trained as one: callback %r measures the time of each"
            logger.log(logging.WARNING if loud else logging.INFO, message, timed[0])
        elif as_one:
            if n_jobs == "auto":
                message = "n_jobs='auto': %d small models are trained as one, without workers"
                logger.info(message, len(variants))
            return self._side_by_side(base, variants, loud=loud)
        if n_jobs == "auto":
            is_cluster(timeout)  # refuses backends that run no variants
            return self._automatically(base, variants)
        n_workers = count_jobs(n_jobs)
        if n_workers == 1 or not variants:
            return self._sequentially(base, variants)
        return self._quiet._on_workers(base, variants, min(n_workers, len(variants)), timeout)

    @property
    def _quiet(self) -> Work:
        return replace(self, flags={**self.flags, **dict.fromkeys(_BARS, False)})

    def _sequentially(self, base: Base, variants: Sequence[Variant]) -> Generator[Outcome]:
        """Run variants in this process."""
        for variant in variants:
            yield _outcome(variant, self.run, *base, variant)

    def _automatically(self, base: Base, variants: Sequence[Variant]) -> Generator[Outcome]:
        """Run variants in this process until one succeeds, and the others where that is faster."""
        rest: Sequence[Variant] = ()
        for i, variant in enumerate(variants, 1):
            started = time.perf_counter()
            outcome = _outcome(variant, self.run, *base, variant)
            seconds, rest = time.perf_counter() - started, variants[i:]
            yield outcome
            if not isinstance(outcome[1], Exception):
                break
        n = len(rest)
        if not n:
            return
        n_workers = min(most_jobs(), n)
        serial, waiting = n * seconds, seconds_to_start(n_workers)
        parallel = waiting + -(-n // n_workers) * (seconds + _SEND_S)
        use = n_workers > 1 and parallel < _GAIN * serial
        logger.info(
            "n_jobs='auto': %r took %.2g s, so the other %d run %s (in this process: about %.2g s; "
            "%d workers: %.2g s, %.2g to start)",
            *(variant.label, seconds, n, f"on {n_workers} workers" if use else "in this process"),
            *(serial, n_workers, parallel, waiting),
        )
        if use:
            with closing(self.outcomes(*base, rest, n_jobs=n_workers)) as outcomes:
                try:
                    outcome = next(outcomes)
                except ModularMLError as error:
                    message = "they run in this process, as workers cannot read them"
                    logger.info("n_jobs='auto': %s: %s", message, error)
                else:
                    yield outcome
                    yield from outcomes
                    return
        yield from self._sequentially(base, rest)

    def _side_by_side(
        self, base: Base, variants: Sequence[Variant], *, loud: bool
    ) -> Generator[Outcome]:
        """Run variants in this process, their epochs together.

        If `loud`, a warning is logged when they cannot be trained together.
        """
        message = "%r: %d runs are trained as one; stacked=False trains one after another"
        logger.info(message, self.label, len(variants))
        works = [
            partial((self._quiet if i else self)._run, *base, variant)
            for i, variant in enumerate(variants)
        ]
        settings = [getattr(phase, "checkpointing", None) for phase in base[1].flatten()]
        saves = self.folder is not None or any(s is not None and s.mode == "disk" for s in settings)
        options: dict[str, Any] = {}
        if loud:
            options = {"level": logging.WARNING, "fewest_steps": 32, "most_weights": None}
        for number, outcome in SideBySide(works, saves=saves, **options).outcomes():
            yield variants[number], outcome

    def _on_workers(
        self, base: Base, variants: Sequence[Variant], n_jobs: int, timeout: float | None
    ) -> Generator[Outcome]:
        """Run variants in worker processes.

        The experiment is written to a file once. A worker reads it with memory-mapped rows, and
        writes a checkpoint of the variant, which is loaded into an experiment in this process.
        """
        on_cluster, graph = is_cluster(timeout), base[0].model_graph
        if graph is not None:
            check_storable(graph)
        with exit_on_signals(), temporary_folder() as folder:
            with unchanged_randomness():
                path = template_of(*base).save(folder / "job")
            job = Job(str(path))
            for name in (entry["name"] for entry in inspect(path)["classes"]):
                module, _, qualname = name.partition(":")
                if module == "__main__" and hasattr(sys.modules[module], qualname):
                    job.classes[name] = getattr(sys.modules[module], qualname)
                else:
                    job.modules.append(module)
            if on_cluster:
                ends = ends_on_cluster(job, path, self, variants, n_jobs)
            else:
                ends = LocalWorkers(job, n_jobs, timeout).ends(self, variants)

            def read(variant: Variant, end: Callable[[], str]) -> Experiment:
                path = end()
                with unchanged_randomness(), ExperimentContext().activate():
                    if self.search is not None:  # it may have changed the graph
                        return Experiment.load(path)
                    new = self.prepared(*base, variant)
                    new.restore_checkpoint(path, strict=False)
                return new

            with closing(ends):
                for variant, end in ends:
                    yield _outcome(variant, read, variant, end)


def _outcome(variant: Variant, work: Callable[..., Experiment], *arguments: Any) -> Outcome:
    try:
        return variant, work(*arguments)
    except Exception as error:  # noqa: BLE001 - one variant's failure is that variant's alone
        return variant, error


@contextmanager
def announced(
    experiment: Experiment, label: str, runs: Mapping[str, Experiment], *, resume: bool
) -> Iterator[None]:
    """Fire the hooks of an experiment's callbacks before and after its variants."""
    hooks = Hooks(experiment.exp_callbacks, ExperimentCallback, EXPERIMENT_HOOKS)
    facts = {"experiment": experiment, "label": label}
    error: BaseException | None = None
    try:
        hooks("on_variants_start", **facts, resume=resume)
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        hooks("on_variants_end", **facts, runs=runs, error=error)


class VariantRuns:
    """Runs variants, and holds the experiments of those that succeeded (`done`, by label).

    Parameters
    ----------
    owner : CrossValidation or Ensemble
        With the label, the experiment, the phase and the options of its runs.
    noun : str
        What a variant is called in messages: ``fold`` or ``member``.
    search
        See `CrossValidation`.
    """

    def __init__(self, owner: Any, noun: str, search: Search | None = None) -> None:
        check_jobs(owner.n_jobs, owner.timeout, owner.stacked, noun)
        self.jobs = {name: getattr(owner, name) for name in ("n_jobs", "timeout", "stacked")}
        self.label: str = owner.label
        self.experiment: Experiment = owner.experiment
        self.phase: Plan | None = owner.phase
        self.noun, self.search = noun, search
        self.done: dict[str, Experiment] = {}

    @property
    def plan(self) -> Plan:
        """What is run; ConfigError if it is empty."""
        plan = self.experiment.execution_plan if self.phase is None else self.phase
        if isinstance(plan, PhaseGroup) and not len(plan):
            raise ConfigError("the plan is empty; add phases to it, or pass phase=")
        return plan

    def missing(self, variants: Sequence[Variant]) -> list[Variant]:
        """Return the variants that have not succeeded yet."""
        return [variant for variant in variants if variant.label not in self.done]

    def check(self, resume: Any, flags: dict[str, Any]) -> dict[str, Any]:
        """Return all display flags; refuse unknown ones, and a resume that is not possible."""
        is_possible = resume == "auto" and self.experiment._checkpoint_dir is not None
        if resume is not None and not is_possible:
            raise ConfigError(
                "resume must be 'auto' or None, and needs a folder from set_checkpoint_dir(); "
                f"got {resume!r}"
            )
        return check_flags(flags)

    def run(
        self,
        variants: Sequence[Variant],
        *,
        show: bool,
        resume: Resume = None,
        flags: dict[str, Any],
    ) -> dict[str, Exception]:
        """Run the variants that have not succeeded yet; return the errors of failed ones.

        Raises
        ------
        ExecutionError
            If all have failed; the first error is its cause.
        """
        missing, failed = self.missing(variants), dict[str, Exception]()
        folder, n = self.experiment._checkpoint_dir, len(variants)
        work = Work(self.label, flags, self.search, folder and folder.absolute(), resume)
        outcomes = work.outcomes(self.experiment, self.plan, missing, **self.jobs)
        options = {"show": show, "persist": flags["persist_progress"], "unit": self.noun}
        try:
            with (
                announced(self.experiment, self.label, self.done, resume=resume is not None),
                bar(len(missing), self.label, **options) as progress,
                closing(outcomes) as results,
            ):
                for variant, outcome in results:
                    if isinstance(outcome, Exception):
                        failed[variant.label] = outcome
                    else:
                        self.done[variant.label] = outcome
                    progress.update()
                    facts = self.label, variant.label, len(failed) + len(self.done), n, self.noun
                    logger.info("%r: %s has ended, %d of %d %ss", *facts)
        except BaseException as error:
            if is_interruption(error):
                how = "run(resume='auto') resumes from their checkpoints, also in a new process"
                if resume is None:
                    how = (
                        "run() runs the others in this process; with set_checkpoint_dir(path) and "
                        "run(resume='auto'), a new process could resume"
                    )
                message = "note: %r was stopped with %d of %d %ss complete; %s"
                logger.warning(message, self.label, len(self.done), n, self.noun, how)
            raise
        messages = "; ".join(
            f"{label}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            for label, error in failed.items()
        )
        if failed and not self.done:
            raise ExecutionError(f"all {self.noun}s of {self.label!r} failed ({messages})") from (
                next(iter(failed.values()))
            )
        if failed:
            warn(
                f"{len(failed)} of {n} {self.noun}s failed; call run() again to retry them "
                f"({messages})",
                FoldFailedWarning,
            )
        return failed
