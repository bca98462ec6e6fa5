"""Samples of any shape laid out in two dimensions."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularml.config import decode, encode
from modularml.errors import ShapeError
from modularml.scalers import Flattening, Scaler, flatten

N, C, K = 5, 2, 3
DATA = np.arange(N * C * K, dtype=float).reshape(N, C, K)


@pytest.mark.parametrize(
    ("merged_axes", "expected"),
    [
        ((1, 2), DATA.reshape(N, C * K)),
        ((0, 1), DATA.reshape(N * C, K)),
        ((0, 2), DATA.transpose(0, 2, 1).reshape(N * K, C)),
        ((0, 1, 2), DATA.reshape(-1, 1)),
        ((2, 1), DATA.reshape(N, C * K)),
        ([-1, 1], DATA.reshape(N, C * K)),
    ],
)
def test_layouts(merged_axes, expected):
    array, layout = flatten(DATA, merged_axes)
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(layout.undo(array), DATA)


@pytest.mark.parametrize("merged_axes", [None, (), 0, 1, (1,), -1])
def test_two_dimensions_stay(merged_axes):
    array, layout = flatten(DATA[:, :, 0], merged_axes)
    np.testing.assert_array_equal(array, DATA[:, :, 0])
    np.testing.assert_array_equal(layout.undo(array), DATA[:, :, 0])


def test_one_column_of_arrays_needs_no_axes():
    array, layout = flatten(DATA[:, :1])
    np.testing.assert_array_equal(array, DATA[:, 0])
    np.testing.assert_array_equal(layout.undo(array), DATA[:, :1])


def test_statistics_are_those_of_the_axes():
    array, _ = flatten(DATA, (0, 2))
    means = Scaler("StandardScaler").fit(array).wrapped.mean_
    np.testing.assert_allclose(means, DATA.mean(axis=(0, 2)))
    array, _ = flatten(DATA, (0, 1))
    means = Scaler("StandardScaler").fit(array).wrapped.mean_
    np.testing.assert_allclose(means, DATA.mean(axis=(0, 1)))


def legal(n_axes):
    """Merging all, or all but one that is not alone on its side."""
    yield tuple(range(n_axes))
    for kept in range(n_axes):
        yield tuple(axis for axis in range(n_axes) if axis != kept)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_any_legal_layout_comes_back(shape, data):
    merged = data.draw(st.sampled_from(list(legal(len(shape) + 1))))
    values = np.arange(3 * np.prod(shape)).reshape(3, *shape)
    array, layout = flatten(values, merged)
    assert array.ndim == 2
    np.testing.assert_array_equal(layout.undo(array), values)
    more = np.concatenate([values, values[:1]])  # another number of samples
    np.testing.assert_array_equal(layout.undo(layout.apply(more)), more)
    none = layout.apply(values[:0])
    assert none.shape == (0, array.shape[1])
    assert layout.undo(none).shape == (0, *shape)


@given(st.lists(st.integers(2, 4), min_size=2, max_size=4), st.data())
def test_anything_else_is_refused(shape, data):
    n_axes = len(shape) + 1
    subsets = itertools.chain.from_iterable(
        itertools.combinations(range(n_axes), size) for size in range(1, n_axes - 1)
    )
    merged = data.draw(st.sampled_from(list(subsets)))
    with pytest.raises(ShapeError, match="choose merged_axes"):
        flatten(np.zeros((3, *shape)), merged)


@pytest.mark.parametrize("merged_axes", [None, (1,), 0, (0, 5), (1, 1), (-9, 1)])
def test_message_lists_the_choices(merged_axes):
    with pytest.raises(ShapeError) as caught:
        flatten(DATA, merged_axes)
    message = str(caught.value)
    assert "shape (n, 2, 3)" in message
    assert "(1, 2) for 6 statistics" in message
    assert "(0, 2) for 2, one for each column" in message
    assert "(0, 1) for 3, one for each position along axis 2" in message
    assert "(0, 1, 2) for one in all" in message


def test_misfits_are_refused():
    array, layout = flatten(DATA, (0, 2))
    with pytest.raises(ShapeError, match=r"\(2, 3\) that was laid out before, got \(3, 2\)"):
        layout.apply(DATA.transpose(0, 2, 1))
    with pytest.raises(ShapeError, match="3 rows of 2 columns each"):
        layout.undo(array[:-1])
    with pytest.raises(ShapeError, match="3 rows of 2 columns each"):
        layout.undo(array[:, :1])
    with pytest.raises(ShapeError, match="samples and columns"):
        flatten(np.zeros(3))
    with pytest.raises(ShapeError, match="something to be scaled"):
        flatten(np.zeros((3, 0)))


def test_layout_is_a_value():
    layout = Flattening((2, 3), (0, 2))
    assert decode(json.loads(json.dumps(encode(layout)))) == layout
    assert layout != Flattening((2, 3), (0, 1))
    assert repr(layout) == "Flattening(shape=(2, 3), merged_axes=(0, 2))"
    with pytest.raises(AttributeError):
        layout.shape = (1,)
    assert len({layout, Flattening((2, 3), (0, 2))}) == 1
