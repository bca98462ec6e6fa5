"""What a condition calls similar, and what a pair weighs."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import modularml as mm
from modularml.config import decode, encode
from modularml.errors import ConfigError


def relative(a, b):
    return abs(a - b) / max(abs(a), abs(b), 1e-9)


@pytest.mark.parametrize(
    ("kwargs", "diff", "wanted"),
    [
        ({}, 0.0, 1.0),
        ({}, 0.1, 0.0),
        ({"tolerance": 0.5}, 0.5, 1.0),
        ({"tolerance": 0.5, "allow_fallback": True}, 0.6, 0.1),
        ({"tolerance": 0.5, "mode": "dissimilar"}, 0.5, 0.0),
        ({"tolerance": 0.5, "mode": "dissimilar"}, 0.6, 1.0),
        ({"tolerance": 0.5, "weight_mode": "linear", "max_weight": 9.0}, 0.125, 4.0),
        ({"tolerance": 0.5, "weight_mode": "linear", "max_weight": 9.0}, 0.0, 9.0),
        ({"tolerance": 0.5, "weight_mode": "linear", "allow_fallback": True}, 1.0, 0.5),
        (
            {"tolerance": 0.5, "weight_mode": "linear", "allow_fallback": True, "min_weight": 0.2},
            50.0,
            0.2,
        ),
        ({"tolerance": 0.5, "weight_mode": "exp", "max_weight": 9.0}, 0.25, math.exp(0.5)),
        ({"tolerance": 0.5, "weight_mode": "exp", "max_weight": 1.5}, 0.0, 1.5),
        ({"tolerance": 0.5, "weight_mode": "exp", "allow_fallback": True}, 1.0, math.exp(-1)),
        (
            {"tolerance": 0.5, "weight_mode": "linear", "max_weight": 9, "mode": "dissimilar"},
            2.0,
            4.0,
        ),
        (
            {"tolerance": 0.5, "weight_mode": "exp", "max_weight": 9, "mode": "dissimilar"},
            1.0,
            math.exp(1),
        ),
    ],
    ids=str,
)
def test_weights_by_hand(kwargs, diff, wanted):
    assert mm.SimilarityCondition(**kwargs).score(0.0, diff) == pytest.approx(wanted)


@given(
    st.sampled_from(["similar", "dissimilar"]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from(["binary", "linear", "exp"]),
    st.floats(1, 10),
    st.floats(0, 0.99),
    st.booleans(),
    st.floats(-5, 5) | st.just(float("nan")),
)
def test_a_match_weighs_at_least_1_and_all_else_less(mode, tol, weight, high, low, fallback, value):
    c = mm.SimilarityCondition(mode, tol, None, weight, high, low, fallback)
    match = abs(value) <= tol if mode == "similar" else abs(value) > tol
    score = c.score(0.0, value)
    if match:
        assert 1 <= score <= high
    elif fallback:
        assert (0.1 if weight == "binary" else low) <= score < 1
    else:
        assert score == 0


def test_arrays_texts_and_metrics():
    assert mm.SimilarityCondition(tolerance=5.0).score([0.0, 0.0], [3.0, 4.0]) == 1
    assert mm.SimilarityCondition(tolerance=4.9).score([0.0, 0.0], [3.0, 4.0]) == 0
    assert mm.SimilarityCondition(tolerance=99.0).score("a", "b") == 0
    assert mm.SimilarityCondition("dissimilar").score("a", "b") == 1
    near = mm.SimilarityCondition(tolerance=0.1, metric=relative)
    assert [near.score(100, 109), near.score(1, 2)] == [1, 0]
    values = np.linspace(1, 2, 50)
    one_by_one = [relative(a, b) for a, b in zip(values, values[::-1], strict=True)]
    np.testing.assert_array_equal(near.distances(values, values[::-1]), one_by_one)


def test_config_round_trip():
    c = mm.SimilarityCondition("dissimilar", 0.5, relative, "exp", max_weight=2.0)
    again = decode(json.loads(json.dumps(encode(c))))
    assert again == c
    assert mm.SimilarityCondition.from_config(c.get_config()) == c
    assert repr(mm.SimilarityCondition(tolerance=1.0)) == "SimilarityCondition(tolerance=1.0)"


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "equal"},
        {"tolerance": -1},
        {"tolerance": float("nan")},
        {"metric": "l2"},
        {"weight_mode": "uniform"},
        {"max_weight": 0.5},
        {"min_weight": 1.0},
        {"allow_fallback": "yes"},
    ],
    ids=str,
)
def test_wrong_arguments(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        mm.SimilarityCondition(**wrong)
