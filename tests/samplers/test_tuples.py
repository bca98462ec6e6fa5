"""Pairs and triplets, held against a comparison of all pairs."""

import pickle
import time
import warnings
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modularml.data import FeatureSet
from modularml.errors import ConfigError, DataError, UnknownNameError
from modularml.samplers import NSampler, PairedSampler, SimilarityCondition, TripletSampler

SAME, OTHER = SimilarityCondition(), SimilarityCondition("dissimilar")


def gap(a, b):
    return np.abs(a - b)


def slow_gap(a, b):
    return max(a, b) - min(a, b)


def make(n, seed=0, nan=False):
    rng = np.random.default_rng(seed)
    x = np.round(rng.random(n), 2)
    if nan:
        x[rng.random(n) < 0.2] = np.nan
    data = {
        "x": x,
        "y": rng.integers(0, 10, n),
        "v": np.round(rng.random((n, 2)), 1),
        "g": rng.choice(["a", "b", "c"], n),
    }
    return FeatureSet.from_dict("rows", data, ["x", "y", "v"], [], ["g"], register=False).to_view()


def all_pairs(view, conditions):
    """Return partners and their weights for each anchor, two loops over rows."""
    columns = {
        key: view.collection.numpy(f"{'tags' if key == 'g' else 'features'}.{key}.raw")
        for key in conditions
    }
    found = defaultdict(dict)
    for a in range(len(view)):
        for b in range(len(view)):
            if a != b:
                own = [c.score(columns[k][a], columns[k][b]) for k, c in conditions.items()]
                if np.prod(own) > 0 and all(
                    s >= 1 or c.allow_fallback
                    for s, c in zip(own, conditions.values(), strict=True)
                ):
                    found[a][b] = np.prod(own)
    return found


def quietly(sampler, view, epoch=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return sampler.epoch(view, epoch)
        except DataError:  # there is no partner at all
            return None


def by_anchor(found, role):
    partners = defaultdict(list)
    for a, b in zip(found.rows["anchor"], found.rows[role], strict=True):
        partners[int(a)].append(int(b))
    return partners


conditions = st.fixed_dictionaries(
    {},
    optional={
        key: st.builds(
            SimilarityCondition,
            st.sampled_from(["similar", "dissimilar"]),
            tolerance=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
            metric=st.sampled_from([None, None, gap, slow_gap] if key in "xy" else [None]),
            weight_mode=st.sampled_from(["binary", "linear", "exp"]),
            max_weight=st.sampled_from([1.0, 5.0]),
            min_weight=st.just(0.01),
            allow_fallback=st.sampled_from([False, False, True]),
        )
        for key in "xyvg"
    },
).filter(bool)


@settings(max_examples=150, deadline=None)
@given(conditions, st.integers(2, 25), st.integers(1, 4), st.booleans(), st.integers(0, 99))
@example({"x": SimilarityCondition("dissimilar", 0.3, allow_fallback=True)}, 6, 1, True, 1)
def test_partners_are_those_of_all_pairs(rules, n, k, best, seed):
    view = make(n, seed, nan=seed % 2 == 1)
    wanted = all_pairs(view, rules)
    sampler = PairedSampler(rules, max_pairs_per_anchor=k, choose_best_only=best, seed=seed)
    found = quietly(sampler, view)
    if found is None:
        assert not wanted
        return
    partners = by_anchor(found, "pair")
    assert set(partners) == set(wanted)
    assert sampler.n_dropped == n - len(wanted)
    weights = found.weight("pair")
    if weights is not None:
        pairs = zip(found.rows["anchor"], found.rows["pair"], strict=True)
        np.testing.assert_allclose(weights, [wanted[a][b] for a, b in pairs])
    matches = {
        a: {b for b, w in own.items() if w >= 1 or not sampler.gives_weights}
        for a, own in wanted.items()
    }
    for anchor, own in partners.items():
        assert set(own) <= set(wanted[anchor])
        assert len(set(own)) == len(own) == min(k, len(wanted[anchor]))
        if best:
            top = sorted(wanted[anchor].values(), reverse=True)[: len(own)]
            assert sorted((wanted[anchor][b] for b in own), reverse=True) == pytest.approx(top)
        elif all(not c.allow_fallback for c in rules.values()):
            assert set(own) <= matches[anchor]


def test_matches_come_before_fallbacks():
    view = make(40)
    soft = {"g": SimilarityCondition(allow_fallback=True)}
    found = quietly(PairedSampler(soft, max_pairs_per_anchor=30, seed=0), view)
    groups = view.get_tags("numpy")[:, 0]
    for anchor, own in by_anchor(found, "pair").items():
        mates = {i for i in range(40) if groups[i] == groups[anchor]} - {anchor}
        assert mates <= set(own)
        assert len(set(own)) == 30
    weights = found.weight("pair")
    same = groups[found.rows["anchor"]] == groups[found.rows["pair"]]
    np.testing.assert_array_equal(weights, np.where(same, 1.0, 0.1))


def test_triplets_pair_each_positive_with_a_negative():
    view = make(60)
    sampler = TripletSampler({"g": SAME}, {"g": OTHER}, batch_size=16, shuffle=True, seed=1)
    found = sampler.epoch(view, 0)
    groups = view.get_tags("numpy")[:, 0]
    a, p, n = (groups[found.rows[role]] for role in ("anchor", "positive", "negative"))
    assert (a == p).all()
    assert (a != n).all()
    assert np.bincount(found.rows["anchor"]).tolist() == [3] * 60
    assert found.weights is None


def test_a_role_with_fewer_partners_repeats_them_and_anchors_without_are_dropped():
    values = {"x": [0.0, 0.0, 5.0, 9.0]}
    fs = FeatureSet.from_dict("rows", values, ["x"], [], [], register=False)
    sampler = TripletSampler({"x": SAME}, {"x": OTHER}, seed=0)
    with pytest.warns(UserWarning, match="drops 2 of 4 anchors"):
        found = sampler.epoch(fs.to_view(), 0)
    assert found.rows["anchor"].tolist() == [0, 0, 1, 1]
    assert found.rows["positive"].tolist() == [1, 1, 0, 0]
    assert sorted(found.rows["negative"][:2].tolist()) == [2, 3]
    sampler.epoch(fs.to_view(), 1)  # said once
    with pytest.raises(DataError, match="widen a tolerance"):
        TripletSampler({"x": SAME}, {"x": OTHER}).epoch(fs.take([0, 2]), 0)


def test_draws_are_even():
    view = make(30)
    sampler = PairedSampler({"g": OTHER}, max_pairs_per_anchor=1, shuffle=True, seed=0)
    epochs = [by_anchor(sampler.epoch(view, e), "pair")[0][0] for e in range(2000)]
    counts = np.bincount(epochs)
    counts = counts[counts > 0]
    assert len(counts) == len(all_pairs(view, {"g": OTHER})[0])
    expected = 2000 / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < 2.5 * len(counts)  # chi square


CALLS = []


def counted_gap(a, b):
    CALLS.append(len(CALLS))
    return gap(a, b)


def test_partners_are_searched_once_for_a_view():
    near = SimilarityCondition(tolerance=0.1, metric=counted_gap)
    sampler = PairedSampler({"x": near}, seed=0, shuffle=True)
    view, other = make(50), make(50, seed=1)
    first = sampler.epoch(view, 0)
    n_calls = len(CALLS)
    assert n_calls
    sampler.epoch(view.take(np.arange(50)), 1)
    assert len(CALLS) == n_calls
    quietly(sampler, other)
    assert len(CALLS) > n_calls
    again = pickle.loads(pickle.dumps(sampler)).epoch(view, 0)
    np.testing.assert_array_equal(first.rows["pair"], again.rows["pair"])


def test_groups_and_strata_by_the_role_asked():
    view = make(80)
    groups = view.get_tags("numpy")[:, 0]
    found = PairedSampler(
        {"g": OTHER}, group_by="g", group_by_role="pair", batch_size=8, shuffle=True, seed=0
    ).epoch(view, 0)
    for i in range(found.n_batches):
        assert len(set(groups[found.batch(i, "pair")])) == 1
    with pytest.raises(UnknownNameError, match="role 'positive' of PairedSampler"):
        PairedSampler({"g": OTHER}, group_by="g", group_by_role="positive")


def test_many_candidates_are_bounded(monkeypatch):
    monkeypatch.setattr("modularml.samplers.search.MAX_PAIRS", 100)
    monkeypatch.setattr("modularml.samplers.search.MIN_CANDIDATES", 16)
    view = make(200)
    near = SimilarityCondition(tolerance=0.2)
    rules = {"x": near, "y": SimilarityCondition(tolerance=3.0, metric=gap)}
    wanted = all_pairs(view, rules)
    for own in (rules, {"x": near, "v": near}):
        found = quietly(PairedSampler(own, seed=0), view)
        partners = by_anchor(found, "pair")
        assert len(partners) > 150
        if own is rules:
            assert all(set(b) <= set(wanted[a]) for a, b in partners.items())


def test_a_hundred_thousand_anchors_take_seconds():
    rng = np.random.default_rng(0)
    data = {"x": rng.random(100_000), "y": rng.random(100_000), "g": rng.integers(0, 9, 100_000)}
    view = FeatureSet.from_dict("big", data, ["x", "y"], [], ["g"], register=False).to_view()
    near, close = SimilarityCondition(tolerance=1e-4), SimilarityCondition(tolerance=2e-3)
    before = time.process_time()
    quietly(TripletSampler({"x": near, "g": SAME}, {"g": OTHER}, seed=0), view)
    quietly(PairedSampler({"x": close, "y": close}, seed=0), view)
    assert time.process_time() - before < 10


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"anchor": {"x": SAME}},
        {"pair": {}},
        {"pair": {"x": 3}},
        {"a b": {"x": SAME}},
        {"default": {"x": SAME}},
        None,
    ],
    ids=str,
)
def test_wrong_conditions(wrong):
    with pytest.raises(ConfigError):
        NSampler(wrong)
    with pytest.raises(ConfigError, match="at least 1"):
        PairedSampler({"x": SAME}, max_pairs_per_anchor=0)


def test_a_tolerance_of_days_is_refused():
    days = np.datetime64("2024-01-01") + np.arange(9)
    fs = FeatureSet.from_dict("fs", {"x": np.arange(9.0), "day": days}, "x", [], "day")
    near = PairedSampler({"day": SimilarityCondition(tolerance=3)}, sources=[fs])
    with pytest.raises(ConfigError, match="requires numbers"):
        near.materialize_batches()


def test_more_partners_than_there_are_cost_nothing():
    fs = FeatureSet.from_dict("fs", {"x": np.arange(9.0) // 3}, "x", [], [])
    batches = PairedSampler({"x": SAME}, max_pairs_per_anchor=10**12).epoch(fs.to_view(), 0)
    assert len(batches.rows["pair"]) == 9 * 2


def test_a_row_that_stands_twice_is_no_partner_of_itself():
    view = make(6).take([0, 0, 3, 5, 5, 1])
    near = {"x": SimilarityCondition(tolerance=9.0, weight_mode="linear", max_weight=9.0)}
    found = quietly(PairedSampler(near, batch_size=50, max_pairs_per_anchor=9, seed=0), view)
    anchors, pairs = (view.valid_indices[found.rows[role]] for role in ("anchor", "pair"))
    expected = sorted((a, b) for a in view.valid_indices for b in (0, 1, 3, 5) if a != b)
    assert sorted(zip(anchors.tolist(), pairs.tolist(), strict=True)) == expected
    x = view.collection.numpy("features.x.raw")
    np.testing.assert_allclose(
        found.weights["pair"], near["x"].weights(np.abs(x[anchors] - x[pairs]))
    )


@pytest.mark.parametrize("start", [2**60, -(2**63), 2**63])
def test_large_integers_lose_no_digit(start):
    ids = np.array([start + i for i in range(6)], dtype="u8" if start == 2**63 else "i8")
    fs = FeatureSet.from_dict("big", {"x": np.zeros(6), "id": ids}, ["x"], [], ["id"])
    near = SimilarityCondition(tolerance=1)
    found = PairedSampler({"id": near}, batch_size=50, seed=0).epoch(fs.to_view(), 0)
    gaps = found.rows["anchor"] - found.rows["pair"]
    assert sorted(gaps.tolist()) == [-1] * 5 + [1] * 5
    assert [near.score(ids[0], other) for other in ids] == [1, 1, 0, 0, 0, 0]
