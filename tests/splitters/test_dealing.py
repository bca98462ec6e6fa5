"""Deals of whole groups, held against every deal there is."""

import itertools

import numpy as np
import pytest

from modularml.splitters import dealing
from modularml.splitters.dealing import deal

HALVES, THREE = np.array([0.5, 0.5]), np.array([0.6, 0.2, 0.2])


def misplaced(labels, sizes, ratios):
    """Share of the rows that are in the wrong part (counted there and where they lack)."""
    rows = np.bincount(labels, weights=sizes, minlength=len(ratios))
    return np.abs(rows - ratios * sizes.sum()).sum() / sizes.sum()


def best_possible(sizes, ratios):
    deals = itertools.product(range(len(ratios)), repeat=len(sizes))
    full = (np.array(d) for d in deals if len(set(d)) == len(ratios))
    return min(misplaced(d, sizes, ratios) for d in full)


@pytest.mark.parametrize(("n_groups", "ratios"), [(4, HALVES), (9, HALVES), (3, THREE), (7, THREE)])
@pytest.mark.parametrize("seed", range(4))
def test_few_groups_are_dealt_as_well_as_can_be(n_groups, ratios, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 200, size=n_groups)
    labels = deal(sizes[:, None], ratios, rng)
    assert misplaced(labels, sizes, ratios) <= best_possible(sizes, ratios) + dealing.SLACK + 1e-9


def test_small_whole_numbers_are_dealt_exactly():
    sizes = np.array([5, 4, 3, 2, 1, 1])
    for seed in range(10):
        labels = deal(sizes[:, None], HALVES, np.random.default_rng(seed))
        assert misplaced(labels, sizes, HALVES) == 0


@pytest.mark.parametrize("ratios", [HALVES, THREE])
@pytest.mark.parametrize("seed", range(4))
def test_search_comes_close_to_the_best(monkeypatch, ratios, seed):
    """The way for many groups, on few: within 2 % of the rows of the best deal."""
    monkeypatch.setattr(dealing, "TRY_ALL", 1.0)
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 200, size=9)
    labels = deal(sizes[:, None], ratios, rng)
    assert misplaced(labels, sizes, ratios) <= best_possible(sizes, ratios) + 0.02


@pytest.mark.parametrize("n_groups", [20, 300, 5000])
@pytest.mark.parametrize("seed", range(3))
def test_many_groups_leave_next_to_nothing_misplaced(n_groups, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 200, size=n_groups)
    labels = deal(sizes[:, None], THREE, rng)
    assert misplaced(labels, sizes, THREE) < 0.1 / n_groups


def test_heavy_tail():
    """A group of half the rows goes to the part that can hold it, whatever the seed."""
    sizes = np.array([1000] + [5] * 200)
    for seed in range(10):
        labels = deal(sizes[:, None], THREE, np.random.default_rng(seed))
        assert labels[0] == 0
        assert misplaced(labels, sizes, THREE) < 0.005


def test_no_part_is_empty():
    sizes = np.array([1000, 1, 1, 1])
    ratios = np.array([0.97, 0.01, 0.01, 0.01])
    for n_more in (0, 40):
        counts = np.concatenate([sizes, np.full(n_more, 500)])[:, None]
        labels = deal(counts, ratios, np.random.default_rng(0))
        assert set(labels) == {0, 1, 2, 3}


def test_every_group_may_go_anywhere():
    sizes = np.full(30, 7)
    seen = np.zeros((30, 3), dtype=bool)
    for seed in range(60):
        seen[np.arange(30), deal(sizes[:, None], THREE, np.random.default_rng(seed))] = True
    assert seen.all()


def test_classes_are_balanced():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 30, size=(80, 4)) + 1
    labels = deal(counts, THREE, rng)
    for part, ratio in enumerate(THREE):
        found = counts[labels == part].sum(axis=0) / counts.sum(axis=0)
        assert np.abs(found - ratio).max() < 0.01
