"""Folds as jobs: in this process, or each on a worker of its own, sent as files."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky import ProcessPoolExecutor, process_executor
from joblib.externals.loky.backend import get_context
from joblib.parallel import BACKENDS, get_active_backend

from modularml.context import ExperimentContext
from modularml.engine.interruption import ends_raise
from modularml.errors import ConfigError, ExecutionError
from modularml.experiment import Checkpointing, Experiment, PhaseGroup
from modularml.experiment.resume import config_hash
from modularml.io import inspect
from modularml.io.ownership import temporary_folder
from modularml.io.randomness import unchanged_randomness
from modularml.strategies.copying import Plan, fold_experiment, template_of
from modularml.strategies.folds import Fold

__all__ = ["Outcome", "Search", "Work"]

Outcome = tuple[Fold, Experiment | Exception]
End = tuple[Fold, Callable[[], str]]
"""A fold that has ended, and what gives the path of its file, or raises what ended it."""
Search = Callable[[Experiment], Plan | None]


@dataclass(frozen=True)
class Work:
    """What is done in every fold of a cross-validation."""

    label: str
    flags: dict[str, Any]
    search: Search | None = None
    folder: Path | None = None
    """Where folds keep checkpoints."""
    resume: str | None = None

    def prepared(self, experiment: Experiment, plan: Plan, fold: Fold) -> Experiment:
        """Return a fold's own experiment; random states of the process are set."""
        own = fold_experiment(experiment, plan, fold, f"{self.label}_{fold.label}")
        if self.folder is not None:
            own.set_checkpoint_dir(self.folder / own.label)  # a search may want it
        return own

    def done(self, experiment: Experiment, plan: Plan, fold: Fold) -> Experiment:
        """Return a fold's own experiment after it has run; random states stay as they were."""
        with unchanged_randomness():
            own = self.prepared(experiment, plan, fold)
            folder = None if self.folder is None else self.folder / own.label
            if self.search is not None:
                own = self._searched(self.search, own, folder)
            self._set_folder(own, folder)
            own.run(resume=self.resume, **self.flags)
        for fs in own.ctx.available_featuresets.values():
            if fs.scaler_records:  # its columns are the fold's alone
                fs.collection.tensors.clear()
        return own

    def _searched(self, search: Search, own: Experiment, folder: Path | None) -> Experiment:
        """Return a fold's experiment as a search made it; one that may go on is kept in a file."""
        kept = None
        if self.resume is not None and folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            told = f"{config_hash(own, own.execution_plan)} {own._fingerprints()}"
            name = f"searched-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
            kept = folder / f"{name}.exp.mml"
            if kept.exists():
                with ExperimentContext().activate():
                    return Experiment.load(kept)
        with own.ctx.activate(), unchanged_randomness():
            chosen = search(own)
        if chosen is not None:
            items = chosen.all if isinstance(chosen, PhaseGroup) else [chosen]
            own.execution_plan.clear().add_items(items)
        if kept is not None:
            own.save(kept)
        return own

    def _set_folder(self, own: Experiment, folder: Path | None) -> None:
        """Give a fold a folder of its own; one that may go on keeps its state after each phase."""
        if folder is not None:
            own.set_checkpoint_dir(folder)
        if self.resume is not None and own.checkpointing is None:
            own.set_checkpointing(Checkpointing(mode="disk", save_on="phase_end", max_to_keep=1))

    def in_turn(
        self, experiment: Experiment, plan: Plan, folds: Sequence[Fold]
    ) -> Generator[Outcome]:
        """Yield each fold with its experiment, or with the error that ended it."""
        for fold in folds:
            yield _outcome(fold, lambda fold=fold: self.done(experiment, plan, fold))  # type: ignore[misc]

    def on_workers(
        self,
        experiment: Experiment,
        plan: Plan,
        folds: Sequence[Fold],
        n_jobs: int,
        timeout: float | None,
    ) -> Generator[Outcome]:
        """Run folds in processes of their own, and yield each as it ends; see `in_turn`.

        The experiment is written to a file once. A worker reads it, its rows mapped into memory,
        and writes what a fold has learned and recorded, which goes into an experiment made here.
        """
        elsewhere = _is_elsewhere(timeout)
        if experiment.model_graph is not None:
            experiment.model_graph._check_storable()
        with ends_raise(), temporary_folder() as folder:
            with unchanged_randomness():
                path = template_of(experiment, plan).save(folder / "job")
            job = (str(path), *_own_classes(path))
            if elsewhere:
                ends = _ends_elsewhere(self, folds, n_jobs, *job)
            else:
                ends = _Workers(job, n_jobs, timeout).ends(self, folds)
            with closing(ends):
                for fold, end in ends:
                    yield _outcome(fold, lambda: self._read(end(), experiment, plan, fold))  # noqa: B023

    def _read(self, path: str, experiment: Experiment, plan: Plan, fold: Fold) -> Experiment:
        with unchanged_randomness(), ExperimentContext().activate():
            if self.search is not None:  # the graph may be another one by now
                return Experiment.load(path)
            own = self.prepared(experiment, plan, fold)
            own.restore_checkpoint(path, strict=False)
        return own


def _outcome(fold: Fold, work: Callable[[], Experiment]) -> Outcome:
    try:
        return fold, work()
    except Exception as error:  # noqa: BLE001 - one fold's failure is that fold's alone
        return fold, error


# -- elsewhere ----------------------------------------------------------------------------------


def _is_elsewhere(timeout: float | None) -> bool:
    """Tell whether `joblib.parallel_config` names a backend that is not the default."""
    backend, _ = get_active_backend()
    if type(backend) is BACKENDS["loky"]:
        return False
    name = type(backend).__name__
    if type(backend) in (BACKENDS["threading"], BACKENDS["multiprocessing"]):
        raise ConfigError(
            f"folds cannot run on joblib's {name}: threads would share the generators of random "
            "numbers, and forks hang after TensorFlow; use 'loky', 'dask' or 'ray'"
        )
    if timeout is not None:
        raise ConfigError(f"timeout is for processes on this machine, not for joblib's {name}")
    return True


def _ends_elsewhere(
    work: Work, folds: Sequence[Fold], n_jobs: int, path: str, *classes: Any
) -> Generator[End]:
    """Run folds on joblib's current backend, files sent as bytes; yield each as it ends."""
    data = Path(path).read_bytes()
    jobs = (delayed(_work_on)(data, classes, work, fold) for fold in folds)
    streams = getattr(get_active_backend()[0], "supports_return_generator", False)
    run = Parallel(n_jobs, return_as="generator_unordered" if streams else "list")
    for fold, made, problem in run(jobs):
        target = Path(path).with_name(fold.label)
        target.write_bytes(made)
        yield fold, partial(_path_of, target, problem)


def _path_of(path: Any, problem: str) -> str:
    if problem:
        raise ExecutionError(problem)
    return str(path)


# -- here ---------------------------------------------------------------------------------------

_idle: defaultdict[int, deque[Any]] = defaultdict(deque)
"""Workers that wait for more, each with the file it read, by the threads that they may use."""


class _Workers:
    """Processes with one job at a time each, so that one which dies takes no other along."""

    def __init__(self, job: tuple[Any, ...], n_jobs: int, timeout: float | None) -> None:
        self.job, self.n_jobs = job, n_jobs
        threads = int(os.environ.get("OMP_NUM_THREADS", cpu_count()))
        self.threads, self.timeout = max(1, min(threads, cpu_count() // n_jobs)), timeout
        self._busy: list[Any] = []
        self._stopped = False

    def ends(self, work: Work, folds: Sequence[Fold]) -> Generator[End]:
        """Run folds and yield each as it ends; end what is still running when nobody listens."""
        threads = ThreadPoolExecutor(self.n_jobs)
        waiting = {threads.submit(self.run, work, fold): fold for fold in folds}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            self._stop([future for future in waiting if not future.done()])

    def _stop(self, running: Sequence[Future[str]]) -> None:
        """Let workers end as this process was asked to; kill those that take too long."""
        self._stopped = True
        try:
            self._send(signal.SIGTERM)
            wait(running, timeout=_GRACE)
        finally:
            self._send(getattr(signal, "SIGKILL", signal.SIGTERM))
            wait(running)

    def _send(self, number: int) -> None:
        for pid in [pid for worker in list(self._busy) for pid in list(worker._processes)]:
            with suppress(OSError):  # it has ended
                os.kill(pid, number)

    def run(self, work: Work, fold: Fold) -> str:
        """Run a fold and return the path of what it wrote."""
        worker = self._take()
        try:
            path, problem = self._done(worker, self.timeout, _work, work, fold)
        except TimeoutError:
            raise ExecutionError(f"not done after timeout={self.timeout:g} seconds") from None
        except process_executor.BrokenProcessPool as error:
            raise ExecutionError(f"its worker died, perhaps for lack of memory: {error}") from error
        _idle[self.threads].append((worker, self.job[0]))
        return _path_of(path, problem)

    def _take(self) -> Any:
        """Return a worker that has read the experiment: timeouts start then."""
        while True:
            fresh = not _idle[self.threads]
            worker, path = (self._new(), "") if fresh else _idle[self.threads].pop()
            if path == self.job[0]:
                return worker
            try:
                problem = self._done(worker, None, _start, sys.path, Path.cwd(), *self.job)
            except process_executor.BrokenProcessPool:  # it died while it had nothing to do
                if fresh:
                    raise
                continue
            if problem:
                _idle[self.threads].append((worker, ""))
                raise ConfigError(problem)
            return worker

    def _done(self, worker: Any, timeout: float | None, *call: Any) -> Any:
        """Return what a call gives in a worker, which is killed where that is an error."""
        self._busy.append(worker)
        try:
            future = worker.submit(*call)
            if self._stopped:  # perhaps before there was a process to send a signal to
                raise CancelledError
            return future.result(timeout)
        except BaseException:
            worker.shutdown(kill_workers=True)
            raise
        finally:
            self._busy.remove(worker)

    def _new(self) -> Any:
        names = [f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")]
        names += ["TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"]
        caps = dict.fromkeys(names, str(self.threads))
        first = {"initializer": _obey_parent, "initargs": (os.getpid(),)}
        context = get_context("loky")
        return ProcessPoolExecutor(1, timeout=300, context=context, env=caps, **first)


def _own_classes(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Return modules that a worker may import for a file, and classes that it is sent by value."""
    modules, classes = [], {}
    for name in (entry["name"] for entry in inspect(path)["classes"]):
        module, _, qualname = name.partition(":")
        if module == "__main__" and hasattr(sys.modules[module], qualname):
            classes[name] = getattr(sys.modules[module], qualname)
        else:
            modules.append(module)
    return modules, classes


# -- in a worker --------------------------------------------------------------------------------

_loaded: dict[str, Experiment] = {}
"""The experiment that this worker read last, by path."""


_folder: deque[Path] = deque(maxlen=1)
"""Where this worker's parent keeps the rows and results of folds."""
_working = threading.Lock()
_GRACE = 20  # seconds that a run has to end with a checkpoint


def _obey_parent(parent: int) -> None:
    """Leave signals of the terminal to the parent, and end when it has ended, however it did."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: int) -> None:
    # Linux could send a signal, but sends it when the thread that started this process has ended
    if sys.platform == "win32":
        multiprocessing.parent_process().join()
    else:
        while os.getppid() == parent:
            time.sleep(0.5)
    _remove_folder()  # what is mapped stays readable
    os.kill(os.getpid(), signal.SIGTERM)  # a fold under way writes its checkpoint
    with suppress(Exception):
        _working.acquire(timeout=_GRACE)
    _remove_folder()
    os._exit(1)


def _remove_folder() -> None:
    for folder in _folder:
        shutil.rmtree(folder, ignore_errors=True)


def _start(found: list[str], here: Path, path: str, *classes: Any) -> str:
    """Read the experiment where files are found as in the parent; return what went wrong."""
    sys.path[:] = found
    os.chdir(here)
    _folder.append(Path(path).parent)
    tempfile.tempdir = str(_folder[0])  # temporary files go with the parent's
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize  # rows of a job are no leak
    return _ready(path, *classes)


def _ready(path: str, modules: list[str], classes: dict[str, Any]) -> str:
    """Read the experiment; return what went wrong."""
    logging.getLogger("modularml.data").setLevel(logging.ERROR)  # the parent has said it
    if path in _loaded:
        return ""
    _loaded.clear()
    try:
        with ExperimentContext().activate():
            _loaded[path] = Experiment.load(path, allow_import=modules, custom_objects=classes)
    except Exception as error:  # noqa: BLE001 - it may be of a class that cannot be sent
        own = f"; classes of yours must be importable there, from {modules}" if modules else ""
        return f"a worker cannot make the experiment again{own}: {error}"
    return ""


def _work_on(
    data: bytes, classes: tuple[Any, ...], work: Work, fold: Fold
) -> tuple[Fold, bytes, str]:
    """Run a fold on a file that was sent; return what came of it as bytes, or what went wrong.

    Folds that a cluster runs in threads of one process take turns.
    """
    with unchanged_randomness(), temporary_folder() as folder:
        path = folder / "job.mml"
        path.write_bytes(data)
        problem = _ready(str(path), *classes)
        made, problem = ("", problem) if problem else _work(work, fold)
        return fold, Path(made).read_bytes() if made else b"", problem


def _work(work: Work, fold: Fold) -> tuple[str, str]:
    """Run a fold; return the file that was written, or what went wrong."""
    ((path, found),) = _loaded.items()
    try:
        with _working, ends_raise():
            own = work.done(found, found.execution_plan, fold)
        target = Path(path).with_name(fold.label)
        if work.search is not None:
            return str(own.save(target)), ""
        return str(own._checkpoint_to(target.with_suffix(".ckpt.mml"), True, None)), ""
    except Exception as error:  # noqa: BLE001
        return "", f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"
