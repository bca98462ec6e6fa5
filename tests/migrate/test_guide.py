"""What the guide to migrating says is so."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

import modularml as mml

GUIDE = Path(__file__).parents[2] / "docs" / "explanation" / "migrating.md"


def test_the_examples_run(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    script = tmp_path / "guide.py"
    script.write_text("\n".join(blocks), "utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "OldNameWarning" in done.stderr
    moved, argument, attribute = done.stdout.splitlines()
    assert moved.endswith("TripletSampler: from modularml import TripletSampler")
    assert argument.startswith("3:52: renamed: TripletSampler(n_workers=): no effect")
    assert attribute == "4:7: renamed: .eval_results: .results"


def test_what_changes_without_an_error():
    x = np.arange(4, dtype=np.float32)
    data = {"x": x, "i": np.arange(4), "y": np.arange(4.0)[:, None]}
    fs = mml.FeatureSet.from_dict("rows", data, ["x", "i"], "y")
    assert fs.get_targets("numpy").shape == (4, 1)
    assert fs.get_targets("dict_numpy")["y"].shape == (4,)
    assert list(fs.get_target_shapes().values()) == [()]
    kinds = {name: array.dtype for name, array in fs.get_features("dict_numpy").items()}
    assert kinds == {"x": np.float32, "i": np.int64}
    assert [np.dtype(d) for d in fs.get_feature_dtypes().values()] == [np.float32, np.int64]
    fs.fit_transform("StandardScaler", domain="features", keys="x")
    newest = fs.get_features("dict_numpy")["x"]
    np.testing.assert_allclose(newest.mean(), 0, atol=1e-7)
    np.testing.assert_array_equal(fs.get_features("dict_numpy", rep="raw")["x"], x)
