"""Tables as people have them: what comes out is right, or the error names column and row."""

import re
import string
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modularml.data import FeatureSet
from modularml.errors import DataError, ModularMLError, SplitError
from modularml.splitters import SplitRatioWarning
from tests import random_tables

TEXTS = st.text(alphabet=string.ascii_letters + " äß漢🙂\n", max_size=4)
FLOATS = st.floats(width=32) | st.sampled_from([np.nan, np.inf, -0.0])
TIMES = st.datetimes(min_value=pd.Timestamp(1900, 1, 1), max_value=pd.Timestamp(2100, 1, 1))

SCALARS = {
    "float": FLOATS,
    "int": st.integers(-(2**60), 2**60),
    "bool": st.booleans(),
    "text": TEXTS,
    "time": TIMES,
}


@st.composite
def good_columns(draw, n):
    """Draw a column of n samples as people have it, and the array that must come out."""
    kind = draw(st.sampled_from(["array", "list", "lists", "category", "masked", "frame"]))
    if kind == "array":
        values = draw(random_tables.columns(n))
        return values, values
    if kind == "lists":
        size = draw(st.integers(1, 4))
        rows = [draw(st.lists(FLOATS, min_size=size, max_size=size)) for _ in range(n)]
        form = draw(st.sampled_from([list, tuple, np.array]))
        return [form(row) for row in rows], np.array(rows, float).reshape(n, *[size] * (n > 0))
    name = "text" if kind == "category" else draw(st.sampled_from(sorted(SCALARS)))
    values = draw(st.lists(SCALARS[name], min_size=n, max_size=n))
    expected = np.array(values, dtype={"text": object, "time": "M8[us]"}.get(name))
    if kind == "category":
        return pd.Series(values, dtype="str").astype("category"), expected
    if kind == "masked" and name in ("float", "int"):
        return np.ma.masked_array(expected), expected
    if kind == "frame":
        return draw(st.sampled_from([pd.Series, pl.Series]))(values) if n else values, expected
    return values, expected


ODD = {"null": None, "text": "odd", "number": 3.5, "time": pd.Timestamp(2000, 1, 1), "dict": {1: 2}}


@st.composite
def bad_columns(draw, n):
    """Draw a column with one sample that cannot be, and the rows that may be blamed for it."""
    kind = draw(st.sampled_from(["ragged", "deep", *sorted(ODD)]))
    row = draw(st.integers(0, n - 1))
    blamed = {row} if row else {0, 1}
    if kind in ("ragged", "deep"):
        values = [[1.0, 2.0] for _ in range(n)]
        values[row] = [1.0] if kind == "ragged" else [[1.0], [2.0]]
        return [np.array(v) for v in values] if draw(st.booleans()) else values, blamed
    fitting = {"text": "int", "number": "text", "time": "int", "dict": "bool", "null": "int"}
    values = draw(st.lists(SCALARS[fitting[kind]], min_size=n, max_size=n))
    values[row] = ODD[kind]
    return values, {row} if kind == "null" else blamed


@st.composite
def bad_tables(draw):
    """Draw a table; in one of two a column is bad. Give the arrays expected, and what is blamed."""
    n = draw(st.integers(0, 8))
    keys = draw(st.lists(random_tables.KEYS, min_size=1, max_size=4, unique=True))
    drawn = {key: draw(good_columns(n)) for key in keys}
    data = {key: values for key, (values, _) in drawn.items()}
    bad = draw(st.sampled_from([None, keys[-1]])) if n > 1 else None
    rows = set()
    if bad is not None:
        data[bad], rows = draw(bad_columns(n))
    return data, {key: expected for key, (_, expected) in drawn.items()}, bad, rows


def same(found, expected):
    if found.dtype.kind in "mM":
        expected = expected.astype(found.dtype)
    if found.dtype.kind == "O":
        assert found.tolist() == expected.tolist()
    else:
        np.testing.assert_array_equal(found, expected)


def check(table):
    data, expected, bad, rows = table
    keys = list(data)
    if bad is None:
        fs = FeatureSet.from_dict("fs", data, keys[:1], keys[1:2], keys[2:], register=False)
        for key in keys:
            (name,) = fs.select(columns=key).columns
            values = expected[key]  # a column of one number per sample is scalar
            same(fs.column(name), values[:, 0] if values.shape[1:] == (1,) else values)
        check_use(fs)
        return
    with pytest.raises(DataError) as failed:
        FeatureSet.from_dict("fs", data, keys[:1], keys[1:2], keys[2:], register=False)
    message = str(failed.value)
    assert repr(bad) in message
    assert any(re.search(rf"row {row}\b", message) for row in rows), message


def check_use(fs):
    """Use a set; what fails says so and changes nothing."""
    n = len(fs)
    again = FeatureSet.from_pyarrow_table("again", fs.to_arrow(), register=False)
    assert again.get_sample_uuids("list") == fs.get_sample_uuids("list")
    assert fs.to_pandas().shape == (n, len(fs.column_names))
    assert len(fs.summary()) == len(fs.column_names)
    assert "fs" in fs._repr_html_()
    before = fs.get_state()
    try:
        fs.split_random({"a": 0.5, "b": 0.5})
        assert sum(map(len, fs.splits.values())) == n
    except SplitError:
        assert n < 2
        assert fs.get_state() == before
    before = fs.get_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fs.fit_transform("MinMaxScaler", domain="features")
            fs.undo_all_transforms()
            assert fs.column_names == before["collection"].names
        except ModularMLError:
            assert fs.get_state() == before


@settings(max_examples=100, deadline=None)
@given(bad_tables())
def test_tables_as_people_have_them(table):
    check(table)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bad_tables())
def test_a_thousand_tables(table):
    check(table)


# -- what each call says, and that it changes nothing ----------------------------------------------


def cells():
    """Forty rows: one large group, a stratum of one row, a constant column; split and scaled."""
    n = 40
    rng = np.random.default_rng(0)
    data = {
        "x": rng.normal(size=n),
        "still": np.ones(n),
        "y": rng.normal(size=n),
        "cell": ["big"] * 30 + list("abcdefghij"),
        "kind": ["k"] * 39 + ["rare"],
    }
    fs = FeatureSet.from_dict("fs", data, ["x", "still"], "y", ["cell", "kind"], register=False)
    fs.split_random({"train": 0.5, "test": 0.5})
    fs.fit_transform("Normalizer", domain="targets", fit_to_split="train")
    return fs


HALVES = {"a": 0.5, "b": 0.5}
FAILING = [
    (lambda fs: fs.split_random({"a": 1.0, "b": 0.0}), "ratio of 'b' must be above 0"),
    (
        lambda fs: fs.split_random(HALVES, stratify_by="kind", strict_stratification=True),
        "kind='rare' .* too small .* Merge it",
    ),
    (lambda fs: fs.split_random({"train": 0.5, "b": 0.5}), "'train' is taken; choose another"),
    (lambda fs: fs.add_split(cells()["train"]), "is a view of 'fs', not of 'fs'"),
    (
        lambda fs: fs.unscale_data_for_cols(data=np.ones(3), domain="targets", columns="y"),
        "Normalizer has no inverse; keep the rows",
    ),
    (
        lambda fs: fs.fit_transform("MinMaxScaler", domain="tags"),
        "holds object, but .* requires numbers",
    ),
    (lambda fs: fs.undo_last_transform("features"), "nothing to undo"),
    (
        lambda fs: fs.fit_transform("MinMaxScaler", domain="features", merged_axes="a"),
        "merged_axes must be an axis number, or a tuple of them, got a str",
    ),
    (lambda fs: fs.fit_transform("MinMaxScaler", domain="features", keys=5), "a list of names"),
    (lambda fs: fs.filter(conditions="x"), "conditions must be a mapping of column"),
    (lambda fs: fs.take_difference("x"), "other must be a FeatureSet or a view"),
    (lambda fs: fs.transform_new(5), "data must be a frame or a dict"),
    (
        lambda fs: fs.transform_new({"x": [1.0, 2.0], "still": [1.0]}),
        "differ in length .x: 2, still: 1",
    ),
    (lambda fs: fs.get_split(["train"]), "split_name must be the name of a split"),
]


@pytest.mark.parametrize(("call", "message"), FAILING, ids=range(len(FAILING)))
def test_a_call_that_fails_says_what_to_do_and_changes_nothing(call, message):
    fs = cells()
    before = fs.get_state()
    with pytest.raises(ModularMLError, match=message):
        call(fs)
    after = fs.get_state()
    assert after == before


def test_a_group_larger_than_its_part_is_warned_of():
    fs = cells()
    with pytest.warns(SplitRatioWarning, match=r"'b' has \d+ of 40 rows .* largest group has 30"):
        fs.split_random({"a": 0.5, "b": 0.5}, group_by="cell")
    assert len(set(fs["a"].get_tags()["cell"]) & set(fs["b"].get_tags()["cell"])) == 0


def test_a_column_without_variance_is_warned_of_and_comes_back_exactly():
    fs = cells()
    before = fs.column("features.still.raw").copy()
    with pytest.warns(
        UserWarning, match=r"\['still'\] have the same value in all 20 rows in split 'tr"
    ):
        fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    scaled = fs.get_features("np", rep="transformed")
    assert np.isfinite(scaled).all()
    back = fs.unscale_data_for_cols(data=scaled, domain="features", columns=["x", "still"])
    np.testing.assert_array_equal(back[:, 1], before)


def test_ids_that_come_twice_are_named():
    table = cells().to_arrow().take([0, 1, 2, 1])
    with pytest.raises(DataError, match="row 3 has the same id as row 1"):
        FeatureSet.from_pyarrow_table("fs", table)
