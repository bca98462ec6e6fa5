"""Padded sequences: which column tells what is data, and who knows of it."""

import numpy as np
import pandas as pd
import pytest

import modularml as mml
from modularml.data import FeatureSet
from modularml.errors import DataError, UnknownNameError

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
