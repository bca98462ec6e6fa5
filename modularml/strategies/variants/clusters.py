"""Variants on the clusters that `joblib.parallel_config` names: Dask, Ray and other backends.

The experiment is sent once to each worker (by Dask's scatter, or Ray's object store), the jobs
name it. A cluster repeats the jobs of workers that die.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import BACKENDS, get_active_backend

from modularml._optional import require
from modularml.engine.interruption import stop_thread
from modularml.errors import ConfigError
from modularml.strategies.variants.variant import Variant
from modularml.strategies.variants.workers import End, Job, path_or_error, run_content

_GRACE_S = 20.0
"""How long running jobs may take to write a checkpoint and end."""
_POLL_S = 0.25
_TRIES = 3
"""How often a job is sent whose data the cluster has lost."""


def is_cluster(timeout: float | None) -> bool:
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


def count_jobs(n_jobs: int | None) -> int:
    """Return how many jobs run at once; those of Dask and Ray need no core of this machine."""
    backend, configured = get_active_backend()
    chosen = configured if n_jobs is None else n_jobs
    kind = type(backend)
    if kind is BACKENDS.get("ray"):
        ray = require("ray", purpose="to run jobs on Ray")
        if chosen != 1 and not ray.is_initialized():
            ray.init()
        total = int(ray.cluster_resources().get("CPU", 1)) if chosen < 0 else 0
    elif kind is BACKENDS.get("dask"):
        total = backend.effective_n_jobs(-1)  # waits for workers
    else:
        return int(effective_n_jobs(n_jobs))
    return int(chosen) if chosen > 0 else max(1, total + 1 + chosen)


def most_jobs() -> int:
    """Return how many jobs may run at once: those of `joblib.parallel_config`, or all cores."""
    _, configured = get_active_backend()
    return count_jobs(-1 if configured in (None, 1) else None)


def ends_on_cluster(
    job: Job, path: Path, work: Any, variants: Sequence[Variant], n_jobs: int
) -> Generator[End]:
    """Run variants on joblib's current backend; yield each as it ends.

    On close, jobs that have not ended are stopped: those of a run with checkpoints on disk write
    one first.
    """
    backend, _ = get_active_backend()
    cluster: _Dask | _Ray
    if type(backend) is BACKENDS.get("dask"):
        cluster = _Dask(backend, job, path)
    elif type(backend) is BACKENDS.get("ray"):
        cluster = _Ray(backend, job, path)
    else:
        yield from _ends_on_joblib(job, path, work, variants, n_jobs)
        return
    waiting, tries = deque(variants), Counter[str]()
    running: dict[Any, Variant] = {}
    try:
        while waiting or running:
            while waiting and len(running) < n_jobs:
                variant = waiting.popleft()
                tries[variant.label] += 1
                running[cluster.submit(work, variant)] = variant
            for handle in cluster.ended(list(running)):
                variant = running.pop(handle)
                if cluster.has_lost(handle) and tries[variant.label] < _TRIES:
                    waiting.appendleft(variant)
                    continue
                target = path.with_name(variant.label)
                try:
                    content, problem = cluster.result(handle)
                    target.write_bytes(content)
                except Exception as error:  # noqa: BLE001 - of any kind that a cluster raises
                    problem = (
                        "the cluster could not run it, perhaps as its workers died, for lack of "
                        f"memory or other packages: {type(error).__name__}: {error}"
                    )
                yield variant, partial(path_or_error, target, problem)
    finally:
        cluster.stop(list(running))


def _ends_on_joblib(
    job: Job, path: Path, work: Any, variants: Sequence[Variant], n_jobs: int
) -> Generator[End]:
    content = path.read_bytes()
    jobs = (delayed(_on_joblib)(content, job, work, variant) for variant in variants)
    streams = getattr(get_active_backend()[0], "supports_return_generator", False)
    run = Parallel(n_jobs, return_as="generator_unordered" if streams else "list")
    for variant, written, problem in run(jobs):
        target = path.with_name(variant.label)
        target.write_bytes(written)
        yield variant, partial(path_or_error, target, problem)


def _on_joblib(content: bytes, job: Job, work: Any, variant: Variant) -> tuple[Variant, bytes, str]:
    return variant, *run_content(content, job, work, variant)


# -- Dask ----------------------------------------------------------------------------------------


class _Dask:
    """A cluster of Dask; a handle is the future of a job."""

    def __init__(self, backend: Any, job: Job, path: Path) -> None:
        self.distributed = require("distributed", purpose="to run jobs on Dask")
        self.client, self.options = backend.client, dict(backend.submit_kwargs)
        self.job, self.path = job, path
        self._content: Any = None

    def submit(self, work: Any, variant: Variant) -> Any:
        """Send a job, and before the first one the data."""
        if self._content is None:
            self._content = self._sent()
        key = f"{work.label}-{variant.label}-{uuid.uuid4().hex}"
        call = (self._content, self.job, work, variant)
        return self.client.submit(_on_dask, *call, **{"key": key, "pure": False, **self.options})

    def _sent(self) -> Any:
        """Send the data to one worker, from which the others fetch it, once each.

        Dask's own broadcast never ends if a worker dies meanwhile.
        """
        content = self.path.read_bytes()
        for _ in range(_TRIES):
            with suppress(OSError):  # of a worker that has died
                data = self.client.scatter(content, hash=False)
                break
        else:
            data = self.client.scatter(content, hash=False)
        there: dict[str, Any] = {"allow_other_workers": True, "pure": False}
        fetched = [
            self.client.submit(len, data, workers=[address], **there)
            for address in self.client.nthreads()
        ]
        with suppress(self.distributed.CancelledError):  # of data that is lost
            self.distributed.wait(fetched)
        return data

    def ended(self, handles: Sequence[Any]) -> list[Any]:
        with suppress(self.distributed.CancelledError):  # of data that is lost
            self.distributed.wait(handles, return_when="FIRST_COMPLETED")
        return [handle for handle in handles if handle.status != "pending"]

    def has_lost(self, handle: Any) -> bool:
        if handle.status not in ("cancelled", "lost"):
            return False
        self._content = None  # sent again
        return True

    def result(self, handle: Any) -> tuple[bytes, str]:
        result: tuple[bytes, str] = handle.result()
        handle.release()
        return result

    def stop(self, handles: Sequence[Any]) -> None:
        try:
            if handles:
                self.client.cancel(handles)
                self._wait(time.monotonic() + _GRACE_S)
        finally:
            if self._content is not None:
                self._content.release()

    def _wait(self, deadline: float) -> None:
        with suppress(OSError, self.distributed.comm.CommClosedError):  # the cluster has ended
            while any(self.client.run(_runs, self.job.key, on_error="ignore").values()):
                if time.monotonic() > deadline:
                    logging.getLogger(__name__).warning(
                        "note: a worker of %s still runs a cancelled job, after %g seconds",
                        self.client.scheduler.address,
                        _GRACE_S,
                    )
                    return
                time.sleep(_POLL_S)


_keys: Counter[str] = Counter()
"""In a worker: keys of the jobs that run, once for each thread."""


def _runs(key: str) -> bool:
    return _keys[key] > 0


def _on_dask(content: bytes, job: Job, work: Any, variant: Variant) -> tuple[bytes, str]:
    """Run a variant in a thread of a Dask worker; it ends soon after the job is cancelled."""
    worker = require("distributed").get_worker()
    task, ident = worker.get_current_task(), threading.get_ident()
    lock, ended = threading.Lock(), threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_S):
            with lock:
                state = worker.state.tasks.get(task)
                runs = state is not None and state.state in ("executing", "long-running")
                if not ended.is_set() and not runs:
                    stop_thread(ident)
                    return

    _keys[job.key] += 1
    try:
        threading.Thread(target=watch, daemon=True).start()
        try:
            return run_content(content, job, work, variant)
        finally:
            with lock:
                ended.set()
    except SystemExit as error:  # would end the worker
        return b"", f"SystemExit: {error}"
    finally:
        _keys[job.key] -= 1


# -- Ray -----------------------------------------------------------------------------------------


class _Ray:
    """A cluster of Ray, with the methods of `_Dask`; a cancelled job ends by KeyboardInterrupt."""

    def __init__(self, backend: Any, job: Job, path: Path) -> None:
        self.ray = require("ray", purpose="to run jobs on Ray")
        if not self.ray.is_initialized():
            self.ray.init()
        options = backend.ray_remote_args or {}
        try:
            self.task = self.ray.remote(run_content).options(**options)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"ray_remote_args={options!r} are not options of Ray's tasks: {error}"
            ) from error
        self.job = self.ray.put(job)
        content = np.fromfile(path, dtype=np.uint8)
        self.content = self.ray.put(content)  # shared by workers of a node

    def submit(self, work: Any, variant: Variant) -> Any:
        return self.task.remote(self.content, self.job, work, variant)

    def ended(self, handles: Sequence[Any]) -> list[Any]:
        ended: list[Any] = self.ray.wait(handles, num_returns=1)[0]
        return ended

    def has_lost(self, handle: Any) -> bool:
        return False  # this process holds the data

    def result(self, handle: Any) -> tuple[bytes, str]:
        result: tuple[bytes, str] = self.ray.get(handle)
        return result

    def stop(self, handles: Sequence[Any]) -> None:
        if not handles:
            return
        for handle in handles:
            self.ray.cancel(handle)
        _, running = self.ray.wait(handles, num_returns=len(handles), timeout=_GRACE_S)
        for handle in running:
            self.ray.cancel(handle, force=True)
        self.ray.wait(running or handles, num_returns=len(running or handles), timeout=_GRACE_S)
