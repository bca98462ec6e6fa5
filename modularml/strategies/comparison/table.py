"""The table that compares runs, and a paired test that accounts for folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml._warning import warn
from modularml.engine.monitoring import direction
from modularml.errors import ConfigError
from modularml.strategies.comparison.run_facts import RunFacts

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ResampledTest",
    "comparison_table",
    "greater_is_better",
    "holm",
    "metric_names",
    "resampled_t_test",
    "warn_of_other_rows",
]


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


def comparison_table(facts: Mapping[str, RunFacts], *, differences_only: bool) -> pd.DataFrame:
    """Return one row per run; see `ExperimentCollection.compare`."""
    rows = []
    for f in facts.values():
        row = {f"config.{path}": value for path, value in f.config.items()}
        row |= {f"data.{label}": print_ for label, print_ in f.fingerprints.items()}
        row |= {f"rows.{label}{f'.{s}' if s else ''}": n for (label, s), n in f.sizes.items()}
        rows.append(row)
    paths = list(dict.fromkeys(path for row in rows for path in row))
    if differences_only:
        paths = _different(rows, paths)
    for row, f in zip(rows, facts.values(), strict=True):
        for name, value in f.metrics.items():
            row[name] = value
            if name in f.spread:
                row[f"{name}_std"] = f.spread[name]
        row |= {"n_members": f.n_members, "seconds": f.seconds, "status": f.status}
    metrics = metric_names(facts)
    spreads = {f"{name}_std" for f in facts.values() for name in f.spread}
    columns = [c for name in metrics for c in (name, f"{name}_std") if c in {*metrics, *spreads}]
    members = ["n_members"] if any(f.n_members for f in facts.values()) else []
    frame: pd.DataFrame = require("pandas").DataFrame(
        rows, index=list(facts), columns=[*paths, *columns, *members, "seconds", "status"]
    )
    return frame.rename_axis("run")


def _different(rows: Sequence[Mapping[str, Any]], paths: Sequence[str]) -> list[str]:
    """Return the paths whose values differ; of a part that some runs lack, only the part."""
    absent = object()
    differing = [p for p in paths if len({_hashable(row.get(p, absent)) for row in rows}) > 1]
    having = {p: tuple(p in row for row in rows) for p in differing}
    kept: list[str] = []
    for path in differing:
        parts = path.split(".")
        above = (".".join(parts[:i]) for i in range(1, len(parts)))
        if all(having[path]) or not any(having.get(part) == having[path] for part in above):
            kept.append(path)
    return kept


def _hashable(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else repr(value)


def metric_names(facts: Mapping[str, RunFacts]) -> list[str]:
    """Return the names of all metrics."""
    return list(dict.fromkeys(name for f in facts.values() for name in f.metrics))


def greater_is_better(metric: str, mode: str | None) -> bool:
    """Return whether greater values of a metric are better, by `mode` or its name."""
    if mode not in (None, "min", "max"):
        raise ConfigError(f"mode must be 'min', 'max' or None, got {mode!r}")
    known = direction(metric.rpartition(".")[2], ()) if mode is None else mode == "max"
    if known is None:
        raise ConfigError(
            f"it is unknown whether greater values of {metric!r} are better; pass mode='min' or "
            "'max'"
        )
    return known


def warn_of_other_rows(facts: Mapping[str, RunFacts], metrics: Sequence[str] = ()) -> None:
    """Warn of metrics that were computed on other rows in some runs.

    By default of all but the losses of training, which may have other rows.
    """
    others: dict[tuple[str, str], list[str]] = {}
    evaluated = [name for name in metric_names(facts) if not name.endswith(".train_loss")]
    for metric in metrics or evaluated:
        rows = {n: f.rows_of(metric) for n, f in facts.items() if metric in f.metrics}
        known = {name: keys for name, keys in rows.items() if keys is not None}
        for one, other in combinations(known, 2):
            if known[one] != known[other]:
                others.setdefault((one, other), []).append(metric)
                break
    for (one, other), names in others.items():
        warn(
            f"{names} of {one!r} and {other!r} were computed on different rows, so their values do "
            "not compare the models; evaluate(data) scores all on the same rows"
        )
