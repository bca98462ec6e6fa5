"""Rows of folds are pickled small, and come back as they were."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularml.strategies.variants.variant import Sides

ROWS = st.lists(st.integers(0, 300), max_size=200).map(lambda v: np.array(v, dtype=np.int64))


@given(ROWS, ROWS.map(np.unique), ROWS)
def test_rows_are_the_same_after_pickling(train, val, stop):
    found = pickle.loads(pickle.dumps(Sides(train, val, val, "a", "b", stop, "c")))
    for name, wanted in {"train": train, "val": val, "pool": val, "stop": stop}.items():
        rows = getattr(found, name)
        np.testing.assert_array_equal(rows, wanted)
        assert rows.dtype == np.int64
    assert (found.train_name, found.val_name, found.stop_name) == ("a", "b", "c")
    assert pickle.loads(pickle.dumps(Sides(train, val, val))).stop is None


@pytest.mark.parametrize("first", [0, 10**12])
def test_many_rows_take_a_bit_each_and_few_no_more_than_before(first):
    rows = first + np.arange(80_000)
    n_bytes = len(pickle.dumps(Sides(rows, rows, rows)))
    assert n_bytes < (32_000 if first == 0 else 3 * rows.nbytes + 500)
