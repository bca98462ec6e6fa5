"""Getters, formats and selectors, held against numpy stacks of the columns."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modularml.data import DataFormat, FeatureSet
from modularml.data.formats import BLOCK, convert_array, stack
from modularml.errors import DataError, ShapeError, UnknownNameError
from tests.random_tables import featuresets

N = 7


@pytest.fixture
def fs():
    data = {
        "v": np.arange(N * 3.0).reshape(N, 3),
        "w": np.arange(N * 3, dtype="f4").reshape(N, 3),
        "a": np.arange(N, dtype="i4"),
        "b": np.arange(N) * 2.0,
        "y": np.arange(N) * 10.0,
        "z": np.arange(N) * 11.0,
        "cell": [f"c{i}" for i in range(N)],
        "day": np.arange(N).astype("M8[s]"),
    }
    found = FeatureSet.from_dict("fs", data, ["v", "w", "a", "b"], ["y", "z"], ["cell", "day"])
    found.fit_transform("MinMaxScaler", domain="features", keys="a")
    return found


def test_keys_shapes_and_dtypes(fs):
    assert fs.get_feature_keys() == [
        "features.v.raw",
        "features.w.raw",
        "features.a.raw",
        "features.b.raw",
        "features.a.transformed",
    ]
    assert fs.get_target_keys(False, False) == ["y", "z"]
    assert fs.get_tag_keys(include_rep_suffix=True, include_domain_prefix=False) == [
        "cell.raw",
        "day.raw",
    ]
    assert fs.get_tag_keys(include_rep_suffix=False) == ["tags.cell", "tags.day"]
    assert len(fs.get_all_keys()) == 9
    assert fs.get_feature_keys(False, False) == ["v", "w", "a", "b"]
    assert fs.get_feature_dtypes(False, False)["a"] == np.float64
    assert fs.get_feature_shapes(False, False)["v"] == (3,)
    assert fs.get_target_shapes() == {"targets.y.raw": (), "targets.z.raw": ()}
    assert fs.get_tag_shapes(False, False) == {"cell": (), "day": ()}
    assert fs.get_feature_dtypes(False, False)["w"] == np.float32
    assert fs.get_target_dtypes(False, False) == {"y": np.float64, "z": np.float64}
    assert fs.get_tag_dtypes(False, False) == {"cell": np.dtype(object), "day": np.dtype("M8[s]")}


def test_names_of_the_result(fs):
    assert list(fs.get_targets()) == ["y", "z"]
    assert list(fs.get_targets(include_domain_prefix=True)) == ["targets.y", "targets.z"]
    assert list(fs.get_tags(include_rep_suffix=True)) == ["cell.raw", "day.raw"]
    assert list(fs.get_data(targets="y")) == ["targets.y.raw"]
    assert list(fs.get_features(features="a")) == ["a"]
    # what would be the same name twice keeps what tells it apart
    assert list(fs.get_features(features="a", rep="*")) == ["a.raw", "a.transformed"]
    assert list(fs.get_features(features="a", rep="transformed")) == ["a"]
    assert list(fs.get_features(rep="raw")) == ["v", "w", "a", "b"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("y", ["targets.y.raw"]),
        ("a", ["features.a.transformed"]),
        ("a.raw", ["features.a.raw"]),
        ("features.a.transformed", ["features.a.transformed"]),
        ("features.a", ["features.a.transformed"]),
        (
            "[vwab]",
            ["features.v.raw", "features.w.raw", "features.a.transformed", "features.b.raw"],
        ),
        ("a.*", ["features.a.raw", "features.a.transformed"]),
        ("*.transformed", ["features.a.transformed"]),
        ("*.a.raw", ["features.a.raw"]),
        ("targets.*", ["targets.y.raw", "targets.z.raw"]),
        ("targets.*.raw", ["targets.y.raw", "targets.z.raw"]),
        ("[yz]", ["targets.y.raw", "targets.z.raw"]),
        ("c*", ["tags.cell.raw"]),
        ("?.t*", ["features.a.transformed"]),
        (["z", "y"], ["targets.z.raw", "targets.y.raw"]),
        (["z", "targets.*", "b"], ["targets.z.raw", "targets.y.raw", "features.b.raw"]),
        ([], []),
    ],
)
def test_selectors(fs, columns, expected):
    assert list(fs.get_data(columns=columns)) == expected
    assert list(fs.select(columns).get_data(columns=columns)) == expected


def test_without_a_representation_the_newest_is_meant_everywhere(fs):
    """As references mean it; a view keeps the others for those that ask for them."""
    every = fs.get_feature_keys()
    newest = [*every[:2], "features.a.transformed", "features.b.raw"]
    assert list(fs.get_data(features="*")) == newest == list(fs.reference().columns("features"))
    assert list(fs.get_data(features="*", rep="*")) == every
    assert list(fs.get_data()) == [*newest, *fs.get_target_keys(), *fs.get_tag_keys()]
    assert sorted(fs.get_data(rep="*")) == sorted(fs.get_all_keys()) == sorted(fs.to_pandas())
    raw, scaled = (fs.get_features("np", features="a", rep=rep) for rep in ("raw", "transformed"))
    for part in (fs, fs.take([3, 1]), fs.select(features="a")):
        rows = slice(None) if len(part) == N else [3, 1]
        np.testing.assert_array_equal(part.get_features("np", features="a"), scaled[rows])
        np.testing.assert_array_equal(part.get_features("np", features="a", rep="raw"), raw[rows])
    assert fs.select(features="a", rep="raw").get_features()["a"].tolist() == raw[:, 0].tolist()
    fs.undo_last_transform("features", "a")
    np.testing.assert_array_equal(fs.get_features("np", features="a"), raw)


def test_selectors_by_domain(fs):
    found = list(fs.get_data(tags="day", targets=["z"], columns="b", features=["v.raw", "w"]))
    assert found == [
        "features.b.raw",
        "features.v.raw",
        "features.w.raw",
        "targets.z.raw",
        "tags.day.raw",
    ]
    assert list(fs.get_data(features="features.v.raw")) == ["features.v.raw"]
    assert list(fs.get_data(rep="transformed")) == ["features.a.transformed"]
    assert fs.get_features(features=[]) == {}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"columns": "voltag"}, "unknown column 'voltag'"),
        ({"columns": "cel"}, "unknown column 'cel'; did you mean 'cell'"),
        ({"columns": "a.row"}, "unknown column 'a.row'; did you mean 'a.raw'"),
        (
            {"columns": "b.transformed"},
            "unknown column 'b.transformed'; did you mean 'a.transformed'",
        ),
        ({"features": "y"}, "unknown column 'y' of features"),
        ({"features": "targets.y"}, "unknown column 'targets.y' of features"),
        ({"features": "b", "rep": "transformed"}, "unknown column 'b.transformed' of features"),
        ({"rep": "transfomed"}, "unknown representation 'transfomed'; did you mean 'transformed'"),
        ({"columns": "*.nope"}, "unknown column"),
        ({"columns": ""}, "unknown column ''"),
        ({"columns": [3]}, "unknown column 3"),
    ],
)
def test_selectors_that_fit_nothing(fs, kwargs, message):
    with pytest.raises(UnknownNameError, match=message):
        fs.get_data(**kwargs)


def test_keys_that_hold_wildcards_are_found_as_they_are_written():
    data = {"V[0]": [1], "V0": [2], "a*": [3], "ab": [4], "q?": [5]}
    fs = FeatureSet.from_dict("fs", data, list(data), [])
    for key, (value,) in data.items():
        for selector in (key, f"{key}.raw", f"features.{key}.raw", f"features.{key}"):
            assert fs.get_data(columns=selector) == {f"features.{key}.raw": np.array([value])}
    assert fs.get_features("np").tolist() == [[1, 2, 3, 4, 5]]
    assert fs.reference().features == tuple(f"features.{key}" for key in data)
    fs.fit_transform("MinMaxScaler", domain="features", keys="a*")
    assert fs.get_feature_keys(True, False)[-1] == "a*.transformed"


@settings(max_examples=60, deadline=None)
@given(featuresets(), st.data())
def test_full_names_always_select(fs, data):
    names = data.draw(st.permutations(fs.column_names))
    assert list(fs.get_data(columns=names)) == names


# -- formats --------------------------------------------------------------------------------------


def test_array_columns_are_stacked_channels_first(fs):
    found = fs.get_features("numpy", features=["w", "v"])
    assert found.shape == (N, 2, 3)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found[:, 1], fs.get_features()["v"])
    assert fs.get_features("np", features="w").shape == (N, 1, 3)
    assert fs.get_features("np", features="w").dtype == np.float32
    assert fs.get_targets("np").shape == (N, 2)
    assert fs.get_tags("np").dtype == object


def test_one_column_of_all_rows_is_not_copied(fs):
    memory = np.frombuffer(fs.collection.array("features.v.raw").flatten().buffers()[1])
    found = fs.get_features("numpy", features="v")
    assert np.shares_memory(found, memory)
    assert not found.flags.writeable
    assert np.shares_memory(fs.get_features()["v"], memory)


@pytest.mark.parametrize("shape", [(), (2,), (2, 2)])
@pytest.mark.parametrize("chosen", [None, slice(None, None, -1), slice(3, 5)])
def test_stacks_longer_than_a_block(shape, chosen):
    n = 2 * BLOCK + 5
    arrays = {k: np.random.default_rng(k).normal(size=(n, *shape)) for k in range(3)}
    rows = None if chosen is None else np.arange(n)[chosen]
    expected = np.stack(list(arrays.values()), axis=1)
    found = stack(arrays, rows)
    np.testing.assert_array_equal(found, expected if chosen is None else expected[chosen])
    assert found.flags.c_contiguous


def test_columns_that_cannot_be_stacked(fs):
    with pytest.raises(ShapeError, match=r"v: \(3,\), w: \(3,\), a: \(\), b: \(\)"):
        fs.get_features("numpy", rep="raw")
    with pytest.raises(DataError, match=r"different types .*y: float64.*day: datetime64"):
        fs.get_data(
            columns=["y", "day"], fmt="np", include_domain_prefix=False, include_rep_suffix=False
        )
    with pytest.raises(ShapeError, match="no columns to stack"):
        fs.get_data(columns=[], fmt="numpy")


@pytest.mark.parametrize(
    ("spellings", "kind"),
    [
        (["pandas", "pd", "df", "PANDAS", DataFormat.PANDAS], pd.DataFrame),
        (["numpy", "np", "NumPy"], np.ndarray),
        (["dict", "dict_numpy", "dict_list"], dict),
        (["list"], list),
        (["arrow"], pa.Table),
        (["polars"], pl.DataFrame),
    ],
)
def test_spellings(fs, spellings, kind):
    for fmt in spellings:
        assert isinstance(fs.get_targets(fmt), kind)


def test_values_in_every_format(fs):
    view = fs.take([5, 0])
    expected = np.array([[50.0, 55.0], [0.0, 0.0]])
    np.testing.assert_array_equal(view.get_targets("np"), expected)
    assert view.get_targets("list") == expected.tolist()
    assert view.get_targets("dict_list") == {"y": [50.0, 0.0], "z": [55.0, 0.0]}
    assert view.get_targets("dict")["y"].tolist() == [50.0, 0.0]
    pd.testing.assert_frame_equal(
        view.get_targets("pd"), pd.DataFrame(expected, columns=["y", "z"])
    )
    assert view.get_targets("arrow").to_pydict() == {"y": [50.0, 0.0], "z": [55.0, 0.0]}
    assert view.get_targets("polars").to_dict(as_series=False) == {
        "y": [50.0, 0.0],
        "z": [55.0, 0.0],
    }
    frame = fs.get_features("pd", rep="raw")
    np.testing.assert_array_equal(np.stack(frame["v"]), fs.get_features()["v"])
    assert fs.get_features("polars", rep="raw")["v"].dtype == pl.Array(pl.Float64, 3)
    assert fs.get_features("arrow", features="w").column(0).type == pa.list_(pa.float32(), 3)


def test_torch(fs):
    torch = pytest.importorskip("torch")
    found = fs.get_targets("torch")
    assert torch.equal(found, torch.tensor(fs.get_targets("np")))
    found += 1
    assert fs.get_targets("np")[0, 0] == 0
    by_name = fs.get_features("dict_torch", features=["w", "v"])
    assert by_name["w"].dtype == torch.float32
    by_name["v"] += 1
    assert fs.get_features()["v"][0, 0] == 0
    with pytest.raises(ShapeError, match="object cannot be converted to a torch tensor"):
        fs.get_tags("torch", tags="cell")


def test_tensorflow(fs):
    tf = pytest.importorskip("tensorflow")
    found = fs.get_targets("tf")
    assert isinstance(found, tf.Tensor)
    np.testing.assert_array_equal(found.numpy(), fs.get_targets("np"))
    by_name = fs.take([2, 0]).get_features("dict_tf", features=["w", "v"])
    assert list(by_name) == ["w", "v"]
    assert by_name["w"].dtype == tf.float32
    np.testing.assert_array_equal(by_name["v"].numpy(), fs.column("features.v.raw")[[2, 0]])


def test_sample_data_has_the_newest_of_each_column(fs):
    view = fs.take([4, 1]).select(features=["a", "b"], targets=["z", "y"])
    data = view.to_sample_data()
    expected = view.get_data(columns=["a.transformed", "b.raw"], fmt="np")
    np.testing.assert_array_equal(data.features, expected)
    np.testing.assert_array_equal(data.targets, view.get_data(columns=["z", "y"], fmt="np"))
    assert data.tags is None
    assert data.sample_uuids.tolist() == view.get_sample_uuids("list")
    assert view.to_sample_data("torch").features.tolist() == expected.tolist()
    with pytest.raises(ShapeError, match="different shapes"):
        fs.to_sample_data()


def test_unknown_formats(fs):
    with pytest.raises(UnknownNameError, match="unknown format 'numpi'; did you mean 'numpy'"):
        fs.get_targets("numpi")
    with pytest.raises(UnknownNameError, match="unknown format 'numpi'"):
        fs.get_sample_uuids("numpi")


def test_convert_array():
    assert convert_array([[1, 2]], "list") == [[1, 2]]
    assert list(convert_array(np.eye(2), "pandas").columns) == ["column_0", "column_1"]
    with pytest.raises(UnknownNameError):
        convert_array(np.eye(2), "nope")


def test_ids_in_formats(fs):
    ids = fs.get_sample_uuids()
    assert (ids.shape, ids.dtype) == ((N,), np.dtype("<U36"))
    assert fs.get_sample_uuids("list") == ids.tolist()
    assert fs.get_sample_uuids("pandas")["sample_uuids"].tolist() == ids.tolist()
    assert fs.get_sample_uuids("dict")["sample_uuids"].tolist() == ids.tolist()


def test_to_pandas(fs):
    frame = fs.take([3, 1]).to_pandas()
    assert frame.index.name == "sample_uuids"
    assert frame.index.tolist() == [fs.get_sample_uuids()[i] for i in (3, 1)]
    assert list(frame.columns) == fs.get_all_keys()
    assert frame["targets.y.raw"].tolist() == [30.0, 10.0]


def test_what_a_view_gives_out_can_be_written_to(fs):
    for name, values in fs.take([0, 1]).get_data(fmt="dict_numpy").items():
        before = fs.column(name).tolist()
        values[...] = values[::-1].copy()
        assert fs.column(name).tolist() == before
