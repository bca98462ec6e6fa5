"""Running of variants of an experiment, in this process or in worker processes."""

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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from joblib import Parallel, cpu_count, delayed, effective_n_jobs
from joblib.externals.loky import ProcessPoolExecutor, process_executor
from joblib.externals.loky.backend import get_context
from joblib.parallel import BACKENDS, get_active_backend

from modularml.context import ExperimentContext
from modularml.engine.interruption import exit_on_signals
from modularml.errors import ConfigError, ExecutionError
from modularml.experiment import Checkpointing, Experiment, PhaseGroup
from modularml.experiment.resume import config_hash
from modularml.io import inspect
from modularml.io.ownership import temporary_folder
from modularml.io.randomness import unchanged_randomness
from modularml.strategies.variants import Plan, Variant, template_of, variant_experiment

__all__ = ["Outcome", "Search", "Work"]

Outcome = tuple[Variant, Experiment | Exception]
End = tuple[Variant, Callable[[], str]]
"""A finished variant, and a function that returns the path of its file or raises its error."""
Search = Callable[[Experiment], Plan | None]
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
            key = f"{config_hash(new, new.execution_plan)} {new._fingerprints()}"
            name = f"searched-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
            path = folder / f"{name}.exp.mml"
            if path.exists():
                with ExperimentContext().activate():
                    return Experiment.load(path)
        with new.ctx.activate(), unchanged_randomness():
            chosen = search(new)
        if chosen is not None:
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
        n_jobs: int | None = None,
        timeout: float | None = None,
    ) -> Generator[Outcome]:
        """Run variants; yield each as it ends, with its experiment or its error."""
        n_workers = effective_n_jobs(n_jobs)
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
        uses_joblib = _uses_joblib_backend(timeout)
        if experiment.model_graph is not None:
            experiment.model_graph._check_storable()
        with exit_on_signals(), temporary_folder() as folder:
            with unchanged_randomness():
                path = template_of(experiment, plan).save(folder / "job")
            job = (str(path), *_modules_and_classes(path))
            if uses_joblib:
                ends = _ends_on_joblib(self, variants, n_jobs, *job)
            else:
                ends = _Workers(job, n_jobs, timeout).ends(self, variants)
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


# -- on another joblib backend -------------------------------------------------------------------


def _uses_joblib_backend(timeout: float | None) -> bool:
    """Return whether `joblib.parallel_config` sets another backend than loky."""
    backend, _ = get_active_backend()
    if type(backend) is BACKENDS["loky"]:
        return False
    name = type(backend).__name__
    if type(backend) in (BACKENDS["threading"], BACKENDS["multiprocessing"]):
        raise ConfigError(
            f"folds cannot run on joblib's {name}: threads would share random generators, "
            "and forks hang after TensorFlow; use 'loky', 'dask' or 'ray'"
        )
    if timeout is not None:
        raise ConfigError(
            f"timeout works with processes on this machine, not with joblib's {name}; omit it"
        )
    return True


def _ends_on_joblib(
    work: Work, variants: Sequence[Variant], n_jobs: int, path: str, *classes: Any
) -> Generator[End]:
    """Run variants on joblib's current backend; yield each as it ends."""
    data = Path(path).read_bytes()
    jobs = (delayed(_work_on)(data, classes, work, variant) for variant in variants)
    streams = getattr(get_active_backend()[0], "supports_return_generator", False)
    run = Parallel(n_jobs, return_as="generator_unordered" if streams else "list")
    for variant, content, problem in run(jobs):
        target = Path(path).with_name(variant.label)
        target.write_bytes(content)
        yield variant, partial(_path_of, target, problem)


def _path_of(path: Any, problem: str) -> str:
    if problem:
        raise ExecutionError(problem)
    return str(path)


# -- on loky workers -----------------------------------------------------------------------------

_idle: defaultdict[int, deque[Any]] = defaultdict(deque)
"""Idle workers, each with the file it has read, by their number of threads."""


class _Workers:
    """Worker processes with one job at a time, so that a crash affects one variant."""

    def __init__(self, job: tuple[Any, ...], n_jobs: int, timeout: float | None) -> None:
        self.job, self.n_jobs = job, n_jobs
        threads = int(os.environ.get("OMP_NUM_THREADS", cpu_count()))
        self.threads, self.timeout = max(1, min(threads, cpu_count() // n_jobs)), timeout
        self._busy: list[Any] = []
        self._stopped = False

    def ends(self, work: Work, variants: Sequence[Variant]) -> Generator[End]:
        """Run variants and yield each as it ends; on close, stop those still running."""
        threads = ThreadPoolExecutor(self.n_jobs)
        waiting = {threads.submit(self.run, work, variant): variant for variant in variants}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            self._stop([future for future in waiting if not future.done()])

    def _stop(self, running: Sequence[Future[str]]) -> None:
        """Forward the end of this process to workers; kill those that take too long."""
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

    def run(self, work: Work, variant: Variant) -> str:
        """Run a variant and return the path of its file."""
        worker = self._take()
        try:
            path, problem = self._call(worker, self.timeout, _work, work, variant)
        except TimeoutError:
            raise ExecutionError(f"not finished after timeout={self.timeout:g} seconds") from None
        except process_executor.BrokenProcessPool as error:
            raise ExecutionError(f"its worker died, perhaps for lack of memory: {error}") from error
        _idle[self.threads].append((worker, self.job[0]))
        return _path_of(path, problem)

    def _take(self) -> Any:
        """Return a worker that has read the experiment; timeouts start after that."""
        while True:
            fresh = not _idle[self.threads]
            worker, path = (self._new(), "") if fresh else _idle[self.threads].pop()
            if path == self.job[0]:
                return worker
            try:
                problem = self._call(worker, None, _start, sys.path, Path.cwd(), *self.job)
            except process_executor.BrokenProcessPool:  # it died while idle
                if fresh:
                    raise
                continue
            if problem:
                _idle[self.threads].append((worker, ""))
                raise ConfigError(problem)
            return worker

    def _call(self, worker: Any, timeout: float | None, *call: Any) -> Any:
        """Call a function in a worker and return its result; kill it on errors."""
        self._busy.append(worker)
        try:
            future = worker.submit(*call)
            if self._stopped:  # the process may not have existed to get the signal
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
        startup = {"initializer": _follow_parent, "initargs": (os.getpid(),)}
        context = get_context("loky")
        return ProcessPoolExecutor(1, timeout=300, context=context, env=caps, **startup)


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


# -- in a worker --------------------------------------------------------------------------------

_loaded: dict[str, Experiment] = {}
"""The experiment that this worker has read last, by path."""


_folder: deque[Path] = deque(maxlen=1)
"""Folder of the parent process for the rows and results of variants."""
_working = threading.Lock()
_GRACE = 20  # seconds for a run to write a checkpoint and end


def _follow_parent(parent: int) -> None:
    """Ignore signals of the terminal, and end when the parent process has ended."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: int) -> None:
    # Linux can send a signal, but does so when the parent's starting thread ends
    if sys.platform == "win32":
        multiprocessing.parent_process().join()
    else:
        while os.getppid() == parent:
            time.sleep(0.5)
    _remove_folder()  # mapped files stay readable
    os.kill(os.getpid(), signal.SIGTERM)  # a running variant writes its checkpoint
    with suppress(Exception):
        _working.acquire(timeout=_GRACE)
    _remove_folder()
    os._exit(1)


def _remove_folder() -> None:
    for folder in _folder:
        shutil.rmtree(folder, ignore_errors=True)


def _start(search_path: list[str], working_directory: Path, path: str, *classes: Any) -> str:
    """Set up a worker and read the experiment; return an error message or ""."""
    sys.path[:] = search_path
    os.chdir(working_directory)
    _folder.append(Path(path).parent)
    tempfile.tempdir = str(_folder[0])  # temporary files go with the parent's
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize  # rows of a job are not a leak
    return _load(path, *classes)


def _load(path: str, modules: list[str], classes: dict[str, Any]) -> str:
    """Read the experiment; return an error message, or ""."""
    logging.getLogger("modularml.data").setLevel(logging.ERROR)  # logged by the parent already
    if path in _loaded:
        return ""
    _loaded.clear()
    try:
        with ExperimentContext().activate():
            _loaded[path] = Experiment.load(path, allow_import=modules, custom_objects=classes)
    except Exception as error:  # noqa: BLE001 - for example a class that cannot be sent
        hint = f"; your own classes must be importable there, from {modules}" if modules else ""
        return f"a worker cannot load the experiment{hint}: {error}"
    return ""


def _work_on(
    data: bytes, classes: tuple[Any, ...], work: Work, variant: Variant
) -> tuple[Variant, bytes, str]:
    """Run a variant on an experiment sent as bytes; return its file, or an error.

    Folds that a cluster runs in threads of one process run one at a time.
    """
    with unchanged_randomness(), temporary_folder() as folder:
        path = folder / "job.mml"
        path.write_bytes(data)
        problem = _load(str(path), *classes)
        written, problem = ("", problem) if problem else _work(work, variant)
        return variant, Path(written).read_bytes() if written else b"", problem


def _work(work: Work, variant: Variant) -> tuple[str, str]:
    """Run a variant; return the path of its file and "", or "" and an error message."""
    ((path, template),) = _loaded.items()
    try:
        with _working, exit_on_signals():
            new = work.run(template, template.execution_plan, variant)
        target = Path(path).with_name(variant.label)
        if work.search is not None:
            return str(new.save(target)), ""
        return str(new._checkpoint_to(target.with_suffix(".ckpt.mml"), True, None)), ""
    except Exception as error:  # noqa: BLE001
        return "", f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"
