"""Tables in memory: one answer for one table, whatever library holds it."""

import datetime as dt
import enum
import uuid

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse as sp
import torch

import modularml as mml
from modularml.data import FeatureSet
from modularml.errors import DataError

FRAME = pd.DataFrame({"x": [1.5, np.nan, 2.5], "y": [0, 1, 0]})


def make(data, features="x", targets="y", tags=None):
    if isinstance(data, dict):
        return FeatureSet.from_dict("t", data, features, targets, tags, register=False)
    return FeatureSet.from_df("t", data, features, targets, tag_cols=tags, register=False)


@pytest.mark.parametrize(
    "of",
    [
        lambda df: df,
        lambda df: df.convert_dtypes(),
        lambda df: df.astype({"x": "Float64"}).fillna(np.nan),
        lambda df: df.astype({"x": "Float32"}),
        lambda df: df.astype({"x": object}).where(df.notna(), None),
        lambda df: df.convert_dtypes(dtype_backend="pyarrow"),
        pl.from_pandas,
        pa.Table.from_pandas,
        lambda df: {"x": [1.5, None, 2.5], "y": [0, 1, 0]},
        lambda df: {"x": np.ma.masked_invalid(df["x"]), "y": df["y"]},
        lambda df: {"x": df["x"].astype("f4"), "y": df["y"]},
        lambda df: df.to_dict("records"),
    ],
    ids=[
        "pandas",
        "nullable",
        "filled",
        "Float32",
        "objects",
        "pandas-arrow",
        "polars",
        "arrow",
        "dict",
        "masked",
        "float32",
        "records",
    ],
)
def test_a_missing_float_is_nan_by_every_road(of, tmp_path):
    fs = make(of(FRAME))
    np.testing.assert_array_equal(fs.get_features()["x"], FRAME["x"])
    again = FeatureSet.load(fs.save(tmp_path / "t"))
    np.testing.assert_array_equal(again.get_features()["x"], FRAME["x"])


def test_a_missing_float_within_an_array_is_nan():
    for values in (
        [[1.0, None], [2.0, 3.0]],
        pa.array([[1.0, None], [2.0, 3.0]], pa.list_(pa.float64(), 2)),
        pl.Series([[1.0, None], [2.0, 3.0]]),
        np.array([[1.0, None], [2.0, 3.0]], dtype=object),
    ):
        fs = make({"x": values, "y": [0, 1]})
        np.testing.assert_array_equal(fs.get_features()["x"], [[1.0, np.nan], [2.0, 3.0]])


def test_series_are_brought_together_by_their_labels():
    x = pd.Series([1.0, 2.0, 3.0], index=["p1", "p2", "p3"])
    y = pd.Series([30.0, 20.0, 10.0], index=["p3", "p2", "p1"])
    fs = make({"x": x, "y": y})
    assert fs.get_targets()["y"].tolist() == pd.DataFrame({"x": x, "y": y})["y"].tolist()
    assert make({"x": x, "y": [1, 2, 3]}).get_targets()["y"].tolist() == [1, 2, 3]
    for other in (y.rename({"p1": "p9"}), y.set_axis(["p1", "p1", "p2"])):
        with pytest.raises(DataError, match=r"'x' and 'y' have different indexes"):
            make({"x": x, "y": other})
    fs.split_random({"train": 0.5, "test": 0.5})
    fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    scaled = fs.transform_new({"x": x, "y": y})
    assert scaled["y"].tolist() == [10.0, 20.0, 30.0]


def test_names_of_columns_that_are_no_text():
    eye = pd.DataFrame(np.eye(2))
    assert make(eye, [0], 1).get_all_keys(False, False) == ["0", "1"]
    assert make(eye, "0", "1").get_all_keys(False, False) == ["0", "1"]
    levels = pd.DataFrame([[1.0, 2]], columns=pd.MultiIndex.from_tuples([("v", "mean"), ("y", "")]))
    assert make(levels, [("v", "mean")], [("y", "")]).get_all_keys(False, False) == ["v_mean", "y"]
    assert make({0: [1.0], "y": [2]}, [0]).get_all_keys(False, False) == ["0", "y"]
    with pytest.raises(DataError, match=r"'0' occurs 2 times"):
        make({0: [1.0], "0": [2.0], "y": [2]}, "0")


def test_index_levels_are_columns():
    df = pd.DataFrame({"x": [1.0, 2.0], "y": [0, 1]}, index=pd.Index(["a", "b"], name="cell"))
    assert make(df, tags="cell").get_tags()["cell"].tolist() == ["a", "b"]
    both = df.set_index(pd.MultiIndex.from_tuples([("a", 1), ("a", 2)], names=["cell", "cycle"]))
    assert make(both, tags=["cycle"]).get_tags()["cycle"].tolist() == [1, 2]


class Mode(enum.Enum):
    FAST = 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pl.Series([1, "a"], dtype=pl.Object), "'x' holds Python objects"),
        (torch.eye(2).to_sparse(), r"'x' is sparse.*to_dense\(\)"),
        (sp.csr_matrix(np.eye(2)), r"'x' is sparse.*toarray\(\)"),
        ([Mode.FAST, Mode.FAST], "'x' must hold numbers, text.*Mode"),
        ([2**64, 2**64], "at most 64 bits"),
        (pl.Series([2**100, 1], dtype=pl.Int128), "Int128 values that do not fit in 64 bits"),
        (pa.array([10**30, 1], pa.decimal128(38, 0)), "do not fit in 64 bits"),
    ],
)
def test_what_no_column_holds_is_named(values, message):
    with pytest.raises(DataError, match=message):
        make({"x": values, "y": [0, 1]})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (torch.tensor([1.5, 2.0], dtype=torch.bfloat16), np.float32([1.5, 2.0])),
        (pl.Series([2**62 + 1, 3], dtype=pl.Int128), np.int64([2**62 + 1, 3])),
        (pl.Series([2**63, 3], dtype=pl.Int128), np.uint64([2**63, 3])),
        (pa.array([2**53 + 1, 1], pa.decimal128(20, 0)), np.int64([2**53 + 1, 1])),
    ],
)
def test_unusual_numbers_keep_their_value(values, expected):
    fs = make({"x": values, "y": [0, 1]})
    assert fs.get_feature_dtypes(False, False)["x"] == expected.dtype
    np.testing.assert_array_equal(fs.get_features()["x"], expected)


def test_a_reserved_name():
    with pytest.raises(DataError, match=r"'sample_uuids' is reserved"):
        make({"sample_uuids": [1.0, 2], "y": [0, 1]}, "sample_uuids")


def test_large_unsigned_integers_as_torch():
    ids = np.array([2**64 - 1, 2**63, 7], "uint64")
    fs = make({"x": ids, "y": [0, 1, 0]})
    assert fs.get_features("dict_torch")["x"].tolist() == ids.tolist()
    assert fs.get_features("tensorflow").numpy().ravel().tolist() == ids.tolist()
    small = make({"x": ids % np.uint64(9), "y": [0, 1, 0]})
    assert small.get_features("torch").dtype is torch.int64


def test_the_fingerprint_does_not_see_which_nan_it_is():
    x = np.array([0.0, np.nan, 2.0])
    other = x.copy()
    other.view(np.uint64)[1] |= np.uint64(1 << 63)
    a, b = make({"x": x, "y": [0, 1, 0]}), make({"x": other, "y": [0, 1, 0]})
    assert a.get_sample_uuids("list") == b.get_sample_uuids("list")


def test_ids_as_text_are_read_as_ids():
    fs = make({"x": [1.0, 2.0], "y": [0, 1]})
    table = pa.table({"features.x.raw": [1.0, 2.0], "sample_uuids": fs.get_sample_uuids("list")})
    again = FeatureSet.from_pyarrow_table("t", table, register=False)
    assert again.get_sample_uuids("list") == fs.get_sample_uuids("list")


def test_rows_are_balanced_by_values_that_are_known():
    fs = make({"x": [1.0, 2, 3, 4], "y": [0, 1, 0, 1], "g": [0.0, np.nan, 1.0, 1.0]}, tags="g")
    sampler = mml.samplers.SimpleSampler(balance_by="g", batch_size=2, source=fs)
    with pytest.raises(DataError, match=r"'tags.g.raw' .* has 1 missing"):
        list(sampler)


def test_infinite_values_have_no_neighbours():
    fs = make({"x": [1.0, 2, 3], "y": [0, 0, 0], "g": [np.inf, 1.0, 5.0]}, tags="g")
    for mode, options in (
        ("similar", {}),
        ("dissimilar", {}),
        ("similar", {"allow_fallback": True}),
    ):
        condition = mml.SimilarityCondition(mode, tolerance=1, **options)
        sampler = mml.samplers.PairedSampler({"g": condition}, batch_size=2, sources=[fs])
        with pytest.raises(DataError, match=r"infinite value in row 0"):
            list(sampler)


@pytest.fixture
def berlin():
    times = pd.date_range("2024-01-01", periods=4, freq="h", tz="Europe/Berlin")
    df = pd.DataFrame({"x": np.arange(4.0), "y": [0, 1, 0, 1], "t": times})
    return df, make(df, tags="t")


def test_frames_carry_time_zones(berlin, tmp_path):
    df, fs = berlin
    for got in (fs.get_tags("pandas")["t"], fs.to_pandas()["tags.t.raw"]):
        assert got.tolist() == df["t"].tolist()
        assert str(got.dt.tz) == "Europe/Berlin"
    assert fs.get_tags("arrow").schema.field("t").type.tz == "Europe/Berlin"
    assert fs.get_tags("polars")["t"].dtype.time_zone == "Europe/Berlin"
    again = FeatureSet.load(fs.save(tmp_path / "t"))
    assert again.get_tags("pandas")["t"].tolist() == df["t"].tolist()
    assert fs.get_tags("numpy").ravel()[0] == np.datetime64("2023-12-31T23:00")


def test_conditions_on_a_column_with_a_zone_name_one(berlin):
    df, fs = berlin
    at = df["t"][1]
    for time in (at, at.tz_convert("UTC"), at.isoformat()):
        assert len(fs.filter(conditions={"t": mml.predicates.GT(time)})) == 2
    for naive in ("2024-01-01T01:00", at.tz_localize(None), at.to_datetime64()):
        with pytest.raises(DataError, match=r"'t' has the time zone Europe/Berlin.*without one"):
            fs.filter(conditions={"t": mml.predicates.GT(naive)})
        with pytest.raises(DataError, match="without one"):
            fs.split_by_condition({"a": {"t": [naive]}, "b": {"x": 1.0}})
    assert not fs.splits


# -- categoricals --------------------------------------------------------------------------------

LEVELS = pd.CategoricalDtype(["never", "b", "a"], ordered=True)
CATEGORICALS = pd.DataFrame(
    {
        "text": pd.Series(["a", "b", "a", "b"], dtype=LEVELS),
        "code": pd.Categorical([7, 8, 7, 9]),
        "flag": pd.Categorical([True, False, True, False]),
        "dose": pd.Categorical([0.5, 1.5, 0.5, 1.5]),
        "day": pd.Categorical(pd.to_datetime(["2024-01-01", "2024-01-02"] * 2)),
        "y": [1.0, 2.0, 3.0, 4.0],
    }
)
KINDS = ["category"] * 3 + ["number", "time", "number"]


def kinds_of(fs):
    return {spec.key: spec.kind for spec in fs.collection.schema.columns.values()}


@pytest.mark.parametrize("road", ["pandas", "dict", "arrays", "arrow", "named", "parquet", "csv"])
def test_categoricals_are_categories_by_every_road(road, tmp_path):
    df, keys = CATEGORICALS, list(CATEGORICALS.columns[:-1])
    if road == "pandas":
        fs = FeatureSet.from_pandas("fs", df, keys, "y")
    elif road in ("dict", "arrays"):
        columns = {k: df[k] if road == "dict" else df[k].array for k in df}
        fs = FeatureSet.from_dict("fs", columns, keys, "y")
    elif road == "arrow":
        table = pa.Table.from_pandas(df)
        fs = FeatureSet.from_pyarrow_table("fs", table, feature_cols=keys, target_cols="y")
    elif road == "named":
        table = pa.Table.from_pandas(df.add_prefix("features.").add_suffix(".raw"))
        fs = FeatureSet.from_pyarrow_table("fs", table)
    elif road == "parquet":
        df.to_parquet(tmp_path / "rows.parquet")
        fs = FeatureSet.from_parquet("fs", tmp_path, keys, "y")
        mapped = FeatureSet.from_parquet("m", tmp_path, ["code"], "y", in_memory=False)
        assert kinds_of(mapped) == {"code": "category", "y": "number"}
    else:
        for part in (0, 2):
            df[part : part + 2].to_csv(tmp_path / f"{part}.csv", index=False)
        dtypes = {"text": "category", "code": "category", "flag": "category", "dose": float}
        fs = FeatureSet.from_csv("fs", tmp_path, keys, "y", read={"dtype": dtypes})
    assert kinds_of(fs) == dict(zip(df, KINDS, strict=True))
    assert fs.get_features("dict")["code"].tolist() == [7, 8, 7, 9]
    assert fs.get_features("dict")["text"].tolist() == ["a", "b", "a", "b"]


def test_categoricals_of_polars_and_their_facts_in_copies_files_and_summary(tmp_path):

    levels = ["never", "b", "a"]
    df = pl.DataFrame(
        {
            "cat": pl.Series(["a", "b"], dtype=pl.Categorical),
            "enum": pl.Series(["b", "a"], dtype=pl.Enum(levels)),
            "y": [1.0, 2.0],
        }
    )
    fs = FeatureSet.from_df("fs", df, ["cat", "enum"], "y", unit={"y": "V"})
    fs.save(tmp_path / "rows")
    with mml.ExperimentContext().activate():
        loaded = FeatureSet.load(tmp_path / "rows")
    for each in (fs, loaded, fs.copy(label="copy"), fs.take([1, 0]).to_featureset("part")):
        summary = each.summary().set_index("key")
        assert summary["kind"].tolist() == ["category", "category", "number"]
        assert summary.loc["y", "unit"] == "V"
        assert "<td>category</td>" in each._repr_html_()


def test_groups_of_categoricals_and_scalers_that_would_take_codes_for_numbers():
    df = CATEGORICALS.assign(cell=[0, 0, 1, 1])
    grouped = FeatureSet.from_pandas("grouped", df, ["code", "text"], "y", group_by="cell")
    assert kinds_of(grouped)["code"] == kinds_of(grouped)["text"] == "category"
    fs = FeatureSet.from_pandas("fs", df, ["code", "dose"], "y")
    fs.fit_transform("OneHotEncoder", domain="features", keys="code")
    fs.undo_last_transform("features", "code")
    with pytest.warns(UserWarning, match=r"\['code'\] hold categories"):
        fs.fit_transform("StandardScaler", domain="features")


# -- lists of objects, and Arrow's rarer types ---------------------------------------------------

NOON = dt.datetime(2024, 1, 1, 12)  # noqa: DTZ001 - one without a zone
UTC = NOON.replace(tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([UTC, NOON], "mixes types .* row 1 is datetime '2024-01-01 12:00:00', row 0"),
        ([NOON, UTC], r"row 1 is datetime '2024-01-01 12:00:00\+00:00'"),
        ([pd.Timestamp(UTC), pd.Timestamp(NOON)], "row 1 is Timestamp"),
        ([NOON.date(), NOON], "row 1 is datetime .* row 0 is date"),
        ([True, 2], "row 1 is int '2', row 0 is bool"),
        ([1, 2**70], "at most 64 bits"),
        ([1, pd.NA], r"has 1 missing value\(s\), the first in row 1.*float"),
        (["a", pd.NA], "has 1 missing"),
        ([pd.Timestamp(NOON), pd.NaT], "has 1 missing"),
        ([{1}, {2}], "holds sets, which have no order"),
        (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), "month_day_nano_interval"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "wrap", [list, lambda v: pd.Series(v, dtype=object)], ids=["list", "pandas"]
)
def test_what_would_change_in_arrow_is_refused(values, message, wrap):
    given = values if isinstance(values, pa.Array) else wrap(values)
    with pytest.raises(DataError, match=f"column 'x'.*{message}"):
        make({"x": given, "y": np.arange(len(values))})


def test_what_is_held_in_unusual_ways_keeps_its_values():
    ids = [uuid.UUID(int=7), uuid.UUID(int=2**100)]
    zones = [UTC, UTC.astimezone(dt.timezone(dt.timedelta(hours=5)))]
    columns = {
        "na": ([1.5, pd.NA], [1.5, np.nan]),
        "uuid": (ids, [str(i) for i in ids]),
        "zones": (zones, [np.datetime64(NOON)] * 2),
        "days": ([NOON.date(), NOON.date()], [np.datetime64("2024-01-01")] * 2),
        "runs": (pa.RunEndEncodedArray.from_arrays([1, 2], ["a", "b"]), ["a", "b"]),
        "views": (pa.array([[1, 2], [3, 4]], pa.list_view(pa.int64())), [[1, 2], [3, 4]]),
    }
    fs = make({**{k: v for k, (v, _) in columns.items()}, "y": [0, 1]}, features=list(columns))
    for key, (_, want) in columns.items():
        np.testing.assert_array_equal(fs.get_features("dict")[key], want)


def test_frames_among_series_are_aligned_too():
    wide = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}, index=[1, 0])
    fs = make({"x": wide, "y": pd.Series([10.0, 20.0], index=[0, 1])})
    expected = wide.join(pd.Series([10.0, 20.0], index=[0, 1], name="y"))
    np.testing.assert_array_equal(fs.get_targets("numpy").ravel(), expected["y"])
    with pytest.raises(DataError, match="different indexes"):
        make({"x": wide, "y": pd.Series([10.0, 20.0], index=[0, 7])})


def test_records_keep_integers_exact_or_are_refused():
    fs = make([{"x": 2**60 + 1, "y": 1.0}, {"x": 3}])
    assert fs.get_data(columns="x")["features.x.raw"].tolist() == [2**60 + 1, 3]
    with pytest.raises(DataError, match="'x' has 1 missing value"):
        make([{"x": 2**60 + 1, "y": 1.0}, {"y": 2.0}])


def test_record_arrays_and_record_batches_are_tables():
    rows = np.rec.array([(1, 2.0), (3, 4.0)], names="x,y")
    for data in (rows, pa.record_batch({"x": [1, 3], "y": [2.0, 4.0]})):
        assert make(data).get_data(columns="x")["features.x.raw"].tolist() == [1, 3]
