"""Whole jobs of the benchmark end with scores like those of the scripts by hand."""

import pytest

pytest.importorskip("torch")

from benchmarks.job_scripts import write_data
from benchmarks.jobs import run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["curves", "table", "forest"])
def test_both_sides_of_a_job_learn_alike(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path, quick=True)
    scores = []
    for side in ("hand", "ours"):
        seconds, mib = run(name, side, tmp_path)
        assert seconds > 0.1
        assert mib > 50
        scores.append(float((tmp_path / "out.txt").read_text().split()[-1]))
    assert scores[0] == pytest.approx(scores[1], rel=0.5)
