"""Fitted estimators whose stored state was changed: refused, or used without harm."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.fuzz.share import SEED, SHARE

BATCHES = 6


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_changed_states_end_no_process(batch: int) -> None:
    share = SHARE if SHARE == 1 else SHARE / 5
    args = [sys.executable, "-m", "tests.fuzz.hostile_estimators"]
    args += [str(batch), str(BATCHES), str(SEED), str(share)]
    run = subprocess.run(args, capture_output=True, text=True, timeout=3600, check=False)
    lines = run.stdout.splitlines()
    last = lines[-1] if lines else ""
    assert last.startswith("DONE"), f"ended by {run.returncode} at: {last}\n{run.stderr[-2000:]}"
    count = json.loads(last.removeprefix("DONE "))
    assert count["estimators"] >= 30
    assert count["values"] > 40
    assert count["files"] > 4
    assert [line for line in lines if not line.startswith(("TRY", "DONE"))] == []
