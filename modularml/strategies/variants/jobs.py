"""Running of variants of an experiment, in this process or in worker processes."""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from modularml.context import ExperimentContext
from modularml.engine.interruption import exit_on_signals
from modularml.engine.stacked import SideBySide, pays
from modularml.errors import ModularMLError
from modularml.experiment import Checkpointing, Experiment, PhaseGroup
from modularml.experiment.resume import config_hash
from modularml.graph.files import check_storable
from modularml.io import inspect
from modularml.io.atomic import temporary_folder
from modularml.io.randomness import unchanged_randomness
from modularml.strategies.variants.clusters import (
    count_jobs,
    ends_on_cluster,
    is_cluster,
    most_jobs,
)
from modularml.strategies.variants.local_workers import LocalWorkers, seconds_to_start
from modularml.strategies.variants.variant import Plan, Variant, template_of, variant_experiment
from modularml.strategies.variants.worker import Job

__all__ = ["Jobs", "Outcome", "Search", "Stacked", "Work"]

Outcome = tuple[Variant, Experiment | Exception]
Stacked = bool | Literal["auto"]
Jobs = int | Literal["auto"] | None
Search = Callable[[Experiment], Any]
"""Returns the plan or the experiment to run, another search, or None; see `CrossValidation`."""
_BARS = ("show_sampler_progress", "show_training_progress", "show_eval_progress")


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
        self._set_folder(new, folder)
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

    def _set_folder(self, new: Experiment, folder: Path | None) -> None:
        """Set a variant's folder; if it may be resumed, checkpoint after each phase."""
        if folder is not None:
            new.set_checkpoint_dir(folder)
        if self.resume is not None and new.checkpointing is None:
            new.set_checkpointing(Checkpointing(mode="disk", save_on="phase_end", max_to_keep=1))

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
        if self._stacks(experiment, plan, variants, stacked, n_jobs):
            if n_jobs == "auto":
                message = "n_jobs='auto': %d small models are trained as one, without workers"
                logging.getLogger(__name__).info(message, len(variants))
            return self.side_by_side(experiment, plan, variants, loud=stacked is True)
        if n_jobs == "auto":
            is_cluster(timeout)  # refuses backends that run no variants
            return self.automatically(experiment, plan, variants)
        n_workers = count_jobs(n_jobs)
        if n_workers == 1 or not variants:
            return self.sequentially(experiment, plan, variants)
        quiet = replace(self, flags={**self.flags, **dict.fromkeys(_BARS, False)})
        n_workers = min(n_workers, len(variants))
        return quiet.on_workers(experiment, plan, variants, n_workers, timeout)

    def sequentially(
        self, experiment: Experiment, plan: Plan, variants: Sequence[Variant]
    ) -> Generator[Outcome]:
        """Run variants in this process; see `outcomes`."""
        for variant in variants:
            yield _outcome(variant, lambda variant=variant: self.run(experiment, plan, variant))  # type: ignore[misc]

    def automatically(
        self, experiment: Experiment, plan: Plan, variants: Sequence[Variant]
    ) -> Generator[Outcome]:
        """Run variants in this process until one succeeds, and the others where that is faster."""
        for i, variant in enumerate(variants, 1):
            started = time.perf_counter()
            (outcome,) = self.sequentially(experiment, plan, [variant])
            seconds = time.perf_counter() - started
            yield outcome
            if not isinstance(outcome[1], Exception) and i < len(variants):
                n_jobs = _chosen(variant, seconds, len(variants) - i)
                yield from self._as_chosen(n_jobs, experiment, plan, variants[i:])
                return

    def _as_chosen(
        self, n_jobs: int, experiment: Experiment, plan: Plan, variants: Sequence[Variant]
    ) -> Generator[Outcome]:
        """Run variants on workers, or in this process if the experiment cannot be sent."""
        with closing(self.outcomes(experiment, plan, variants, n_jobs=n_jobs)) as outcomes:
            try:
                first = next(outcomes)
            except ModularMLError as error:
                if n_jobs == 1:
                    raise
                logging.getLogger(__name__).info(
                    "n_jobs='auto': they run in this process, as workers cannot read them: %s",
                    error,
                )
            else:
                yield first
                yield from outcomes
                return
        yield from self.sequentially(experiment, plan, variants)

    def _stacks(
        self,
        experiment: Experiment,
        plan: Plan,
        variants: Sequence[Variant],
        stacked: Stacked,
        n_jobs: Any,
    ) -> bool:
        """Return whether variants are trained side by side."""
        if stacked is False or self.search is not None or len(variants) < 2:
            return False
        alone = n_jobs in (None, 1, "auto") and count_jobs(None) == 1
        if stacked is not True and not (alone and pays(experiment, plan, len(variants))):
            return False
        timed = [c.label for p in plan.flatten() for c in p.callbacks if c.measures_time]
        if timed:
            level = logging.WARNING if stacked is True else logging.INFO
            message = "note: runs are not trained as one: callback %r measures the time of each"
            logging.getLogger(__name__).log(level, message, timed[0])
        return not timed

    def side_by_side(
        self,
        experiment: Experiment,
        plan: Plan,
        variants: Sequence[Variant],
        *,
        loud: bool = False,
    ) -> Generator[Outcome]:
        """Run variants in this process, their epochs together; see `outcomes`.

        If `loud`, a warning is logged when they cannot be trained together.
        """
        logging.getLogger(__name__).info(
            "%r: %d runs are trained as one; stacked=False trains one after another",
            self.label,
            len(variants),
        )
        quiet = replace(self, flags={**self.flags, **dict.fromkeys(_BARS, False)})
        works = [
            partial((quiet if i else self)._run, experiment, plan, variant)
            for i, variant in enumerate(variants)
        ]
        settings = [getattr(phase, "checkpointing", None) for phase in plan.flatten()]
        saves = self.folder is not None or any(s is not None and s.mode == "disk" for s in settings)
        options: dict[str, Any] = {}
        if loud:
            options = {"level": logging.WARNING, "fewest_steps": 32, "most_weights": None}
        runs = SideBySide(works, saves=saves, **options)
        for number, outcome in runs.outcomes():
            yield variants[number], outcome

    def on_workers(
        self,
        experiment: Experiment,
        plan: Plan,
        variants: Sequence[Variant],
        n_jobs: int,
        timeout: float | None,
    ) -> Generator[Outcome]:
        """Run variants in worker processes; see `outcomes`.

        The experiment is written to a file once. A worker reads it with memory-mapped rows, and
        writes a checkpoint of the variant, which is loaded into an experiment in this process.
        """
        on_cluster = is_cluster(timeout)
        if experiment.model_graph is not None:
            check_storable(experiment.model_graph)
        with exit_on_signals(), temporary_folder() as folder:
            with unchanged_randomness():
                path = template_of(experiment, plan).save(folder / "job")
            job = Job(str(path), *_modules_and_classes(path))
            if on_cluster:
                ends = ends_on_cluster(job, path, self, variants, n_jobs)
            else:
                ends = LocalWorkers(job, n_jobs, timeout).ends(self, variants)
            with closing(ends):
                for variant, end in ends:
                    yield _outcome(variant, lambda: self._read(end(), experiment, plan, variant))  # noqa: B023

    def _read(self, path: str, experiment: Experiment, plan: Plan, variant: Variant) -> Experiment:
        with unchanged_randomness(), ExperimentContext().activate():
            if self.search is not None:  # it may have changed the graph
                return Experiment.load(path)
            new = self.prepared(experiment, plan, variant)
            new.restore_checkpoint(path, strict=False)
        return new


def _outcome(variant: Variant, work: Callable[[], Experiment]) -> Outcome:
    try:
        return variant, work()
    except Exception as error:  # noqa: BLE001 - one variant's failure is that variant's alone
        return variant, error


_SEND_S = 0.05
"""About what it takes to send a variant to a worker, and to read its results."""
_GAIN = 0.8
"""Largest ratio of forecast times at which workers are worth their cores."""


def _chosen(first: Variant, seconds: float, n: int) -> int:
    """Return the number of processes for further variants, given the time of one in this."""
    n_workers = min(most_jobs(), n)
    serial, waiting = n * seconds, seconds_to_start(n_workers)
    parallel = waiting + -(-n // n_workers) * (seconds + _SEND_S)
    reason = f"about {serial:.2g} s; {n_workers} workers: {parallel:.2g} s, {waiting:.2g} to start"
    use = n_workers > 1 and parallel < _GAIN * serial
    logging.getLogger(__name__).info(
        "n_jobs='auto': %r took %.2g s, so the other %d run %s (in this process: %s)",
        first.label,
        seconds,
        n,
        f"on {n_workers} workers" if use else "in this process",
        reason,
    )
    return n_workers if use else 1


def _modules_and_classes(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Return the modules a worker may import, and classes sent to it by value."""
    modules, classes = [], {}
    for name in (entry["name"] for entry in inspect(path)["classes"]):
        module, _, qualname = name.partition(":")
        if module == "__main__" and hasattr(sys.modules[module], qualname):
            classes[name] = getattr(sys.modules[module], qualname)
        else:
            modules.append(module)
    return modules, classes
