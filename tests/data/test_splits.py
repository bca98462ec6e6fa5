"""Splits of sets and views: names, records, copies; parts are those of the splitters."""

import copy
import warnings

import numpy as np
import pytest

from modularml.config import decode, encode
from modularml.data import FeatureSet
from modularml.errors import ConfigError, DataError, SplitError, UnknownNameError
from modularml.predicates import GTE, LT
from modularml.splitters import (
    BaseSplitter,
    ConditionSplitter,
    KFoldSplitter,
    LeaveOneGroupOutSplitter,
    RandomSplitter,
    TimeSeriesSplitter,
)

THIRDS = {"train": 0.6, "val": 0.2, "test": 0.2}


@pytest.fixture
def fs():
    n = 60
    data = {"x": np.arange(n * 1.0), "y": np.arange(n), "g": [f"g{i % 10}" for i in range(n)]}
    return FeatureSet.from_dict("fs", {**data, "k": np.arange(n) % 4}, "x", "y", ["g", "k"])


def test_random_splits_are_those_of_the_splitter(fs):
    assert fs.split_random(THIRDS) is None
    parts = RandomSplitter(THIRDS).split(60)
    assert fs.available_splits == ["train", "val", "test"]
    assert (fs.n_splits, sorted(fs.splits)) == (3, ["test", "train", "val"])
    for name, rows in parts.items():
        assert fs[name].indices.tolist() == rows.tolist()
        assert fs.get_split(name).label == name
        assert fs[name].source is fs
    assert fs["train"].is_disjoint_with(fs["val"])


def test_groups_and_strata_on_a_set(fs):
    fs.split_random({"a": 0.5, "b": 0.5}, group_by="g")
    assert not set(fs["a"].get_tags()["g"]) & set(fs["b"].get_tags()["g"])
    fs.split_random({"c": 0.5, "d": 0.5}, stratify_by=["k"], seed=1)
    counts = [np.bincount(fs[part].get_tags()["k"]) for part in "cd"]
    assert (sum(counts) == 15).all()
    assert set(np.concatenate(counts)) == {7, 8}


@pytest.mark.parametrize(
    "splitter",
    [
        RandomSplitter(THIRDS, group_by="g", stratify_by="k", seed=5),
        ConditionSplitter(low={"y": LT(20)}, high={"y": GTE(20), "k": [0, 1]}),
        KFoldSplitter(3, stratify_by="k", shuffle=True, seed=2),
        TimeSeriesSplitter(3, order_by="y"),
        LeaveOneGroupOutSplitter("g"),
    ],
    ids=lambda splitter: type(splitter).__name__,
)
def test_every_split_can_be_made_again_from_its_record(fs, splitter):
    fs.split_random({"most": 0.8, "few": 0.2}, stratify_by="g")
    fs["most"].split(splitter)
    record = fs.split_records[-1]
    assert record.source == "most"
    twin = FeatureSet.from_pyarrow_table("twin", fs.to_arrow()).take(record.rows)
    again = twin.split(decode(encode(record.splitter)), return_views=True, register=False)
    assert tuple(again) == record.names
    for name, view in again.items():
        assert view.get_sample_uuids("list") == fs[name].get_sample_uuids("list")


def test_return_views_and_register(fs):
    views = fs.split_random(THIRDS, return_views=True, register=False)
    assert list(views) == list(THIRDS)
    assert fs.available_splits == []
    assert fs.split_records == ()
    assert views["train"].columns == fs.column_names
    both = fs.split_random(THIRDS, return_views=True)
    assert both["val"].indices.tolist() == fs["val"].indices.tolist()


def test_conditions(fs):
    fs.split_by_condition({"low": {"y": LT(20)}, "high": {"y": GTE(20), "k": [0, 1]}})
    assert fs["low"].indices.tolist() == list(range(20))
    assert fs["high"].indices.tolist() == [i for i in range(20, 60) if i % 4 < 2]
    with pytest.warns(UserWarning, match="'a' and 'b' share 10"):
        fs.split_by_condition({"a": {"y": LT(20)}, "b": {"y": GTE(10)}})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fs.split_by_condition({"c": {"y": LT(20)}, "d": {"y": GTE(10)}})
    assert len(seen) == 1


def test_a_split_of_a_view_belongs_to_its_set(fs):
    fs.split_random({"train": 0.8, "test": 0.2})
    views = fs["train"].split_random({"fit": 0.75, "val": 0.25}, return_views=True)
    assert fs.available_splits == ["train", "test", "fit", "val"]
    train = set(fs["train"].indices.tolist())
    assert set(fs["fit"].indices.tolist()) | set(fs["val"].indices.tolist()) == train
    assert views["fit"].source is fs
    first, second = fs.split_records
    assert (first.names, first.source, first.rows) == (("train", "test"), None, None)
    assert (second.names, second.source) == (("fit", "val"), "train")
    assert second.rows.tolist() == fs["train"].indices.tolist()
    assert second.splitter == RandomSplitter({"fit": 0.75, "val": 0.25})
    replayed = second.splitter.split(len(second.rows))
    assert second.rows[replayed["val"]].tolist() == fs["val"].indices.tolist()


def test_splits_have_the_columns_that_came_later(fs):
    fs.split_random(THIRDS)
    fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    assert "features.x.transformed" in fs["train"].columns
    chosen = fs["train"].select("y").split_random({"a": 0.5, "b": 0.5}, return_views=True)
    assert chosen["a"].columns == fs.column_names


def test_names_that_are_taken_change_nothing(fs):
    fs.split_random(THIRDS)
    before = {name: view.indices.tolist() for name, view in fs.splits.items()}
    with pytest.raises(SplitError, match=r"'val' is taken; choose another, or call clear_splits"):
        fs.split_random({"new": 0.5, "val": 0.5})
    assert {name: view.indices.tolist() for name, view in fs.splits.items()} == before
    assert len(fs.split_records) == 1
    fs.clear_splits()
    assert (fs.available_splits, fs.split_records) == ([], ())
    fs.split_random({"new": 0.5, "val": 0.5})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda fs: fs.split_random({"a": 0.5, "b": 0.4}), SplitError, "sum to 1"),
        (lambda fs: fs.split_random({"a": 1.0, "b": 0.0}), SplitError, "above 0"),
        (lambda fs: fs.split_random({"a": 0.999, "b": 0.001}), SplitError, "'b' would be empty"),
        (lambda fs: fs.split_random({"a": 0.5, "b": 0.5}, group_by="gg"), UnknownNameError, "'gg'"),
        (lambda fs: fs.split_by_condition({"a": {"y": 99}}), SplitError, "'a' would be empty"),
        (lambda fs: fs.split_by_condition({"a": {"yy": 1}}), UnknownNameError, "'yy'"),
        (
            lambda fs: fs.split({"a": 0.5}),
            ConfigError,
            "splitter must be a splitter such as .*, got a dict",
        ),
        (lambda fs: fs["trian"], UnknownNameError, "unknown split 'trian' of 'fs'"),
        (lambda fs: fs.add_split(fs.take([1])), SplitError, "must be a non-empty string"),
    ],
    ids=range(9),
)
def test_splits_that_cannot_be_change_nothing(fs, call, error, message):
    with pytest.raises(error, match=message):
        call(fs)
    assert fs.available_splits == []
    assert fs.split_records == ()


def test_unknown_splits_list_the_closest(fs):
    fs.split_random(THIRDS)
    with pytest.raises(UnknownNameError, match="did you mean 'train'"):
        fs.get_split("trian")


def test_an_empty_set_cannot_be_split():
    empty = FeatureSet.from_dict("empty", {"x": []}, "x", [])
    with pytest.raises(SplitError, match="would be empty"):
        empty.split_random(THIRDS)


def test_add_split(fs):
    fs.add_split(fs.take([5, 1], label="mine"))
    assert fs["mine"].indices.tolist() == [5, 1]
    assert fs.split_records == ()
    with pytest.raises(SplitError, match="'mine' is taken"):
        fs.add_split(fs.take([0], label="mine"))
    other = FeatureSet.from_dict("other", {"x": [1]}, "x", [])
    with pytest.raises(DataError, match="'theirs' is a view of 'other', not of 'fs'"):
        fs.add_split(other.take([0], label="theirs"))


class Odd(BaseSplitter):
    def __init__(self, rows):
        self.rows = rows

    def assign(self, n, *, columns):
        return {"odd": np.array(self.rows)}


@pytest.mark.parametrize("rows", [[0, 60], [-1, 0], [1, 0]])
def test_a_splitter_of_one_s_own_is_checked(fs, rows):
    with pytest.raises(SplitError, match="'odd'"):
        fs.split(Odd(rows))
    assert fs.available_splits == []


# -- copies ---------------------------------------------------------------------------------------


def scaled(fs):
    fs.split_random(THIRDS)
    fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    fs.fit_transform("MinMaxScaler", domain="features", fit_to_split="train")
    return fs


def memory(fs, name):
    return fs.column(name).__array_interface__["data"][0]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(("splits", "scalers"), [(False, False), (True, False), (True, True)])
def test_copies(fs, fresh_context, share, splits, scalers):
    scaled(fs)
    copy = fs.copy(share_raw_data_buffer=share, restore_splits=splits, restore_scalers=scalers)
    assert (copy.label, copy.node_id != fs.node_id) == ("fs_copy", True)
    assert copy not in fresh_context.available_nodes.values()
    assert copy.get_sample_uuids("list") == fs.get_sample_uuids("list")
    same_memory = memory(copy, "features.x.raw") == memory(fs, "features.x.raw")
    assert same_memory == share
    assert copy.available_splits == (fs.available_splits if splits else [])
    if splits:
        assert copy["train"].source is copy
        assert copy["train"].indices.tolist() == fs["train"].indices.tolist()
        assert copy.split_records == fs.split_records
    assert copy.column_names == [n for n in fs.column_names if scalers or n.endswith("raw")]
    if scalers:
        name = "features.x.transformed"
        np.testing.assert_array_equal(copy.column(name), fs.column(name))
        copy.undo_all_transforms()
        assert name in fs.column_names
        copy.fit_transform("StandardScaler", domain="features", fit_to_split="train")
    copy.clear_splits()
    copy.split_random({"other": 1.0})
    assert fs.available_splits == list(THIRDS)


def test_a_copy_can_be_registered_and_labelled(fs, fresh_context):
    copy = fs.copy(label="second", register=True)
    assert fresh_context.get_node(label="second") is copy


def test_scalers_of_a_split_need_the_splits(fs):
    with pytest.raises(ConfigError, match="restore_scalers needs restore_splits=True"):
        scaled(fs).copy(restore_scalers=True)


def test_a_copy_of_a_set_without_raw_columns(fs):
    own = scaled(fs).select(rep="transformed").to_featureset("own")
    assert own.copy().column_names == ["features.x.transformed"]


def test_config_and_state(fs):
    scaled(fs)
    state = fs.get_state()
    again = FeatureSet.from_config(fs.get_config(), register=False)
    assert len(again) == 0
    again.set_state(state)
    fs.clear_splits()
    fs.undo_all_transforms()
    assert again.available_splits == list(THIRDS)
    assert again.column_names[-1] == "features.x.transformed"
    assert again.get_sample_uuids("list") == fs.get_sample_uuids("list")


def test_views_are_those_of_the_set_that_is_asked(fs):
    fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
    twin = fs["train"] and fs.to_view() and copy.copy(fs)
    for own in (twin, fs):
        assert own["train"].source is own
        assert own.to_view().source is own
    fs.label = "renamed"
    assert fs.to_view().label == "renamed"


class TestSplitLike:
    def sets(self, keys=("c", "a", "b", "d")):
        rows = {"v": np.arange(6.0), "m": list("aabbcc"), "y": np.arange(6.0)}
        windows = FeatureSet.from_dict("w", rows, "v", "y", "m", register=False)
        facts = {"age": np.arange(float(len(keys))), "machine": list(keys)}
        return windows, FeatureSet.from_dict("f", facts, "age", [], "machine", register=False)

    def test_facts_get_the_splits_of_their_rows(self):
        windows, facts = self.sets()
        windows.split_random({"train": 0.67, "test": 0.33}, group_by="m", seed=0)
        facts.split_like(windows, on={"machine": "m"})
        for name in ("train", "test"):
            want = set(windows[name].get_tags()["m"])
            assert set(facts[name].get_tags()["machine"]) == want
        assert "d" not in {m for part in facts.splits.values() for m in part.get_tags()["machine"]}
        again = facts.copy(label="again", restore_splits=True)
        assert again["train"].indices.tolist() == facts["train"].indices.tolist()

    def test_parts_that_share_a_key_overlap_and_are_warned_of(self):
        windows, facts = self.sets()
        windows.add_split(windows.take([0, 2], label="past"))
        windows.add_split(windows.take([1, 3], label="future"))
        with pytest.warns(UserWarning, match=r"past.*future"):
            facts.split_like(windows, on={"machine": "m"})

    def test_bad_input(self):
        windows, facts = self.sets()
        with pytest.raises(ConfigError, match=r"with splits.*split it first"):
            facts.split_like(windows, on={"machine": "m"})
        windows.split_random({"all": 1.0})
        with pytest.raises(ConfigError, match="on must be one column"):
            facts.split_like(windows, on={"machine": "m", "age": "v"})
        with pytest.raises(DataError, match="'f' has no column 'm'"):
            facts.split_like(windows, on="m")
        with pytest.raises(DataError, match="no row of 'f' has a value"):
            self.sets(keys="xyz")[1].split_like(windows, on={"machine": "m"})
        assert facts.available_splits == []
