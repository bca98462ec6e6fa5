"""Wide tables: the same values as column by column, in time that grows with the columns."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

from modularml import FeatureSet, ModelGraph, ModelNode
from modularml.data.arrow_columns import column_values, to_arrow
from modularml.data.arrow_types import to_numpy
from modularml.data.input_tables import as_columns
from modularml.errors import DataError, UnknownNameError

torch = pytest.importorskip("torch")


def wide(n, rows=5):
    values = np.random.default_rng(0).normal(size=(rows, n))
    return {f"x{i}": values[:, i] for i in range(n)}


def mixed():
    """Return a frame wider than long with all kinds of columns."""
    return pd.DataFrame(
        {
            "f8": [1.5, np.nan],
            "f4": np.array([1, 2], dtype="f4"),
            "i8": [2**62 + 1, 3],
            "u1": np.array([255, 0], dtype="u1"),
            "flag": [True, False],
            "nullable": pd.array([1, 2], dtype="Int64"),
            "text": ["a", "b"],
            "when": pd.to_datetime(["2020-01-01", "2021-01-01"]),
            "kind": pd.Categorical(["u", "v"]),
        }
    )


def test_columns_of_a_wide_frame_are_those_of_the_frame():
    frame = mixed()
    columns = as_columns(frame)
    for name in frame:
        got = columns[name]
        assert np.asarray(got).dtype == np.asarray(frame[name]).dtype
        pd.testing.assert_series_equal(
            pd.Series(got), frame[name], check_names=False, check_dtype=True
        )


def test_a_wide_feature_set_equals_a_long_one():
    names = ["f8", "f4", "i8", "u1", "flag", "nullable", "text", "when", "kind"]
    wide_rows = FeatureSet.from_pandas("wide", mixed(), names, [], register=False)
    rows = pd.concat([mixed()] * 10, ignore_index=True)  # longer than wide
    long_rows = FeatureSet.from_pandas("long", rows, names, [], register=False)
    schema = long_rows.collection.schema
    assert wide_rows.collection.schema == schema
    for name in schema.columns:
        expected = long_rows.collection.numpy(name)[:2]
        np.testing.assert_array_equal(wide_rows.collection.numpy(name), expected)


def test_repeated_names_of_a_wide_frame_are_refused():
    frame = pd.DataFrame([[1.0, 2.0]], columns=["x", "x"])
    with pytest.raises(DataError, match="2 times"):
        as_columns(frame)["x"]


def test_a_later_change_of_the_frame_does_not_reach_the_rows():
    frame = pd.DataFrame(wide(8, rows=3))
    fs = FeatureSet.from_pandas("rows", frame, list(frame), [], register=False)
    before = fs.collection.numpy("features.x0.raw").copy()
    frame.loc[:, "x0"] = 7.0
    np.testing.assert_array_equal(fs.collection.numpy("features.x0.raw"), before)


def test_predict_of_one_row_equals_that_of_many_and_keeps_its_checks():
    data = wide(30, rows=40)
    fs = FeatureSet.from_dict("rows", {**data, "y": np.zeros(40)}, list(data), "y")
    fs.fit_transform("StandardScaler", domain="features")
    graph = ModelGraph([ModelNode("net", torch.nn.Linear(30, 1), fs)])
    graph.build()
    frame = pd.DataFrame(data)
    whole = graph.predict(frame)
    one = np.concatenate([graph.predict(frame.iloc[i : i + 1]) for i in range(40)])
    np.testing.assert_allclose(one, whole, rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="'x3'"):
        graph.predict(frame.iloc[:1].drop(columns="x3"))
    far = frame.iloc[:1].copy()
    far["x7"] = 1e300
    with pytest.raises(DataError, match="x7"):
        graph.predict(far)


@pytest.mark.parametrize("dtype", [">f8", "f4", object])
def test_bare_arrays_of_any_dtype_give_the_numbers_of_columns(dtype):
    data = wide(4, rows=9)
    fs = FeatureSet.from_dict("rows", {**data, "y": np.zeros(9)}, list(data), "y")
    fs.fit_transform("StandardScaler", domain="features")
    graph = ModelGraph([ModelNode("net", torch.nn.Linear(4, 1), fs)])
    graph.build()
    array = np.stack(list(data.values()), axis=1)
    expected = graph.predict(data)
    np.testing.assert_allclose(graph.predict(array.astype(dtype)), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(DataError, match="must have shape"):
        graph.predict(array[:, :3])


def test_references_of_many_names_check_each():
    data = wide(50)
    fs = FeatureSet.from_dict("rows", {**data, "y": np.zeros(5)}, list(data), "y")
    assert fs.reference(features=list(data)) == fs.reference()
    assert fs.reference(features=["x3", "x1", "x3"]).features == ("features.x3", "features.x1")
    assert fs.reference(features=["x3.raw"]).features == ("features.x3.raw",)
    with pytest.raises(UnknownNameError, match="x51"):
        fs.reference(features=[*data, "x51"])


@pytest.mark.parametrize("call", ["reference", "undo"])
def test_time_grows_with_the_columns_and_not_their_square(call):
    def seconds(n):
        data = wide(n)
        fs = FeatureSet.from_dict("rows", data, list(data), [], register=False)
        best = np.inf
        for _ in range(3):
            fs.fit_transform("StandardScaler", domain="features")
            start = time.process_time()
            if call == "reference":
                fs.reference(features=list(data))
            fs.undo_all_transforms()
            best = min(best, time.process_time() - start)
        return best

    assert seconds(4000) < 30 * seconds(400)  # of the square: 100


def test_lists_of_numbers_are_read_as_arrow_reads_them():
    big, halves = [2**60 + 1, 3], [0.1, float("nan")]
    assert column_values(big, "k").tolist() == big
    np.testing.assert_array_equal(column_values(halves, "x"), halves)
    assert column_values([True, False], "b").dtype == bool
    assert column_values([1, 2.5], "x").tolist() == to_numpy(to_arrow([1, 2.5], "x")).tolist()
    assert column_values([2**63, 1], "u").dtype == np.uint64
    with pytest.raises(DataError, match="at most 64 bits"):
        column_values([2**70, 1], "k")
    with pytest.raises(ValueError, match="read-only"):
        column_values([1.0, 2.0], "x")[0] = 3
