"""Files taken apart and compared, without making anything of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import modularml as mm
from modularml.audit import AuditWarning
from modularml.cli import main
from modularml.errors import MMLError, MMLKindError
from modularml.io import diff, extract
from tests.io import things


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """An experiment, its file, and the file of the same experiment after one more epoch."""
    folder = tmp_path_factory.mktemp("study")
    with mm.ExperimentContext().activate():
        torch.manual_seed(0)
        made = things.experiment()
        return made, made.save(folder / "a"), folder


def test_arrays_and_tables_come_out_as_they_went_in(study: Any, tmp_path: Path) -> None:
    made, path, _ = study
    written = extract(path, tmp_path / "out")
    assert all(p.is_file() for p in written)
    head = made.model_graph.get_node("head")
    for name, value in head.model.get_state()["weights"].items():
        found = np.load(tmp_path / "out" / "tensors" / "head" / f"model.weights.{name}.npy")
        np.testing.assert_array_equal(found, value)
    table = pd.read_parquet(tmp_path / "out" / "tables" / "cells.parquet")
    np.testing.assert_array_equal(
        table["features.x.raw"],
        made.ctx.get_node(label="cells").get_features("dict", rep="raw")["x"],
    )
    with pytest.raises(MMLError, match="already exists"):
        extract(path, tmp_path / "out")


def test_a_file_differs_from_itself_in_nothing(study: Any) -> None:
    assert not any(diff(study[1], study[1]).values())


def test_each_difference_has_its_place(study: Any) -> None:
    made, path, folder = study
    with made.ctx.activate():
        other = mm.Experiment.load(path)
    fs = other.ctx.get_node(label="cells")
    fs.split_random({"p": 0.5, "q": 0.5})
    other.model_graph.get_node("head").reset_weights(1)
    other.execution_plan.get_phase("train").n_epochs = 7
    other.execution_plan.label = "renamed"
    found = diff(path, other.save(folder / "b"))
    assert any("n_epochs: 2 -> 7" in line for line in found["config"])
    assert any("splits" in line and "p" in line for line in found["data"])
    assert any("head.model.weights.layers.0.weight: 1" in line for line in found["weights"])
    assert found["results"] == []
    with pytest.warns(AuditWarning, match="shared_groups"):
        other.run(**things.QUIET)
    assert diff(path, other.save(folder / "c"))["results"]


def test_rows_are_compared(tmp_path: Path) -> None:
    def one(x: list[float], label: str) -> Path:
        with mm.ExperimentContext().activate():
            data = {"x": x, "y": [1.0, 2.0, 3.0], "t": ["a", "b", "c"]}
            return mm.FeatureSet.from_dict("s", data, "x", "y", "t").save(tmp_path / label)

    lines = diff(one([1.0, 2.0, 3.0], "a"), one([1.0, 2.5, 3.0], "b"))["data"]
    assert "table.features.x.raw: 1 of 3 values differ, by 0.5 at most" in lines


def test_unlike_kinds_are_refused(study: Any, tmp_path: Path) -> None:
    with pytest.raises(MMLKindError):
        diff(study[1], mm.Loss("mse").save(tmp_path / "l"))


def test_the_command_line_shows_them(
    study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(study[1])
    assert main(["extract", path, "--out", str(tmp_path / "x")]) == 0
    assert "cells.parquet" in capsys.readouterr().out
    assert main(["diff", path, path]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main(["diff", path, str(tmp_path / "none.exp.mml")]) == 1


def test_nan_in_the_same_place_is_no_difference(tmp_path):
    def saved(name, last):
        v = np.arange(12.0).reshape(4, 3)
        v[1, 2] = np.nan
        data = {"v": v, "s": np.array([np.nan, 1, 2, last]), "y": np.arange(4.0)}
        with mm.ExperimentContext().activate():
            return mm.FeatureSet.from_dict("c", data, ["v", "s"], "y").save(tmp_path / name)

    assert not any(diff(saved("a", 3.0), saved("b", 3.0)).values())
    assert any(diff(saved("c", 3.0), saved("d", 4.0)).values())
