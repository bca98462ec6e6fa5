"""Where variants run: the choice of n_jobs='auto', and the memory of idle workers."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("torch")

import modularml as mml
from modularml.errors import ConfigError
from modularml.io.atomic import temporary_folder
from modularml.models.torch import SequentialMLP
from modularml.strategies.variants import workers
from modularml.strategies.variants.runs import Work
from modularml.strategies.variants.variant import template_of
from tests.saboteurs import Saboteur, Trace

SILENT = {"show_fold_progress": False, "show_training_progress": False}
LINE = r"n_jobs='auto': '{fold}' took .* s, so the other {n} run {where} \(in this process: about"


def cross_validation(callbacks: Any = (), model: Any = None, **options: Any) -> Any:
    x = np.random.default_rng(0).normal(size=(80, 3)).astype("float32")
    with mml.ExperimentContext().activate():
        fs = mml.FeatureSet.from_dict("rows", {"x": x, "y": x[:, 0]}, "x", "y")
        fs.split_random({"train": 0.7, "val": 0.3})
        model = model or SequentialMLP(n_layers=2, hidden_dim=4)
        mml.ModelGraph([mml.ModelNode("net", model, fs)], mml.Optimizer("adam"))
        own = mml.Experiment.from_active_context("e", audit="off", seed=1)
        mse = mml.AppliedLoss(mml.Loss("mse"), "net", ["outputs", "targets"])
        sampler = mml.SimpleSampler(batch_size=10, shuffle=True)
        own.execution_plan.add_phase(
            mml.TrainPhase.from_split(
                "train",
                split="train",
                sampler=sampler,
                losses=[mse],
                n_epochs=2,
                callbacks=callbacks,
            )
        )
        binding = mml.CVBinding(fs, ["train", "val"])
        return mml.CrossValidation(
            bindings=binding, experiment=own, **{"n_folds": 4, "stacked": False} | options
        )


def forecast(monkeypatch: Any, seconds_to_start: float) -> None:
    monkeypatch.setattr(
        "modularml.strategies.variants.runs.seconds_to_start", lambda n: seconds_to_start
    )
    monkeypatch.setattr("modularml.strategies.variants.runs.most_jobs", lambda: 2)


def test_auto_keeps_short_folds_in_this_process(monkeypatch, caplog, tmp_path):
    forecast(monkeypatch, 1000.0)
    with caplog.at_level(logging.INFO, "modularml.strategies"):
        found = cross_validation([Trace(str(tmp_path), 0.0)], n_jobs="auto").run(**SILENT)
    lines = [r.getMessage() for r in caplog.records if "n_jobs='auto'" in r.getMessage()]
    assert len(lines) == 1
    assert re.match(LINE.format(fold="fold_0", n=3, where="in this process"), lines[0])
    assert "2 workers: 1e+03 s, 1e+03 to start" in lines[0]
    assert len({path.name.rpartition("-")[2] for path in tmp_path.iterdir()}) == 1
    wanted = cross_validation([Trace(str(tmp_path), 0.0)]).run(**SILENT)
    pd.testing.assert_frame_equal(found.to_pandas(), wanted.to_pandas(), check_exact=True)


@pytest.mark.slow
def test_auto_sends_long_folds_to_workers(monkeypatch, caplog, tmp_path):
    forecast(monkeypatch, 0.0)
    with caplog.at_level(logging.INFO, "modularml.strategies"):
        found = cross_validation([Trace(str(tmp_path), 0.3)], n_jobs="auto").run(**SILENT)
    assert re.search(LINE.format(fold="fold_0", n=3, where="on 2 workers"), caplog.text)
    pids = {
        path.name.partition("-")[0]: path.name.rpartition("-")[2] for path in tmp_path.iterdir()
    }
    assert len(set(pids.values())) == 3
    wanted = cross_validation([Trace(str(tmp_path), 0.0)]).run(**SILENT)
    pd.testing.assert_frame_equal(found.to_pandas(), wanted.to_pandas(), check_exact=True)


def test_auto_trains_small_models_as_one(monkeypatch, caplog):
    forecast(monkeypatch, 0.0)
    with caplog.at_level(logging.INFO, "modularml.strategies"):
        found = cross_validation(n_jobs="auto", stacked=True).run(**SILENT)
    assert not found.failed_folds
    assert "n_jobs='auto': 4 small models are trained as one, without workers" in caplog.text
    assert "so the other" not in caplog.text


def test_auto_times_the_first_fold_that_succeeds(monkeypatch, caplog, tmp_path):
    forecast(monkeypatch, 1000.0)
    flag = tmp_path / "flag"
    flag.touch()
    cv = cross_validation([Saboteur("raise", "fold_0", str(flag))], n_jobs="auto")
    with (
        caplog.at_level(logging.INFO, "modularml.strategies"),
        pytest.warns(mml.strategies.FoldFailedWarning, match="fold_0"),
    ):
        cv.run(**SILENT)
    assert "'fold_1' took" in caplog.text
    assert "the other 2 run" in caplog.text


def test_auto_names_a_model_that_workers_cannot_read(monkeypatch, caplog):
    forecast(monkeypatch, 0.0)
    torch = pytest.importorskip("torch")

    class Local(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def forward(self, x: Any) -> Any:
            time.sleep(0.02)
            return self.layer(x)

    torch.manual_seed(1)
    with caplog.at_level(logging.INFO, "modularml.strategies"):
        found = cross_validation(model=Local(), n_jobs="auto").run(**SILENT)
    assert not found.failed_folds
    assert "run on 2 workers" in caplog.text
    assert "they run in this process, as workers cannot read them: MML-112" in caplog.text


@pytest.mark.parametrize("n_jobs", [0, 0.5, 2.0, True, False, "2", "all", [2]])
def test_other_numbers_of_processes_are_refused(n_jobs):
    with pytest.raises(ConfigError, match="n_jobs must be"):
        cross_validation(n_jobs=n_jobs)


def test_a_timeout_needs_processes_that_can_be_stopped():
    with pytest.raises(ConfigError, match="timeout needs n_jobs of at least 2"):
        cross_validation(n_jobs="auto", timeout=3)


def test_a_worker_without_jobs_forgets_the_experiment(monkeypatch):
    monkeypatch.setattr(workers, "IDLE_S", 0.2)
    cv = cross_validation()
    own, work = cv.experiment, Work("CV", {"show_training_progress": False})
    with temporary_folder() as folder:
        path = template_of(own, own.execution_plan).save(folder / "job")
        job = workers.Job(str(path), ["modularml"])
        for fold in cv.folds[:2]:
            written, problem = workers.run(job, path, folder, work, fold)
            assert not problem
            assert list(workers._loaded) == [job.key]
        time.sleep(0.6)
        assert not workers._loaded
        again, problem = workers.run(job, path, folder, work, cv.folds[1])  # read again
        assert not problem
        assert again == written
        workers._timers.pop().cancel()
        workers._forget()


def test_forecasts_know_idle_workers(monkeypatch):
    monkeypatch.setattr(workers, "_idle", {1: ["a", "b"]})
    monkeypatch.setattr(workers, "threads_of_each", lambda n: 1)
    assert workers.seconds_to_start(2) == 0.0
    assert workers.seconds_to_start(3) == workers._start_seconds[0] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_temporary_files_are_not_flushed_to_disk_and_others_are(monkeypatch, tmp_path):
    synced: list[str] = []
    fsync = os.fsync

    def counted(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", counted)
    own = cross_validation().experiment
    with temporary_folder() as folder:
        own.save(folder / "job")
        assert synced == []
    own.save(tmp_path / "job")
    assert any(str(tmp_path) in path for path in synced)


@pytest.mark.slow
def test_a_worker_loads_the_backend_of_its_job_alone(monkeypatch):
    monkeypatch.setattr(workers, "_idle", defaultdict(deque))
    assert not cross_validation(n_jobs=2, n_folds=2).run(**SILENT).failed_folds
    (idle,) = workers._idle.values()
    for started, _ in idle:
        names = ["torch", "torch._dynamo", "tensorflow", "keras", "sklearn", "matplotlib"]
        code = f"[name for name in {names} if name in __import__('sys').modules]"
        assert started.submit(eval, code).result(60) == ["torch"]
        assert started.submit(os.environ.get, "OMP_NUM_THREADS").result(60) == "1"
        started.shutdown(kill_workers=True)
