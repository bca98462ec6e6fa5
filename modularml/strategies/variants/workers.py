"""Worker processes: they read an experiment once, and stay alive between calls.

A worker forgets the experiment, and so returns its memory, once it has been idle for a minute.
"""

from __future__ import annotations

import gc
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
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from joblib import cpu_count
from joblib.externals.loky import ProcessPoolExecutor, process_executor
from joblib.externals.loky.backend import get_context

from modularml._private.joblib import allow_memory, ask_ids, process_ids
from modularml.context import ExperimentContext
from modularml.engine.interruption import exit_on_signals
from modularml.errors import ConfigError, ExecutionError
from modularml.experiment import Experiment
from modularml.io.atomic import temporary_folder
from modularml.io.randomness import unchanged_randomness
from modularml.strategies.variants.variant import Variant

End = tuple[Variant, Callable[[], str]]
"""A finished variant, and a function that returns the path of its file or raises its error."""
IDLE_S = 60.0
"""Seconds after which an idle worker forgets its experiment."""

_working = threading.Lock()
"""Held while this process runs a variant: one at a time, as they share random generators."""
_loaded: dict[str, Experiment] = {}
"""The experiment that this process has read last, by the key of its job."""
_timers: list[threading.Timer] = []


@dataclass(frozen=True)
class Job:
    """An experiment in a file, for workers.

    Parameters
    ----------
    key : str
        Unique.
    modules : list of str
        Modules that a worker may import to read it.
    classes : dict
        Classes that no worker can import, sent by value.
    """

    key: str
    modules: list[str] = field(default_factory=list)
    classes: dict[str, Any] = field(default_factory=dict)


def path_or_error(path: Any, problem: str) -> str:
    """Return the path of a variant's file, or raise the error of its run."""
    if problem:
        raise ExecutionError(problem)
    return str(path)


def _read(job: Job, path: Path) -> str:
    """Read the experiment of a job, unless it is read already; return an error message or ""."""
    logging.getLogger("modularml.data").setLevel(logging.ERROR)  # logged by the parent already
    if job.key in _loaded:
        return ""
    _loaded.clear()
    own: dict[str, Any] = {"allow_import": job.modules, "custom_objects": job.classes}
    try:
        with ExperimentContext().activate():
            _loaded[job.key] = Experiment.load(path, **own)
    except Exception as error:  # noqa: BLE001 - for example a class that cannot be sent
        hint = f"; your own classes must be importable there, from {job.modules}"
        return f"a worker cannot load the experiment{hint if job.modules else ''}: {error}"
    return ""


def run(job: Job, path: Path, folder: Path, work: Any, variant: Variant) -> tuple[str, str]:
    """Run a variant; return the path of its file in a folder and "", or "" and an error message."""
    with _working:
        while _timers:
            _timers.pop().cancel()
        try:
            if problem := _read(job, path):
                return "", problem
            template = _loaded[job.key]
            with exit_on_signals():
                new = work.run(template, template.execution_plan, variant)
            (folder / variant.label).mkdir(exist_ok=True)  # one writer a folder, so that none waits
            target = folder / variant.label / "run"
            if work.search is not None:
                return str(new.save(target)), ""
            return str(new._checkpoint_to(target.with_suffix(".ckpt.mml"), True, None)), ""
        except Exception as error:  # noqa: BLE001
            return "", f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"
        finally:
            timer = threading.Timer(IDLE_S, _forget)
            timer.daemon = True
            timer.start()
            _timers.append(timer)


def _forget() -> None:
    with _working:
        _loaded.clear()
        gc.collect()  # graphs and phases refer to each other


def run_content(content: Any, job: Job, work: Any, variant: Variant) -> tuple[bytes, str]:
    """Run a variant of an experiment sent as bytes; return the bytes of its file, or an error.

    Variants that a cluster runs in threads of one process run one at a time.
    """
    with unchanged_randomness(), temporary_folder() as folder:
        path = folder / "job.mml"
        if job.key not in _loaded:
            path.write_bytes(content)
        try:
            written, problem = run(job, path, folder, work, variant)
        except SystemExit as error:  # would end the worker
            return b"", f"SystemExit: {error}"
        return Path(written).read_bytes() if written else b"", problem


_idle: defaultdict[int, deque[Any]] = defaultdict(deque)
"""Idle workers, each with the key of the job that it has read, by their number of threads."""
_start_seconds = [4.0]
"""How long the last worker took to start; at first about what imports take."""


class LocalWorkers:
    """Worker processes with one variant at a time, so that a crash affects one variant.

    Parameters
    ----------
    job : Job
        Its key is the path of its file.
    n_jobs : int
        At least 1.
    timeout : float, optional
        Seconds after which a variant fails.
    """

    def __init__(self, job: Job, n_jobs: int, timeout: float | None) -> None:
        self.job, self.n_jobs = job, n_jobs
        self.threads, self.timeout = threads_of_each(n_jobs), timeout
        self._busy: list[Any] = []
        self._stopped = False

    def ends(self, work: Any, variants: Sequence[Variant]) -> Generator[End]:
        """Run variants and yield each as it ends; on close, stop those still running."""
        path = Path(self.job.key)

        def run_in_worker(variant: Variant) -> str:
            worker, call = self._take(), (run, self.job, path, path.parent, work, variant)
            try:
                written, problem = self._call(worker, self.timeout, *call)
            except TimeoutError:
                message = f"not finished after timeout={self.timeout:g} seconds"
                raise ExecutionError(message) from None
            except process_executor.BrokenProcessPool as error:
                message = f"its worker died, perhaps for lack of memory: {error}"
                raise ExecutionError(message) from error
            _idle[self.threads].append((worker, self.job.key))
            return path_or_error(written, problem)

        threads = ThreadPoolExecutor(self.n_jobs)
        waiting = {threads.submit(run_in_worker, variant): variant for variant in variants}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            self._stopped = True
            running = [future for future in waiting if not future.done()]
            try:
                self._send(signal.SIGTERM)
                wait(running, timeout=_GRACE)
            finally:  # those that take too long
                self._send(getattr(signal, "SIGKILL", signal.SIGTERM))
                wait(running)

    def _send(self, number: int) -> None:
        for pid in [pid for worker in list(self._busy) for pid in process_ids(worker)]:
            with suppress(OSError):  # it has ended
                os.kill(pid, number)

    def _take(self) -> Any:
        """Return a worker that has read the experiment; timeouts start after that."""
        idle = _idle[self.threads]
        while True:
            if fresh := not idle:
                names = [f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")]
                names += ["TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"]
                options: dict[str, Any] = {
                    "context": get_context("loky"),
                    "env": dict.fromkeys(names, str(self.threads)),
                    "initializer": _follow_parent,
                    "initargs": (os.getpid(),),
                }
                worker, key = ProcessPoolExecutor(1, timeout=300, **options), ""
                ask_ids(worker)
            else:
                worker, key = idle.pop()
            if key == self.job.key:
                return worker
            started = time.perf_counter()
            try:
                problem = self._call(worker, None, _start, sys.path, Path.cwd(), self.job)
            except process_executor.BrokenProcessPool:  # it died while idle
                if fresh:
                    raise
                continue
            if problem:
                idle.append((worker, ""))
                raise ConfigError(problem)
            if fresh:
                _start_seconds[0] = time.perf_counter() - started
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


def threads_of_each(n_jobs: int) -> int:
    """Return the number of threads of each of several workers on this machine."""
    threads = int(os.environ.get("OMP_NUM_THREADS", cpu_count()))
    return max(1, min(threads, int(cpu_count()) // n_jobs))


def seconds_to_start(n_jobs: int) -> float:
    """Return how long it will take until this many workers run, 0 if they are idle."""
    return 0.0 if len(_idle[threads_of_each(n_jobs)]) >= n_jobs else _start_seconds[0]


# -- in a worker --------------------------------------------------------------------------------

_folder: deque[Path] = deque(maxlen=1)
"""Folder of the parent process for the rows and results of variants."""
_GRACE = 20  # seconds for a run to write a checkpoint and end


def _follow_parent(parent: int) -> None:
    """Ignore signals of the terminal, and end when the parent process has ended."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)

    def follow() -> None:
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

    threading.Thread(target=follow, daemon=True).start()


def _remove_folder() -> None:
    for folder in _folder:
        shutil.rmtree(folder, ignore_errors=True)


def _start(search_path: list[str], working_directory: Path, job: Job) -> str:
    """Set up a worker and read the experiment; return an error message or ""."""
    sys.path[:] = search_path
    os.chdir(working_directory)
    path = Path(job.key)
    _folder.append(path.parent)
    tempfile.tempdir = str(_folder[0])  # temporary files go with the parent's
    allow_memory()  # rows of a job are not a leak
    return _read(job, path)
