"""The five scalers of our own, held against closed forms and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler, minmax_scale
from sklearn.utils.validation import check_is_fitted

from modularml.errors import ConfigError, ScalerError, ShapeError, UnknownNameError
from modularml.scalers import (
    Absolute,
    Negate,
    NoInverseError,
    PerSampleMinMaxScaler,
    PerSampleZeroStart,
    Scaler,
    SegmentedScaler,
)
from tests.contracts.scaler import ScalerContract

tables = arrays(
    np.float64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-1e6, 1e6)
)


class TestNegate(ScalerContract):
    tolerance = 0

    def make(self):
        return Negate()


class TestAbsolute(ScalerContract):
    tolerance = 0

    def make(self):
        return Absolute


class TestPerSampleMinMax(ScalerContract):
    def make(self):
        return PerSampleMinMaxScaler(feature_range=(-1, 2))


class TestPerSampleZeroStart(ScalerContract):
    def make(self):
        return "PerSampleZeroStart"


class TestSegmented(ScalerContract):
    def make(self):
        return SegmentedScaler([0, 1, 4], "StandardScaler", {"with_mean": False})


class TestSegmentedPerSample(ScalerContract):
    def make(self):
        return SegmentedScaler((0, 3, 4), PerSampleMinMaxScaler)


class TestSegmentedSegmented(ScalerContract):
    def make(self):
        return SegmentedScaler([0, 2, 4], SegmentedScaler([0, 1, 2], "Absolute"))


class TestSegmentedWithoutInverse(ScalerContract):
    has_inverse = False

    def make(self):
        return SegmentedScaler([0, 2, 4], "Normalizer")


# --- closed forms


@given(tables)
def test_negate_and_absolute_are_exact(data):
    np.testing.assert_array_equal(Negate().fit_transform(data), -data)
    scaler = Absolute()
    scaled = scaler.fit_transform(data)
    np.testing.assert_array_equal(scaled, np.abs(data))
    back = scaler.inverse_with(scaled, scaler.row_facts(data))
    np.testing.assert_array_equal(back, data)
    np.testing.assert_array_equal(np.signbit(back), np.signbit(data))


@given(tables)
def test_zero_start(data):
    scaled = PerSampleZeroStart().fit_transform(data)
    np.testing.assert_array_equal(scaled, data - data[:, :1])
    assert (scaled[:, 0] == 0).all()


@settings(deadline=None)
@given(tables, st.sampled_from([(0, 1), (-1, 1), (2, 5)]))
def test_min_max_is_scikit_learns_on_the_transpose(data, feature_range):
    data = np.round(data, 3)
    found = PerSampleMinMaxScaler(feature_range).fit_transform(data)
    theirs = minmax_scale(data.T, feature_range).T
    span = np.ptp(data, axis=1)
    sound = span > 1e-9 * np.abs(data).max(axis=1)  # theirs multiplies first and loses digits
    np.testing.assert_allclose(found[sound], theirs[sound], atol=1e-6)
    assert (found >= feature_range[0] - 1e-9).all()
    assert (found <= feature_range[1] + 1e-9).all()


def test_constant_rows_become_the_lower_end_and_come_back():
    data = np.array([[3.0, 3.0], [0.0, 4.0]])
    scaler = PerSampleMinMaxScaler((1, 2))
    scaled = scaler.fit_transform(data)
    assert scaled.tolist() == [[1, 1], [1, 2]]
    assert scaler.inverse_with(scaled, scaler.row_facts(data)).tolist() == data.tolist()


def test_nan_stays_and_is_passed_over():
    data = np.array([[np.nan, 2.0, 6.0, 4.0], [np.nan] * 4])
    np.testing.assert_array_equal(
        PerSampleMinMaxScaler().fit_transform(data), [[np.nan, 0, 1, 0.5], [np.nan] * 4]
    )
    np.testing.assert_array_equal(
        PerSampleZeroStart().fit_transform(data), [[np.nan, 0, 4, 2], [np.nan] * 4]
    )


def test_infinity_is_named():
    data = np.array([[1.0, 2.0], [1.0, np.inf]])
    with pytest.raises(ScalerError, match="row 1, which holds infinity"):
        PerSampleMinMaxScaler().fit(data).transform(data)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_whole_numbers_become_float64(dtype):
    data = np.array([[0, 1], [1, 1]], dtype=dtype)
    found = Negate().fit_transform(data)
    assert found.dtype == np.float64
    assert found.tolist() == [[0, -1], [-1, -1]]


def test_predictions_are_undone_by_the_facts_of_their_rows():
    rows = np.array([[-2.0, 4.0], [1.0, 3.0]])
    predicted = np.array([[0.5, 0.5], [0.25, 1.5]])
    for scaler, expected in [
        (Absolute(), [[-0.5, 0.5], [0.25, 1.5]]),
        (PerSampleZeroStart(), [[-1.5, -1.5], [1.25, 2.5]]),
        (PerSampleMinMaxScaler(), [[1.0, 1.0], [1.5, 4.0]]),
    ]:
        facts = scaler.fit(rows).row_facts(rows)
        assert scaler.inverse_with(predicted, facts).tolist() == expected


@pytest.mark.parametrize(
    ("scaler", "lost"),
    [
        (Absolute(), "sign"),
        (PerSampleZeroStart(), "started"),
        (PerSampleMinMaxScaler(), "minimum and maximum"),
        (SegmentedScaler([0, 2], "absolute"), "sign"),
    ],
)
def test_plain_inverse_says_what_is_lost(scaler, lost):
    scaler.fit(np.ones((3, 2)))
    with pytest.raises(NoInverseError, match=f"no longer tells .*{lost}.*inverse_with"):
        scaler.inverse_transform(np.ones((3, 2)))


# --- segments


def test_each_segment_has_a_scaler_of_its_own():
    data = np.random.default_rng(0).normal(size=(30, 5)) * [1, 10, 100, 1000, 1]
    found = SegmentedScaler([0, 2, 5], "MinMaxScaler", {"feature_range": (0, 3)}).fit(data)
    theirs = [MinMaxScaler((0, 3)).fit_transform(part) for part in (data[:, :2], data[:, 2:])]
    np.testing.assert_array_equal(found.transform(data), np.hstack(theirs))
    np.testing.assert_allclose(found.inverse_transform(found.transform(data)), data)


def test_segments_can_be_one_position_for_all():
    """A row-wise scaler sees only its segment."""
    data = np.array([[0.0, 2.0, 100.0, 300.0]])
    found = SegmentedScaler([0, 2, 4], "PerSampleMinMaxScaler").fit_transform(data)
    assert found.tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize("boundaries", [[], [0], [1, 4], [0, 2, 2, 4], [0, 3, 2]])
def test_bad_boundaries(boundaries):
    with pytest.raises(ConfigError, match="boundaries must start at 0 and rise"):
        SegmentedScaler(boundaries, "Negate")


def test_boundaries_must_end_at_the_columns():
    scaler = SegmentedScaler([0, 2, 5], "Negate")
    with pytest.raises(ShapeError, match=r"\[0, 2, 5\] must end .* 4"):
        scaler.fit(np.ones((3, 4)))


def test_a_state_of_other_segments_is_refused():
    state = SegmentedScaler([0, 1, 2], "Negate").fit(np.ones((3, 2))).get_state()
    with pytest.raises(ShapeError, match="1 segments cannot take 2"):
        SegmentedScaler([0, 2], "Negate").set_state(state)


def test_unknown_scaler_is_named_when_made():
    with pytest.raises(UnknownNameError, match="Negate"):
        SegmentedScaler([0, 2], "Negat")


# --- scikit-learn's protocol


OWN = [
    Negate(),
    Absolute(),
    PerSampleZeroStart(),
    PerSampleMinMaxScaler((0, 2)),
    SegmentedScaler([0, 2, 3], "Negate"),
]


@pytest.mark.parametrize("scaler", OWN)
def test_scikit_learn_can_use_it(scaler):
    data = np.random.default_rng(0).normal(size=(20, 3))
    copied = clone(scaler)
    assert copied is not scaler
    assert copied == scaler
    pipeline = make_pipeline(scaler, StandardScaler()).fit(data)
    expected = StandardScaler().fit_transform(clone(scaler).fit_transform(data))
    np.testing.assert_allclose(pipeline.transform(data), expected)
    check_is_fitted(pipeline[0])


def test_parameters_can_be_set():
    scaler = PerSampleMinMaxScaler().fit(np.ones((2, 2)))
    assert scaler.get_params() == {"feature_range": (0, 1)}
    assert scaler.set_params(feature_range=(0, 5)) is scaler
    assert scaler == PerSampleMinMaxScaler((0, 5))
    assert not hasattr(scaler, "n_features_in_")
    with pytest.raises(UnknownNameError, match="feature_range"):
        scaler.set_params(feature_rang=(0, 1))
    with pytest.raises(ConfigError, match="feature_range"):
        scaler.set_params(feature_range=(2, 1))
    assert scaler.feature_range == (0, 5)


@pytest.mark.parametrize("bad", [(1, 0), (1, 1)])
def test_bad_range(bad):
    with pytest.raises(ConfigError, match="feature_range must be"):
        PerSampleMinMaxScaler(bad)


@pytest.mark.parametrize("scaler", OWN)
def test_wrapped_or_not_is_the_same(scaler):
    data = np.random.default_rng(0).normal(size=(20, 3))
    np.testing.assert_array_equal(
        Scaler(scaler).fit_transform(data), clone(scaler).fit_transform(data)
    )
