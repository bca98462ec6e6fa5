"""Real clusters of two workers on this machine, for tests."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import joblib
import pytest

NAMES = ["dask", "ray"]


@contextmanager
def cluster(name: str, n_jobs: int = 2, **options: Any) -> Iterator[Any]:
    """Start a cluster, make joblib use it, and end it; return Dask's client or Ray's module."""
    start = {"dask": _dask, "ray": _ray}[name]
    with start() as client, joblib.parallel_config(name, n_jobs=n_jobs, **options):
        yield client


@contextmanager
def _ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    importlib.import_module("ray.util.joblib").register_ray()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _dask() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    client = distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=":0")
    try:
        yield client
    finally:
        with suppress(TimeoutError):
            client.shutdown()
        client.close()


def wait_for(condition: Any, seconds: float = 60.0) -> Any:
    """Wait until a function returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found
