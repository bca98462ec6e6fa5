"""Worker processes on this machine, which stay alive between calls."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from joblib import cpu_count
from joblib.externals.loky import ProcessPoolExecutor, process_executor
from joblib.externals.loky.backend import get_context

from modularml._private.joblib import allow_memory, ask_ids, process_ids
from modularml.errors import ConfigError, ExecutionError
from modularml.strategies.variants import worker as in_worker
from modularml.strategies.variants.variant import Variant
from modularml.strategies.variants.worker import End, Job, path_or_error

__all__ = ["LocalWorkers"]

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
        for pid in [pid for worker in list(self._busy) for pid in process_ids(worker)]:
            with suppress(OSError):  # it has ended
                os.kill(pid, number)

    def run(self, work: Any, variant: Variant) -> str:
        """Run a variant and return the path of its file."""
        worker, path = self._take(), Path(self.job.key)
        call = (in_worker.run, self.job, path, path.parent, work, variant)
        try:
            written, problem = self._call(worker, self.timeout, *call)
        except TimeoutError:
            raise ExecutionError(f"not finished after timeout={self.timeout:g} seconds") from None
        except process_executor.BrokenProcessPool as error:
            raise ExecutionError(f"its worker died, perhaps for lack of memory: {error}") from error
        _idle[self.threads].append((worker, self.job.key))
        return path_or_error(written, problem)

    def _take(self) -> Any:
        """Return a worker that has read the experiment; timeouts start after that."""
        while True:
            fresh = not _idle[self.threads]
            worker, key = (self._new(), "") if fresh else _idle[self.threads].pop()
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
                _idle[self.threads].append((worker, ""))
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

    def _new(self) -> Any:
        names = [f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")]
        names += ["TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"]
        caps = dict.fromkeys(names, str(self.threads))
        startup = {"initializer": _follow_parent, "initargs": (os.getpid(),)}
        context = get_context("loky")
        worker = ProcessPoolExecutor(1, timeout=300, context=context, env=caps, **startup)
        ask_ids(worker)
        return worker


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
        in_worker.working.acquire(timeout=_GRACE)
    _remove_folder()
    os._exit(1)


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
    return in_worker.read(job, path)
