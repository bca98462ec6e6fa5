"""Batches of single rows: every row once, reproducible, grouped or balanced."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modularml.config import decode, encode
from modularml.data import FeatureSet
from modularml.errors import ConfigError, DataError, UnknownNameError
from modularml.samplers import SimpleSampler, sampler_registry
from modularml.samplers.batching import cut

N = 23


def make(n=N, groups=4, seed=0):
    rng = np.random.default_rng(seed)
    data = {
        "x": np.arange(n),
        "v": np.zeros((n, 2)),
        "g": np.array([f"g{i}" for i in rng.integers(0, groups, n)]),
        "k": rng.integers(0, 2, n),
        "nan": np.where(rng.random(n) < 0.5, np.nan, 1.0),
    }
    return FeatureSet.from_dict("fs", data, ["x", "v"], [], ["g", "k", "nan"], register=False)


def batches(sampler, view, epoch=0):
    found = sampler.epoch(view, epoch)
    assert found.bounds[0] == 0
    assert found.bounds[-1] == len(found.rows["default"])
    assert sum(found.sizes) == found.bounds[-1]
    return [found.batch(i).tolist() for i in range(found.n_batches)]


def flat(found):
    return [row for batch in found for row in batch]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 50),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "g", ["g", "k"], "nan"]),
    st.integers(0, 2**64),
)
def test_every_row_once_an_epoch(n, size, shuffle, drop_last, group_by, seed):
    view = make(n).to_view()
    sampler = SimpleSampler(
        batch_size=size, shuffle=shuffle, drop_last=drop_last, group_by=group_by, seed=seed
    )
    if not sampler.sample(view, 3).n_batches:
        assert drop_last
        with pytest.raises(DataError, match="lower batch_size"):
            sampler.epoch(view, 3)
        return
    found = batches(sampler, view, 3)
    rows = flat(found)
    assert len(set(rows)) == len(rows)
    assert all(0 < len(batch) <= size for batch in found)
    if drop_last:
        assert all(len(batch) == size for batch in found)
    else:
        assert sorted(rows) == list(range(n))
    assert batches(SimpleSampler.from_config(sampler.get_config()), view, 3) == found


def test_without_shuffling_rows_come_in_their_order():
    view = make().take([5, 3, 8])
    assert batches(SimpleSampler(batch_size=2), view) == [[0, 1], [2]]
    assert batches(SimpleSampler(batch_size=2), view, 7) == [[0, 1], [2]]
    assert batches(SimpleSampler(batch_size=100), view) == [[0, 1, 2]]


@pytest.mark.parametrize(
    "kwargs", [{}, {"group_by": "g"}, {"stratify_by": "k", "strict_stratification": False}], ids=str
)
def test_every_epoch_has_its_own_order_given_by_seed_and_epoch(kwargs):
    view = make(60).to_view()

    def run(seed, epoch):
        return batches(SimpleSampler(batch_size=8, shuffle=True, seed=seed, **kwargs), view, epoch)

    orders = [run(seed, epoch) for seed in (1, 2) for epoch in range(3)]
    assert len({str(order) for order in orders}) == 6
    assert [run(seed, epoch) for seed in (1, 2) for epoch in range(3)] == orders
    assert run(1, 2**40) != run(1, 0)


def test_the_order_is_numpy_s_own():
    rng = np.random.Generator(np.random.Philox(key=[7, 3]))
    found = SimpleSampler(batch_size=N, shuffle=True, seed=7).epoch(make().to_view(), 3)
    np.testing.assert_array_equal(found.rows["default"], rng.permutation(N))


def test_a_seed_is_drawn_once_and_is_state():
    view = make().to_view()
    one, two = (SimpleSampler(batch_size=4, shuffle=True) for _ in range(2))
    assert batches(one, view) == batches(one, view)
    assert batches(one, view) != batches(two, view)
    two.set_state(json.loads(json.dumps(one.get_state())))
    assert batches(one, view, 5) == batches(two, view, 5)
    assert one.seed is None
    assert SimpleSampler(seed=3).get_state() == {"seed_": 3, "epoch_": 0, "batch_": 0}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("group_by", ["g", ["g", "k"], "tags.g.raw", "nan"])
def test_a_batch_holds_one_group(shuffle, group_by):
    fs = make(200)
    view = fs.take(np.arange(200)[::-1])
    found = batches(SimpleSampler(batch_size=7, shuffle=shuffle, group_by=group_by, seed=0), view)
    keys = [group_by] if isinstance(group_by, str) else group_by
    columns = [fs.column(f"tags.{k.split('.')[-2] if '.' in k else k}.raw")[::-1] for k in keys]
    groups = [tuple(str(c[row]) for c in columns) for row in range(200)]
    assert all(len({groups[row] for row in batch}) == 1 for batch in found)
    sizes = {g: groups.count(g) for g in groups}
    assert len(found) == sum(-(-n // 7) for n in sizes.values())
    order = [groups[batch[0]] for batch in found]
    assert (order == sorted(order)) is not shuffle


def strata_of(view, found):
    values = view.get_tags()["k"]
    return [np.bincount(values[batch], minlength=2) for batch in found]


@pytest.mark.parametrize("shuffle", [False, True])
def test_strict_strata_have_equal_shares(shuffle):
    view = make(100).to_view()
    few = np.bincount(view.get_tags()["k"]).min()
    sampler = SimpleSampler(batch_size=10, shuffle=shuffle, stratify_by="k", seed=0)
    with pytest.warns(UserWarning, match=rf"drops {100 - 2 * few} of 100 rows.* has {few};"):
        found = batches(sampler, view)
    rows = flat(found)
    assert len(set(rows)) == len(rows) == 2 * few
    for counts in strata_of(view, found)[:-1]:
        assert counts.tolist() == [5, 5]


def test_strata_of_one_size_drop_nothing():
    fs = FeatureSet.from_dict("fs", {"x": np.arange(12), "k": list("abc") * 4}, "x", [], "k")
    found = batches(SimpleSampler(batch_size=3, stratify_by="k"), fs.to_view())
    values = fs.get_tags()["k"]
    assert sorted(flat(found)) == list(range(12))
    assert all(sorted(values[batch]) == ["a", "b", "c"] for batch in found)


def test_strata_that_keep_their_proportions():
    values = np.repeat([0, 1], [90, 10])
    fs = FeatureSet.from_dict("fs", {"x": np.arange(100), "k": values}, "x", [], "k")
    sampler = SimpleSampler(
        batch_size=20, shuffle=True, stratify_by="k", strict_stratification=False
    )
    found = batches(sampler, fs.to_view())
    assert sorted(flat(found)) == list(range(100))
    assert [c.tolist() for c in strata_of(fs, found)] == [[18, 2]] * 5


def test_grouping_means_raw_columns_before_and_after_scaling():
    fs = make(60)
    sampler = SimpleSampler(batch_size=7, group_by="k", seed=0)
    before = batches(sampler, fs.to_view())
    fs.fit_transform("StandardScaler", domain="tags", keys="k")
    assert batches(sampler, fs.to_view()) == before


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be an int"),
        ({"batch_size": True}, "batch_size must be an int"),
        ({"batch_size": "4"}, "batch_size must be an int"),
        ({"group_by": "g", "stratify_by": "k"}, "not both"),
        ({"seed": 1.5}, "seed must be an int or None, got 1.5"),
    ],
)
def test_arguments_that_make_no_sense(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        SimpleSampler(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"group_by": "gg"}, UnknownNameError, "unknown column 'gg'"),
        ({"group_by": "v"}, DataError, "'features.v.raw' holds arrays"),
        ({"group_by": "*"}, UnknownNameError, "it matches"),
        (
            {"batch_size": 50, "drop_last": True},
            DataError,
            "the 23 rows of 'fs' make no batch",
        ),
    ],
)
def test_rows_that_cannot_be_sampled(kwargs, error, message):
    with pytest.raises(error, match=message):
        SimpleSampler(**kwargs).epoch(make().to_view(), 0)


def test_an_empty_split():
    with pytest.raises(DataError, match="split 'none' of 'fs' is empty"):
        SimpleSampler().epoch(make().take([], label="none"), 0)


def test_config_repr_and_registry():
    sampler = SimpleSampler(batch_size=np.int64(4), shuffle=True, group_by=["g"], source=make())
    assert repr(sampler) == "SimpleSampler(batch_size=4, shuffle=True, group_by=['g'])"
    assert decode(json.loads(json.dumps(encode(sampler)))) == sampler
    assert sampler_registry["simplesampler"] is SimpleSampler
    assert len(sampler.sources) == 1


@given(st.lists(st.integers(0, 20), max_size=6), st.integers(1, 7), st.booleans())
def test_cut_is_a_loop_over_runs(lengths, size, drop_last):
    expected, at = [], 0
    for n in lengths:
        for start in range(0, n, size):
            stop = min(start + size, n)
            if stop - start == size or not drop_last:
                expected.append((at + start, at + stop))
        at += n
    starts, stops = cut(lengths, size, drop_last=drop_last)
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == expected


@pytest.mark.parametrize("kwargs", [{}, {"group_by": "g"}, {"stratify_by": "g"}], ids=str)
def test_the_first_batch_of_a_million_rows_comes_quickly(kwargs):
    n = 1_000_000
    data = {"x": np.arange(n), "g": np.arange(n) % 1000}
    view = FeatureSet.from_dict("fs", data, "x", [], "g", register=False).to_view()
    sampler = SimpleSampler(batch_size=256, shuffle=True, seed=0, **kwargs)
    sampler.epoch(view, 0)
    start = time.process_time()
    sampler.epoch(view, 1).batch(0)
    assert time.process_time() - start < 0.5  # a tenth of that on a machine that is not busy


def test_balanced_and_weighted_draws():
    n = 3000
    rng = np.random.default_rng(0)
    data = {"x": np.arange(n), "c": (np.arange(n) >= 2900) * 1, "w": rng.random(n)}
    data["w"][:50] = 0
    view = FeatureSet.from_dict("fs", data, ["x"], ["c"], ["w"], register=False).to_view()

    def drawn(**kwargs):
        sampler = SimpleSampler(batch_size=100, seed=0, **kwargs)
        return np.array([flat(batches(sampler, view, e)) for e in range(10)])

    rows = drawn(balance_by="c")
    assert rows.shape == (10, n)
    assert abs((data["c"][rows] == 1).mean() - 0.5) < 0.02
    assert not np.array_equal(rows[0], rows[1])
    counts = np.bincount(drawn(weights="w").reshape(-1), minlength=n)
    assert not counts[:50].any()
    expected = 10 * n * (data["w"] / data["w"].sum())[50:]
    assert ((counts[50:] - expected) ** 2 / expected).mean() == pytest.approx(1, abs=0.15)
    both = drawn(balance_by="c", weights="w")
    assert abs((data["c"][both] == 1).mean() - 0.5) < 0.02
    assert not np.isin(both, np.arange(50)).any()
    one_class = SimpleSampler(batch_size=9, balance_by="c", group_by="c", seed=0)
    assert all(len(set(data["c"][batch])) == 1 for batch in batches(one_class, view))


def test_draws_that_cannot_be_made():
    view = make().to_view()
    for column in ("g", "v", "nan"):
        with pytest.raises(DataError, match="at least 0"):
            SimpleSampler(weights=column).epoch(view, 0)
    with pytest.raises(DataError, match="are 0"):
        SimpleSampler(weights="x").epoch(view.take([0]), 0)
    with pytest.raises(ConfigError, match="not both"):
        SimpleSampler(source=view, sources=[view])
    for weights in (["x"], np.ones(3)):
        with pytest.raises(ConfigError, match="weights must be a non-empty string"):
            SimpleSampler(weights=weights)
    for sources in (make(), "fs", [{"x": 1}]):
        with pytest.raises(ConfigError, match="list of FeatureSets"):
            SimpleSampler(sources=sources)


def test_weights_whose_sum_is_infinite():
    columns = {"x": np.array([1.0, 2.0, 4.0]), "w": np.array([0.25e308, 0.5e308, 1e308])}
    view = FeatureSet.from_dict("fs", columns, "x", [], "w").to_view()
    for balance in ({}, {"balance_by": "x"}):
        np.testing.assert_array_equal(
            SimpleSampler(weights="w", seed=0, **balance).sample(view, 0).rows["default"],
            SimpleSampler(weights="x", seed=0, **balance).sample(view, 0).rows["default"],
        )


@pytest.mark.parametrize("bins", [None, 4])
@pytest.mark.parametrize("strict", [True, False])
def test_strata_of_a_continuous_column_are_bins(bins, strict):
    soh = np.random.default_rng(3).random(400)
    fs = FeatureSet.from_dict("fs", {"x": soh}, "x", [], register=False)
    view, size = fs.take(np.arange(0, 400, 2)).to_view(), 2 * (bins or 10)
    how = {"batch_size": size, "shuffle": True, "seed": 0, "strict_stratification": strict}
    sampler = SimpleSampler(stratify_by="x", bins=bins, **how)
    own = soh[view.indices]
    quantile = np.argsort(np.argsort(own)) * (bins or 10) // len(own)
    for batch in batches(sampler, view):
        assert np.bincount(quantile[batch]).tolist() == [2] * (bins or 10)
    assert sorted(flat(batches(sampler, view))) == list(range(200))


def test_bins_of_whole_numbers_and_times():
    days = np.arange("2024-01-01", "2024-02-10", dtype="M8[D]")
    data = {"n": np.arange(40), "t": days, "x": np.arange(40.0)}
    fs = FeatureSet.from_dict("fs", data, "x", [], ["n", "t"], register=False)
    for key in ("n", "t"):
        sampler = SimpleSampler(batch_size=4, stratify_by=key, bins=4)
        for batch in batches(sampler, fs.to_view()):
            assert sorted(np.array(batch) // 10) == [0, 1, 2, 3]
        with pytest.warns(UserWarning, match=r"makes 40 strata of 40 rows.*bins="):
            batches(SimpleSampler(batch_size=4, stratify_by=key), fs.to_view())


def test_strata_that_cannot_be_are_refused():
    fs = make()
    with pytest.raises(DataError, match=r"stratify_by: column 'tags.nan.raw' .* missing"):
        SimpleSampler(batch_size=4, stratify_by="nan").epoch(fs.to_view(), 0)
    with pytest.raises(ConfigError, match=r"bins=3 .* stratify_by is missing"):
        SimpleSampler(batch_size=4, bins=3)
    with pytest.raises(ConfigError, match="bins must be"):
        SimpleSampler(batch_size=4, stratify_by="k", bins=1)
