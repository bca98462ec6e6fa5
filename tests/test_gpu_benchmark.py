"""The part of the GPU benchmark that needs no GPU measures trainings that agree with each other."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from benchmarks.cases import table
from benchmarks.gpu import MEMBERS, Job, by_hand, gpu

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def test_all_rows_are_measured_but_those_that_need_cuda():
    rows = {row["work"]: row["value"] for row in gpu("cpu", quick=True)}
    measured = {work: value for work, value in rows.items() if "needs cuda" not in work}
    assert len(rows) == 7
    assert len(measured) == 5
    assert all(math.isfinite(value) and value > 0 for value in measured.values())
    assert [work for work, value in rows.items() if value is None] == [
        work for work in rows if "needs cuda" in work
    ]
    assert all(any(work.startswith(f"{n} members") for work in rows) for n in MEMBERS)


def test_both_sides_of_a_ratio_train_alike():
    data, size = table(2_000), {"batch": 64, "epochs": 10}
    torch.manual_seed(0)
    hand, ours = by_hand(data, "cpu", **size), Job(data, "cpu", **size).run()
    assert ours == pytest.approx(hand, rel=0.2)
    assert hand < 0.25 * float((data["y"] ** 2).mean())  # both have learned most of it
    torch.manual_seed(0)
    half = by_hand(data, "cpu", **size, bf16=True)
    assert half != hand
    assert half == pytest.approx(hand, rel=0.1)
    assert Job(data, "cpu", **size, precision="bf16").run() == pytest.approx(ours, rel=0.1)
    losses = [
        own.last_run.results["train"].metrics().where(name="train_loss", batch=None).values()[-1]
        for own in Job(data, "cpu", **size).seeds(3)
    ]
    assert len(set(losses)) == 3  # members differ
    assert all(loss == pytest.approx(hand, rel=0.3) for loss in losses)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_device_is_named():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no device 'cuda' here; pass --device cpu" in done.stderr
    assert "Traceback" not in done.stderr
