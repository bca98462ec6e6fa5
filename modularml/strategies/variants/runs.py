"""Running of all variants of an experiment: progress, failures and resuming."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from joblib import effective_n_jobs

from modularml._arguments import at_least
from modularml._warning import warn
from modularml.context import ExperimentContext
from modularml.engine.callback import EXPERIMENT_HOOKS, ExperimentCallback, Hooks
from modularml.engine.interruption import is_interruption
from modularml.errors import ConfigError, ExecutionError
from modularml.experiment import Experiment, PhaseGroup
from modularml.experiment.run import check_flags
from modularml.phases.phase import ExperimentPhase
from modularml.progress import bar
from modularml.strategies.variants.jobs import Jobs, Search, Stacked, Work
from modularml.strategies.variants.variant import Plan, Variant

__all__ = [
    "FoldFailedWarning",
    "Resume",
    "VariantRuns",
    "announced",
    "check_jobs",
    "check_stacked",
    "checked_experiment",
]

logger = logging.getLogger(__name__)

Resume = Literal["auto"] | None


class FoldFailedWarning(UserWarning):
    """A fold, or a member of an ensemble, failed with an error; the others are not affected."""


def checked_experiment(experiment: Any, phase: Any) -> Experiment:
    """Return an experiment, by default that of the active context; check it and the phase."""
    chosen = ExperimentContext.get_active().get_experiment() if experiment is None else experiment
    if not isinstance(chosen, Experiment):
        how = "create one first"
        if isinstance(chosen, str | Path | list | tuple):
            how = "read one with Experiment.load; ExperimentCollection takes several files"
        raise TypeError(f"experiment must be an Experiment, got {chosen!r:.200}; {how}")
    if phase is not None and not isinstance(phase, ExperimentPhase | PhaseGroup):
        raise TypeError(f"phase must be a phase or a PhaseGroup, got {phase!r}")
    return chosen


def check_stacked(stacked: bool | str, n_jobs: int | str | None) -> None:
    """Refuse values of `stacked` that cannot be honoured."""
    if not isinstance(stacked, bool) and stacked != "auto":
        raise ConfigError(f"stacked must be True, False or 'auto', got {stacked!r}")
    if stacked is True and n_jobs not in (None, 1, "auto"):
        raise ConfigError(
            f"stacked=True trains all in this process, got n_jobs={n_jobs!r}; omit one of them"
        )


def check_jobs(n_jobs: Jobs, timeout: float | None, noun: str) -> None:
    """Refuse numbers of processes and timeouts that cannot be honoured."""
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
    label : str
    experiment : Experiment
    phase : phase or PhaseGroup or None
        What is run; None for the experiment's plan.
    noun : str
        What a variant is called in messages: ``fold`` or ``member``.
    n_jobs, timeout, search, stacked
        See `CrossValidation`.
    """

    def __init__(
        self,
        label: str,
        experiment: Experiment,
        phase: Plan | None,
        noun: str,
        *,
        n_jobs: Jobs = None,
        timeout: float | None = None,
        search: Search | None = None,
        stacked: Stacked = False,
    ) -> None:
        check_stacked(stacked, n_jobs)
        self.stacked = stacked
        self.label, self.experiment, self.phase, self.noun = label, experiment, phase, noun
        self.n_jobs, self.timeout, self.search = n_jobs, timeout, search
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
        folder = self.experiment._checkpoint_dir
        work = Work(self.label, flags, self.search, folder and folder.absolute(), resume)
        jobs = {"n_jobs": self.n_jobs, "timeout": self.timeout, "stacked": self.stacked}
        outcomes = work.outcomes(self.experiment, self.plan, missing, **jobs)  # type: ignore[arg-type]
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
                    n_ended = len(failed) + len(self.done)
                    facts = self.label, variant.label, n_ended, len(variants), self.noun
                    logger.info("%r: %s has ended, %d of %d %ss", *facts)
        except BaseException as error:
            if is_interruption(error):
                self._log_how_to_resume(resume, len(variants))
            raise
        self._check_failures(failed, len(variants))
        return failed

    def _log_how_to_resume(self, resume: Resume, n: int) -> None:
        how = "run(resume='auto') resumes from their checkpoints, also in a new process"
        if resume is None:
            how = (
                "run() runs the others in this process; with set_checkpoint_dir(path) and "
                "run(resume='auto'), a new process could resume"
            )
        logger.warning(
            "note: %r was stopped with %d of %d %ss complete; %s",
            self.label,
            len(self.done),
            n,
            self.noun,
            how,
        )

    def _check_failures(self, failed: dict[str, Exception], n: int) -> None:
        """Warn of failed variants; raise if all failed."""
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
