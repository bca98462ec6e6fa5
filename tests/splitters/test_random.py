"""Random splits: sizes, groups, strata, seeds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modularml as mml
from modularml.errors import DataError, SplitError, UnknownNameError
from modularml.splitters import KFoldSplitter, RandomSplitter, SplitRatioWarning, StrataWarning
from tests.contracts.splitter import SplitterContract, assert_same_parts

THREE = {"train": 0.6, "val": 0.2, "test": 0.2}
HALVES = {"a": 0.5, "b": 0.5}


def sizes(parts):
    return [len(rows) for rows in parts.values()]


def assert_partition(parts, n):
    found = np.sort(np.concatenate(list(parts.values())))
    np.testing.assert_array_equal(found, np.arange(n))


@st.composite
def ratios(draw):
    weights = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    return {f"part{i}": weight / sum(weights) for i, weight in enumerate(weights)}


class TestContractPlain(SplitterContract):
    def make(self):
        return RandomSplitter(THREE)


class TestContractGroups(SplitterContract):
    def make(self):
        return RandomSplitter(THREE, group_by=["cell", "rig"], seed=4)

    def columns(self):
        rows = np.arange(self.n)
        return {
            "cell": np.array([f"c{i}" for i in rows // 5], dtype=object),
            "rig": rows % 2,
            "unused": rows,
        }


class TestContractStrata(SplitterContract):
    def make(self):
        return RandomSplitter(THREE, stratify_by="label", strict_stratification=True)

    def columns(self):
        return {"label": np.arange(self.n) % 4}


class TestContractGroupsAndStrata(SplitterContract):
    def make(self):
        return RandomSplitter(HALVES, group_by="cell", stratify_by="label")

    def columns(self):
        return {"cell": np.arange(self.n) // 5, "label": np.arange(self.n) // 5 % 2}


# --- rows


def test_sizes_are_largest_remainders():
    assert sizes(RandomSplitter(THREE).split(508)) == [305, 102, 101]


@settings(deadline=None)
@given(ratios(), st.integers(5, 400), st.integers(0, 2**40))
def test_rows_are_dealt_once_and_close_to_ratio(ratios, n, seed):
    splitter = RandomSplitter(ratios, seed=seed)
    if min(ratios.values()) * n < 1:
        return
    parts = splitter.split(n)
    assert_partition(parts, n)
    for name, rows in parts.items():
        assert abs(len(rows) - ratios[name] * n) < 1


def test_rows_follow_the_permutation_of_philox():
    order = np.random.Generator(np.random.Philox(5)).permutation(10)
    parts = RandomSplitter({"a": 0.7, "b": 0.3}, seed=5).split(10)
    np.testing.assert_array_equal(parts["a"], np.sort(order[:7]))
    np.testing.assert_array_equal(parts["b"], np.sort(order[7:]))


def test_seed_decides():
    a = RandomSplitter(HALVES, seed=1).split(40)
    b = RandomSplitter(HALVES, seed=2).split(40)
    assert not np.array_equal(a["a"], b["a"])


def test_one_part_takes_all():
    np.testing.assert_array_equal(RandomSplitter({"all": 1}).split(4)["all"], np.arange(4))


# --- groups


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 40), min_size=5, max_size=60),
    ratios(),
    st.integers(0, 1000),
)
@pytest.mark.filterwarnings("ignore::modularml.splitters.SplitRatioWarning")
def test_groups_stay_whole(group_sizes, ratios, seed):
    groups = np.repeat(np.arange(len(group_sizes)), group_sizes)
    groups = np.random.default_rng(seed).permutation(groups)
    parts = RandomSplitter(ratios, group_by="g", seed=seed).split(
        len(groups), columns={"g": groups}
    )
    assert_partition(parts, len(groups))
    homes = [set(groups[rows]) for rows in parts.values()]
    assert sum(map(len, homes)) == len(group_sizes)
    assert all(homes)


def test_parts_are_close_to_their_ratio_in_rows_not_in_groups():
    groups = np.repeat(np.arange(41), [600] + [10] * 40)  # one group with most of the rows
    parts = RandomSplitter(THREE, group_by="g").split(1000, columns={"g": groups})
    assert sizes(parts) == [600, 200, 200]


def test_seed_decides_which_group_goes_where():
    groups = np.repeat(np.arange(12), np.arange(40, 52))
    homes = set()
    for seed in range(60):
        splitter = RandomSplitter(HALVES, group_by="g", seed=seed)
        parts = splitter.split(len(groups), columns={"g": groups})
        homes.add(tuple(np.unique(groups[parts["b"]])))
        assert abs(len(parts["b"]) - len(groups) / 2) <= 0.0025 * len(groups)
    assert len(homes) > 30
    assert set().union(*homes) == set(range(12))


def test_groups_do_not_depend_on_the_order_of_rows():
    groups = np.array(["b", "a", "c", "d", "e", "f"], dtype=object).repeat(4)
    order = np.random.default_rng(0).permutation(len(groups))
    splitter = RandomSplitter(HALVES, group_by="g")
    first = splitter.split(24, columns={"g": groups})
    second = splitter.split(24, columns={"g": groups[order]})
    assert set(groups[first["a"]]) == set(groups[order][second["a"]])


@pytest.mark.parametrize("dtype", [object, "U2", "int16", "float32", "datetime64[D]", "bool"])
def test_keys_of_any_type(dtype):
    groups = np.array([0, 1]).repeat(10).astype("int64").astype(dtype)
    parts = RandomSplitter(HALVES, group_by="g").split(20, columns={"g": groups})
    assert sizes(parts) == [10, 10]


def test_combined_keys_are_one_group_each():
    columns = {"cell": np.arange(12) // 6, "cycle": np.arange(12) // 3 % 2}
    parts = RandomSplitter(HALVES, group_by=["cell", "cycle"]).split(12, columns=columns)
    pairs = [set(zip(columns["cell"][r], columns["cycle"][r], strict=True)) for r in parts.values()]
    assert [len(p) for p in pairs] == [2, 2]
    assert not pairs[0] & pairs[1]


def test_group_larger_than_its_part_warns():
    groups = np.repeat([0, 1], [60, 40])
    with pytest.warns(SplitRatioWarning, match=r"'b' has 40 of 100 rows \(40.0%, not 10.0%\)"):
        RandomSplitter({"a": 0.9, "b": 0.1}, group_by="g").split(100, columns={"g": groups})


def test_many_groups_in_bulk():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 3000, size=20_000)
    parts = RandomSplitter(THREE, group_by="g").split(20_000, columns={"g": groups})
    assert sizes(parts) == [12_000, 4_000, 4_000]


# --- strata


def test_small_strata_add_up():
    labels = np.repeat(np.arange(20), 3)
    parts = RandomSplitter(HALVES, stratify_by="y").split(60, columns={"y": labels})
    assert sizes(parts) == [30, 30]
    for rows in parts.values():
        assert set(np.bincount(labels[rows], minlength=20)) == {1, 2}


def test_rare_strata_are_named_with_the_parts_that_lack_them():
    labels = np.array([0] * 8 + [1])
    with pytest.warns(
        StrataWarning, match=r"1 of 2 strata by 'y' .* y=1 \(1 rows\) is missing from"
    ):
        RandomSplitter(HALVES, stratify_by="y").split(9, columns={"y": labels})
    columns = {"y": labels, "g": np.arange(9) // 3}
    with pytest.warns(StrataWarning, match="y=1"):
        RandomSplitter(HALVES, stratify_by="y", group_by="g").split(9, columns=columns)


def test_a_continuous_column_is_cut_into_bins():
    soh = np.random.default_rng(0).gamma(2, size=1000)
    ratios = {"a": 0.9, "b": 0.1}

    def spread(**kwargs):
        means = [
            soh[
                RandomSplitter(ratios, seed=s, **kwargs).split(1000, columns={"y": soh})["b"]
            ].mean()
            for s in range(30)
        ]
        return np.std(means)

    assert spread(stratify_by="y") < spread() / 3
    assert spread(stratify_by="y", bins=50) < spread(stratify_by="y")
    fs = mml.FeatureSet.from_dict("s", {"x": soh, "y": soh}, "x", "y", register=False)
    fs.split_random(ratios, stratify_by="y", bins=50, seed=4)
    mine = RandomSplitter(ratios, stratify_by="y", bins=50, seed=4).split(1000, columns={"y": soh})
    np.testing.assert_array_equal(fs["b"].indices, mine["b"])


@settings(deadline=None)
@given(ratios(), st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 99))
@pytest.mark.filterwarnings("ignore::modularml.splitters.StrataWarning")
def test_strata_keep_their_proportions(ratios, counts, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    if min(ratios.values()) * len(labels) < 1:
        return
    parts = RandomSplitter(ratios, stratify_by="y", seed=seed).split(
        len(labels), columns={"y": labels}
    )
    assert_partition(parts, len(labels))
    plain = RandomSplitter(ratios).split(len(labels))
    assert sizes(parts) == sizes(plain)
    for name, rows in parts.items():
        found = np.bincount(labels[rows], minlength=len(counts))
        assert (np.abs(found - ratios[name] * np.array(counts)) <= 1 + 1e-9).all()


def test_every_row_of_a_stratum_may_go_anywhere():
    labels = np.repeat([0, 1], 10)
    seen = set()
    for seed in range(60):
        parts = RandomSplitter(HALVES, stratify_by="y", seed=seed).split(20, columns={"y": labels})
        seen |= set(parts["b"].tolist())
    assert seen == set(range(20))


def test_strict_stratification_names_the_stratum():
    labels = np.array(["common"] * 30 + ["rare"])
    with pytest.raises(SplitError, match=r"stratum y='rare' \(1 of 31 rows\).*'b'"):
        RandomSplitter({"a": 0.9, "b": 0.1}, stratify_by="y", strict_stratification=True).split(
            31, columns={"y": labels}
        )


def test_strict_stratification_puts_small_strata_in_every_part():
    labels = np.repeat([0, 1], [97, 3])
    parts = RandomSplitter(THREE, stratify_by="y", strict_stratification=True).split(
        100, columns={"y": labels}
    )
    assert sizes(parts) == [60, 20, 20]
    assert all((labels[rows] == 1).sum() == 1 for rows in parts.values())


def test_strict_stratification_warns_where_it_bends_the_ratios():
    labels = np.repeat(np.arange(20), 3)
    with pytest.warns(SplitRatioWarning, match="20 of 60 rows"):
        RandomSplitter(THREE, stratify_by="y", strict_stratification=True).split(
            60, columns={"y": labels}
        )


# --- groups and strata


@pytest.mark.parametrize("seed", range(5))
def test_pure_groups_are_stratified(seed):
    """40 patients of one label each: as balanced as rows would be."""
    rng = np.random.default_rng(seed)
    label = np.repeat([0, 1], [30, 10])
    patient = np.repeat(np.arange(40), rng.integers(4, 9, size=40))
    y = label[patient]
    parts = RandomSplitter(THREE, group_by="p", stratify_by="y", seed=seed).split(
        len(y), columns={"p": patient, "y": y}
    )
    for name, rows in parts.items():
        assert abs(len(rows) / len(y) - THREE[name]) < 0.03
        assert abs(y[rows].mean() - y.mean()) < 0.05


def test_mixed_groups_are_stratified_better_than_by_groups_alone():
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(60), 20)
    y = (rng.random(1200) < np.repeat(rng.random(60), 20)).astype(int)
    columns = {"g": group, "y": y}

    def imbalance(**how):
        parts = RandomSplitter(THREE, group_by="g", **how).split(1200, columns=columns)
        assert sum(len(set(group[rows])) for rows in parts.values()) == 60
        return max(abs(y[rows].mean() - y.mean()) for rows in parts.values())

    assert imbalance(stratify_by="y") < 0.01
    assert imbalance(stratify_by="y") < imbalance()


def test_strict_stratification_with_groups():
    columns = {"g": np.arange(40) // 10, "y": np.arange(40) // 20}
    with pytest.raises(SplitError, match="none of its whole groups"):
        RandomSplitter(THREE, group_by="g", stratify_by="y", strict_stratification=True).split(
            40, columns=columns
        )


def test_too_many_strata_for_groups_are_refused():
    columns = {"g": np.arange(10_000), "y": np.arange(10_000)}
    with pytest.raises(SplitError, match="stratify by something coarser"):
        RandomSplitter(HALVES, group_by="g", stratify_by="y").split(10_000, columns=columns)


# --- what is refused


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ({"a": 0.6, "b": 0.3}, "sum to 0.9"),
        ({"a": 0.6, "b": 0.6}, "sum to 1.2"),
        ({"a": 1.5, "b": -0.5}, "'a' must be above 0"),
        ({"a": 1.0, "b": 0.0}, "'b' must be above 0"),
        ({"a": float("nan"), "b": 1.0}, "'a' must be above 0"),
        ({"a": "half", "b": 0.5}, "'a' must be above 0"),
        ({}, "must map names to shares"),
        ([0.5, 0.5], "must map names to shares"),
        ({1: 0.5, "b": 0.5}, "got 1"),
        ({"": 1.0}, "non-empty"),
    ],
)
def test_bad_ratios(ratios, message):
    with pytest.raises(SplitError, match=message):
        RandomSplitter(ratios)


@pytest.mark.parametrize("seed", [-1, None, 1.5, True, "x"])
def test_bad_seed(seed):
    with pytest.raises(SplitError, match="seed must be"):
        RandomSplitter(HALVES, seed=seed)


@pytest.mark.parametrize("keys", [[], 3, ["a", 1]])
def test_bad_keys(keys):
    with pytest.raises(SplitError, match="group_by must be"):
        RandomSplitter(HALVES, group_by=keys)


@pytest.mark.parametrize("n", [0, 2])
def test_empty_part_is_named(n):
    with pytest.raises(SplitError, match=f"would be empty.*of {n} rows"):
        RandomSplitter(THREE).split(n)


def test_fewer_groups_than_parts():
    with pytest.raises(SplitError, match="'val' would be empty: there are 2 groups by 'g' for 3"):
        RandomSplitter(THREE, group_by="g").split(4, columns={"g": np.array([1, 1, 2, 2])})


@pytest.mark.parametrize(
    "keys",
    [
        np.array([1, np.nan, 2]),
        np.array(["a", None, "b"], object),
        np.array(["2020", "NaT", "2021"], "M8[D]"),
    ],
)
def test_missing_keys_are_refused(keys):
    with pytest.raises(SplitError, match=r"'g' has 1 missing values \(the first at row 1\)"):
        RandomSplitter(HALVES, group_by="g").split(3, columns={"g": keys})


def test_array_valued_and_unsortable_keys_are_refused():
    splitter = RandomSplitter(HALVES, stratify_by="g")
    with pytest.raises(SplitError, match="arrays of shape"):
        splitter.split(3, columns={"g": np.zeros((3, 2))})
    mixed = np.empty(3, object)
    mixed[:] = [1, (2,), "x"]
    with pytest.raises(SplitError, match="cannot be sorted"):
        splitter.split(3, columns={"g": mixed})


def test_missing_column_is_named():
    with pytest.raises(UnknownNameError, match=r"'cell'.*did you mean 'cell_id'"):
        RandomSplitter(HALVES, group_by="cell").split(3, columns={"cell_id": np.arange(3)})


def test_errors_are_data_errors():
    assert issubclass(SplitError, DataError)


def test_seed_alone_decides_whatever_was_drawn_before():
    np.random.default_rng(0).random(5)
    columns = {"g": np.arange(30) // 3, "y": np.arange(30) % 2}
    for how in ({}, {"group_by": "g"}, {"stratify_by": "y"}, {"group_by": "g", "stratify_by": "y"}):
        splitter = RandomSplitter(HALVES, **how)
        assert_same_parts(splitter.split(30, columns=columns), splitter.split(30, columns=columns))


@pytest.mark.parametrize("splitter", [RandomSplitter, KFoldSplitter])
@pytest.mark.parametrize("keys", [{}, {"group_by": "g"}])
def test_bins_of_no_column_are_refused(splitter, keys):
    first = {"train": 0.5, "test": 0.5} if splitter is RandomSplitter else 3
    with pytest.raises(SplitError, match=r"bins=4 .* stratify_by is missing"):
        splitter(first, bins=4, **keys)
