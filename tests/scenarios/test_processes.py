"""However a process with workers ends, it leaves neither workers nor rows behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

JOB = """
import sys, time, numpy as np, modularml as mml
from modularml.models.torch import SequentialMLP
class Slow(mml.callbacks.Callback):
    def __init__(self, folder, label="slow"):
        super().__init__(label); self.folder = folder
    def on_epoch_end(self, **facts):
        import os, pathlib
        pathlib.Path(self.folder, f"worker-{os.getpid()}").touch(); time.sleep(0.2)
folder, checkpoints = sys.argv[1], len(sys.argv) > 2
x = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
fs = mml.FeatureSet.from_dict("rows", {"x": x, "y": x[:, 0]}, "x", "y")
fs.split_random({"dev": 0.9, "test": 0.1}); fs.add_split(fs["dev"].take(range(9), label="train"))
mml.ModelGraph([mml.ModelNode("net", SequentialMLP(), fs)], mml.Optimizer("adam"))
e = mml.Experiment.from_active_context("e", audit="off")
loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
binding = mml.InputBinding.for_training
source = binding(node="net", upstream=fs, split="train", sampler=mml.SimpleSampler(batch_size=10))
kept = mml.Checkpointing(mode="disk", save_on="epoch_end") if checkpoints else None
phase = mml.TrainPhase("t", input_sources=[source], losses=[loss], n_epochs=500,
    callbacks=[Slow(folder)], checkpointing=kept)
e.execution_plan.add_phase(phase)
options = {}
if checkpoints:
    e.set_checkpoint_dir(folder + "/checkpoints"); options["resume"] = "auto"
cv = mml.CrossValidation(experiment=e, bindings=[mml.CVBinding(fs, ["dev"])], n_folds=2, n_jobs=2)
cv.run(**options)
"""


def started(tmp_path: Path, *more: str) -> tuple[subprocess.Popen, list[int]]:
    """Start folds on two workers and wait until both are at it."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "out").mkdir()
    job = tmp_path / "job.py"
    job.write_text(JOB)
    with (tmp_path / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(job), str(tmp_path / "out"), *more],
            env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    deadline = time.monotonic() + 240
    while len(workers := list((tmp_path / "out").glob("worker-*"))) < 2:
        assert process.poll() is None, (tmp_path / "stderr").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process, [int(path.name.partition("-")[2]) for path in workers]


def gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() and not is_zombie(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def is_zombie(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "SIGKILL"])
def test_workers_and_rows_go_with_the_parent(how, tmp_path):
    process, pids = started(tmp_path)
    assert list((tmp_path / "tmp").glob("modularml-*/*.mml"))  # the rows
    process.send_signal(getattr(signal, how))
    process.wait(60)
    number = getattr(signal, how)
    assert process.returncode == (-number if how == "SIGKILL" else 128 + number)
    assert gone(pids, 40)
    assert not list((tmp_path / "tmp").glob("modularml-*/*.mml"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_folds_on_workers_end_with_a_checkpoint_and_a_note(tmp_path):
    process, pids = started(tmp_path, "with checkpoints")
    process.send_signal(signal.SIGTERM)
    process.wait(90)
    error = (tmp_path / "stderr").read_text()
    assert process.returncode == 128 + signal.SIGTERM
    assert "resume='auto'" in error
    assert gone(pids, 10)
    kept = sorted(p.name for p in (tmp_path / "out").rglob("interrupted.ckpt.mml"))
    assert kept == ["interrupted.ckpt.mml"] * 2
