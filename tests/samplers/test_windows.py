"""Shuffling within windows: every row once, in windows of blocks, the same for seed and epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modularml.config import decode, encode
from modularml.data import FeatureSet
from modularml.errors import ConfigError
from modularml.samplers import PairedSampler, SimilarityCondition, SimpleSampler, batching
from tests.samplers.test_contract import Padded


def rows(n, values=None):
    data = {"x": np.arange(n) if values is None else values}
    return FeatureSet.from_dict("fs", data, "x", [], register=False)


def sampler(window, **kwargs):
    return SimpleSampler(
        **{"batch_size": 7, "shuffle": True, "seed": 3} | kwargs, shuffle_window=window
    )


def order(window, view, epoch=0, **kwargs):
    return sampler(window, **kwargs).epoch(view, epoch).rows["default"]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(batching, "LEAST_BLOCK", 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 320), st.integers(1, 40), st.integers(0, 2**64))
def test_every_row_once_and_few_places_a_window(n, window, least, seed):
    before, batching.LEAST_BLOCK = batching.LEAST_BLOCK, least
    try:
        found = batching.in_windows(n, window, np.random.default_rng(seed))
    finally:
        batching.LEAST_BLOCK = before
    assert sorted(found.tolist()) == list(range(n))
    size = min(window, max(least, window // batching.BLOCKS))
    for at in range(0, n if window < n else 0, window):  # meets three windows at most
        places = len(set((found[at : at + window] // size).tolist()))
        assert places <= 2 * (3 * (window // size) + 3)  # whose blocks meet two places each


def test_a_window_of_all_rows_is_the_whole_order():
    view = rows(50).to_view()
    whole = SimpleSampler(batch_size=7, shuffle=True, seed=3).epoch(view, 2).rows["default"]
    for window in (50, 51, 10**9, np.int64(50)):
        np.testing.assert_array_equal(order(window, view, 2), whole)
    assert order(49, view, 2).tolist() != whole.tolist()


@pytest.mark.usefixtures("small_blocks")
def test_the_order_follows_from_seed_and_epoch_and_windows_move():
    view = rows(400).to_view()
    first = order(40, view)
    np.testing.assert_array_equal(first, order(40, view))
    assert first.tolist() != order(40, view, 1).tolist()
    assert first.tolist() != order(40, view, seed=4).tolist()
    windows = [
        {frozenset(part) for part in np.sort(order(40, view, e)).reshape(-1, 40).tolist()}
        for e in (0, 1)
    ]
    members = [{frozenset(p.tolist()) for p in order(40, view, e).reshape(-1, 40)} for e in (0, 1)]
    assert windows[0] == windows[1]  # sorted, they are the same rows
    assert not members[0] & members[1]  # but no window has the rows of one before
    edges = [
        {min(p) % 4 for p in map(sorted, order(40, view, e).reshape(-1, 40).tolist())}
        for e in range(5)
    ]
    assert len({frozenset(e) for e in edges}) > 1


@pytest.mark.usefixtures("small_blocks")
def test_rows_of_a_view_in_any_order_are_read_in_windows():
    fs = rows(400)
    shuffled = np.random.default_rng(0).permutation(400)[:300]
    view = fs.take(shuffled)
    positions = order(40, view)
    assert sorted(positions.tolist()) == list(range(300))
    read = shuffled[positions]
    gaps = [int((np.diff(np.sort(read[at : at + 40])) > 8).sum()) for at in range(0, 280, 40)]
    assert max(gaps) <= 20  # of 40 rows from all over, nearly all would have a gap


def test_how_far_a_window_mixes():
    """The mean of a batch of sorted rows, against the formula of the guide."""
    n, batch = 2**16, 256
    view = rows(n).to_view()
    deviation = {}
    for window in (None, 2**13, 2**15):
        means = []
        for epoch in range(4):
            found = order(window, view, epoch, batch_size=batch).reshape(-1, batch)
            means.append(found.mean(axis=1))
            assert abs(np.corrcoef(found.ravel(), np.arange(n))[0, 1]) < (
                0.05 if window is None else 0.5
            )
        deviation[window] = np.std(means)
    for window in (2**13, 2**15):
        expected = np.sqrt(1 + batch / (window / 1024))
        assert deviation[window] / deviation[None] == pytest.approx(expected, rel=0.35)


def test_config_and_position(small_blocks):
    view = rows(100)
    made = sampler(20, source=view)
    assert decode(encode(made)) == made
    assert made.get_config()["shuffle_window"] == 20
    assert "shuffle_window=20" in repr(made)
    assert SimpleSampler().get_config()["shuffle_window"] is None
    every = [b.role_indices["default"].tolist() for _ in range(2) for b in made]
    stopped = sampler(20, source=view)
    batches = iter(stopped)
    taken = [next(batches).role_indices["default"].tolist() for _ in range(5)]
    resumed = sampler(20, source=view, seed=None)
    resumed.set_state(stopped.get_state())
    rest = [b.role_indices["default"].tolist() for _ in range(2) for b in resumed]
    assert taken + rest == every


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("shuffle_window must be at least 1, got 0", {"shuffle_window": 0}),
        ("shuffle_window must be at least 1, got -5", {"shuffle_window": -5}),
        ("shuffle_window.*2.5", {"shuffle_window": 2.5}),
        ("shuffle_window.*True", {"shuffle_window": True}),
        ("shuffle_window.*'all'", {"shuffle_window": "all"}),
        ("requires shuffle=True", {"shuffle": False}),
        ("group_by draws", {"group_by": "x"}),
        ("stratify_by draws", {"stratify_by": "x"}),
        ("weights draws", {"weights": "x"}),
        ("balance_by draws", {"balance_by": "x"}),
        ("PairedSampler draws", {"conditions": {"x": SimilarityCondition()}}),
        ("Padded draws.*leave out shuffle_window", {"fill": 1.0}),
    ],
)
def test_what_windows_cannot_do_is_refused(message, arguments):
    makes = {"conditions": PairedSampler, "fill": Padded}
    make = next((m for name, m in makes.items() if name in arguments), SimpleSampler)
    with pytest.raises(ConfigError, match=message):
        make(**{"shuffle": True, "shuffle_window": 5} | arguments)
