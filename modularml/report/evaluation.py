"""Scores of predictions by group, with bootstrap intervals, and their figures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.data.batch import as_numpy
from modularml.errors import ModularMLError
from modularml.graph.predict import Prediction
from modularml.report.blocks import Block, Figure, Table, decimals, shown
from modularml.report.figures import from_matplotlib
from modularml.results.eval_results import EvalResults, FitResults, output_labels
from modularml.results.padding import real_steps, target_steps
from modularml.results.scores import Score, find_scores
from modularml.results.scoring import lacks_target, score_or_nan
from modularml.viz.predictions import confusion_matrix, parity

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Compared",
    "compared_prediction",
    "compared_results",
    "intervals",
    "plots",
    "score_table",
]

N_RESAMPLES, N_RESAMPLES_SLOW = 1000, 200
FEWEST = 5  # units to resample
MOST_GROUPS, MOST_CLASSES, MOST_VALUES = 40, 40, 5_000_000


def _r2(true: Array, out: Array) -> float:
    spread = ((true - true.mean(axis=0)) ** 2).sum(axis=0)
    return float((1 - ((true - out) ** 2).sum(axis=0) / spread).mean()) if spread.all() else np.nan


_QUICK: dict[str, Score] = {
    "rmse": lambda true, out: float(np.sqrt(((true - out) ** 2).mean(axis=0)).mean()),
    "mae": lambda true, out: float(np.abs(true - out).mean()),
    "r2": _r2,
    "accuracy": lambda true, out: float((true == out).mean()),
}
"""The same as `find_score` for numbers and labels of equal shape, without checks."""


@dataclass(frozen=True)
class Compared:
    """Targets and outputs of one node, in original units, for rows with a target.

    Parameters
    ----------
    name : str
        What was evaluated, such as a phase.
    true, out : ndarray, shape (n, ...)
        Labels of classes are numbers of output columns if the outputs are scores.
    rows : ndarray of int64, shape (n,)
        The sample of each; steps of one sequence belong to one sample.
    groups : ndarray, shape (n,), or None
        Value of the column `group_by` of each.
    n_missing : int
        Samples left out because a target is missing.
    classes : bool
        Whether the targets are classes.
    labels : ndarray or None
        The classes, in the order of output columns.
    """

    name: str
    true: Array
    out: Array
    rows: IntArray
    groups: Array | None = None
    group_by: str = ""
    n_missing: int = 0
    classes: bool = False
    labels: Array | None = None

    @classmethod
    def of(
        cls,
        name: str,
        true: Array,
        out: Array,
        *,
        mask: Array | None = None,
        groups: Array | None = None,
        prepared: Callable[[Array, Array], Array] | None = None,
        **facts: Any,
    ) -> Compared:
        """Leave out rows without a target, and padding."""
        known = ~lacks_target(true, mask)
        rows = np.flatnonzero(known)
        true, out = true[known], out[known]
        groups = None if groups is None else groups[known]
        if prepared is not None and len(true):
            true = prepared(true, out)
        if mask is not None and len(true):
            mask = mask[known]
            true, out = real_steps(true, out, mask)
            counts = mask.reshape(len(mask), -1).sum(axis=1) * len(true) // mask.sum()
            rows = np.repeat(rows, counts)
            groups = None if groups is None else np.repeat(groups, counts)
        return cls(name, true, out, rows, groups, n_missing=int((~known).sum()), **facts)

    @property
    def units(self) -> Array:
        """What is resampled: groups if they are known, else samples."""
        return self.rows if self.groups is None else self.groups

    def by_group(self) -> Iterator[tuple[Any, Compared]]:
        """Yield the values of the group column and their rows, whose samples are resampled."""
        if self.groups is None:
            return
        codes, values = require("pandas").factorize(self.groups, sort=True, use_na_sentinel=False)
        for i, value in enumerate(values):
            mine = codes == i
            part = {"true": self.true[mine], "out": self.out[mine], "rows": self.rows[mine]}
            yield value, replace(self, **part, groups=None)


def intervals(
    scores: Mapping[str, Score],
    true: Array,
    out: Array,
    units: Array,
    *,
    level: float = 0.95,
    n: int = N_RESAMPLES,
) -> dict[str, tuple[float, float]]:
    """Return a bootstrap interval of each score; NaN for fewer than five units.

    Parameters
    ----------
    scores : mapping of str to callable
        Functions of targets and outputs.
    true, out : ndarray, shape (n_rows, ...)
    units : ndarray, shape (n_rows,)
        Rows with equal values are drawn together, such as the rows of one patient.
    level : float
        Above 0 and below 1.
    n : int
        Resamples; the seed is fixed.

    Notes
    -----
    Percentiles over resamples of whole units (Davison & Hinkley 1997, *Bootstrap methods and their
    application*, sections 3.8 and 5.3). Resamples whose score is undefined are left out; if more
    than a tenth is, the interval is NaN. The interval holds the uncertainty of the rows that were
    evaluated, not that of training.
    """
    codes = require("pandas").factorize(units, use_na_sentinel=False)[0]
    order = np.argsort(codes, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    alone = len(parts) == len(codes)
    rng, values = np.random.default_rng(0), {name: np.full(n, np.nan) for name in scores}
    for i in range(n if len(parts) >= FEWEST else 0):
        drawn = rng.integers(len(parts), size=len(parts))
        rows = order[drawn] if alone else np.concatenate([parts[j] for j in drawn])
        for name, score in scores.items():
            values[name][i] = score(true[rows], out[rows])
    return {name: _percentiles(found, level) for name, found in values.items()}


def _percentiles(values: Array, level: float) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if len(finite) < 0.9 * len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def score_table(compared: Compared, metrics: Any = None, level: float = 0.95) -> Table:
    """Return scores of all rows, and of each group, with intervals."""
    names = metrics if metrics is not None else _default(compared)
    scores = find_scores(names)
    groups = list(compared.by_group())
    lines = [_line("all rows", compared, scores, level)]
    lines += [_line(shown(group), part, scores, level) for group, part in groups[:MOST_GROUPS]]
    frame: pd.DataFrame = require("pandas").DataFrame(_in_text(lines))
    frame = frame.rename(columns={"rows": compared.group_by or "rows"})
    return Table.of(f"Scores of {compared.name}", frame, _note(compared, groups, level))


def _default(compared: Compared) -> list[str]:
    return ["accuracy"] if compared.classes else ["rmse", "mae", "r2"]


def _line(
    name: str, compared: Compared, scores: Mapping[str, Score], level: float
) -> dict[str, Any]:
    """Return the scores of all rows, with intervals."""
    line: dict[str, Any] = {"rows": name, "n": len(np.unique(compared.rows))}
    plain = _plain(compared)
    bounds: dict[str, tuple[float, float]] = {}
    if compared.out.size <= MOST_VALUES:
        quick = {} if plain is None else {k: _QUICK[k] for k in scores if k in _QUICK}
        slow = {k: partial(_score, score) for k, score in scores.items() if k not in quick}
        if plain is not None:
            bounds |= intervals(quick, *plain, compared.units, level=level)
        pair = compared.true, compared.out
        bounds |= intervals(slow, *pair, compared.units, level=level, n=N_RESAMPLES_SLOW)
    for metric, score in scores.items():
        line[metric] = _score(score, compared.true, compared.out)
        low, high = bounds.get(metric, (np.nan, np.nan))
        is_known = np.isfinite(low) and np.isfinite(line[metric])
        line[f"{metric} interval"] = (low, high) if is_known else None
    return line


def _in_text(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return lines with intervals as text, each with the decimals of the largest bound."""
    texts = [dict(line) for line in lines]
    for name in lines[0]:
        pairs = [line[name] for line in lines if isinstance(line[name], tuple)]
        digits = decimals(bound for pair in pairs for bound in pair)
        for text in texts:
            if isinstance(text[name], tuple):
                text[name] = " to ".join(f"{bound:,.{digits}f}" for bound in text[name])
    return texts


def _score(score: Score, true: Array, out: Array) -> float:
    return score_or_nan(score, true, out, required=False)[0]


def _plain(compared: Compared) -> tuple[Array, Array] | None:
    """Return targets and outputs for `_QUICK`: numbers of one shape, or one label per row."""
    out = compared.out.reshape(len(compared.out), -1)
    true = compared.true.reshape(len(compared.true), -1)
    if compared.classes:
        labels = out.argmax(axis=1)[:, None] if out.shape[1] > 1 else out
        return (true, labels) if true.shape[1] == 1 and labels.dtype.kind != "f" else None
    if out.shape != true.shape or true.dtype.kind not in "iuf":
        return None
    return true.astype(np.float64), out.astype(np.float64)


def _note(compared: Compared, groups: list[Any], level: float) -> str:
    notes = []
    if groups:
        notes.append(
            f"Intervals ({level:.0%}) are bootstrap percentiles: that of all rows draws whole "
            f"groups of {compared.group_by!r} ({len(groups)}), those of a group draw its samples."
        )
        if len(groups) < FEWEST:
            notes.append(f"There are fewer than {FEWEST} groups, too few for an interval over all.")
        if len(groups) > MOST_GROUPS:
            notes.append(f"The first {MOST_GROUPS} of {len(groups):,} groups.")
    else:
        notes.append(f"Intervals ({level:.0%}) are bootstrap percentiles over samples.")
    if compared.n_missing:
        notes.append(f"{compared.n_missing:,} rows without a target are left out.")
    return " ".join(notes)


def plots(compared: Compared) -> Iterator[Block]:
    """Yield figures of predictions against targets, and why there are none."""
    true, out = compared.true, compared.out.reshape(len(compared.out), -1)
    flat = true.reshape(len(true), -1)
    if not len(true):
        return
    try:
        if compared.classes and flat.shape[1] == 1:
            yield from _confusion(compared, flat[:, 0], out)
        elif flat.shape == out.shape:
            for i in range(min(flat.shape[1], 4)):
                name = compared.name if flat.shape[1] == 1 else f"{compared.name}, target {i}"
                yield _parity(name, flat[:, i], out[:, i])
            if flat.shape[1] > 4:
                yield f"The first 4 of {flat.shape[1]:,} targets are drawn."
    except ModularMLError as error:
        yield f"Predictions of {compared.name} cannot be drawn: {error}"


def _parity(name: str, true: Array, out: Array) -> Figure:
    figure = parity(true, out)
    texts = "; ".join(t.get_text() for t in figure.legends[0].get_texts())
    description = (
        f"Scatter plot of {len(true):,} predicted values over true values, from "
        f"{shown(np.nanmin(true))} to {shown(np.nanmax(true))}. {texts}."
    )
    return from_matplotlib(figure, f"Predicted over true, {name}", description)


def _confusion(compared: Compared, true: Array, out: Array) -> Iterator[Block]:
    predicted = out.argmax(axis=1) if out.shape[1] > 1 else out[:, 0]
    labels = compared.labels
    if labels is not None and out.shape[1] == len(labels) and true.dtype.kind in "iu":
        true, predicted = labels[true], labels[predicted]
    n_classes = len(set(true.tolist()) | set(predicted.tolist()))
    if n_classes > MOST_CLASSES:
        yield f"The confusion matrix of {n_classes:,} classes is left out."
        return
    right = float((true == predicted).mean())
    description = (
        f"Confusion matrix of {n_classes} classes: true classes are rows, predicted ones columns. "
        f"{right:.1%} of {len(true):,} are on the diagonal."
    )
    figure = confusion_matrix(true, predicted)
    yield from_matplotlib(
        figure, f"Confusion matrix, {compared.name}", description, is_themed=False
    )


def compared_results(
    name: str, results: EvalResults | FitResults, graph: Any, group_by: str | None
) -> Iterator[Compared]:
    """Yield targets and outputs of each tail node that has targets."""
    tails = results._tails()
    for node_id, label in tails.items():
        first = results._recorded()[0]
        if first.compared_with(node_id) is None:
            continue
        roles = first.roles(node_id)
        role = "default" if "default" in roles else roles[0]
        read = partial(results.stacked_tensors, node_id, role=role, unscale=True)
        true, out = as_numpy(read("targets")), as_numpy(read("outputs"))
        if output_labels(first, node_id):
            continue  # blocks of distributions are not compared with targets one by one
        encoded, labels = results._classes(node_id)
        yield Compared.of(
            name if len(tails) == 1 else f"{name}, {label}",
            true,
            out,
            mask=target_steps(results._recorded(), node_id, role),
            groups=_groups(results, node_id, role, group_by),
            prepared=partial(results._class_numbers, node_id),
            group_by=group_by or "",
            classes=encoded or _are_classes(graph, node_id, true, out),
            labels=labels,
        )


def _groups(results: Any, node_id: str, role: str, group_by: str | None) -> Array | None:
    try:
        groups: Array | None = results._groups(node_id, role, group_by)
    except ModularMLError as error:
        warnings.warn(f"scores are not by group: {error}", stacklevel=2)
        return None
    return groups


def _are_classes(graph: Any, node_id: str, true: Array, out: Array) -> bool:
    node = graph.get_node(node_id) if graph is not None and graph.has_nodes([node_id]) else None
    paired = getattr(node, "paired", None)
    if paired is not None and paired[1]:
        return True
    return bool(true.dtype.kind != "f" and (true[0].size < out[0].size or out.dtype.kind != "f"))


def compared_prediction(name: str, prediction: Prediction, group_by: str | None) -> Compared:
    """Return targets and outputs of predictions for rows with targets."""
    true, out = prediction.compared_values(raw=True), prediction.values(unscale=True)
    return Compared.of(
        name,
        true,
        out,
        mask=prediction.compared_mask(),
        groups=None if group_by is None else prediction.by_row(group_by),
        group_by=group_by or "",
        classes=prediction.is_scores or prediction.gives_labels,
        labels=prediction.class_labels,
    )
