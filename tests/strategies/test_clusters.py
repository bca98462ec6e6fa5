"""Folds on real clusters of two workers equal serial ones, whatever dies or is stopped."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("torch")

import modularml as mml
from modularml.errors import ConfigError
from modularml.models.torch import SequentialMLP
from modularml.strategies import FoldFailedWarning
from tests.clusters import NAMES, cluster, wait_for
from tests.saboteurs import Saboteur, Trace, count_reads

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # of the clusters' own
]
SILENT = {"show_fold_progress": False, "show_training_progress": False}


def cross_validation(
    callbacks: Any = (),
    *,
    n_folds: int = 4,
    n_rows: int = 80,
    n_epochs: int = 3,
    folder: Any = None,
    timeout: float | None = None,
) -> mml.CrossValidation:
    """A small network with dropout, in a context of its own."""
    x = np.random.default_rng(0).normal(size=(n_rows, 3)).astype("float32")
    with mml.ExperimentContext().activate():
        fs = mml.FeatureSet.from_dict("rows", {"x": x, "y": x[:, 0]}, "x", "y")
        fs.split_random({"train": 0.7, "val": 0.3})
        model = SequentialMLP(n_layers=2, hidden_dim=4, dropout=0.1)
        mml.ModelGraph([mml.ModelNode("net", model, fs)], mml.Optimizer("adam"))
        own = mml.Experiment.from_active_context("e", audit="off", seed=1)
        mse = mml.AppliedLoss(mml.Loss("mse"), "net", ["outputs", "targets"])
        own.execution_plan.add_phase(
            mml.TrainPhase.from_split(
                "train",
                split="train",
                sampler=mml.SimpleSampler(batch_size=n_rows // 8, shuffle=True),
                losses=[mse],
                n_epochs=n_epochs,
                callbacks=list(callbacks),
            )
        )
        own.execution_plan.add_phase(mml.EvalPhase.from_split("eval", split="val", losses=[mse]))
        if folder is not None:
            own.set_checkpoint_dir(folder)
        binding = mml.CVBinding(fs, ["train", "val"])
        return mml.CrossValidation(
            bindings=binding, n_folds=n_folds, experiment=own, stacked=False, timeout=timeout
        )


def assert_equal(a: Any, b: Any) -> None:
    assert not a.failed_folds
    assert not b.failed_folds
    pd.testing.assert_frame_equal(a.to_pandas(), b.to_pandas(), check_exact=True)
    pd.testing.assert_frame_equal(a.out_of_fold("net"), b.out_of_fold("net"), check_exact=True)


def traces(folder: Path) -> dict[int, str]:
    """Return which fold each process has run, by its number."""
    found = (path.name.rpartition("-") for path in folder.iterdir())
    return {int(pid): fold for fold, _, pid in found}


def killer(folder: Path, n_killed: int) -> threading.Thread:
    """Kill workers within a fold, once two of them have run folds."""

    def is_in_a_fold(pid: int) -> bool:
        touched = max(path.stat().st_mtime for path in folder.glob(f"*-{pid}"))
        return time.time() - touched < 0.3  # `Trace` waits longer after it

    def kill() -> None:
        pids = wait_for(lambda: len(found := sorted(traces(folder))) == 2 and found)
        for pid in pids[:n_killed]:
            wait_for(partial(is_in_a_fold, pid))
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(("name", "n_killed"), [("dask", 1), ("dask", 2), ("ray", 1), ("ray", 2)])
def test_jobs_of_killed_workers_are_repeated(name, n_killed, tmp_path):
    wanted = cross_validation([Trace(str(tmp_path), 0.0)]).run(**SILENT)
    for path in tmp_path.iterdir():
        path.unlink()
    cv = cross_validation([Trace(str(tmp_path), 0.7)])
    with cluster(name):
        thread = killer(tmp_path, n_killed)
        found = cv.run(**SILENT)
        thread.join(1)
        assert not thread.is_alive()
    assert_equal(found, wanted)
    assert os.getpid() not in traces(tmp_path)
    assert len(traces(tmp_path)) > 2
    assert len(list(tmp_path.iterdir())) >= 4 + n_killed


def test_a_worker_that_dies_while_the_experiment_is_sent_is_no_loss(monkeypatch):
    cv = cross_validation(n_folds=3)
    serial = cross_validation(n_folds=3).run(**SILENT)
    with cluster("dask") as client:
        scatter, killed = client.scatter, []

        def fatal(*args: Any, **options: Any) -> Any:
            if not killed:
                killed.append(min(client.run(os.getpid).values()))
                os.kill(killed[0], signal.SIGKILL)
            return scatter(*args, **options)

        monkeypatch.setattr(client, "scatter", fatal)
        found = cv.run(**SILENT)
    assert killed
    assert_equal(found, serial)


@pytest.mark.parametrize("name", NAMES)
def test_a_job_that_kills_its_workers_fails_alone(name, tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    saboteur = Saboteur("die", "fold_1", str(flag))
    options: dict[str, Any] = {"ray": {"ray_remote_args": {"max_retries": 0}}}.get(name, {})
    cv = cross_validation([saboteur])
    with cluster(name, **options) as client:
        if name == "dask":
            client.run_on_scheduler(_allow_no_failure)
        with pytest.warns(FoldFailedWarning, match="1 of 4 folds failed"):
            failed = cv.run(**SILENT).failed_folds
        assert list(failed) == ["fold_1"]
        assert "its workers died" in str(failed["fold_1"])
        flag.unlink()
        found = cv.run(**SILENT)
    assert_equal(found, cross_validation([saboteur]).run(**SILENT))


def _allow_no_failure(dask_scheduler: Any) -> None:
    dask_scheduler.allowed_failures = 0


@pytest.mark.parametrize("name", NAMES)
def test_the_experiment_is_sent_and_read_once_a_worker(name, tmp_path, monkeypatch):
    reads, sent = tmp_path / "reads", []
    monkeypatch.setenv("MML_TEST_READS", str(reads))
    n_rows = 200_000
    cv = cross_validation(n_folds=6, n_rows=n_rows, n_epochs=1)
    with cluster(name) as client:
        if name == "dask":
            client.run(os.environ.__setitem__, "MML_TEST_READS", str(reads))
            client.run(count_reads)
            submit, scatter = client.submit, client.scatter
            monkeypatch.setattr(client, "submit", _counted(submit, sent))
            monkeypatch.setattr(client, "scatter", _counted(scatter, sent))
        else:
            client.shutdown()
            hook = {"worker_process_setup_hook": "tests.saboteurs.count_reads"}
            options = {"include_dashboard": False, "log_to_driver": False, "runtime_env": hook}
            client.init(num_cpus=2, **options)
            monkeypatch.setattr(client, "put", _counted(client.put, sent))
        found = cv.run(**SILENT)
        assert cv.run(**SILENT).to_pandas().equals(found.to_pandas())  # nothing is run again
    pids = reads.read_text().split()
    assert 1 <= len(pids) <= 2
    assert len(set(pids)) == len(pids)
    assert not found.failed_folds
    rows = n_rows * 4 * 4  # three features and a target
    large = [size for size in sent if size > rows]
    assert len(large) == 1
    assert large[0] < 2 * rows  # with ids and splits
    assert max(size for size in sent if size not in large) < 4 * n_rows / 8 + 4096  # bits of rows


def _counted(method: Any, sent: list[int]) -> Any:
    """Write down the bytes of the arguments of a method."""

    def call(*args: Any, **options: Any) -> Any:
        sent.append(sum(len(_content(arg)) for arg in args))
        return method(*args, **options)

    return call


def _content(argument: Any) -> bytes:
    try:
        return pickle.dumps(argument)
    except (TypeError, RuntimeError, AttributeError):  # a future
        return b""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_checkpoints", [True, False])
def test_ctrl_c_stops_the_jobs_and_leaves_the_cluster_usable(name, with_checkpoints, tmp_path):
    trace, folder = tmp_path / "trace", tmp_path / "checkpoints"
    trace.mkdir()
    made = {"folder": folder} if with_checkpoints else {}
    cv = cross_validation([Trace(str(trace))], n_epochs=80, **made)
    options: Any = {**SILENT, "resume": "auto"} if with_checkpoints else SILENT

    def press() -> None:
        wait_for(lambda: len(traces(trace)) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    with cluster(name):
        thread = threading.Thread(target=press, daemon=True)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            cv.run(**options)
        stopped = time.time()
        time.sleep(1)
        assert all(path.stat().st_mtime < stopped + 0.05 for path in trace.iterdir())
        assert len(list(trace.iterdir())) == 2  # neither of the other folds began
        kept = sorted(path.parent.name for path in folder.rglob("interrupted.ckpt.mml"))
        assert kept == (["CV_fold_0", "CV_fold_1"] if with_checkpoints else [])
        for path in trace.iterdir():
            path.unlink()
        short = cross_validation([Trace(str(trace), 0.0)], n_folds=2)
        found = short.run(**SILENT)
        assert os.getpid() not in traces(trace)
    wanted = cross_validation([Trace(str(trace), 0.0)], n_folds=2).run(**SILENT)
    assert_equal(found, wanted)


def test_folds_stopped_on_a_cluster_resume_there(tmp_path):
    trace = tmp_path / "trace"
    trace.mkdir()
    callbacks = [Trace(str(trace), 0.0)]
    wanted = cross_validation(callbacks, n_epochs=40, n_folds=2).run(**SILENT)
    for path in trace.iterdir():
        path.unlink()

    def made() -> mml.CrossValidation:
        callbacks = [Trace(str(trace), 0.1)]
        return cross_validation(callbacks, n_epochs=40, n_folds=2, folder=tmp_path / "files")

    def press() -> None:
        wait_for(lambda: len(traces(trace)) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    with cluster("dask"):
        threading.Thread(target=press, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            made().run(resume="auto", **SILENT)
        assert len(list((tmp_path / "files").rglob("interrupted.ckpt.mml"))) == 2
        found = made().run(resume="auto", **SILENT)
    assert_equal(found, wanted)


def test_what_a_cluster_cannot_honour_is_refused():
    cv = cross_validation()
    with cluster("ray", ray_remote_args={"max_restarts": 3}):
        with pytest.raises(ConfigError, match="max_restarts"):
            cv.run(**SILENT)
        timed = cross_validation(timeout=3.0)
        with pytest.raises(ConfigError, match="timeout works with processes on this machine"):
            timed.run(**SILENT)
