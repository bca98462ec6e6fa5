"""A real MLflow server: runs, one that is gone in the middle, and processes that are killed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import modularml as mm
from modularml.tracking import TrackingWarning
from tests.stores import MLflowFolder, assert_logged, by_step
from tests.tracking.test_trackers import planned
from tests.worlds import QUIET

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def packages(request):
    """Return a folder with MLflow's server, which is kept for later sessions."""
    requirements = HERE / "mlflow_server.txt"
    folder = Path(request.config.cache.mkdir("mlflow-server"))
    done = folder / "installed.txt"
    if not done.exists() or done.read_text("utf-8") != requirements.read_text("utf-8"):
        shutil.rmtree(folder)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
        subprocess.run([*command, "--target", folder, "-r", requirements], check=True)
        shutil.copy(requirements, done)
    return folder


class Server:
    def __init__(self, packages: Path, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        options = {
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
            "--backend-store-uri": f"sqlite:///{folder / 'server.db'}",
            "--artifacts-destination": str(folder / "files"),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *sum(options.items(), ())],
            env={
                **os.environ,
                "PYTHONPATH": str(packages),
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 180
        while not self.answers():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def server(packages, tmp_path):
    started = Server(packages, tmp_path)
    yield started
    started.stop()


KILLED = """
import os, sys
import modularml as mm
from tests.stores import MLflowFolder
from tests.tracking.test_trackers import Dies, planned
from tests.worlds import QUIET

if __name__ == "__main__":
    uri, folder, epoch = sys.argv[1:]

    def dies(self, *, exec_ctx, **facts):
        if exec_ctx.epoch_idx == int(epoch):
            os._exit(9)

    Dies.on_epoch_end = dies
    store = MLflowFolder(folder, uri)
    tracker = store.tracker(every_seconds=0, experiment_name="killed")
    experiment = planned(tracker, late=Dies(), checkpoints=folder, n_epochs=6)
    experiment.run(resume="auto", **QUIET)
"""


def test_a_process_that_is_killed_goes_on_in_the_same_run(server, tmp_path):
    store = MLflowFolder(tmp_path, server.uri)
    root = Path(mm.__file__).parents[1]
    codes, ids = [], set()
    for epoch in (2, 4, 99):
        command = [sys.executable, "-c", KILLED, server.uri, str(tmp_path / "saved"), str(epoch)]
        codes.append(subprocess.run(command, cwd=root, check=False).returncode)
        (run,) = store.runs().values()
        ids.add(run.run_id)
    assert codes == [9, 9, 0]
    assert len(ids) == 1
    want = planned(n_epochs=6).run(**QUIET)
    train = by_step(want.get_group_result("first")["train"].to_pandas(), "first/train")
    assert_logged(run.metrics, train | by_step(want["test"]._metrics.to_pandas(), "test"))
    assert run.status == "completed"
    assert "experiment.exp.mml" in run.files  # sent through the server


class StopsServer(mm.callbacks.Callback):
    server = None

    def on_epoch_end(self, *, exec_ctx, **facts):
        if exec_ctx.epoch_idx == 1:
            self.server.stop()


def test_a_server_that_is_gone_in_the_middle(server, tmp_path, monkeypatch):
    monkeypatch.setattr(StopsServer, "server", server)
    tracker = MLflowFolder(tmp_path, server.uri).tracker(timeout=3, every_seconds=0)
    want = planned().run(**QUIET).to_pandas()
    experiment = planned(tracker, late=StopsServer())
    started = time.monotonic()
    with pytest.warns(TrackingWarning, match="stopped logging") as caught:
        results = experiment.run(**QUIET)
    assert len(caught) == 1
    assert time.monotonic() - started < 30
    np.testing.assert_array_equal(results.to_pandas(), want)
