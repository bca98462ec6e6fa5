"""Folds, held against scikit-learn's own splitters."""

import numpy as np
import pytest
from sklearn import model_selection

from modularml.errors import SplitError
from modularml.splitters import (
    KFoldSplitter,
    LeaveOneGroupOutSplitter,
    ScikitSplitter,
    TimeSeriesSplitter,
)
from tests.contracts.splitter import SplitterContract

N = 60
ROWS = np.arange(N)
COLUMNS = {
    "cell": np.array([f"c{i}" for i in ROWS // 6], dtype=object),
    "y": ROWS % 3,
    "t": np.datetime64("2024-01-01") + (ROWS * 37) % N,
}


class TestContractKFold(SplitterContract):
    def make(self):
        return KFoldSplitter(4, group_by="cell", stratify_by="y")

    def columns(self):
        return {name: values.copy() for name, values in COLUMNS.items()}


class TestContractTime(SplitterContract):
    def make(self):
        return TimeSeriesSplitter(3, order_by="t", gap=2)

    def columns(self):
        return {name: values.copy() for name, values in COLUMNS.items()}


class TestContractLeaveOut(SplitterContract):
    def make(self):
        return LeaveOneGroupOutSplitter("cell")

    def columns(self):
        return {name: values.copy() for name, values in COLUMNS.items()}


def assert_folds(splitter, expected):
    found = splitter.split(N, columns=COLUMNS)
    expected = list(expected)
    assert list(found) == [
        f"fold_{i}_{side}" for i in range(len(expected)) for side in ("train", "val")
    ]
    for i, (train, val) in enumerate(expected):
        np.testing.assert_array_equal(found[f"fold_{i}_train"], np.sort(train))
        np.testing.assert_array_equal(found[f"fold_{i}_val"], np.sort(val))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("how", "name"),
    [
        ({}, "KFold"),
        ({"group_by": "cell"}, "GroupKFold"),
        ({"stratify_by": "y"}, "StratifiedKFold"),
        ({"group_by": "cell", "stratify_by": "y"}, "StratifiedGroupKFold"),
    ],
)
def test_kfold_is_scikit_learns(how, name, shuffle):
    theirs = getattr(model_selection, name)(5, shuffle=shuffle, random_state=3 if shuffle else None)
    groups = np.unique(COLUMNS["cell"], return_inverse=True)[1] if "group_by" in how else None
    assert_folds(
        KFoldSplitter(5, **how, shuffle=shuffle, seed=3), theirs.split(ROWS, COLUMNS["y"], groups)
    )


def test_leave_one_group_out_is_scikit_learns():
    theirs = model_selection.LeaveOneGroupOut().split(ROWS, groups=COLUMNS["cell"])
    assert_folds(LeaveOneGroupOutSplitter("cell"), theirs)


def test_time_series_is_scikit_learns_on_sorted_rows():
    order = np.argsort(COLUMNS["t"], kind="stable")
    theirs = model_selection.TimeSeriesSplit(4, gap=1, max_train_size=20, test_size=5)
    assert_folds(
        TimeSeriesSplitter(4, order_by="t", gap=1, max_train_size=20, test_size=5),
        ((order[train], order[val]) for train, val in theirs.split(ROWS)),
    )


def test_time_series_never_trains_on_the_future():
    for train, val in TimeSeriesSplitter(5, order_by="t").folds(N, columns=COLUMNS):
        assert COLUMNS["t"][train].max() < COLUMNS["t"][val].min()


def test_time_series_without_a_column_goes_by_rows():
    assert_folds(TimeSeriesSplitter(3), model_selection.TimeSeriesSplit(3).split(ROWS))


def test_small_strata_are_spread_without_a_warning():
    y = np.repeat([0, 1], [N - 1, 1])
    folds = KFoldSplitter(3, stratify_by="y").folds(N, columns={"y": y})
    assert [len(val) for _, val in folds] == [20, 20, 20]


@pytest.mark.parametrize(
    ("splitter", "n", "message"),
    [
        (KFoldSplitter(5), 3, "5 folds need as many rows, got 3"),
        (KFoldSplitter(5, group_by="g"), 3, "as many groups by 'g', got 1"),
        (KFoldSplitter(2, stratify_by="u"), 3, "cannot be cut"),
        (TimeSeriesSplitter(5), 3, "cannot be cut"),
        (LeaveOneGroupOutSplitter("g"), 3, "at least 2 groups by 'g', got 1"),
    ],
)
def test_too_little_data(splitter, n, message):
    with pytest.raises(SplitError, match=message):
        splitter.split(n, columns={"g": np.zeros(n), "u": np.arange(n)})


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (KFoldSplitter, {"n_folds": 1}),
        (KFoldSplitter, {"n_folds": 2.0}),
        (KFoldSplitter, {"seed": None}),
        (TimeSeriesSplitter, {"gap": -1}),
        (TimeSeriesSplitter, {"test_size": 0}),
        (LeaveOneGroupOutSplitter, {"group_by": None}),
    ],
)
def test_bad_arguments(cls, arguments):
    with pytest.raises(SplitError, match=next(iter(arguments))):
        cls(**arguments)


def test_any_splitter_of_scikit_learn_makes_folds():
    theirs = model_selection.GroupShuffleSplit(3, test_size=0.3, random_state=2)
    expected = theirs.split(ROWS, groups=COLUMNS["cell"])
    assert_folds(ScikitSplitter(theirs, group_by="cell"), expected)
    with pytest.raises(SplitError, match="split"):
        ScikitSplitter(5)
