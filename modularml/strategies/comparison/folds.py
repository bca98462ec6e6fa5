"""Scores of cross-validations on common folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modularml._warning import warn
from modularml.errors import ConfigError, UnknownNameError
from modularml.strategies.comparison.run_facts import facts_of_experiment, row_key
from modularml.strategies.folds.cv_results import CVResults

__all__ = ["FoldScores", "check_folds", "common_folds", "fold_scores", "full_name"]


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


def fold_scores(name: str, cv: CVResults, metric: str) -> FoldScores:
    """Return the scores of a metric that was logged, or is computed on held-out rows.

    Raises
    ------
    UnknownNameError
        If it is neither.
    """
    frame: Any = cv.to_pandas()
    column = full_name(metric, list(frame), optional=True)
    if column is None:
        try:
            frame = cv.to_pandas(metrics=[metric])
        except UnknownNameError:
            raise UnknownNameError(f"metric of {name!r}", metric, list(frame)) from None
        column = next(str(c) for c in frame if str(c).endswith(f".{metric}"))
    values = {str(fold): float(value) for fold, value in frame[column].items()}
    rows = {label: _sides(cv, label) for label in cv.fold_labels}
    scored = {}
    for label in values:
        facts = list(facts_of_experiment(cv.get_experiment(label)).values())[-1]
        scored[label] = facts.rows_of(str(column))
    sides = [side for label in values for side in cv.sides(label).values()]
    ratio = float(np.mean([len(side.val) / len(side.train) for side in sides]))
    return FoldScores(str(column), values, rows, scored, ratio)


def full_name(metric: str, columns: list[Any], *, optional: bool = False) -> str | None:
    """Return the only column of a metric, by its full name or without its phase.

    Raises
    ------
    UnknownNameError
        If there is none, unless `optional`.
    ConfigError
        If several phases logged it.
    """
    matching = [c for c in columns if c == metric] or [
        c for c in columns if str(c).endswith(f".{metric}")
    ]
    if len(matching) > 1:
        raise ConfigError(f"metric {metric!r} may be any of {matching}; pass its full name")
    if not matching and not optional:
        raise UnknownNameError("metric", metric, columns)
    return str(matching[0]) if matching else None


def _sides(cv: CVResults, label: str) -> Any:
    """Return what identifies the rows on both sides of a fold."""
    keys = set()
    experiment = next(iter(cv._experiments.values()))  # folds share their rows
    for name, side in cv.sides(label).items():
        fs: Any = experiment.ctx.get_node(name, enforce_type="FeatureSet")
        collection = fs.collection
        trained = side.train if side.stop is None else np.concatenate([side.train, side.stop])
        keys.add((row_key(collection, side.val), row_key(collection, trained)))
    return frozenset(keys)


def check_folds(name: str, scores: FoldScores, base: str, baseline: FoldScores) -> None:
    """Refuse cross-validations whose folds, or whose scored rows, differ.

    Raises
    ------
    ConfigError
        With the first fold that differs.
    """
    for label in scores.rows:
        if label in baseline.rows and scores.rows[label] != baseline.rows[label]:
            raise ConfigError(
                f"{name!r} and {base!r} cannot be tested against each other, as {label} holds "
                "other rows; run both cross-validations with the same data, bindings, n_folds, "
                "n_repeats and seed"
            )
        known = scores.scored.get(label), baseline.scored.get(label)
        if None not in known and known[0] != known[1]:
            raise ConfigError(
                f"{scores.metric!r} of {name!r} and {baseline.metric!r} of {base!r} were computed "
                f"on different rows of {label}; choose a metric of the same rows, or a name such "
                "as 'rmse', which is computed on the held-out rows"
            )


def common_folds(scores: Mapping[str, FoldScores]) -> list[str]:
    """Return the folds that all have scores for, at least 2; warn of others.

    Raises
    ------
    ConfigError
        If there are fewer, or a score is not finite.
    """
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
