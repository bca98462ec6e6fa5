"""Scores over all rows and by group, without padding, of replicates as one row."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import pandas as pd

from modularml._typing import Array
from modularml._warning import warn
from modularml.data.execution_context import ExecutionContext
from modularml.errors import ConfigError, DataError, ShapeError
from modularml.results.scores import Score, squeezed


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
    codes, labels = pd.factorize(groups, sort=True, use_na_sentinel=False)
    for i, label in enumerate(labels):
        yield label.item() if hasattr(label, "item") else label, codes == i


def lacks_target(true: Array, mask: Array | None) -> Array:
    """Return which rows have a missing target, apart from padding."""
    if true.dtype.kind not in "fOmM":
        return np.zeros(len(true), dtype=bool)
    missing: Any = pd.isna(true) if mask is None else pd.isna(true) & mask
    return np.asarray(missing.reshape(len(true), -1).any(axis=1))


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


def target_steps(
    steps: list[ExecutionContext], node_id: str, role: str = "default"
) -> Array | None:
    """Return the mask of a node's padded targets, for all steps concatenated.

    Returns
    -------
    ndarray of bool, shape (n, n_columns, *shape), or None
        True for data, False for padding; None if the targets are not padded.
    """
    all_masks = [step.held(step.compared_with(node_id), role) for step in steps]
    masks = [mask for mask in all_masks if mask is not None]
    return np.concatenate(masks) if masks else None


def real_steps(true: Array, out: Array, holds: Array) -> tuple[Array, Array]:
    """Return targets and outputs without padding, one sequence step per row.

    Parameters
    ----------
    true : ndarray, shape (n, n_columns, *shape)
        Padded targets.
    out : ndarray, shape (n, ...)
        Shaped as the targets, up to axes of length 1, or with an additional class axis before or
        after the others.
    holds : ndarray of bool, shape of `true`

    Returns
    -------
    ndarray, shape (n_steps,), and ndarray, shape (n_steps,) or (n_steps, n_classes)
        Both of shape (n_steps, n_columns) if several columns share one mask.

    Raises
    ------
    ShapeError
        If outputs do not have the steps of the targets.
    """
    shape = true.shape
    if true.ndim > 2 and shape[1] > 1 and out.shape == shape and (holds == holds[:, :1]).all():
        true, out = (np.moveaxis(values, 1, -1)[holds[:, 0]] for values in (true, out))
        return true, out
    true, holds, flat = map(squeezed, (true, holds, out))
    if flat.shape == true.shape:
        return true[holds], flat[holds]
    if flat.ndim == true.ndim + 1 and flat.shape[:-1] == true.shape:
        return true[holds], flat[holds]
    if flat.ndim == true.ndim + 1 and (len(flat), *flat.shape[2:]) == true.shape:
        return true[holds], np.moveaxis(flat, 1, -1)[holds]
    raise ShapeError(
        f"targets are padded, of shape {shape}, but outputs of shape {out.shape} do not have "
        "these steps, so padding cannot be removed; let the node output a value for each step, or "
        "compare it with one number per sample (ModelNode(targets=))"
    )


def blanked(values: Array, holds: Array | None) -> Array:
    """Return values with NaN in place of padding; unchanged if shapes differ."""
    if holds is None or values.size != holds.size or values.dtype.kind not in "biuf":
        return values
    floats = values if values.dtype.kind == "f" else values.astype(np.float64)
    return np.where(holds.reshape(values.shape), floats, np.nan).astype(floats.dtype)


Reduce: TypeAlias = Literal["mean", "median", "min", "max"]


class Replicates(NamedTuple):
    """A column whose equal values are replicates of one sample.

    Parameters
    ----------
    name : str
    values : ndarray, shape (n,)
    reduce : {'mean', 'median', 'min', 'max'}
    """

    name: str
    values: Array
    reduce: Reduce


def check_reduce(reduce: str, per: str | None) -> None:
    """Refuse an unknown reduction, and one without a column of samples."""
    if reduce not in get_args(Reduce):
        raise ConfigError(f"reduce must be one of {get_args(Reduce)}, got {reduce!r}")
    if per is None and reduce != "mean":
        raise ConfigError(f"reduce={reduce!r} applies to replicates; pass per= too")


def aggregated(
    replicates: Replicates,
    true: Array,
    out: Array,
    has_target: Array,
    groups: Array | None,
) -> tuple[Array, Array, Array, Array | None]:
    """Reduce targets and outputs of each sample to one row, in the order of the values.

    Rows without a target are left out of their sample. Numbers with fractions are reduced; other
    targets must be equal within a sample.

    Parameters
    ----------
    replicates : Replicates
    true, out : ndarray, shape (n, ...)
    has_target : ndarray of bool, shape (n,)
    groups : ndarray, shape (n,), optional
        Must be equal within a sample.

    Returns
    -------
    tuple of ndarray
        Targets, outputs, whether a sample has a target, and groups, one row per sample.

    Raises
    ------
    DataError
        If a target of classes or a group differs within a sample, or a row belongs to none.
    ConfigError
        If outputs are not numbers with fractions, or samples are not single values.
    """
    name, values, reduce = replicates
    if values.ndim != 1:
        raise ConfigError(
            f"per must name a column of one value per row, but {name!r} has values of shape "
            f"{values.shape[1:]}"
        )
    if out.dtype.kind != "f":
        raise ConfigError(
            f"outputs of {out.dtype} cannot be averaged over replicates (per={name!r}); score "
            "probabilities (output_method='predict_proba') or numbers"
        )
    codes = pd.factorize(values, sort=True)[0]
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        raise DataError(f"row {row} has no value of {name!r}, so its sample is unknown (per=)")
    rows = [np.flatnonzero(codes == code) for code in range(codes.max(initial=-1) + 1)]
    scored = [part[has_target[part]] if has_target[part].any() else part for part in rows]
    known = np.array([has_target[part].any() for part in rows], dtype=bool)
    function: Callable[..., Any] = getattr(np, reduce)
    outputs = _reduced(out, scored, function)
    if true.dtype.kind == "f":
        targets = _reduced(true, scored, function)
    else:
        targets = _constant(true, scored, "targets", name)
    of_samples = None if groups is None else _constant(groups, rows, "group_by", name)
    return targets, outputs, known, of_samples


def _reduced(values: Array, rows: list[Array], function: Callable[..., Any]) -> Array:
    wide = values.astype(np.float64)
    return np.stack([np.asarray(function(wide[part], axis=0)) for part in rows])


def _constant(values: Array, rows: list[Array], what: str, per: str) -> Array:
    """Return the value of each sample; refuse one that differs within it."""
    for part in rows:
        own = values[part]
        if (own != own[:1]).any() and len({str(v) for v in own.reshape(len(own), -1).tolist()}) > 1:
            raise DataError(
                f"{what} differ within a sample of {per!r}, as in rows {part[:5].tolist()}; they "
                "must be equal for replicates"
            )
    return np.asarray(values[[part[0] for part in rows]])
