"""Folds in time, held against scikit-learn's on sorted rows and against what they promise."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import model_selection

import modularml as mml
from modularml.errors import DataError, SplitError
from modularml.splitters import TimeSeriesSplitter
from tests.contracts.splitter import SplitterContract

N = 60
DAYS = np.datetime64("2024-01-01") + (np.arange(N) * 37) % N
MACHINE = np.array(["a", "b", "c"], dtype=object)[np.arange(N) % 3]


class TestContractTime(SplitterContract):
    def make(self):
        return TimeSeriesSplitter(3, order_by="t", group_by="machine", gap="2D")

    def columns(self):
        return {"t": DAYS.copy(), "machine": MACHINE.copy()}


def folds(day, n_folds=2, **kwargs):
    splitter = TimeSeriesSplitter(n_folds, order_by="day", **kwargs)
    return splitter.folds(len(day), columns={"day": np.asarray(day)})


@settings(deadline=None)
@given(
    st.integers(10, 60),
    st.integers(2, 5),
    st.integers(0, 3),
    st.sampled_from([None, 5]),
    st.sampled_from([None, 2]),
    st.integers(0, 99),
)
def test_folds_are_scikit_learns_on_sorted_rows(n, n_folds, gap, max_train_size, test_size, seed):
    sizes = {"gap": gap, "max_train_size": max_train_size, "test_size": test_size}
    times = np.random.default_rng(seed).permutation(n)
    order = np.argsort(times)
    try:
        theirs = list(model_selection.TimeSeriesSplit(n_folds, **sizes).split(order))
    except ValueError:
        with pytest.raises(SplitError):
            folds(times, n_folds, **sizes)
        return
    for (train, val), (a, b) in zip(folds(times, n_folds, **sizes), theirs, strict=True):
        np.testing.assert_array_equal(train, np.sort(order[a]))
        np.testing.assert_array_equal(val, np.sort(order[b]))


def test_without_a_column_it_goes_by_rows():
    theirs = model_selection.TimeSeriesSplit(3).split(np.arange(N))
    mine = TimeSeriesSplitter(3).folds(N, columns={})
    for (train, val), (a, b) in zip(mine, theirs, strict=True):
        assert (train.tolist(), val.tolist()) == (a.tolist(), b.tolist())


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=8, max_size=40),
    st.integers(2, 4),
    st.integers(0, 3),
    st.sampled_from([None, 6]),
)
def test_equal_times_stay_together(times, n_folds, gap, max_train_size):
    times = np.array(times)
    try:
        found = folds(times, n_folds, gap=gap, max_train_size=max_train_size)
    except SplitError as error:
        assert len(set(times.tolist())) <= n_folds or gap or max_train_size, error  # noqa: PT017
        return
    for train, val in found:
        rest = np.setdiff1d(np.arange(len(times)), np.concatenate([train, val]))
        assert times[train].max() < times[val].min()
        assert not set(times[train]) & set(times[rest])
        assert not set(times[val]) & set(times[rest])
        assert ((times > times[train].max()) & (times < times[val].min())).sum() >= gap
        assert max_train_size is None or len(train) <= max_train_size
    assert set(np.concatenate([val for _, val in found])) >= set(
        np.flatnonzero(times == times.max())
    )


def test_too_few_times_say_how_many_folds_there_can_be():
    with pytest.raises(SplitError, match="3 distinct times, the data has 2: at most 1 folds"):
        folds(pd.to_datetime(["2024-01-01"] * 6 + ["2024-01-02"] * 6))
    assert len(folds(np.repeat([0, 1], 6), keep_ties=False)) == 2


def test_a_gap_of_time_is_kept_between_the_sides():
    for train, val in folds(DAYS, 3, gap="7D"):
        assert DAYS[val].min() - DAYS[train].max() == np.timedelta64(7, "D")
    with pytest.raises(SplitError, match=r"gap='7D'.*'day' holds int64"):
        folds(np.arange(N), gap="7D")
    for wrong in ({"gap": "soon", "order_by": "t"}, {"gap": "7D"}, {"gap": "-1D", "order_by": "t"}):
        with pytest.raises(SplitError, match="gap"):
            TimeSeriesSplitter(2, **wrong)
    with pytest.raises(SplitError, match="fold 0 has no rows of the data to train on"):
        folds(DAYS, gap="40D")


@pytest.mark.parametrize(
    ("text", "order"),
    [
        (["9", "10", "11", "100"], [0, 1, 2, 3]),
        (["2024-02-01", "2023-12-31", "2024-01-15", "2024-01-02"], [1, 3, 2, 0]),
        (["2024-01-01T12:00+02:00", "2024-01-01T11Z", "2024-01-01T09:30Z", "2024"], [3, 2, 0, 1]),
        (["1e3", "-2", "0.5", "7"], [1, 2, 3, 0]),
        (["run_07", "run_10", "run_02", "run_01"], [3, 2, 0, 1]),
    ],
)  # fmt: skip
def test_text_is_ordered_by_what_it_means(text, order):
    (train, val), (_, last) = folds(np.array(text, dtype=object))
    assert (set(train), set(val), set(last)) == (set(order[:2]), {order[2]}, {order[3]})
    frame = pd.DataFrame({"cell": "a", "x": [0.0, 1.0, 2.0, 3.0], "y": 1.0, "t": text})
    long = mml.FeatureSet.from_pandas(
        "long", frame, "x", "y", group_by="cell", sort_by="t", scalar_cols="y", register=False
    )
    assert long.get_features("numpy").ravel().tolist() == order


@pytest.mark.parametrize(
    "text", [["13/01/2024", "02/02/2024"], ["run_9", "run_10"], ["1,5", "2,5"], ["week 9", "10"]]
)
def test_text_whose_order_is_in_doubt_is_refused(text):
    with pytest.raises(SplitError, match="column 'day' holds text such as"):
        folds(np.array(text * 2, dtype=object))
    frame = pd.DataFrame({"cell": "a", "x": [0.0, 1.0], "y": 1.0, "t": text})
    with pytest.raises(DataError, match="column 't' holds text such as"):
        mml.FeatureSet.from_pandas(
            "long", frame, "x", "y", group_by="cell", sort_by="t", register=False
        )


def test_the_first_rows_of_each_machine_train_and_later_ones_validate():
    start = {"a": 0, "b": 100, "c": 200}
    machine = np.repeat(list(start), 20).astype(object)
    time = np.concatenate([begin + np.arange(20) for begin in start.values()])[::-1].copy()
    found = TimeSeriesSplitter(3, order_by="time", group_by="machine").folds(
        60, columns={"machine": machine[::-1].copy(), "time": time}
    )
    theirs = model_selection.TimeSeriesSplit(3).split(np.arange(20))
    for (train, val), (a, b) in zip(found, theirs, strict=True):
        for name, begin in start.items():
            own = machine[::-1] == name
            assert sorted(time[train][own[train]] - begin) == a.tolist()
            assert sorted(time[val][own[val]] - begin) == b.tolist()
    with pytest.raises(SplitError, match="4 rows, machine='b' has 2: at most 1 folds"):
        TimeSeriesSplitter(3, group_by="machine").folds(
            12, columns={"machine": np.repeat(["a", "b"], [10, 2])}
        )


def test_rows_held_back_are_the_latest_of_each_machine():
    splitter = TimeSeriesSplitter(3, order_by="t", group_by="machine")
    columns = {"t": DAYS, "machine": MACHINE}
    train, _ = splitter.folds(N, columns=columns)[2]
    stop = splitter.hold_back(train, 0.2, columns=columns, seed=0)
    rest = np.setdiff1d(train, stop)
    for name in "abc":
        early, late = (DAYS[rows][MACHINE[rows] == name] for rows in (rest, stop))
        assert early.max() < late.min()
        assert len(late) == 3
