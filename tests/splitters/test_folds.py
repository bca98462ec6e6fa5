"""Folds, held against scikit-learn's own splitters."""

import time

import numpy as np
import pytest
from sklearn import model_selection

from modularml.errors import SplitError
from modularml.splitters import (
    KFoldSplitter,
    LeaveOneGroupOutSplitter,
    ScikitSplitter,
    StrataWarning,
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


def test_strata_rarer_than_folds_are_named_with_the_folds_that_lack_them():
    y = np.repeat([0, 1], [N - 1, 1])
    splitter = KFoldSplitter(3, stratify_by="y", shuffle=False)
    with pytest.warns(
        StrataWarning, match=r"y=1 \(1 rows\) is missing from fold_0_val, fold_1_val"
    ):
        folds = splitter.folds(N, columns={"y": y})
    assert [len(val) for _, val in folds] == [20, 20, 20]
    theirs = ScikitSplitter(model_selection.StratifiedKFold(3), stratify_by="y")
    with pytest.warns(StrataWarning, match="y=1"):
        assert len(theirs.folds(N, columns={"y": y})) == 3


def test_rows_are_dealt_where_every_class_is_rarer_than_folds():
    y = np.repeat([f"kind {i}" for i in range(20)], 3).astype(object)
    with pytest.warns(StrataWarning, match="20 of 20 strata"):
        folds = KFoldSplitter(5, stratify_by="y").folds(N, columns={"y": y})
    assert [len(val) for _, val in folds] == [12] * 5
    for _, val in folds:
        assert np.unique(y[val], return_counts=True)[1].max() == 1


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.filterwarnings("ignore::modularml.splitters.StrataWarning")
def test_folds_by_groups_and_strata_are_never_empty_where_groups_are_enough(seed, shuffle):
    rng = np.random.default_rng(seed)
    n_folds = int(rng.integers(2, 6))
    patient = np.repeat(np.arange(n_folds + seed % 2), rng.integers(1, 6, n_folds + seed % 2))
    label = rng.integers(0, 2, len(patient))
    columns = {"patient": patient, "label": label}
    keys = {"group_by": "patient", "stratify_by": "label"}
    splitter = KFoldSplitter(n_folds, **keys, shuffle=shuffle, seed=seed)
    folds = splitter.folds(len(patient), columns=columns)
    assert np.sort(np.concatenate([val for _, val in folds])).tolist() == list(range(len(patient)))
    for train, val in folds:
        assert len(val)
        assert not set(patient[train]) & set(patient[val])
    more = KFoldSplitter(n_folds + 2, **keys)
    with pytest.raises(SplitError, match=f"at most {len(set(patient))} folds"):
        more.folds(len(patient), columns=columns)


@pytest.mark.parametrize("shuffle", [True, False])
def test_many_groups_and_strata_are_divided_at_once_and_evenly(shuffle):
    rng = np.random.default_rng(0)
    n, n_groups = 60_000, 20_000
    columns = {"patient": rng.integers(0, n_groups, n), "label": rng.integers(0, 4, n) ** 2}
    splitter = KFoldSplitter(5, group_by="patient", stratify_by="label", shuffle=shuffle)
    start = time.process_time()
    folds = splitter.folds(n, columns=columns)
    assert time.process_time() - start < 2  # scikit-learn needs 160 us a group: 3.2 s
    again = splitter.folds(n, columns=columns)
    assert np.sort(np.concatenate([val for _, val in folds])).tolist() == list(range(n))
    shares = {label: (columns["label"] == label).mean() for label in (0, 1, 4, 9)}
    for (train, val), (_, same) in zip(folds, again, strict=True):
        assert np.array_equal(val, same)
        assert not set(columns["patient"][train]) & set(columns["patient"][val])
        assert len(train) + len(val) == n
        assert abs(len(val) - n / 5) < 10
        for label, share in shares.items():
            assert (columns["label"][val] == label).mean() == pytest.approx(share, abs=1e-3)
    other = KFoldSplitter(5, group_by="patient", stratify_by="label", seed=1)
    assert not np.array_equal(other.folds(n, columns=columns)[0][1], folds[0][1])


@pytest.mark.parametrize("n_large", [1, 3])
def test_groups_larger_than_a_fold_leave_the_others_even(n_large):
    n, n_folds = 12000, 5
    rng = np.random.default_rng(1)
    group, label = rng.integers(10, 3000, n), rng.integers(0, 3, n)
    group[: 3000 * n_large] = np.arange(3000 * n_large) % n_large
    columns = {"group": group, "label": label}
    splitter = KFoldSplitter(n_folds, group_by="group", stratify_by="label", seed=0)
    parts = [val for _, val in splitter.folds(n, columns=columns)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    owners = [set(group[val].tolist()) for val in parts]
    assert sum(map(len, owners)) == len(set(group.tolist()))
    rest = [val for val, own in zip(parts, owners, strict=True) if min(own) >= n_large]
    even = (n - 3000 * n_large) / (n_folds - n_large)
    assert len(rest) == n_folds - n_large
    for val in rest:  # in scikit-learn's, of fewer groups, they differ by less than 1 %
        assert len(val) == pytest.approx(even, rel=0.04)
        np.testing.assert_allclose(np.bincount(label[val]) / len(val), 1 / 3, atol=0.03)


def test_a_continuous_column_is_binned_for_strata():
    soh = np.random.default_rng(0).gamma(2, size=1000)
    tenth = np.digitize(soh, np.quantile(soh, np.linspace(0, 1, 11)[1:-1]))
    mine = KFoldSplitter(5, stratify_by="soh").folds(1000, columns={"soh": soh})
    for _, val in mine:
        np.testing.assert_allclose(np.bincount(tenth[val]), 20, atol=1)
    cycles = np.argsort(np.argsort(soh))  # whole numbers may be classes: bins are asked for
    with pytest.warns(StrataWarning, match="1000 of 1000 strata by 'n'.*bins="):
        KFoldSplitter(5, stratify_by="n").folds(1000, columns={"n": cycles})
    asked = KFoldSplitter(5, stratify_by="n", bins=20).folds(1000, columns={"n": cycles})
    for _, val in asked:
        assert set(np.bincount(cycles[val] // 50)) == {10}


def test_a_missing_stratum_is_named():
    columns = {"y": np.array([0.5, np.nan, 0.25, 1.0])}
    with pytest.raises(SplitError, match=r"'y' has 1 missing values .the first at row 1"):
        KFoldSplitter(2, stratify_by="y").folds(4, columns=columns)


@pytest.mark.parametrize(
    ("splitter", "n", "message"),
    [
        (KFoldSplitter(5), 3, "5 folds need as many rows, got 3"),
        (KFoldSplitter(5, group_by="g"), 3, "as many groups by 'g', got 1"),
        (TimeSeriesSplitter(5), 3, "5 folds need 6 rows, the data has 3: at most 2 folds"),
        (TimeSeriesSplitter(2, test_size=2, gap=2), 6, "leave none of the 6 rows"),
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
    for name, forgotten in (("StratifiedKFold", "stratify_by"), ("GroupKFold", "group_by")):
        splitter = ScikitSplitter(getattr(model_selection, name)(2))
        with pytest.raises(SplitError, match=f"pass {forgotten}=, which it requires"):
            splitter.folds(N, columns={})
