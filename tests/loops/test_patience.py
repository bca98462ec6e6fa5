"""The arithmetic of early stopping, against a rule written the long way round."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularml.errors import ConfigError
from modularml.loop import Patience


def spent_at(values, mode, allowed, min_delta):
    """The place after which to stop, or None: the best is sought anew at each step."""
    sign = 1 if mode == "min" else -1
    last_best, best = -1, math.inf
    for place, value in enumerate(values):
        if not math.isnan(value) and (last_best < 0 or best - sign * value > min_delta):
            last_best, best = place, sign * value
        if place - last_best >= max(1, allowed):
            return place
    return None


VALUES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, math.nan]), max_size=12)


@given(VALUES, st.sampled_from(["min", "max"]), st.integers(0, 4), st.sampled_from([0.0, 0.5]))
def test_stops_after_so_many_values_without_improvement(values, mode, allowed, min_delta):
    watch = Patience(mode, allowed, min_delta)
    stopped = None
    for place, value in enumerate(values):
        watch.update(value, place)
        if watch.is_spent:
            stopped = place
            break
    assert stopped == spent_at(values, mode, allowed, min_delta)


def test_nan_is_never_the_best():
    watch = Patience("min", 3)
    assert not watch.update(math.nan, 0)
    assert watch.best is None
    assert watch.update(5.0, 1)
    assert not watch.update(math.nan, 2)
    assert (watch.best, watch.best_epoch, watch.waited) == (5.0, 1, 1)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("least", 1, 0.0), "mode must be one of 'min', 'max'"),
        (("min", -1, 0.0), "patience must be at least 0"),
        (("min", 1.5, 0.0), "patience must be an int, got 1.5"),
        (("min", 1, -0.1), "min_delta must be at least 0"),
        (("min", 1, math.nan), "min_delta must be at least 0"),
    ],
)
def test_bad_arguments(args, said):
    with pytest.raises(ConfigError, match=said):
        Patience(*args)
