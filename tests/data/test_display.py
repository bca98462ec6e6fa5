"""How sets show themselves: summaries are pandas' own figures, nothing is left unescaped."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest

from modularml.data import FeatureSet


@pytest.fixture
def fs():
    data = {
        "v": [[1.0, np.nan], [np.inf, 4.0]],
        "i": [3, 5],
        "<b>": ["a", "b"],
        "day": np.array(["2020-01-01", "2021-01-01"], dtype="M8[s]"),
        "flag": [True, False],
    }
    return FeatureSet.from_dict("<fs>", data, ["v", "i"], "flag", ["<b>", "day"])


def test_summary(fs):
    table = fs.summary().set_index("key")
    assert table["shape"].tolist() == [(2,), (), (), (), ()]
    assert table["dtype"].tolist() == ["float64", "int64", "bool", "text", "datetime64[s]"]
    assert table["not_finite"].tolist() == [2, 0, 0, 0, 0]
    assert table.loc["v", ["min", "mean", "max"]].tolist() == [1.0, 2.5, 4.0]
    assert table.loc["i", ["min", "mean", "max"]].tolist() == [3, 4, 5]
    assert pd.isna(table.loc["<b>", "min"])
    assert fs.take([1]).summary()["not_finite"].tolist()[0] == 1


def test_a_summary_does_not_unpack_text():
    n = 50_000
    data = {"x": np.zeros(n), "name": np.char.add("row ", np.arange(n).astype(str))}
    fs = FeatureSet.from_dict("rows", data, "x", [], "name", register=False)
    fs.take([0]).summary()  # imports pandas
    tracemalloc.start()
    fs.summary()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * n  # as Python objects the text takes about 65 bytes a row


def test_text(fs):
    fs.split_random({"a": 0.5, "b": 0.5})
    fs.fit_transform("MinMaxScaler", domain="features", keys="i", fit_to_split="a")
    shown = repr(fs)
    for part in ("'<fs>'", "2 rows", "features: v, i", "splits a: 1, b: 1", "1 scalers"):
        assert part in shown
    assert repr(fs["a"]) == "FeatureSetView('a' of '<fs>', 1 rows, 6 columns)"


def test_html(fs):
    for shown in (
        fs._repr_html_(),
        fs["a"]._repr_html_() if fs.available_splits else fs.to_view()._repr_html_(),
    ):
        assert "<fs>" not in shown
        assert "&lt;fs&gt;" in shown
        assert "<td><b></td>" not in shown
        assert shown.count("<tr>") == 6


def test_the_tree_of_splits_has_counts_and_overlaps(fs):
    n = 20
    long = FeatureSet.from_dict("long", {"x": np.arange(n), "y": np.arange(n)}, "x", "y")
    long.split_random({"train": 0.8, "test": 0.2})
    long["train"].split_random({"fit": 0.75, "val": 0.25})
    long.add_split(long.take(range(10), label="odd"))
    text = long.visualize().to_text()
    for part in ("20 rows", "16 rows", "4 rows", "12 rows"):
        assert part in text
    mermaid = long.visualize(show_overlaps=True).to_mermaid()
    shared = len(set(range(10)) & set(long["test"].indices.tolist()))
    assert f"{shared} shared" in mermaid
    assert "shared" not in long.visualize(show_overlaps=False).to_mermaid()
