"""Runs stopped at random moments end bit for bit like runs that were never stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.share import SEED, times

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")]


@pytest.mark.parametrize(
    ("kind", "full"),
    [("torch", 200), ("sklearn", 50), ("tensorflow", 30)],
)
def test_stop_and_go_on(kind: str, full: int) -> None:
    n = times(full)
    command = [sys.executable, "-m", "tests.fuzz.stopping", kind, str(n), str(SEED)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, check=False, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"n": n, "bad": []}
