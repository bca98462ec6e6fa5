"""Largest remainders, for one total and for a table of strata."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modularml.splitters.random import apportion, largest_remainder

weights = st.lists(st.integers(1, 20), min_size=1, max_size=6)


def shares(found):
    return np.array(found) / sum(found)


@given(st.integers(0, 10_000), weights)
def test_parts_sum_and_are_within_one_row(n, found):
    sizes = largest_remainder(n, shares(found))
    assert sizes.sum() == n
    assert (np.abs(sizes - n * shares(found)) < 1 + 1e-6).all()


def test_float_noise_does_not_matter():
    assert largest_remainder(30, np.array([0.1, 0.2, 0.7])).tolist() == [3, 6, 21]
    assert largest_remainder(10, np.full(3, 1 / 3)).tolist() == [4, 3, 3]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=25), weights)
def test_table_adds_up_both_ways(counts, found):
    counts = np.array(counts)
    cells = apportion(counts, shares(found))
    np.testing.assert_array_equal(cells.sum(axis=1), counts)
    np.testing.assert_array_equal(
        cells.sum(axis=0), largest_remainder(int(counts.sum()), shares(found))
    )
    assert (cells >= 0).all()
    assert (np.abs(cells - counts[:, None] * shares(found)) <= 1 + 1e-6).all()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=25), weights)
def test_in_every_part(counts, found):
    counts = np.array(counts)
    cells = apportion(counts, shares(found), in_every_part=True)
    np.testing.assert_array_equal(cells.sum(axis=1), counts)
    assert (cells[counts >= len(found)] >= 1).all()
