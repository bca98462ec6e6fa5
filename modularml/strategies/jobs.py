"""Folds as jobs: in this process, or each on a worker of its own, sent as files."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joblib import cpu_count
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.backend import get_context
from joblib.externals.loky.process_executor import BrokenProcessPool

from modularml.context import ExperimentContext
from modularml.errors import ExecutionError
from modularml.experiment import Experiment, PhaseGroup
from modularml.io import inspect
from modularml.io.randomness import unchanged_randomness
from modularml.strategies.copying import Plan, fold_experiment, template_of
from modularml.strategies.folds import Fold

__all__ = ["Outcome", "Work", "in_turn", "on_workers"]

IDLE_S = 300
"""Seconds after which a worker without work goes away."""

Outcome = tuple[Fold, Experiment | Exception]
Search = Callable[[Experiment], Plan | None]


@dataclass(frozen=True)
class Work:
    """What is done in every fold.

    Parameters
    ----------
    label : str
        Of the cross-validation.
    flags : dict
        Display flags.
    search : callable or None
        Given the fold's experiment before it runs.
    """

    label: str
    flags: dict[str, Any]
    search: Search | None = None

    def prepared(self, experiment: Experiment, plan: Plan, fold: Fold) -> Experiment:
        """Return a fold's own experiment."""
        return fold_experiment(experiment, plan, fold, f"{self.label}_{fold.label}")

    def done(self, experiment: Experiment, plan: Plan, fold: Fold) -> Experiment:
        """Return a fold's own experiment after it has run; random states stay as they were."""
        with unchanged_randomness():
            own = self.prepared(experiment, plan, fold)
            with own.ctx.activate():
                chosen = None if self.search is None else self.search(own)
            if chosen is not None:
                items = chosen.all if isinstance(chosen, PhaseGroup) else [chosen]
                own.execution_plan.clear().add_items(items)
            own.run(**self.flags)
        for fs in own.ctx.available_featuresets.values():
            if fs.scaler_records:  # its columns are the fold's alone
                fs.collection.tensors.clear()
        return own


def in_turn(
    work: Work, experiment: Experiment, plan: Plan, folds: Sequence[Fold]
) -> Iterator[Outcome]:
    """Yield each fold with its experiment, or with the error that ended it."""
    for fold in folds:
        try:
            yield fold, work.done(experiment, plan, fold)
        except Exception as error:  # noqa: BLE001 - one fold's failure is that fold's alone
            yield fold, error


def on_workers(
    work: Work,
    experiment: Experiment,
    plan: Plan,
    folds: Sequence[Fold],
    *,
    n_jobs: int,
    timeout: float | None,
) -> Iterator[Outcome]:
    """Run folds in processes of their own, and yield each as it ends; see `in_turn`.

    The experiment is written to a file once; a worker reads it, maps its rows into memory, and
    writes back what a fold has learned and recorded, which goes into an experiment made here.
    """
    with tempfile.TemporaryDirectory(prefix="modularml-") as folder:
        with unchanged_randomness():
            path = template_of(experiment, plan).save(Path(folder) / "job")
        job = (str(path), work, *_own_classes(path))
        workers = _Workers(n_jobs, timeout)
        with ThreadPoolExecutor(n_jobs) as threads:
            waiting = {threads.submit(workers.run, (*job, fold)): fold for fold in folds}
            try:
                for future in as_completed(waiting):
                    yield _outcome(work, experiment, plan, waiting[future], future)
            finally:
                threads.shutdown(wait=False, cancel_futures=True)
                workers.stop()


def _outcome(work: Work, experiment: Experiment, plan: Plan, fold: Fold, future: Any) -> Outcome:
    try:
        path = future.result()
        with unchanged_randomness():
            if work.search is not None:  # the graph may be another one by now
                with ExperimentContext().activate():
                    return fold, Experiment.load(path)
            own = work.prepared(experiment, plan, fold)
            own.restore_checkpoint(path, strict=False)
            return fold, own
    except Exception as error:  # noqa: BLE001
        return fold, error


# -- workers ------------------------------------------------------------------------------------

_idle: defaultdict[int, deque[Any]] = defaultdict(deque)
"""Workers that wait for more work, by the threads that they may use."""


class _Workers:
    """Processes that run one job at a time, so that a dead or hanging one takes no other along."""

    def __init__(self, n_jobs: int, timeout: float | None) -> None:
        cores = int(os.environ.get("OMP_NUM_THREADS", cpu_count()))
        self.threads, self.timeout = max(1, min(cores, cpu_count() // n_jobs)), timeout
        self._busy: list[Any] = []

    def run(self, job: tuple[Any, ...]) -> str:
        """Run a job and return the path of what it wrote."""
        worker = self._take()
        self._busy.append(worker)
        try:
            path, problem = worker.submit(_work, *job).result(self.timeout)
        except TimeoutError:
            worker.shutdown(kill_workers=True)
            raise ExecutionError(f"not done after timeout={self.timeout:g} seconds") from None
        except BrokenProcessPool as error:
            worker.shutdown(kill_workers=True)
            raise ExecutionError(
                f"its worker died (was there too little memory?): {error}"
            ) from error
        finally:
            self._busy.remove(worker)
        _idle[self.threads].append(worker)
        if problem:
            raise ExecutionError(problem)
        return str(path)

    def stop(self) -> None:
        """Kill what is still running."""
        for worker in list(self._busy):
            worker.shutdown(wait=False, kill_workers=True)

    def _take(self) -> Any:
        """Return a worker that is up, with everything imported: its timeout starts after that."""
        while True:
            fresh = not _idle[self.threads]
            worker = self._new() if fresh else _idle[self.threads].pop()
            try:
                worker.submit(_ready, sys.path).result()
                return worker
            except BrokenProcessPool:  # it died while it had nothing to do
                if fresh:
                    raise

    def _new(self) -> Any:
        names = ("OMP", "OPENBLAS", "MKL", "NUMEXPR")
        caps = {f"{name}_NUM_THREADS": str(self.threads) for name in names}
        caps |= {f"TF_NUM_{name}_THREADS": str(self.threads) for name in ("INTRAOP", "INTEROP")}
        return ProcessPoolExecutor(1, timeout=IDLE_S, context=get_context("loky"), env=caps)


def _ready(path: list[str]) -> None:
    """Find modules where the parent finds them; this module is imported by now."""
    sys.path[:] = path


_loaded: dict[str, Experiment] = {}
"""The experiment that this worker read last, by path."""


def _work(
    path: str, work: Work, modules: list[str], classes: dict[str, Any], fold: Fold
) -> tuple[str, str]:
    """Run a fold in a worker; return the file it wrote, or what went wrong."""
    try:
        if path not in _loaded:
            _loaded.clear()
            with ExperimentContext().activate():
                _loaded[path] = Experiment.load(path, allow_import=modules, custom_objects=classes)
        found = _loaded[path]
        own = work.done(found, found.execution_plan, fold)
        target = Path(path).with_name(fold.label)
        if work.search is not None:
            return str(own.save(target)), ""
        return str(own._checkpoint_to(target.with_suffix(".ckpt.mml"), True, None)), ""
    except Exception as error:  # noqa: BLE001 - it may be of a class that cannot be sent
        return "", f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"


def _own_classes(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Return modules that a worker may import for a file, and classes that it is sent by value."""
    modules, classes = [], {}
    for name in (entry["name"] for entry in inspect(path)["classes"]):
        module, _, qualname = name.partition(":")
        if module == "__main__" and "<locals>" not in qualname:
            classes[name] = getattr(sys.modules["__main__"], qualname)
        else:
            modules.append(module)
    return modules, classes
