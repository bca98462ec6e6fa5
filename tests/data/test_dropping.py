"""Rows dropped with a reason."""

from __future__ import annotations

import numpy as np
import pytest

import modularml as mml
from modularml.errors import ConfigError, DataError
from modularml.io import inspect


@pytest.fixture
def fs():
    data = {"v": np.arange(10.0), "soh": np.arange(10.0) * 2, "cell": list("aabbccddee")}
    return mml.FeatureSet.from_dict("cells", data, "v", "soh", "cell", register=False)


@pytest.mark.parametrize(
    "rows",
    [
        {"cell": "b"},
        [2, 3],
        [-8, -7],
        np.arange(10) // 2 == 1,
        "ids",
        "view",
        {"cell": ["b", "c"], "v": lambda v: v < 4},
    ],
)
def test_every_form_of_rows(fs, rows):
    ids = fs.get_sample_uuids()
    if isinstance(rows, str):
        rows = ids[2:4] if rows == "ids" else fs.take([3, 2])
    view = fs.drop(rows, reason="spike")
    assert view.get_features()["v"].tolist() == [0, 1, 4, 5, 6, 7, 8, 9]
    assert [(d.reason, d.sample_uuids) for d in view.dropped] == [("spike", ids[2:4].tolist())]


def test_an_id_drops_every_row_of_its_sample(fs):
    ids = fs.get_sample_uuids("list")
    view = fs.take([0, 0, 1]).drop([ids[0]], reason="spike")
    assert view.get_sample_uuids("list") == [ids[1]]
    assert fs.take([0, 0, 1]).drop([0], reason="spike").get_sample_uuids("list") == ids[:2]


def test_reasons_add_up_and_are_shown(fs):
    view = fs.drop([0], reason="spike").drop({"cell": "e"}, reason="no current")
    view = view.drop([0], reason="spike").filter(conditions={"cell": ["b", "c"]})
    assert view.get_features()["v"].tolist() == [2, 3, 4, 5]
    assert repr(view).endswith("; 4 dropped (spike: 2, no current: 2))")
    summary = view.summary()
    assert summary.attrs["dropped"] == {"spike": 2, "no current": 2}
    assert summary["n_dropped"].tolist() == [4] * 3
    assert "4 dropped (spike: 2, no current: 2)" in view._repr_html_()
    assert "n_dropped" not in fs.summary()
    assert "dropped" not in repr(fs) + fs._repr_html_()


def test_positions_are_those_of_the_view(fs):
    view = fs.take([9, 8, 7]).drop([0], reason="late")
    assert view.get_features()["v"].tolist() == [8, 7]
    assert view.dropped[0].sample_uuids == fs.take([9]).get_sample_uuids("list")


def test_splits_and_sets_made_of_it(fs, tmp_path):
    view = fs.drop({"cell": "e"}, reason="no current")
    view.split_random({"train": 0.5, "test": 0.5})
    assert len(fs["train"]) + len(fs["test"]) == 8
    assert fs["test"].dropped[0] is view.dropped[0]
    assert repr(fs).endswith("; 2 dropped (no current: 2))")
    assert not fs.dropped
    made = fs.drop({"cell": "e"}, reason="no current").to_featureset("rest", register=False)
    made = made.drop([0], reason="spike")
    assert repr(made).endswith("; 3 dropped (no current: 2, spike: 1))")
    copied = fs.copy(restore_splits=True)
    assert copied["train"].dropped == fs["train"].dropped
    assert not fs.copy()._dropped


def test_files(fs, tmp_path):
    fs.drop({"cell": "e"}, reason="no current").split_random({"train": 0.5, "test": 0.5})
    rest = fs.drop([1], reason="spike").to_featureset("rest", register=False)
    path = fs.save(tmp_path / "fs")
    loaded = mml.FeatureSet.load(path)
    assert loaded["train"].dropped[0].sample_uuids == fs.take([8, 9]).get_sample_uuids("list")
    assert repr(loaded) == repr(fs)
    again = mml.FeatureSet.load(rest.save(tmp_path / "rest"))
    assert [d.reason for d in again.dropped] == ["spike"]
    assert "{'train': {'no current': 2}" in str(inspect(path))


def test_rows_that_are_attached(fs):
    fs.drop({"cell": "e"}, reason="no current").split_random({"train": 0.5, "test": 0.5})
    bare = fs.copy()
    bare.set_state({**bare.get_state(), "collection": bare.collection.without_rows()})
    bare.attach(fs)
    assert bare["train"].dropped == fs["train"].dropped


def test_bad_input(fs):
    with pytest.raises(ConfigError, match="reason must say why"):
        fs.drop([0], reason=" ")
    with pytest.raises(DataError, match="index 10 is out of range"):
        fs.drop([10], reason="x")
    with pytest.raises(DataError, match="all 10 rows"):
        fs.drop(range(10), reason="x")
    with pytest.raises(DataError, match="one boolean for each of 10 rows"):
        fs.drop([True], reason="x")
    with pytest.raises(DataError, match="is not in"):
        fs.drop([str(fs.get_sample_uuids()[0])[:-1] + "0"], reason="x")
    with pytest.warns(UserWarning, match="no row of 'cells' is dropped for 'x'"):
        assert len(fs.drop({"cell": "z"}, reason="x")) == 10
