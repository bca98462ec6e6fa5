"""The corrected resampled t-test of scores on common folds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml.errors import ConfigError

__all__ = ["ResampledTest", "holm", "resampled_t_test"]


class ResampledTest(NamedTuple):
    """Result of `resampled_t_test`.

    Parameters
    ----------
    difference : float
        Mean over folds of score minus baseline, in the unit of the score.
    low, high : float
        Confidence interval of the difference.
    effect : float
        The difference in standard deviations of the differences.
    t, p : float
        Statistic and two-sided p-value; NaN if the differences of all folds are equal.
    df : int
        Degrees of freedom.
    """

    difference: float
    low: float
    high: float
    effect: float
    t: float
    df: int
    p: float


def resampled_t_test(
    scores: Array, baseline: Array, *, ratio: float, level: float = 0.95
) -> ResampledTest:
    """Compare two models by their scores on the same folds.

    Parameters
    ----------
    scores, baseline : ndarray, shape (n_folds,)
        Scores of the same folds, in the same order; at least 2, without NaN.
    ratio : float
        Held-out rows of a fold per row trained on.
    level : float
        Confidence level of the interval, above 0 and below 1.

    Returns
    -------
    ResampledTest

    Raises
    ------
    ConfigError
        If there are fewer than 2 folds, a score is not finite, or an argument is out of range.

    Notes
    -----
    Folds share training rows, so differences are correlated, and Student's test finds differences
    too often. Its variance ``s² / n`` becomes ``s² (1 / n + ratio)`` (Nadeau & Bengio 2003,
    *Inference for the generalization error*, Machine Learning 52, equation 16).

    Examples
    --------
    >>> import numpy as np
    >>> test = resampled_t_test(np.array([3.0, 4.0, 5.0]), np.array([2.0, 2.0, 2.0]), ratio=0.5)
    >>> test.difference, round(test.t, 4), test.df
    (2.0, 2.1909, 2)
    """
    if not 0 < level < 1:
        raise ConfigError(f"level must be between 0 and 1, exclusive, got {level!r}")
    if not ratio > 0:
        raise ConfigError(f"ratio must be positive (held-out rows per training row), got {ratio!r}")
    differences = np.asarray(scores, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    n = len(differences)
    if n < 2 or not np.isfinite(differences).all():
        raise ConfigError(f"the test needs finite scores of at least 2 folds, got {differences}")
    mean, std = float(differences.mean()), float(differences.std(ddof=1))
    if np.ptp(differences) == 0:
        return ResampledTest(mean, mean, mean, float("nan"), float("nan"), n - 1, float("nan"))
    error = std * float(np.sqrt(1 / n + ratio))
    special = require("scipy.special")
    t = mean / error
    width = float(special.stdtrit(n - 1, (1 + level) / 2)) * error
    p = 2 * float(special.stdtr(n - 1, -abs(t)))
    return ResampledTest(mean, mean - width, mean + width, mean / std, t, n - 1, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several comparisons; NaN stays NaN and counts as no comparison.

    The chance that any true null hypothesis is rejected stays below the level (Holm 1979, *A simple
    sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 6).

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return [float(value) for value in adjusted]
