"""Scores of targets and outputs, over all rows and by group."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml._warning import warn
from modularml.errors import ConfigError, DataError
from modularml.results.padding import real_steps
from modularml.results.replicates import Replicates, aggregated
from modularml.results.scores import Score

__all__ = [
    "ScoredGroup",
    "class_numbers",
    "lacks_target",
    "logged_scores",
    "score_groups",
    "score_or_nan",
]


class ScoredGroup(NamedTuple):
    """One score of all rows, or of the rows of one group.

    Parameters
    ----------
    score, role : str
    group : object
        None for all rows.
    value : float
        NaN if the score of a group is undefined.
    n_rows, n_missing : int
        Rows that were scored, and rows left out because a target is missing.
    """

    score: str
    role: str
    group: Any
    value: float
    n_rows: int
    n_missing: int


def score_groups(
    scores: Mapping[str, Score],
    true: Array,
    out: Array,
    *,
    mask: Array | None = None,
    groups: Array | None = None,
    group_by: str | None = None,
    role: str = "default",
    who: str = "the data",
    prepared: Callable[[Array, Array], Array] | None = None,
    replicates: Replicates | None = None,
) -> list[ScoredGroup]:
    """Score outputs against targets; rows with a missing target are left out.

    Parameters
    ----------
    scores : mapping of str to function
    true, out : ndarray, shape (n, ...)
    mask : ndarray of bool, shape of `true`, optional
        True for the steps of padded targets that are data; only these are compared.
    groups : ndarray, shape (n,), optional
        Value of the column `group_by` of each row.
    group_by, role, who : str, optional
        The column of groups and the role of the rows, as they are reported; `who` names the data.
    prepared : callable, optional
        Returns the targets to score from the known ones and their outputs, such as class numbers.
    replicates : Replicates, optional
        Rows that are brought to one before scoring; rows and groups then count samples.

    Raises
    ------
    DataError
        If every target is missing.
    """
    has_target = ~lacks_target(true, mask)
    if not has_target.any():
        raise DataError(
            f"none of the {len(true)} rows of {who} has a target; pass rows with known targets"
        )
    if replicates is not None:
        if mask is not None:
            raise ConfigError(
                f"replicates (per={replicates.name!r}) of padded targets cannot be averaged, as "
                "their steps differ; score rows without per="
            )
        true, out, has_target, groups = aggregated(replicates, true, out, has_target, groups)
    true, out = true[has_target], out[has_target]
    if prepared is not None:
        true = prepared(true, out)
    rows, undefined = [], []
    for group, members in _members(groups, group_by, len(has_target)):
        scored, n_missing = members[has_target], int(members[~has_target].sum())
        targets, outputs = true[scored], out[scored]
        n = len(targets)
        if mask is not None and n:
            targets, outputs = real_steps(targets, outputs, mask[has_target][scored])
        for name, score in scores.items():
            value, reason = score_or_nan(score, targets, outputs, required=group is None)
            rows.append(ScoredGroup(name, role, group, value, n, n_missing))
            if reason:
                undefined.append(f"{name} of {group_by}={group!r} ({reason})")
    if undefined:
        warn(f"these scores are undefined and returned as NaN: {'; '.join(undefined)}")
    return rows


def logged_scores(rows: Sequence[ScoredGroup], prefix: str = "") -> dict[str, float]:
    """Return scores by the names they are logged under: ``r2``, ``r2/anchor``, ``r2[cell_1]``."""
    has_several_roles = len({row.role for row in rows}) > 1
    logged = {}
    for row in rows:
        of_role = f"/{row.role}" if has_several_roles else ""
        of_group = "" if row.group is None else f"[{row.group}]"
        logged[f"{prefix}{row.score}{of_role}{of_group}"] = row.value
    return logged


def class_numbers(true: Array, out: Array, labels: Array | None, *, encoded: bool) -> Array:
    """Return labels as column indices of class scores; other targets unchanged.

    Parameters
    ----------
    true, out : ndarray, shape (n, ...)
    labels : ndarray or None
        The classes in the order of the score columns.
    encoded : bool
        Whether the column was encoded by `labels`.

    Raises
    ------
    DataError
        If a target is none of the labels.
    """
    width = out[0].size if len(out) else 0
    if labels is None or true.dtype.kind == "f" or out.dtype.kind not in "biuf" or width < 2:
        return true
    is_text = true.dtype.kind not in "biu"
    as_they_are = len(labels) != width or labels.tolist() == list(range(width))
    if as_they_are and not (is_text and encoded):
        return true
    number = {label: i for i, label in enumerate(labels.tolist())}
    flat = true.ravel().tolist()
    if unknown := sorted({str(label) for label in flat if label not in number}):
        raise DataError(
            f"targets hold {unknown[:3]}, but the classes are {list(number)[:10]}; leave out rows "
            "of other classes, or train with them"
        )
    return np.array([number[label] for label in flat]).reshape(true.shape)


def _members(groups: Array | None, group_by: str | None, n: int) -> Iterator[tuple[Any, Array]]:
    """Yield None with all rows, then each group with its rows, as bool of shape (n,)."""
    yield None, np.ones(n, dtype=bool)
    if groups is None:
        return
    if groups.ndim != 1:
        raise ConfigError(
            f"group_by must name a column of one value per row, but {group_by!r} has values of "
            f"shape {groups.shape[1:]}"
        )
    codes, labels = require("pandas").factorize(groups, sort=True, use_na_sentinel=False)
    for i, label in enumerate(labels):
        yield label.item() if hasattr(label, "item") else label, codes == i


def lacks_target(true: Array, mask: Array | None) -> Array:
    """Return which rows have a missing target, apart from padding."""
    if true.dtype.kind not in "fOmM":
        return np.zeros(len(true), dtype=bool)
    missing: Any = np.asarray(require("pandas").isna(true))
    if mask is not None:
        missing = missing & mask
    lacks: Array = missing.reshape(len(true), -1).any(axis=1)
    return lacks


def score_or_nan(score: Score, true: Array, out: Array, *, required: bool) -> tuple[float, str]:
    """Return a score and ""; or NaN and the reason, if it may be undefined."""
    if required:
        return score(true, out), ""
    if not len(true):
        return float("nan"), "no row has a target"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value, reason = score(true, out), ""
        except ConfigError as error:
            value, reason = float("nan"), str(error.__cause__ or error)
    messages = " ".join(str(w.message) for w in caught)
    if np.isnan(value):
        return value, reason or messages or "it is NaN"
    for w in caught:
        warn(str(w.message), w.category)
    return value, ""
