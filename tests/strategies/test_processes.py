"""However a process with workers ends, it leaves neither workers nor rows behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

JOB = """
import os, pathlib, signal, sys, time, numpy as np, modularml as mml
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup and shells ignore them for what they start
signal.signal(signal.SIGINT, signal.default_int_handler)
from modularml.models.torch import SequentialMLP
class Slow(mml.callbacks.Callback):
    def __init__(self, folder, label="slow"):
        super().__init__(label); self.folder = folder
    def on_epoch_end(self, **facts):
        pathlib.Path(self.folder, f"worker-{os.getpid()}").touch(); time.sleep(0.1)
folder, n_jobs, checkpoints, n_epochs = sys.argv[1], *map(int, sys.argv[2:])
x = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
fs = mml.FeatureSet.from_dict("rows", {"x": x, "y": x[:, 0]}, "x", "y")
fs.add_split(fs.take(range(50), label="train"))
mml.ModelGraph([mml.ModelNode("net", SequentialMLP(), fs)], mml.Optimizer("adam"))
e = mml.Experiment.from_active_context("e", audit="off", seed=1)
e.execution_plan.add_phase(mml.TrainPhase.from_split(
    "t", split="train", sampler=mml.SimpleSampler(batch_size=10), n_epochs=n_epochs,
    losses=[mml.AppliedLoss(mml.Loss("mse"), "net", ["outputs", "targets"])],
    callbacks=[Slow(folder)]))
options = {}
if checkpoints:
    e.set_checkpoint_dir(folder + "/checkpoints"); options["resume"] = "auto"
cv = mml.CrossValidation(bindings=[mml.CVBinding(fs, ["train"])], n_folds=2, n_jobs=n_jobs)
found = cv.run(show_fold_progress=False, show_training_progress=False, **options)
print([found.get_fold(i)["t"].n_epochs for i in range(2)])
"""


@contextmanager
def job(tmp_path: Path, *, n_jobs: int = 2, checkpoints: bool = False, n_epochs: int = 500):
    """Start two folds in a process group of its own, whose temporary files are in ``tmp``."""
    for name in ("tmp", "out"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "job.py").write_text(JOB)
    numbers = [str(int(number)) for number in (n_jobs, checkpoints, n_epochs)]
    errors = (tmp_path / "stderr").open("w")
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "job.py"), str(tmp_path / "out"), *numbers],
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        errors.close()


def workers(process: subprocess.Popen, tmp_path: Path, count: int = 2) -> list[int]:
    """Return the processes that run folds, once all of them do."""
    found: list[Path] = []
    deadline = time.monotonic() + 120
    while len(found) < count:
        assert process.poll() is None, (tmp_path / "stderr").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
        found = list((tmp_path / "out").glob("worker-*"))
    return [int(path.name.partition("-")[2]) for path in found]


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def assert_nothing_is_left(pids: list[int], tmp_path: Path, seconds: float = 0.0) -> None:
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if is_running(pid)]
    assert not list((tmp_path / "tmp").rglob("*.mml"))
    assert not list((tmp_path / "tmp").glob("modularml-*"))


def test_a_killed_parent_takes_its_workers_and_rows_along(tmp_path):
    with job(tmp_path) as process:
        pids = workers(process, tmp_path)
        assert process.pid not in pids
        assert list((tmp_path / "tmp").glob("modularml-*/*.mml"))  # the rows
        process.kill()
        process.wait(10)
        assert_nothing_is_left(pids, tmp_path, seconds=15)


def test_a_signal_ends_workers_before_the_parent(tmp_path):
    number = signal.SIGHUP
    with job(tmp_path) as process:
        pids = workers(process, tmp_path)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        assert_nothing_is_left(pids, tmp_path)
    error = (tmp_path / "stderr").read_text()
    assert "note: 'CV' was stopped with 0 of 2 folds complete" in error
    assert "set_checkpoint_dir(path)" in error


LATE = pytest.mark.private("torch's compiler is imported, after which a signal ends Python with 1")


@pytest.mark.parametrize("to", ["group", pytest.param("terminal", marks=LATE)])
def test_folds_in_workers_keep_their_states(to, tmp_path):
    number = signal.SIGINT if to == "terminal" else signal.SIGTERM
    # (with torch's compiler and `tabulate`, which it imports at exit, -2 would become 1: their
    # `exec` of text makes CPython forget how it ends; see `import_dynamo_late`)
    with job(tmp_path, checkpoints=True) as process:
        pids = workers(process, tmp_path)
        os.killpg(process.pid, number)  # workers too, whom the parent asks again
        assert process.wait(30) == (-number if to == "terminal" else 128 + number)
        assert_nothing_is_left(pids, tmp_path)
    error = (tmp_path / "stderr").read_text()
    assert error.count("note: phase 't' was stopped by SIGTERM; run(resume='auto')") == 2
    assert "note: 'CV' was stopped with 0 of 2 folds complete; run(resume='auto') resumes" in error
    kept = sorted((tmp_path / "out").rglob("interrupted.ckpt.mml"))
    assert [path.parent.name for path in kept] == ["CV_fold_0", "CV_fold_1"]
    assert not list((tmp_path / "out").rglob("*.lock"))
