"""Padded sequences: which column tells what is data, and who knows of it."""

import numpy as np
import pandas as pd
import pytest
from sklearn import preprocessing

import modularml as mml
from modularml.data import FeatureSet
from modularml.errors import DataError, ScalerError, UnknownNameError

LENGTHS = np.array([3, 5, 4, 2, 5, 3, 4, 5])


def long_table(lengths=LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        [
            {"id": i, "t": t, "x": rng.normal(25, 3), "w": rng.normal(), "y": float(i)}
            for i, length in enumerate(lengths)
            for t in range(length)
        ]
    )


def padded(**kwargs):
    return FeatureSet.from_pandas(
        "s", long_table(), ["x", "w"], "y", group_by="id", sort_by="t", pad=0.0, scalar_cols="y",
        **kwargs,
    )  # fmt: skip


def masks(fs):
    return {name: spec.mask for name, spec in fs.collection.schema.columns.items() if spec.mask}


def test_padding_of_groups_is_the_mask_of_all_array_columns():
    fs = padded()
    assert masks(fs) == {"features.x.raw": "mask", "features.w.raw": "mask"}
    mask = fs.collection.mask("features.x.raw")
    np.testing.assert_array_equal(mask, np.arange(5) < LENGTHS[:, None])
    assert fs.collection.mask("targets.y.raw") is None


def test_the_mask_is_kept_by_views_splits_copies_sets_of_their_own_and_files(tmp_path):
    fs = padded()
    fs.split_random({"train": 0.5, "val": 0.5}, seed=0)
    fs.fit_transform("StandardScaler", domain="features", keys="x", fit_to_split="train")
    whole = {f"features.{n}": "mask" for n in ("x.raw", "w.raw", "x.transformed")}
    assert masks(fs) == masks(fs["train"]) == whole
    assert masks(fs.copy(label="c", share_raw_data_buffer=False, restore_splits=True)) == {
        "features.x.raw": "mask",
        "features.w.raw": "mask",
    }
    own = fs["train"].select(features="x.raw").to_featureset("own")
    assert masks(own) == {"features.x.raw": "mask"}
    assert "tags.mask.raw" in own.column_names
    fs.save(tmp_path / "s.fs.mml")
    with mml.ExperimentContext().activate():
        loaded = FeatureSet.load(tmp_path / "s.fs.mml")
    assert masks(loaded) == whole
    loaded.undo_all_transforms()
    assert masks(loaded) == {"features.x.raw": "mask", "features.w.raw": "mask"}


def test_a_mask_is_named_by_the_user_for_all_columns_that_it_fits_or_for_some():
    mask = np.arange(3) < np.array([[3], [1], [2], [3]])
    data = {"x": np.zeros((4, 3, 2)), "v": np.zeros((4, 3)), "y": np.zeros(4), "m": mask}
    fs = FeatureSet.from_dict("a", data, ["x", "v"], "y", mask="m")
    assert masks(fs) == {"features.x.raw": "m", "features.v.raw": "m"}
    assert fs.get_tag_keys(False, False) == ["m"]
    some = FeatureSet.from_dict("b", data, ["x", "v", "m"], "y", mask={"v": "m"})
    assert masks(some) == {"features.v.raw": "m"}
    features = {name: data[name] for name in "xv"}
    other = FeatureSet.from_numpy("c", features, data["y"], {"m": mask}, mask="m")
    assert masks(other) == masks(fs)


def test_the_table_itself_may_say_what_is_padding():
    frame = long_table([4, 4, 4])
    frame["ok"] = frame["t"] < 1 + frame["id"]
    fs = FeatureSet.from_pandas(
        "s", frame, "x", "y", group_by="id", sort_by="t", scalar_cols="y", mask="ok"
    )
    np.testing.assert_array_equal(
        fs.collection.mask("features.x.raw"), np.arange(4) < np.arange(1, 4)[:, None]
    )


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        ("q", UnknownNameError, "q"),
        ({"q": "m"}, UnknownNameError, "q"),
        ("y", DataError, "no feature or target has such steps"),
        ({"x": "v"}, DataError, "must be a boolean column"),
        ({"y": "m"}, DataError, r"one value for each step of \(\)"),
        ("empty", DataError, "false in all steps of row 2"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, error, words):
    ones = np.ones((4, 3), bool)
    empty = ones & (np.arange(4) != 2)[:, None]
    data = {"x": np.zeros((4, 3, 2)), "v": np.zeros((4, 3)), "y": np.zeros(4)}
    data |= {"m": ones, "empty": empty}
    with pytest.raises(error, match=words):
        FeatureSet.from_dict("b", data, ["x", "v"], "y", mask=mask)


@pytest.mark.parametrize("name", ["StandardScaler", "MinMaxScaler", "RobustScaler", "MaxAbsScaler"])
@pytest.mark.parametrize("merged", [(0, 1, 2), (0, 2), None], ids=str)
def test_scalers_learn_from_data_alone_and_leave_padding_as_it_is(name, merged):
    fs = padded().select(features=["x.raw"]).to_featureset("x")
    fs.add_split(fs.take(np.arange(6), label="train"))
    cls = getattr(preprocessing, name)
    fs.fit_transform(name, domain="features", fit_to_split="train", merged_axes=merged)
    raw, mask = fs.get_features("numpy", rep="raw")[:, 0], fs.collection.mask("features.x.raw")
    nan = np.where(mask, raw, np.nan)  # which scikit-learn leaves out of what it learns
    if merged is None:
        want = cls().fit(nan[:6]).transform(nan)
    else:
        want = cls().fit(nan[:6].reshape(-1, 1)).transform(nan.reshape(-1, 1)).reshape(nan.shape)
    found = fs.get_features("numpy", rep="transformed")[:, 0]
    np.testing.assert_allclose(found[mask], want[mask])
    np.testing.assert_array_equal(found[~mask], raw[~mask])
    new = {"x": raw[:3] + 1, "mask": mask[:3]}
    scaled = fs.transform_new(new)["x"]
    np.testing.assert_array_equal(scaled[~mask[:3]], 1.0)
    with pytest.raises(DataError, match="mask 'mask' is not among the data"):
        fs.transform_new({"x": raw[:3]})
    fs.undo_last_transform("features")
    np.testing.assert_array_equal(fs.get_features("numpy")[:, 0], raw)


def test_scalers_that_read_several_steps_are_refused_where_some_are_padding():
    fs = padded().select(features=["x.raw"]).to_featureset("x")
    for name in ("Normalizer", "PerSampleMinMaxScaler", "PerSampleZeroStart"):
        with pytest.raises(ScalerError, match=r"padded.*several steps"):
            fs.fit_transform(name, domain="features")
    fs.add_split(fs.take([0, 3], label="short"))
    with pytest.raises(ScalerError, match="holds data at position 3"):
        fs.fit_transform("StandardScaler", domain="features", fit_to_split="short")
    assert fs.scaler_records == ()
