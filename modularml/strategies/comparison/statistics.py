"""Paired tests of cross-validations on the same folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml._warning import warn
from modularml.errors import ConfigError, UnknownNameError
from modularml.strategies.comparison.run_facts import facts_of, full_name, row_key
from modularml.strategies.cv_results import CVResults

if TYPE_CHECKING:
    import pandas as pd


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


@dataclass(frozen=True)
class FoldScores:
    """Scores of one metric by fold.

    Parameters
    ----------
    metric : str
        Full name of the metric, such as ``val.rmse``.
    values : dict
        Score by label of the fold.
    rows : dict
        What identifies the rows of each side, by label of the fold.
    scored : dict
        What identifies the rows that the metric was computed on, by label of the fold; None if
        unknown.
    ratio : float
        Mean number of held-out rows per row trained on.
    """

    metric: str
    values: dict[str, float]
    rows: dict[str, Any]
    scored: dict[str, Any]
    ratio: float


def _fold_scores(name: str, cv: CVResults, metric: str) -> FoldScores:
    """Return the scores of a metric that was logged, or is computed on held-out rows."""
    frame: Any = cv.to_pandas()
    column = full_name(metric, list(frame), optional=True)
    if column is None:
        try:
            frame = cv.to_pandas(metrics=[metric])
        except UnknownNameError:
            raise UnknownNameError(f"metric of {name!r}", metric, list(frame)) from None
        column = next(str(c) for c in frame if str(c).endswith(f".{metric}"))
    values = {str(fold): float(value) for fold, value in frame[column].items()}
    experiment = next(iter(cv._experiments.values()))  # folds share their rows
    rows, scored = {}, {}
    for label in cv.fold_labels:
        keys = set()
        for name_of_set, side in cv.sides(label).items():
            fs: Any = experiment.ctx.get_node(name_of_set, enforce_type="FeatureSet")
            trained = side.train if side.stop is None else np.concatenate([side.train, side.stop])
            keys.add((row_key(fs.collection, side.val), row_key(fs.collection, trained)))
        rows[label] = frozenset(keys)
    for label in values:
        facts = list(facts_of(cv.get_experiment(label)).values())[-1]
        scored[label] = facts.rows_of(str(column))
    sides = [side for label in values for side in cv.sides(label).values()]
    ratio = float(np.mean([len(side.val) / len(side.train) for side in sides]))
    return FoldScores(str(column), values, rows, scored, ratio)


def _common_folds(scores: Mapping[str, FoldScores]) -> list[str]:
    """Return the folds that all have scores for, at least 2; warn of others."""
    every = list(dict.fromkeys(label for s in scores.values() for label in s.rows))
    common = [label for label in every if all(label in s.values for s in scores.values())]
    if len(common) < 2:
        raise ConfigError(
            f"{list(scores)} have {len(common)} folds in common, and a test needs at least 2; run "
            "them with the same folds"
        )
    for name, s in scores.items():
        if bad := [label for label in common if not np.isfinite(s.values[label])]:
            raise ConfigError(
                f"{s.metric!r} of {name!r} is {s.values[bad[0]]} in {bad[0]}; a test needs finite "
                "scores of all folds"
            )
    if others := [label for label in every if label not in common]:
        warn(f"{others} are left out of the test, as some of {list(scores)} have no score for them")
    return common


def test_table(
    cvs: Mapping[str, CVResults], metric: str, base: str, *, level: float
) -> pd.DataFrame:
    """Return one row for each cross-validation but one; see `ExperimentCollection.test`."""
    scores = {name: _fold_scores(name, cv, metric) for name, cv in cvs.items()}
    if chosen := [name for name, cv in cvs.items() if cv.selected_on_scored_rows]:
        warn(
            f"{chosen} selected an epoch or a learning rate on the rows that are scored, so "
            "their scores are too optimistic and the test favours them; cross-validate with "
            "CVBinding(stop_size=0.15)"
        )
    baseline = scores[base]
    for name, s in scores.items():
        for label in s.rows:
            if label in baseline.rows and s.rows[label] != baseline.rows[label]:
                raise ConfigError(
                    f"{name!r} and {base!r} cannot be tested against each other, as {label} holds "
                    "other rows; run both cross-validations with the same data, bindings, n_folds, "
                    "n_repeats and seed"
                )
            known = s.scored.get(label), baseline.scored.get(label)
            if None not in known and known[0] != known[1]:
                raise ConfigError(
                    f"{s.metric!r} of {name!r} and {baseline.metric!r} of {base!r} were computed "
                    f"on different rows of {label}; choose a metric of the same rows, or a name "
                    "such as 'rmse', which is computed on the held-out rows"
                )
    folds = _common_folds(scores)
    rows = {}
    for name, s in scores.items():
        if name == base:
            continue
        one, other = (np.array([x.values[f] for f in folds]) for x in (s, baseline))
        result = resampled_t_test(one, other, ratio=s.ratio, level=level)
        rows[name] = {"mean": one.mean(), "baseline": other.mean(), **result._asdict()}
        if np.isnan(result.p):
            warn(
                f"{s.metric!r} of {name!r} and {base!r} differs by {result.difference:g} in "
                "every fold, so there is no variance to test with: p is NaN"
            )
    frame: pd.DataFrame = require("pandas").DataFrame.from_dict(rows, orient="index")
    frame["p_holm"], frame["n_folds"] = holm(frame["p"].tolist()), len(folds)
    return frame.rename_axis("run")
