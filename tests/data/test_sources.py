"""Constructors, held against pandas, polars, pyarrow and the files they write."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings

import modularml as mm
from modularml.data import FeatureSet, SampleSchema
from modularml.errors import DataError, RegistrationError, UnknownNameError
from tests import worlds
from tests.random_tables import featureset, tables


def frame(n=6):
    return pd.DataFrame(
        {
            "v": np.arange(n, dtype="f4") + np.float32(0.5),
            "w": np.arange(n) * 2.0,
            "y": np.arange(n) % 3,
            "cell": [f"c{i % 2}" for i in range(n)],
        }
    )


@settings(max_examples=100, deadline=None)
@given(tables())
def test_any_table_is_kept_as_it_is(table):
    data, domains = table
    fs = featureset(data, domains)
    assert len(fs) == len(next(iter(data.values())))
    assert set(fs.get_all_keys(False, False)) == set(data)
    for key, original in data.items():
        values = original[:, 0] if original.shape[1:] == (1,) else original
        np.testing.assert_array_equal(fs.column(f"{domains[key]}.{key}.raw"), values)
        np.testing.assert_array_equal(
            fs.get_data(columns=f"{key}.raw")[f"{domains[key]}.{key}.raw"], values
        )
    assert len(set(fs.get_sample_uuids("list"))) == len(fs)


@pytest.mark.parametrize(
    "of",
    [
        lambda df: df,
        pl.from_pandas,
        pa.Table.from_pandas,
        lambda df: df.convert_dtypes(dtype_backend="pyarrow"),
        lambda df: df.convert_dtypes(),
        lambda df: df.set_index(pd.Index([5] * len(df))),
        lambda df: df.iloc[::-1].iloc[::-1],
    ],
    ids=["pandas", "polars", "arrow", "pandas-arrow", "pandas-nullable", "indexed", "strided"],
)
def test_frames_of_every_kind(of):
    fs = FeatureSet.from_df("fs", of(frame()), ["v", "w"], "y", tag_cols=["cell"])
    assert fs.get_feature_dtypes(False, False)["v"] == np.float32
    assert fs.get_tags()["cell"].tolist() == ["c0", "c1"] * 3
    np.testing.assert_array_equal(fs.get_features("np"), frame()[["v", "w"]].to_numpy())
    np.testing.assert_array_equal(fs.get_targets()["y"], frame()["y"])


def test_dtypes_are_kept():
    df = frame().assign(t=pd.date_range("2020", periods=6), flag=[True, False] * 3)
    df["cat"] = df["cell"].astype("category")
    fs = FeatureSet.from_pandas("fs", df, ["v", "w"], "y", tag_cols=["t", "flag", "cat", "cell"])
    assert {k: str(v) for k, v in fs.get_tag_dtypes(False, False).items()} == {
        "t": str(df["t"].dtype),
        "flag": "bool",
        "cat": "object",
        "cell": "object",
    }
    assert [str(d) for d in fs.get_feature_dtypes().values()] == ["float32", "float64"]
    np.testing.assert_array_equal(fs.get_tags()["t"], df["t"].to_numpy())


def test_from_numpy():
    x, y = np.arange(12.0).reshape(4, 3), np.arange(4)
    fs = FeatureSet.from_numpy("fs", x, y, tags={"id": np.array(["a", "b", "c", "d"])})
    assert fs.get_feature_shapes() == {"features.x.raw": (3,)}
    assert fs.get_features("np").shape == (4, 1, 3)
    np.testing.assert_array_equal(fs.get_targets()["y"], y)
    alone = FeatureSet.from_numpy("alone", {"a": x, "b": y})
    assert alone.get_target_keys() == []
    assert alone.get_feature_keys(False, False) == ["a", "b"]
    with pytest.raises(DataError, match="'a' is repeated"):
        FeatureSet.from_numpy("twice", {"a": x}, {"a": y})


def test_writing_to_arrays_afterwards_changes_nothing():
    x = np.arange(4.0)
    fs = FeatureSet.from_dict("fs", {"x": x, "y": x}, "x", "y")
    ids = fs.get_sample_uuids()
    x[:] = -1
    np.testing.assert_array_equal(fs.get_features()["x"], np.arange(4.0))
    assert (fs.get_sample_uuids() == ids).all()


@pytest.mark.parametrize(
    ("data", "keys", "error", "message"),
    [
        ({"x": [1, 2], "y": [1]}, ("x", "y"), DataError, "differ in length.*x: 2, y: 1"),
        ({"x": [1], "y": [1]}, ("x", "z"), UnknownNameError, "unknown column 'z'.*'x', 'y'"),
        ({"voltage": [1]}, ("voltag", []), UnknownNameError, "did you mean 'voltage'"),
        ({"x": [1]}, ("x", "x"), DataError, "'x' is repeated"),
        ({"a.b": [1]}, ("a.b", []), DataError, "'a.b'.*rename it, for example with rename=.*'a_b'"),
        ({"a b": [1]}, ("a b", []), DataError, "'a_b'"),
        ({"a/b": [1]}, ("a/b", []), DataError, "'a_b'"),
        ({"a\\b": [1]}, ("a\\b", []), DataError, "'a_b'"),
        ({"a:b": [1]}, ("a:b", []), DataError, "'a_b'"),
        ({"": [1]}, ("", []), DataError, "must be a string"),
        ({"sample_uuids": [1]}, ("sample_uuids", []), DataError, "sample_uuids"),
        ({"x": [1, None]}, ("x", []), DataError, "'x' has 1 missing.*row 1"),
    ],
)
def test_bad_columns_are_named_and_nothing_is_registered(fresh_context, data, keys, error, message):
    with pytest.raises(error, match=message):
        FeatureSet.from_dict("fs", data, *keys)
    assert not fresh_context.available_nodes


def test_a_label_that_is_taken():
    FeatureSet.from_dict("fs", {"x": [1]}, "x", [])
    with pytest.raises(RegistrationError, match="'fs' is taken by a FeatureSet"):
        FeatureSet.from_dict("fs", {"x": [1]}, "x", [])


def test_empty_and_one_row():
    empty = FeatureSet.from_dict(
        "empty", {"x": np.zeros((0, 3)), "y": [], "t": np.array([], "M8[s]")}, "x", "y", "t"
    )
    assert (len(empty), empty.get_feature_shapes()) == (0, {"features.x.raw": (3,)})
    assert empty.get_features("np").shape == (0, 1, 3)
    assert empty.get_sample_uuids().shape == (0,)
    assert len(empty.summary()) == 3
    assert empty.to_pandas().shape == (0, 3)
    assert empty.to_arrow().num_rows == 0
    assert "empty" in empty._repr_html_()
    assert len(empty.to_view().filter(conditions={"y": 1.0})) == 0
    one = FeatureSet.from_dict("one", {"x": [[1.0, 2.0]], "y": [3]}, "x", "y")
    assert one.get_features("np").tolist() == [[[1.0, 2.0]]]


def test_ten_thousand_columns():
    n = 10_000
    data = {f"c{i}": np.array([i, i + 1]) for i in range(n)}
    keys = list(data)
    fs = FeatureSet.from_dict("wide", data, keys[:9000], keys[9000:9500], keys[9500:])
    assert fs.get_features("np").shape == (2, 9000)
    assert len(fs.get_data(columns=[f"features.{k}.raw" for k in keys[:9000]])) == 9000
    assert len(fs.reference().features) == 9000
    fs.split_random({"a": 0.5, "b": 0.5})
    fs.fit_transform("MinMaxScaler", domain="features", fit_to_split="a")
    fs.undo_all_transforms()
    assert fs["a"].get_targets("np").shape == (1, 500)
    assert len(fs.summary()) == n
    assert len(repr(fs)) < 1000


# -- long tables ----------------------------------------------------------------------------------


def long_table(n_groups=5, length=4, seed=0):
    rng = np.random.default_rng(seed)
    n = n_groups * length
    return pd.DataFrame(
        {
            "cell": np.repeat([f"c{i:02}" for i in range(n_groups)], length),
            "cycle": np.repeat(np.arange(n_groups) % 3, length),
            "time": np.tile(np.arange(length), n_groups),
            "v": rng.normal(size=n),
            "w": rng.normal(size=n).astype("f4"),
            "mode": np.tile([f"m{i}" for i in range(length)], n_groups),
            "soh": rng.normal(size=n),
            "lab": np.repeat(["l1", "l2", "l1", "l2", "l1"][:n_groups], length),
        }
    ).sample(frac=1, random_state=seed)


@pytest.mark.parametrize(
    "of", [pd.DataFrame, pl.from_pandas, pa.Table.from_pandas], ids=["pandas", "polars", "arrow"]
)
@pytest.mark.parametrize("group_by", ["cell", ["cycle", "cell"], ["cell", "cycle"]])
@pytest.mark.parametrize("sort_by", ["time", ["mode"], ["cell", "time"]])
def test_groups_become_samples_as_in_pandas(of, group_by, sort_by):
    df = long_table()
    fs = FeatureSet.from_df(
        "fs", of(df), ["v", "w", "mode"], "soh", group_by=group_by, tag_cols="lab", sort_by=sort_by
    )
    groups = df.sort_values(sort_by).groupby(group_by, sort=True)
    for key in ("v", "w", "mode"):
        expected = np.stack(groups[key].agg(list).to_list())
        np.testing.assert_array_equal(fs.get_features()[key], expected)
    np.testing.assert_array_equal(
        fs.get_targets()["soh"], np.stack(groups["soh"].agg(list).to_list())
    )
    np.testing.assert_array_equal(fs.get_tags()["lab"], groups["lab"].first())
    keys = [group_by] if isinstance(group_by, str) else group_by
    assert fs.get_tag_keys(False, False) == [*keys, "lab"]
    expected = groups["v"].first().reset_index()
    for key in keys:
        assert fs.get_tags()[key].tolist() == expected[key].tolist()
    assert fs.get_feature_dtypes(False, False)["w"] == np.float32


def test_without_sorting_rows_keep_their_order():
    df = long_table()
    fs = FeatureSet.from_pandas("fs", df, "v", [], group_by="cell")
    expected = np.stack(df.groupby("cell")["v"].agg(list).to_list())
    np.testing.assert_array_equal(fs.get_features()["v"], expected)


def test_sort_by_without_groups_is_ignored():
    df = frame()
    fs = FeatureSet.from_pandas("fs", df, "v", "y", sort_by="w")
    np.testing.assert_array_equal(fs.get_features()["v"], df["v"])


def test_groups_of_arrays_and_of_one_row():
    df = pd.DataFrame({"g": [2, 1, 3], "v": [[1, 2], [3, 4], [5, 6]]})
    fs = FeatureSet.from_pandas("fs", df, "v", [], group_by="g")
    assert fs.get_feature_shapes() == {"features.v.raw": (1, 2)}
    assert fs.get_features()["v"].tolist() == [[[3, 4]], [[1, 2]], [[5, 6]]]
    none = FeatureSet.from_pandas("none", df.iloc[:0].astype({"v": float}), "v", [], group_by="g")
    assert len(none) == 0


def test_missing_values_in_a_group_s_tag_are_one_value():
    df = pd.DataFrame({"g": [1, 1, 2, 2], "v": range(4), "t": [np.nan, np.nan, 1.0, 1.0]})
    fs = FeatureSet.from_pandas("fs", df, "v", [], group_by="g", tag_cols="t")
    np.testing.assert_array_equal(fs.get_tags()["t"], [np.nan, 1.0])


def uneven_table():
    """Three groups of 2, 3 and 1 rows, mixed up; times order each."""
    return pd.DataFrame(
        {
            "g": ["b", "a", "b", "c", "b", "a"],
            "t": [3, 1, 1, 9, 2, 0],
            "v": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            "i": [1, 2, 3, 4, 5, 6],
            "m": list("uvwxyz"),
            "k": [7, 8, 7, 9, 7, 8],
        }
    )


def test_short_groups_are_filled_up_and_masked():
    fs = FeatureSet.from_pandas(
        "fs",
        uneven_table(),
        ["v", "m"],
        "i",
        group_by="g",
        tag_cols="k",
        sort_by="t",
        pad={"v": np.nan, "m": "", "i": -1},
    )
    nan = np.nan
    assert fs.get_tags("dict_list") == {
        "g": ["a", "b", "c"],
        "k": [8, 7, 9],
        "mask": [[True, True, False], [True, True, True], [True, False, False]],
    }
    expected = [[6.0, 2.0, nan], [3.0, 5.0, 1.0], [4.0, nan, nan]]
    np.testing.assert_array_equal(fs.get_features()["v"], expected)
    assert fs.get_features()["m"].tolist() == [["z", "v", ""], ["w", "y", "u"], ["x", "", ""]]
    assert fs.get_targets()["i"].tolist() == [[6, 2, -1], [3, 5, 1], [4, -1, -1]]
    assert fs.get_target_dtypes(False, False) == {"i": np.int64}


def test_a_mask_can_be_a_feature_and_equal_groups_have_one_too():
    fs = FeatureSet.from_pandas("fs", uneven_table(), ["v", "mask"], [], group_by="g", pad=0)
    assert fs.get_features("np").tolist()[2] == [[4.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    assert fs.get_tag_keys(False, False) == ["g"]
    even = FeatureSet.from_pandas("even", long_table(), "v", [], group_by="cell", pad=0.0)
    assert even.get_tags()["mask"].shape == (5, 4)
    assert even.get_tags()["mask"].all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pad": np.nan, "feature_cols": "i"}, "pad=nan does not fit column 'i', .* int64"),
        ({"pad": 0.5, "feature_cols": "i"}, "pad=0.5 does not fit column 'i'"),
        ({"pad": 0.0, "feature_cols": "m"}, "pad=0.0 does not fit column 'm', which holds text"),
        ({"pad": {"w": 0.0}}, "pad has no value for column 'v'"),
        ({"pad": [0.0, 1.0]}, "pad=.* does not fit column 'v'"),
        ({"pad": 0.0, "group_by": None}, "pad= pads groups .* requires group_by="),
        ({}, "groups differ in length: g='a' has 2 rows, g='b' has 3.*pad="),
        ({"pad": 0.0, "target_cols": "t", "scalar_cols": "t"}, "column 't' changes within the gr"),
    ],
)
def test_groups_that_cannot_be_filled_up(change, message):
    kwargs = {"feature_cols": "v", "target_cols": [], "group_by": "g", **change}
    with pytest.raises(DataError, match=message):
        FeatureSet.from_pandas("fs", uneven_table(), **kwargs)
    clash = uneven_table().rename(columns={"k": "mask"})
    with pytest.raises(DataError, match="adds a column 'mask', but the table already has one"):
        FeatureSet.from_pandas("fs", clash, ["v", "mask"], [], group_by="g", pad=0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda df: df.iloc[1:],
            r"groups differ in length: cell='c\d\d' has \d rows, cell='c\d\d' has",
        ),
        (lambda df: df.assign(cell=df["cell"].where(df["cell"] != "c01")), "'cell' has 4 missing"),
        (
            lambda df: df.assign(v=(df["v"] > 0).astype("boolean").where(df["v"] > 0)),
            "'v' has .* missing",
        ),
        (lambda df: df.assign(cell=[[1]] * len(df)), "'cell' holds arrays"),
    ],
    ids=["lengths", "no group", "no value", "arrays"],
)
def test_groups_that_cannot_be_are_named(change, message):
    with pytest.raises(DataError, match=message):
        FeatureSet.from_pandas(
            "fs", change(long_table()), "v", "soh", group_by="cell", tag_cols="lab", sort_by="time"
        )


def test_a_number_that_is_missing_is_no_group():
    df = pd.DataFrame({"g": [1.0, np.nan, 1.0], "v": range(3)})
    with pytest.raises(DataError, match=r"'g' has 1 missing .*at row 1"):
        FeatureSet.from_pandas("fs", df, "v", [], group_by="g")


@pytest.mark.parametrize(
    "kwargs", [{"group_by": "cel"}, {"group_by": "cell", "sort_by": "cel"}, {"tag_cols": "cel"}]
)
def test_unknown_columns_of_a_frame(kwargs):
    with pytest.raises(UnknownNameError, match="unknown column 'cel'; did you mean 'cell'"):
        FeatureSet.from_pandas("fs", long_table(), "v", "soh", **kwargs)


@pytest.mark.parametrize(
    "df", [{"a": [1]}, [1, 2], np.zeros((3, 2)), pl.LazyFrame({"a": [1]}), None]
)
def test_what_is_no_frame(df):
    with pytest.raises(DataError, match="df must be a table in memory"):
        FeatureSet.from_df("fs", df, "a", [])


# -- Arrow and files ------------------------------------------------------------------------------


def test_arrow_tables_go_there_and_back_with_their_ids():
    fs = FeatureSet.from_pandas("fs", frame(), ["v", "w"], "y", tag_cols="cell")
    again = FeatureSet.from_pyarrow_table("again", fs.to_arrow())
    assert again.to_arrow().equals(fs.to_arrow())
    assert again.get_sample_uuids("list") == fs.get_sample_uuids("list")
    part = fs.take([4, 1])
    assert part.to_arrow().column("sample_uuids").to_pylist() == [
        fs.collection.ids[i].tobytes() for i in (4, 1)
    ]


def test_arrow_tables_with_chosen_columns():
    table = pa.table({"a b": [1], "v": [2.0], "y": [3]})
    fs = FeatureSet.from_pyarrow_table("fs", table, feature_cols="v", target_cols="y")
    assert fs.get_all_keys() == ["features.v.raw", "targets.y.raw"]
    memory = np.frombuffer(table["v"].chunk(0).buffers()[1], dtype=float)
    assert np.shares_memory(fs.column("features.v.raw"), memory)


def test_arrow_tables_in_chunks():
    chunked = pa.table({"features.x.raw": pa.chunked_array([[1, 2], [3]])})
    assert FeatureSet.from_pyarrow_table("fs", chunked).get_features()["x"].tolist() == [1, 2, 3]
    none = pa.table({"features.x.raw": pa.chunked_array([], pa.int64())})
    assert len(FeatureSet.from_pyarrow_table("none", none)) == 0


def ids(*values):
    return pa.array([None if v is None else bytes([v] * 16) for v in values], pa.binary(16))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"x": [1]}), "'x' must be <domain>.<key>.<rep>.*feature_cols="),
        (pa.table({"inputs.x.raw": [1]}), "'inputs.x.raw' must be"),
        (pa.table({"features.a b.raw": [1]}), "'a b'"),
        (
            pa.table({"features.x.raw": [1], "tags.x.raw": [1]}),
            "'x' occurs in 'features' and in 'tags'",
        ),
        (pa.table({"features.x.raw": [1, None]}), "'features.x.raw' has 1 missing.*row 1"),
        (
            pa.table({"features.x.raw": [1, 2], "sample_uuids": ids(1, 1)}),
            "row 1 has the same id as row 0",
        ),
        (pa.table({"features.x.raw": [1, 2], "sample_uuids": ids(1, None)}), "1 missing"),
        (pa.table({"features.x.raw": [1], "sample_uuids": ["a"]}), "must be UUID text"),
        (pa.table({"features.x.raw": [1], "sample_uuids": [1]}), "16 bytes per row"),
    ],
)
def test_arrow_tables_that_are_refused(table, message):
    with pytest.raises(DataError, match=message):
        FeatureSet.from_pyarrow_table("fs", table)


def test_a_schema_must_fit_its_table():
    table = pa.table({"features.x.raw": [1]})
    schema = SampleSchema.from_arrow(table.schema)
    FeatureSet.from_pyarrow_table("fs", table, schema)
    other = SampleSchema.from_arrow(pa.schema({"features.x.raw": pa.float32()}))
    with pytest.raises(DataError, match=r"differ .* of: features.x.raw"):
        FeatureSet.from_pyarrow_table("other", table, other)


def test_csv(tmp_path):
    frame().to_csv(tmp_path / "t.csv", index=False)
    fs = FeatureSet.from_csv("fs", tmp_path / "t.csv", ["v", "w"], "y", "cell")
    np.testing.assert_array_equal(fs.get_features("np"), frame()[["v", "w"]].to_numpy())
    assert fs.get_tags("list") == [[c] for c in frame()["cell"]]
    with pytest.raises(UnknownNameError, match=r"unknown column 'cel' of .*; did you mean 'cell'"):
        FeatureSet.from_csv("bad", str(tmp_path / "t.csv"), "v", "y", "cel")
    frame().assign(cell=["a", None, "a", "b", "b", "b"]).to_csv(tmp_path / "n.csv", index=False)
    with pytest.raises(DataError, match=r"'cell' of .* has 1 missing.*row 1"):
        FeatureSet.from_csv("null", tmp_path / "n.csv", "v", "y", "cell")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(DataError, match=r"bad.csv' cannot be read as CSV"):
        FeatureSet.from_csv("bad", tmp_path / "bad.csv", "a", "b")


def test_parquet_files_and_folders(tmp_path):
    df = frame().assign(seq=[[1.0, 2.0]] * 6, unused=1)
    df.iloc[:4].to_parquet(tmp_path / "0.parquet")
    df.iloc[4:].to_parquet(tmp_path / "1.parquet")
    fs = FeatureSet.from_parquet("fs", tmp_path, ["v", "seq"], "y", ["cell"])
    assert fs.get_feature_shapes(False, False) == {"v": (), "seq": (2,)}
    np.testing.assert_array_equal(fs.get_features()["v"], df["v"])
    one = FeatureSet.from_parquet("one", tmp_path / "0.parquet", ["v", "seq"], "y", ["cell"])
    assert one.get_sample_uuids("list") != fs.take(range(4)).get_sample_uuids("list")
    with pytest.raises(UnknownNameError, match="unknown column 'unusd'; did you mean 'unused'"):
        FeatureSet.from_parquet("bad", tmp_path, "unusd", "y")
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(DataError, match=r"cannot be read as Parquet"):
        FeatureSet.from_parquet("bad", tmp_path / "bad.parquet", "v", "y")


@pytest.mark.parametrize("read", [FeatureSet.from_csv, FeatureSet.from_parquet])
def test_files_that_are_not_there(read, tmp_path):
    with pytest.raises(DataError, match=r"file '.*nope' does not exist"):
        read("fs", tmp_path / "nope", "v", "y")


def test_a_parquet_file_gives_the_ids_of_its_frame(tmp_path):
    frame().to_parquet(tmp_path / "f.parquet", row_group_size=2)
    pq.read_table(tmp_path / "f.parquet")
    args = (["v", "w"], "y", "cell")
    fs = FeatureSet.from_parquet("fs", tmp_path / "f.parquet", *args)
    other = FeatureSet.from_pandas("other", frame(), ["v", "w"], "y", tag_cols="cell")
    assert fs.get_sample_uuids("list") == other.get_sample_uuids("list")


def test_a_loss_can_leave_out_what_was_filled_up():
    rng = np.random.default_rng(0)
    long = pd.DataFrame({"g": np.repeat(np.arange(12), rng.integers(1, 5, 12))})
    long["v"], long["y"] = rng.normal(size=(2, len(long))).astype("f4")
    fs = FeatureSet.from_pandas("fs", long, "v", "y", group_by="g", pad={"v": 0.0, "y": 99.0})
    v, y, mask = (fs.column(f"{n}.raw") for n in ("features.v", "targets.y", "tags.mask"))

    def masked(outputs, targets, mask):
        return ((outputs - targets) ** 2 * mask).sum() / mask.sum()

    net = torch.nn.Conv1d(1, 1, 1)
    twin = worlds.twin(net)
    inputs = ["outputs", "targets", fs.column_reference("mask")]
    loss = mm.AppliedLoss(mm.Loss(masked, over="batch"), on="net", inputs=inputs)
    worlds.train(worlds.graph_of(fs, net), [loss], batch_size=4)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05)
    for part in worlds.slices(12, 4):
        x, t, m = (torch.tensor(a[part])[:, None] for a in (v, y, mask))
        optimizer.zero_grad()
        masked(twin(x), t, m).backward()
        optimizer.step()
    worlds.assert_equal_weights(net, twin, atol=1e-6)


def test_a_label_of_a_whole_sequence_stays_a_scalar():
    df = pd.DataFrame(
        {"cell": ["a", "a", "b", "b"], "v": [1.0, 2, 3, 4], "y": [5.0, 5, 6, 6], "w": [1, 2, 3, 4]}
    )
    fs = FeatureSet.from_pandas("s", df, "v", "y", "cell", scalar_cols="y", register=False)
    assert fs.get_target_shapes(include_rep_suffix=False) == {"targets.y": ()}
    assert fs.get_feature_shapes(include_rep_suffix=False) == {"features.v": (2,)}
    np.testing.assert_array_equal(fs.get_targets("numpy")[:, 0], [5, 6])
    with pytest.raises(DataError, match="column 'w' changes within the group cell='a'"):
        FeatureSet.from_pandas("s", df, "v", "w", "cell", scalar_cols="w", register=False)
    with pytest.raises(DataError, match="scalar_cols must be among"):
        FeatureSet.from_pandas("s", df, "v", "y", "cell", scalar_cols="w", register=False)


@pytest.mark.parametrize("kind", [np.float32, np.int64, np.float64])
def test_a_tag_that_changes_within_a_group_is_an_array(kind):
    df = pd.DataFrame({"cell": list("aabb"), "v": np.arange(4.0), "lab": list("uuvv")})
    df["t"] = np.array([3, 1, 2, 2], dtype=kind)
    fs = FeatureSet.from_pandas("s", df, "v", [], "cell", ["t", "lab"], register=False)
    tags = fs.get_tags()
    np.testing.assert_array_equal(tags["t"], df["t"].to_numpy().reshape(2, 2))
    assert tags["t"].dtype == kind
    assert tags["lab"].tolist() == ["u", "v"]  # steady within each group: a scalar


# -- columns of one value a sample ----------------------------------------------------------------


def test_a_column_of_shape_n_1_is_a_scalar_column(tmp_path):
    """A difference to predictions of shape (n, 1) must not broadcast to (n, n)."""
    ones = np.arange(4.0)[:, None]
    data = {"x": ones, "y": -ones}
    table = pa.table({k: pa.array(v.tolist(), pa.list_(pa.float64(), 1)) for k, v in data.items()})
    pq.write_table(table, tmp_path / "rows.parquet")
    frame = pd.DataFrame({k: list(v) for k, v in data.items()})
    made = [
        FeatureSet.from_dict("dict", data, "x", "y"),
        FeatureSet.from_dict("lists", {k: v.tolist() for k, v in data.items()}, "x", "y"),
        FeatureSet.from_pandas("frame", frame, "x", "y"),
        FeatureSet.from_pyarrow_table(
            "table", table, feature_cols=["x"], target_cols=["y"], tag_cols=[]
        ),
        FeatureSet.from_parquet("parquet", tmp_path / "rows.parquet", "x", "y"),
        FeatureSet.from_parquet("files", tmp_path / "rows.parquet", "x", "y", in_memory=False),
    ]
    for fs in made:
        assert fs.get_feature_shapes(False, False) == {"x": ()}, fs.label
        assert fs.get_targets("numpy").shape == (4, 1)
        np.testing.assert_array_equal(fs.get_features("numpy"), ones)
        fs.fit_transform("StandardScaler", domain="features")
        for rows in (ones, ones[:, 0]):
            scaled = fs.transform_new({"x": rows})["x"]
            np.testing.assert_array_equal(scaled, fs.get_features()["x"])
    fs.save(tmp_path / "rows")
    with mm.ExperimentContext().activate():
        assert FeatureSet.load(tmp_path / "rows").get_targets("numpy").shape == (4, 1)


def test_groups_of_one_row_stay_sequences():
    df = pd.DataFrame({"cell": ["a", "b"], "v": [1.0, 2.0], "y": [0.0, 1.0]})
    fs = FeatureSet.from_pandas("fs", df, "v", "y", group_by="cell", scalar_cols="y")
    assert fs.get_features("numpy").shape == (2, 1, 1)
