"""Scaling of columns, held against scikit-learn on exactly the rows of the split."""

import warnings

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from sklearn import preprocessing
from sklearn.decomposition import PCA

from modularml.data import FeatureSet
from modularml.data.scaling import LeakWarning
from modularml.errors import (
    ConfigError,
    DataError,
    NotFittedError,
    ScalerError,
    ShapeError,
    UnknownNameError,
)
from modularml.scalers import PerSampleMinMaxScaler, PerSampleZeroStart
from modularml.scalers.scaler import Scaler

N = 40
T = "transformed"


@pytest.fixture
def fs():
    rng = np.random.default_rng(0)
    data = {
        "a": rng.normal(3, 2, N),
        "b": rng.normal(-1, 5, N),
        "v": rng.normal(size=(N, 6)),
        "w": rng.normal(5, 3, size=(N, 6)),
        "i": rng.integers(0, 9, N),
        "f": rng.normal(size=N).astype("f4"),
        "y": rng.normal(100, 20, N),
        "z": rng.normal(7, 2, N),
        "name": [f"n{i}" for i in range(N)],
    }
    found = FeatureSet.from_dict("fs", data, ["a", "b", "v", "w", "i", "f"], ["y", "z"], "name")
    found.split_random({"train": 0.7, "test": 0.3})
    return found


def fit(fs, scaler="StandardScaler", keys=("a", "b"), domain="features", **kwargs):
    kwargs.setdefault("fit_to_split", "train")
    fs.fit_transform(scaler, domain=domain, keys=list(keys), **kwargs)


def stacked(fs, keys, rep="raw", domain="features"):
    return np.stack([fs.column(f"{domain}.{k}.{rep}") for k in keys], axis=1)


def snapshot(fs):
    columns = {name: fs.column(name).tobytes() for name in fs.column_names if "name" not in name}
    return columns, fs.scaler_records, fs.available_splits


# -- fitting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "StandardScaler",
        "MinMaxScaler",
        "MaxAbsScaler",
        "RobustScaler",
        "PowerTransformer",
        "Normalizer",
    ],
)
def test_fitted_on_the_split_s_rows_alone(fs, name):
    fit(fs, name)
    raw = stacked(fs, "ab")
    theirs = getattr(preprocessing, name)().fit(raw[fs["train"].indices])
    np.testing.assert_allclose(stacked(fs, "ab", T), theirs.transform(raw), rtol=1e-12, atol=1e-12)
    (record,) = fs.scaler_records
    assert (record.domain, record.keys, record.fit_to_split) == ("features", ("a", "b"), "train")
    assert record.fit_rows.tolist() == fs["train"].indices.tolist()


@pytest.mark.parametrize(
    ("merged_axes", "lay_out"),
    [
        ((1, 2), lambda x: x.reshape(len(x), -1)),
        ((0, 2), lambda x: x.transpose(0, 2, 1).reshape(-1, 2)),
        ((0, 1), lambda x: x.reshape(-1, 6)),
        ((0, 1, 2), lambda x: x.reshape(-1, 1)),
    ],
)
def test_merged_axes(fs, merged_axes, lay_out):
    fit(fs, keys="vw", merged_axes=merged_axes)
    raw = stacked(fs, "vw")
    theirs = preprocessing.StandardScaler().fit(lay_out(raw[fs["train"].indices]))
    found = lay_out(stacked(fs, "vw", T))
    np.testing.assert_allclose(found, theirs.transform(lay_out(raw)), rtol=1e-12, atol=1e-12)


def test_one_array_column_is_scaled_position_by_position(fs):
    fit(fs, keys="v")
    raw = fs.column("features.v.raw")
    theirs = preprocessing.StandardScaler().fit(raw[fs["train"].indices])
    np.testing.assert_allclose(
        fs.column("features.v.transformed"), theirs.transform(raw), atol=1e-12
    )


def test_a_chain_is_built_on_what_is_there(fs):
    fit(fs, "StandardScaler", "ab")
    first = stacked(fs, "ab", T)
    fit(fs, preprocessing.MinMaxScaler((0, 2)), "b")
    theirs = preprocessing.MinMaxScaler((0, 2)).fit(first[fs["train"].indices, 1:])
    np.testing.assert_array_equal(fs.column("features.a.transformed"), first[:, 0])
    np.testing.assert_allclose(
        fs.column("features.b.transformed"), theirs.transform(first[:, 1:])[:, 0]
    )
    names = [s.scaler_name for s in fs.iter_scalers_on_cols(domain="features", columns="b")]
    assert names == ["MinMaxScaler", "StandardScaler"]
    names = [s.scaler_name for s in fs.iter_scalers_on_cols(domain="features", columns=["a"])]
    assert names == ["StandardScaler"]


def test_every_form_of_scaler(fs):
    for form in (
        "standardscaler",
        preprocessing.StandardScaler,
        preprocessing.StandardScaler(),
        Scaler("StandardScaler"),
    ):
        fit(fs, form, "a")
        assert fs.column("features.a.transformed")[fs["train"].indices].mean() == pytest.approx(0)
        fs.undo_all_transforms()
    given = preprocessing.StandardScaler()
    fit(fs, given, "a")
    assert not hasattr(given, "mean_")


def test_types_of_the_result(fs):
    fit(fs, keys="f")
    fit(fs, keys="i")
    dtypes = fs.get_feature_dtypes(include_domain_prefix=False)
    assert (dtypes["f.transformed"], dtypes["i.transformed"]) == (np.float32, np.float64)
    assert not fs.column("features.f.transformed").flags.writeable


def test_fitting_on_every_row_is_warned_of_once_there_are_splits(fs):
    with pytest.warns(
        LeakWarning, match="fitted on every row of 'fs' .* fit_to_split='train'"
    ) as seen:
        fit(fs, keys="a", fit_to_split=None)
    assert seen[0].filename == __file__
    fs.clear_splits()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(fs, keys="b", fit_to_split=None)
    raw = fs.column("features.b.raw")
    np.testing.assert_allclose(fs.column("features.b.transformed"), (raw - raw.mean()) / raw.std())


class Shared:
    """A scaler that holds on to what it returns, and writes to what it gets."""

    def fit(self, data):
        data[:] = 0
        return self

    def transform(self, data):
        self.kept = data
        data += 1
        return data


def test_a_scaler_with_bad_manners_harms_nothing(fs):
    before = fs.column("features.a.raw").copy()
    fit(fs, Shared, "a")
    np.testing.assert_array_equal(fs.column("features.a.raw"), before)
    np.testing.assert_array_equal(fs.column("features.a.transformed"), before + 1)
    fs.scaler_records[0].scaler.wrapped.kept[:] = 99
    np.testing.assert_array_equal(fs.column("features.a.transformed"), before + 1)


class Wider:
    def fit(self, data):
        return self

    def transform(self, data):
        return np.hstack([data, data])


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"scaler": "StandardScalr"}, UnknownNameError, "did you mean 'StandardScaler'"),
        (
            {"domain": "feature"},
            UnknownNameError,
            "unknown domain 'feature'; did you mean 'features'",
        ),
        ({"keys": ["aa"]}, UnknownNameError, "unknown column 'aa' of features"),
        ({"keys": ["y"]}, UnknownNameError, "unknown column 'y' of features"),
        ({"fit_to_split": "trian"}, UnknownNameError, "did you mean 'train'"),
        (
            {"domain": "tags", "keys": ["name"]},
            ScalerError,
            "'name' holds object, but .* requires numbers",
        ),
        ({"keys": ["a", "v"]}, ShapeError, r"'a': \(\), 'v': \(6,\)"),
        ({"keys": ["v", "w"]}, ShapeError, r"choose merged_axes=\(1, 2\)"),
        ({"keys": ["v"], "merged_axes": (0, 7)}, ShapeError, "merged_axes"),
        ({"scaler": Wider}, ScalerError, "ambiguous which belong to which key"),
        ({"scaler": object()}, ConfigError, "lacks fit and transform"),
        ({"fit_to_split": "none"}, ScalerError, "no rows to fit on in split 'none'"),
    ],
    ids=range(12),
)
def test_a_call_that_fails_changes_nothing(fs, kwargs, error, message):
    fit(fs, "MinMaxScaler", "a")
    fs.add_split(fs.take([], label="none"))
    before = snapshot(fs)
    arguments = {
        "scaler": "StandardScaler",
        "domain": "features",
        "keys": ["a", "b"],
        "fit_to_split": "train",
    }
    with pytest.raises(error, match=message):
        fs.fit_transform(**{**arguments, **kwargs})
    assert snapshot(fs) == before


# -- undo -----------------------------------------------------------------------------------------


def test_undo_is_exact_to_the_bit(fs):
    states = [snapshot(fs)]
    steps = [
        ("StandardScaler", "ab"),
        ("PowerTransformer", "b"),
        ("MinMaxScaler", "ab"),
        ("RobustScaler", "v"),
    ]
    for name, keys in steps:
        fit(fs, name, keys)
        states.append(snapshot(fs))
    for _, keys in reversed(steps):
        states.pop()
        fs.undo_last_transform("features", list(keys))
        assert snapshot(fs) == states[-1]


def test_undo_leaves_what_does_not_depend_on_it(fs):
    fit(fs, "StandardScaler", "a")
    fit(fs, "MinMaxScaler", "b")
    fit(fs, "MinMaxScaler", "y", domain="targets")
    others = {
        n: fs.column(n).tobytes() for n in ("features.b.transformed", "targets.y.transformed")
    }
    fs.undo_last_transform("features", "a")
    assert "features.a.transformed" not in fs.column_names
    assert {n: fs.column(n).tobytes() for n in others} == others


@pytest.mark.parametrize(
    ("domain", "keys", "message"),
    [
        (
            "features",
            "a",
            r"newest scaler on \['a'\] is MinMaxScaler over \['a', 'b'\]; undo it",
        ),
        ("features", ["b", "v"], "is MinMaxScaler over"),
        ("features", "w", r"no scaler was applied to \['w'\] of features"),
        ("targets", None, "nothing to undo"),
        ("features", None, "undo it first"),
    ],
)
def test_what_cannot_be_undone(fs, domain, keys, message):
    fit(fs, "StandardScaler", "a")
    fit(fs, "MinMaxScaler", "ab")
    before = snapshot(fs)
    with pytest.raises(ScalerError, match=message):
        fs.undo_last_transform(domain, keys)
    assert snapshot(fs) == before


def test_undo_all(fs):
    fresh = snapshot(fs)
    fit(fs, "StandardScaler", "ab")
    fit(fs, "MinMaxScaler", "a")
    fit(fs, "MinMaxScaler", "v")
    with_v = fs.column("features.v.transformed").tobytes()
    fit(fs, "MinMaxScaler", "yz", domain="targets")
    before = snapshot(fs)
    for domain in (None, "features"):
        with pytest.raises(
            ScalerError, match=r"StandardScaler was fitted on \['a', 'b'\] together"
        ):
            fs.undo_all_transforms(domain, "a")
        assert snapshot(fs) == before
    with pytest.raises(UnknownNameError, match="unknown column 'aa'"):
        fs.undo_all_transforms(keys="aa")
    fs.undo_all_transforms("features", ["a", "b"])
    assert fs.column("features.v.transformed").tobytes() == with_v
    assert len(fs.scaler_records) == 2
    fs.undo_all_transforms(keys=["y", "z"])
    assert len(fs.scaler_records) == 1
    fs.undo_all_transforms()
    assert snapshot(fs) == fresh


# -- back to the user's units ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "StandardScaler",
        "MinMaxScaler",
        "MaxAbsScaler",
        "RobustScaler",
        "PowerTransformer",
        "Negate",
    ],
)
@pytest.mark.parametrize("columns", ["y", ["z", "y"], ["y", "z"]])
def test_unscale_any_rows(fs, name, columns):
    fit(fs, name, "yz", domain="targets")
    fit(fs, "MinMaxScaler", "z", domain="targets")
    scaled = stacked(fs, columns, T, "targets")
    rows = np.array([3, 3, 0])
    found = fs.unscale_data_for_cols(data=scaled[rows], domain="targets", columns=columns)
    np.testing.assert_allclose(found, stacked(fs, columns, "raw", "targets")[rows], rtol=1e-9)
    if columns == "y":
        flat = fs.unscale_data_for_cols(data=scaled[rows, 0], domain="targets", columns="y")
        np.testing.assert_array_equal(flat, found[:, 0])


@pytest.mark.parametrize("merged_axes", [(1, 2), (0, 2), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize("columns", ["v", "wv"])
def test_unscale_arrays(fs, merged_axes, columns):
    fit(fs, "StandardScaler", "vw", merged_axes=merged_axes)
    scaled = stacked(fs, columns, T)
    found = fs.unscale_data_for_cols(data=scaled[5:9], domain="features", columns=list(columns))
    np.testing.assert_allclose(found, stacked(fs, columns)[5:9], rtol=1e-12)
    assert found.shape == scaled[5:9].shape


def test_unscale_what_was_not_scaled_is_the_same(fs):
    data = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(
        fs.unscale_data_for_cols(data=data, domain="targets", columns=["y", "z"]), data
    )


@pytest.mark.parametrize("scaler", ["PerSampleZeroStart", "PerSampleMinMaxScaler", "Absolute"])
def test_scalers_that_need_to_know_the_rows(fs, scaler):
    fit(fs, "StandardScaler", "v")
    fit(fs, scaler, "v")
    fit(fs, "MinMaxScaler", "v")
    scaled, raw = stacked(fs, "v", T), stacked(fs, "v")
    rows = np.array([7, 2, 30])
    ids = fs.get_sample_uuids()[rows]
    with pytest.raises(
        ScalerError, match=f"inverse of {scaler} needs values of each row.*sample_uuids="
    ):
        fs.unscale_data_for_cols(data=scaled[rows], domain="features", columns="v")
    found = fs.unscale_data_for_cols(
        data=scaled[rows], domain="features", columns="v", sample_uuids=ids
    )
    np.testing.assert_allclose(found, raw[rows], rtol=1e-9, atol=1e-12)
    with pytest.raises(ShapeError, match="must name the 3 rows of data, got 2"):
        fs.unscale_data_for_cols(
            data=scaled[rows], domain="features", columns="v", sample_uuids=ids[:2]
        )
    with pytest.raises(DataError, match="sample id"):
        fs.unscale_data_for_cols(
            data=scaled[:1], domain="features", columns="v", sample_uuids=["0" * 32]
        )


def test_facts_of_the_right_place_in_a_chain(fs):
    fit(fs, PerSampleZeroStart(), "v")
    fit(fs, "StandardScaler", "v")
    fit(fs, PerSampleZeroStart(), "v")  # equal to the first, and yet another scaler
    found = fs.unscale_data_for_cols(
        data=stacked(fs, "v", T), domain="features", columns="v", sample_uuids=fs.get_sample_uuids()
    )
    np.testing.assert_allclose(found, stacked(fs, "v"), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scaler", ["Normalizer", PCA, PerSampleMinMaxScaler()])
def test_a_column_that_cannot_be_inverted_alone(fs, scaler):
    fit(fs, scaler, "yz", domain="targets")
    with pytest.raises(
        ScalerError, match=r"fitted on \['y', 'z'\] together and cannot be inverted"
    ):
        fs.unscale_data_for_cols(data=np.zeros(3), domain="targets", columns="y")


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 3), (3, 2, 2), ()])
def test_data_of_another_shape(fs, shape):
    with pytest.raises(ShapeError, match=r"must have shape \('n', 2\), got"):
        fs.unscale_data_for_cols(data=np.zeros(shape), domain="targets", columns=["y", "z"])


def test_a_set_made_of_scaled_rows_knows_its_scalers(fs):
    fit(fs, "StandardScaler", "yz", domain="targets")
    own = fs["test"].to_featureset("own")
    found = own.unscale_data_for_cols(
        data=own.get_targets("np", rep=T), domain="targets", columns=["y", "z"]
    )
    np.testing.assert_allclose(found, own.get_targets("np", rep="raw"))
    own.undo_all_transforms()
    assert own.get_target_keys() == ["targets.y.raw", "targets.z.raw"]
    assert fs["test"].select(rep="raw").to_featureset("raw").scaler_records == ()
    scaled = fs["test"].select(rep=T).to_featureset("scaled")
    found = scaled.unscale_data_for_cols(
        data=scaled.get_targets("np"), domain="targets", columns=["y", "z"]
    )
    np.testing.assert_allclose(found, own.get_targets("np"))
    with pytest.raises(ScalerError, match="'y' of 'scaled' has no raw values"):
        scaled.undo_all_transforms()


# -- new data -------------------------------------------------------------------------------------


def test_new_data_goes_the_same_way(fs):
    fit(fs, "StandardScaler", "ab")
    fit(fs, "PowerTransformer", "b")
    fit(fs, "PerSampleZeroStart", "v")
    raw = {k: fs.column(f"features.{k}.raw") for k in ("a", "b", "v", "w")}
    found = fs.transform_new(raw)
    for key in ("a", "b", "v"):
        np.testing.assert_array_equal(found[key], fs.column(f"features.{key}.transformed"))
    np.testing.assert_array_equal(found["w"], raw["w"])
    few = fs.transform_new({k: v[:3] for k, v in raw.items()})
    np.testing.assert_allclose(few["b"], found["b"][:3], rtol=1e-12)


@pytest.mark.parametrize(
    "of", [lambda df: df, pl.from_pandas, pa.Table.from_pandas], ids=["pandas", "polars", "arrow"]
)
def test_new_data_in_a_frame(fs, of):
    fit(fs, "StandardScaler", "ab")
    fit(fs, "MinMaxScaler", "w")
    fit(fs, "MaxAbsScaler", "z", domain="targets")
    frame = fs.get_features("pandas", features=["a", "b", "w", "v"], rep="raw").assign(other="text")
    found = fs.transform_new(of(frame.assign(z=fs.column("targets.z.raw"))))
    np.testing.assert_array_equal(found.pop("z"), fs.column("targets.z.transformed"))
    assert list(found) == ["a", "b", "w", "v", "other"]
    np.testing.assert_array_equal(found["a"], fs.column("features.a.transformed"))
    np.testing.assert_array_equal(found["w"], fs.column("features.w.transformed"))
    np.testing.assert_array_equal(found["v"], fs.column("features.v.raw"))
    assert pa.array(found["other"]).to_pylist() == ["text"] * N
    targets = fs.transform_new({"y": [1.0, 2.0]}, domain="targets")
    np.testing.assert_array_equal(targets["y"], [1.0, 2.0])


def test_new_data_that_lacks_a_partner(fs):
    fit(fs, "StandardScaler", "ab")
    with pytest.raises(DataError, match=r"fitted on \['a', 'b'\] together; \['b'\] is missing"):
        fs.transform_new({"a": np.zeros(3)})
    with pytest.raises(UnknownNameError, match="unknown domain 'feature'"):
        fs.transform_new({"a": np.zeros(3)}, domain="feature")


def test_not_fitted():
    with pytest.raises(NotFittedError):
        Scaler("StandardScaler").transform(np.zeros((2, 2)))


def test_a_column_without_a_value_in_the_rows_to_fit_on_is_named():
    fs = FeatureSet.from_dict(
        "c", {"x": [np.nan, np.nan, 1.0, 2.0], "y": [0, 1, 0, 1], "p": [0, 0, 1, 1]}, "x", "y", "p"
    )
    fs.split_by_condition({"train": {"p": 0}, "test": {"p": 1}})
    with pytest.warns(
        UserWarning, match=r"\['x'\] have no value in the 2 rows in split 'train'"
    ) as said:
        fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    assert len(said) == 1
