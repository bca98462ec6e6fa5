"""FeatureSets described by the files they are read from."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import modularml as mm
from modularml.errors import ConfigError, MMLExistsError
from tests.cli import plans


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    plans.write_table(tmp_path)
    return tmp_path


def test_paths_start_at_the_file(folder: Path) -> None:
    (folder / "sub").mkdir()
    fs = mm.FeatureSet.from_csv("cells", folder / "cells.csv", "x", "y", missing="error")
    text = fs.to_yaml("sub/cells.yaml")
    assert "csv: ../cells.csv\n" in text
    assert "missing: error" in text
    assert (folder / "sub" / "cells.yaml").read_text() == text
    assert "csv: cells.csv\n" in fs.to_yaml()
    with pytest.raises(MMLExistsError):
        fs.to_yaml("sub/cells.yaml")


def test_sets_that_files_do_not_give_are_refused(folder: Path) -> None:
    keys = ["x", "z"], "y", ["cell"]
    with pytest.raises(ConfigError, match="was not read from CSV or Parquet"):
        mm.FeatureSet.from_dict("d", {"x": [1.0], "y": [2.0]}, "x", "y").to_yaml()
    chosen = mm.FeatureSet.from_csv("chosen", "cells.csv", *keys)
    chosen.add_split(chosen.take([0, 1], "first"))
    with pytest.raises(ConfigError, match=r"\['first'\] of 'chosen' are rows chosen in Python"):
        chosen.to_yaml()
    random = mm.FeatureSet.from_csv("random", "cells.csv", *keys)
    random.fit_transform("TargetEncoder", domain="tags", keys="cell", targets="y")
    with pytest.raises(ConfigError, match="draw random numbers"):
        random.to_yaml()
    changed = mm.FeatureSet.from_csv("changed", "cells.csv", *keys)
    frame = pd.read_csv("cells.csv").assign(x=1.0)
    frame.to_csv("cells.csv", index=False)
    with pytest.raises(ConfigError, match="other rows now"):
        changed.to_yaml()
    renamed = mm.FeatureSet.from_csv("r", "cells.csv", *keys, rename=lambda name: name)
    with pytest.raises(ConfigError, match="cannot be found again by name"):
        renamed.to_yaml()


def test_splits_of_scaled_columns_are_refused(folder: Path) -> None:
    fs = mm.FeatureSet.from_csv("cells", "cells.csv", ["x", "z"], "y", ["cell"])
    fs.fit_transform("MinMaxScaler", domain="features")
    fs.split_by_condition({"low": {"features.x.transformed": mm.predicates.LT(0.5)}})
    with pytest.raises(ConfigError, match="would not give the same"):
        fs.to_yaml()
