"""What is in a file can be seen where none of its frameworks is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor

import modularml as mm
from modularml.models import ScikitModelWrapper, TensorflowModelWrapper
from modularml.models.torch import SequentialMLP
from tests.io import things

BARE = """
import sys
FORBIDDEN = ("torch", "tensorflow", "keras", "sklearn")
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} is not installed", name=name)
sys.meta_path.insert(0, Forbid())
from modularml.cli import main
for command in (["inspect", "a.exp.mml"], ["extract", "a.exp.mml", "--out", "parts"],
                ["diff", "a.exp.mml", "b.exp.mml"], ["diff", "a.exp.mml", "a.exp.mml"]):
    print("exit", main(command))
assert not set(FORBIDDEN) & {name.split(".")[0] for name in sys.modules}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experiments of a torch, a Keras and a scikit-learn node."""
    folder = tmp_path_factory.mktemp("mixed")
    for name in "ab":
        with mm.ExperimentContext().activate():
            fs = things.featureset()
            ref = fs.reference(features=["v"], targets="y")
            flat = [keras.Input((1, 3)), keras.layers.Flatten()]
            dense = keras.Sequential([*flat, keras.layers.Dense(2)])
            forest: Any = ScikitModelWrapper(RandomForestRegressor(3, random_state=0))
            nodes = [
                mm.ModelNode("torch", SequentialMLP(output_shape=(2,)), ref),
                mm.ModelNode("keras", TensorflowModelWrapper(model=dense), ref),
                mm.ModelNode("forest", forest, ref),
            ]
            mm.ModelGraph(nodes).build()
            rows = np.random.default_rng(ord(name)).normal(size=(20, 3))
            forest.fit(rows, rows[:, 0])
            mm.Experiment.from_active_context("mixed").save(folder / name)
    return folder


def test_inspect_extract_and_diff(folder: Path) -> None:
    args = [sys.executable, "-c", BARE]
    run = subprocess.run(args, capture_output=True, text=True, cwd=folder, check=False)
    assert run.returncode == 0, run.stderr
    told = run.stdout
    for text in (
        "torch: SequentialMLP (torch)",
        "keras: TensorflowModelWrapper (tensorflow)",
        "forest: ScikitModelWrapper (scikit)",
        "rows 'cells': 30, fingerprint ",
        "scaler StandardScaler on features x",
        "split train: 18 rows",
    ):
        assert text in told
    assert (folder / "parts" / "config.json").exists()
    assert list((folder / "parts" / "tensors").rglob("*.npy"))
    assert "forest" in told.partition("weights")[2]  # other rows make other trees


def test_it_loads_where_they_are(folder: Path) -> None:
    with mm.ExperimentContext().activate():
        made = mm.Experiment.load(folder / "a")
        fs: Any = made.ctx.get_node("cells")
        assert made.save(folder / "again").read_bytes() == (folder / "a.exp.mml").read_bytes()
        assert fs.n_samples == 30
