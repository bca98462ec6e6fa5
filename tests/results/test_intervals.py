"""Prediction intervals, held against sorted lists and the level that they promise."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from modularml.errors import ConfigError, DataError
from modularml.results import cv_plus, quantile_bounds, quantile_conformal, split_conformal
from modularml.results import prediction_intervals as module
from modularml.results.prediction_intervals import check_level, per_group, residuals_of

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("level", [0.5, 0.7, 0.8, 0.9, 0.95, 0.99, np.float32(0.9)])
def test_the_number_of_rows_that_is_needed_is_exact(level):
    share = Fraction(repr(float(level)))
    n = math.ceil(share / (1 - share))
    center = np.zeros((1, 1))
    residuals = np.arange(1.0, n + 1)[:, None]
    low, high = split_conformal(center, residuals, level)
    assert high.item() == -low.item() == n  # all are needed
    with pytest.raises(ConfigError, match=f"at least {n} calibration rows, and there are {n - 1};"):
        split_conformal(center, residuals[1:], level)


@pytest.mark.parametrize(("n", "rank"), [(9, 9), (10, 10), (19, 18), (20, 19), (99, 90)])
def test_split_conformal_takes_the_residual_of_the_right_rank(n, rank):
    residuals = RNG.normal(size=(n, 2))
    center = RNG.normal(size=(5, 2))
    low, high = split_conformal(center, residuals, 0.9)
    width = np.sort(np.abs(residuals), axis=0)[rank - 1]
    np.testing.assert_array_equal(low, center - width)
    np.testing.assert_array_equal(high, center + width)


def test_split_conformal_covers_exactly_as_often_as_the_ranks_say():
    hits = []
    for _ in range(4000):
        draws = np.random.default_rng(len(hits)).standard_cauchy(40)
        low, high = split_conformal(np.zeros((1, 1)), draws[1:, None], 0.9)
        hits.append(low.item() <= draws[0] <= high.item())
    assert np.mean(hits) == pytest.approx(36 / 40, abs=0.015)


@pytest.mark.parametrize(("cells", "steps"), [(1, 64), (50, 64), (10**6, 64), (1, 0)])
def test_cv_plus_is_a_loop_over_calibration_rows(cells, steps, monkeypatch):
    monkeypatch.setattr(module, "_CELLS", cells)
    monkeypatch.setattr(module, "_STEPS", steps)  # 0 bisects
    members, residuals = RNG.normal(size=(4, 7, 2)), RNG.normal(size=(30, 2))
    held_out = RNG.random((30, 4)) < 0.4
    held_out[~held_out.any(axis=1), 0] = True
    low, high = cv_plus(members, residuals, held_out, 0.8)
    for i in range(7):
        for k in range(2):
            centers = [members[h, i, k].mean() for h in held_out]
            ups = sorted(c + abs(r) for c, r in zip(centers, residuals[:, k], strict=True))
            downs = sorted(c - abs(r) for c, r in zip(centers, residuals[:, k], strict=True))
            assert high[i, k] == pytest.approx(ups[math.ceil(0.8 * 31) - 1])
            assert low[i, k] == pytest.approx(downs[math.floor(0.2 * 31 + 1e-9) - 1])


@pytest.mark.parametrize("offset", [0.0, 1e9, -1e-9])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.999])
def test_bisection_finds_the_same_bounds(offset, level, monkeypatch):
    members = RNG.normal(size=(5, 40, 1)) + offset
    residuals = np.round(RNG.normal(size=(2000, 1)), 2)  # with ties
    held_out = np.eye(5, dtype=bool)[RNG.integers(5, size=2000)]
    quick = cv_plus(members, residuals, held_out, level)
    monkeypatch.setattr(module, "_STEPS", 10**9)
    whole = cv_plus(members, residuals, held_out, level)
    np.testing.assert_allclose(quick, whole, rtol=1e-14, atol=1e-14)
    members[0, 3], members[1, 4] = np.nan, np.inf
    for steps in (10**9, 64):  # no number gives no bounds, and no search without an end
        monkeypatch.setattr(module, "_STEPS", steps)
        for odd, before in zip(cv_plus(members, residuals, held_out, level), quick, strict=True):
            assert np.isnan(odd[3:5]).all()
            np.testing.assert_allclose(odd[5:], before[5:], rtol=1e-14, atol=1e-14)
    empty = cv_plus(members[:, :0], residuals, held_out, level)
    assert empty[0].shape == empty[1].shape == (0, 1)


def test_quantiles_hold_a_further_member_as_often_as_they_say():
    draws = np.random.default_rng(1).normal(size=(40, 5000, 1))
    low, high = quantile_bounds(draws[1:], 0.9)
    assert ((low <= draws[0]) & (draws[0] <= high)).mean() == pytest.approx(0.9, abs=0.015)
    np.testing.assert_array_equal(high, np.sort(draws[1:], axis=0)[37])
    with pytest.raises(ConfigError, match="at least 39 members, and there are 38"):
        quantile_bounds(draws[2:], 0.95)


def test_quantiles_are_narrowed_too_and_never_cross():
    bounds = np.full((3, 1), -10.0), np.full((3, 1), 10.0)
    known = np.full((19, 1), -10.0), np.full((19, 1), 10.0)
    targets = np.linspace(-4, 4, 19)[:, None]
    low, high = quantile_conformal(bounds, targets, known, 0.9)
    np.testing.assert_allclose(high, np.sort(np.abs(targets), axis=0)[17].item())
    np.testing.assert_array_equal(low, -high)
    narrow = np.full((3, 1), -1.0), np.full((3, 1), 1.0)
    low, high = quantile_conformal(narrow, targets, known, 0.9)
    np.testing.assert_array_equal(low, high)


def test_groups_have_bounds_of_their_own_and_small_ones_are_named():
    groups, known = np.array(["a", "b", "a"]), np.array(["b"] * 9 + ["a"] * 20)
    residuals = np.r_[np.full(9, 5.0), np.full(20, 1.0)][:, None]
    center = np.zeros((3, 1))

    def bounds_of(these, those):
        return split_conformal(center[these], residuals[those], 0.9)

    low, high = per_group(groups, known, bounds_of, center.shape)
    assert high.ravel().tolist() == [1, 5, 1]
    assert low.ravel().tolist() == [-1, -5, -1]
    with pytest.raises(ConfigError, match=r"group c: .* at least 9 .* there are 0"):
        per_group(np.array(["a", "c", "a"]), known, bounds_of, center.shape)


@pytest.mark.parametrize("level", [0, 1, 90, -0.1, float("nan"), True, None, "0.9"])
def test_levels_that_are_no_share_are_refused(level):
    with pytest.raises(ConfigError, match="between 0 and 1, exclusive"):
        check_level(level)


def test_targets_that_cannot_be_compared_are_refused():
    numbers = np.zeros((4, 1))
    with pytest.raises(DataError, match="numeric targets"):
        residuals_of(np.array([["a"]] * 4), numbers, "net")
    with pytest.raises(DataError, match=r"shape \(3,\) for targets of shape \(1,\)"):
        residuals_of(numbers, np.zeros((4, 3)), "net")
    with pytest.raises(DataError, match=r"1 of 4 calibration rows .* \(the first at row 2"):
        residuals_of(np.array([[0], [1], [np.nan], [2]]), numbers, "net")
    found = residuals_of(np.array([1, 2, 3, 4]), numbers, "net")
    np.testing.assert_array_equal(found, [[1], [2], [3], [4]])
