"""Execution of variants in a worker process: it reads an experiment once and runs variants of it.

A worker forgets the experiment, and so returns its memory, once it has been idle for a minute.
"""

from __future__ import annotations

import gc
import logging
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modularml.context import ExperimentContext
from modularml.engine.interruption import exit_on_signals
from modularml.errors import ExecutionError
from modularml.experiment import Experiment
from modularml.io.atomic import temporary_folder
from modularml.io.randomness import unchanged_randomness
from modularml.strategies.variants.variant import Variant

__all__ = ["End", "Job", "path_or_error", "read", "run", "run_content", "working"]

End = tuple[Variant, Callable[[], str]]
"""A finished variant, and a function that returns the path of its file or raises its error."""
IDLE_S = 60.0
"""Seconds after which an idle worker forgets its experiment."""

working = threading.Lock()
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


def read(job: Job, path: Path) -> str:
    """Read the experiment of a job, unless it is read already; return an error message or ""."""
    logging.getLogger("modularml.data").setLevel(logging.ERROR)  # logged by the parent already
    if job.key in _loaded:
        return ""
    _loaded.clear()
    modules = job.modules
    try:
        with ExperimentContext().activate():
            _loaded[job.key] = Experiment.load(
                path, allow_import=modules, custom_objects=job.classes
            )
    except Exception as error:  # noqa: BLE001 - for example a class that cannot be sent
        hint = f"; your own classes must be importable there, from {modules}" if modules else ""
        return f"a worker cannot load the experiment{hint}: {error}"
    return ""


def run(job: Job, path: Path, folder: Path, work: Any, variant: Variant) -> tuple[str, str]:
    """Run a variant; return the path of its file in a folder and "", or "" and an error message."""
    with working:
        while _timers:
            _timers.pop().cancel()
        try:
            if problem := read(job, path):
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
    with working:
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
        written, problem = run(job, path, folder, work, variant)
        return Path(written).read_bytes() if written else b"", problem
