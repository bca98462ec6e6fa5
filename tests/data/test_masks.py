"""Padded sequences: which column tells what is data, and who knows of it."""

import numpy as np
import pandas as pd
import pyarrow as pa
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
        ("y", DataError, "no feature or target has these steps"),
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
    with pytest.raises(DataError, match="mask 'mask' is missing in the data"):
        fs.transform_new({"x": raw[:3]})
    fs.undo_last_transform("features")
    np.testing.assert_array_equal(fs.get_features("numpy")[:, 0], raw)


def test_scalers_that_read_several_steps_are_refused_where_some_are_padding():
    fs = padded().select(features=["x.raw"]).to_featureset("x")
    for name in ("Normalizer", "PerSampleMinMaxScaler", "PerSampleZeroStart"):
        with pytest.raises(ScalerError, match=r"padded.*several steps"):
            fs.fit_transform(name, domain="features")
    fs.add_split(fs.take([0, 3], label="short"))
    with pytest.raises(ScalerError, match="has data at position 3"):
        fs.fit_transform("StandardScaler", domain="features", fit_to_split="short")
    assert fs.scaler_records == ()


FILLED = np.arange(5) < LENGTHS[:, None]


def wide():
    """Return a table with a column for each step and each flag of the mask."""
    rows = np.random.default_rng(2).normal(25, 3, size=(len(LENGTHS), 5))
    steps = {f"v{i}": np.where(FILLED[:, i], rows[:, i], 0.0) for i in range(5)}
    flags = {f"m{i}": FILLED[:, i] for i in range(5)}
    return rows, pd.DataFrame({**steps, **flags, "y": np.arange(8.0)})


def check_mean_of_data(fs, rows, key="v"):
    assert masks(fs) == {f"features.{key}.raw": "m"}
    assert fs.get_tag_keys(include_domain_prefix=False, include_rep_suffix=False) == ["m"]
    fs.add_split(fs.take([0, 2, 4, 6], label="train"))
    train = {"domain": "features", "keys": key, "fit_to_split": "train"}
    fs.fit_transform("StandardScaler", merged_axes=(0, 2), **train)
    fitted = rows[::2][FILLED[::2]]
    scaled = fs.get_features("dict", features=key)[key]
    np.testing.assert_allclose(
        scaled[FILLED], ((rows - fitted.mean()) / fitted.std())[FILLED], rtol=1e-6
    )
    assert (scaled[~FILLED] == 0).all()


def test_masks_of_csv_files(tmp_path):
    rows, table = wide()
    for part in (0, 3):
        table.iloc[part : part + 3 + part].to_csv(tmp_path / f"{part}.csv", index=False)
    stack = {"v": "v*", "m": "m*"}
    for mask in ("m", {"v": "m"}):
        fs = FeatureSet.from_csv("csv", tmp_path, "v", "y", stack=stack, mask=mask, register=False)
        check_mean_of_data(fs, rows)
    with pytest.raises(DataError, match="mask 'y' has shape"):
        FeatureSet.from_csv("c", tmp_path, "v", "y", stack=stack, mask="y", register=False)
    numbers = tmp_path / "numbers.csv"
    table.astype(float).to_csv(numbers, index=False)
    with pytest.raises(DataError, match=r"mask 'm' of column 'v' must be a boolean.*astype"):
        FeatureSet.from_csv("c", numbers, "v", "y", stack=stack, mask="m", register=False)


@pytest.mark.parametrize("list_of", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 5)])
@pytest.mark.parametrize("named", [True, False])
def test_masks_of_arrow_tables(list_of, named):
    rows, _ = wide()
    prefix = {"v": "features.v.raw", "y": "targets.y.raw", "m": "tags.m.raw"} if named else {}
    columns = {
        "v": pa.array(np.where(FILLED, rows, 0.0).tolist(), list_of(pa.float64())),
        "m": pa.array(FILLED.tolist(), list_of(pa.bool_())),
        "y": pa.array(np.arange(8.0)),
    }
    table = pa.table({prefix.get(key, key): column for key, column in columns.items()})
    keys = {} if named else {"feature_cols": "v", "target_cols": "y", "tag_cols": "m"}
    twice = pa.concat_tables([table.slice(0, 3), table.slice(3)])
    for mask, own in (("m", table), ({"v": "m"}, twice)):
        fs = FeatureSet.from_pyarrow_table("a", own, mask=mask, register=False, **keys)
        check_mean_of_data(fs, rows)
    with pytest.raises(UnknownNameError, match="unknown column 'mm'; did you mean 'm'"):
        FeatureSet.from_pyarrow_table("a", table, mask="mm", register=False, **keys)
