"""Scores of predictions by group, with bootstrap intervals, and their figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from modularml._typing import Array, IntArray
from modularml._warning import warn
from modularml.errors import DataError, ModularMLError
from modularml.report.blocks import Block, Figure, Table, decimals, from_matplotlib, shown
from modularml.results.eval_results import EvalResults, FitResults
from modularml.results.result_tables import ComparedRows, plot_rows
from modularml.results.scores import Meaning, Score, find_scores
from modularml.results.scoring import class_numbers, lacks_target, real_steps, score_or_nan

N_RESAMPLES, N_RESAMPLES_SLOW = 1000, 200
FEWEST = 5  # units to resample
MOST_GROUPS, MOST_CLASSES, MOST_VALUES = 40, 40, 5_000_000
MOST_TARGETS, MOST_BOXES = 4, 30


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


@dataclass(frozen=True, eq=False)
class Compared:
    """Targets and outputs of one node, for rows with a target.

    Parameters
    ----------
    name : str
        What was evaluated, such as a phase.
    source : ComparedRows
        All rows, for plots.
    true, out : ndarray, shape (n, ...)
        Labels of classes are numbers of output columns if the outputs are scores.
    rows : ndarray of int64, shape (n,)
        The sample of each; steps of one sequence belong to one sample.
    groups : ndarray, shape (n,), or None
        Value of the column `group_by` of each.
    n_missing : int
        Samples left out because a target is missing.
    """

    name: str
    source: ComparedRows
    true: Array
    out: Array
    rows: IntArray
    groups: Array | None = None
    group_by: str = ""
    n_missing: int = 0

    @classmethod
    def of(cls, name: str, source: ComparedRows, group_by: str | None) -> Compared:
        """Leave out rows without a target, and padding."""
        groups = None
        if group_by is not None:
            try:
                groups = source.column(group_by, "group_by")
            except ModularMLError as error:
                warn(f"scores of {source.label!r} are not by group: {error}")
        known = ~lacks_target(source.true, source.mask)
        rows, true, out = np.flatnonzero(known), source.true[known], source.points()[1][known]
        groups = None if groups is None else groups[known]
        if source.are_classes and not source.are_labels and len(true):
            labels = None if source.classes is None else np.array(source.classes)
            true = class_numbers(true, out, labels, encoded=True)
        if source.mask is not None and len(true):
            mask = source.mask[known]
            true, out = real_steps(true, out, mask)
            counts = mask.reshape(len(mask), -1).sum(axis=1) * len(true) // mask.sum()
            rows = np.repeat(rows, counts)
            groups = None if groups is None else np.repeat(groups, counts)
        n_missing = int((~known).sum())
        return cls(name, source, true, out, rows, groups, group_by or "", n_missing)

    @property
    def units(self) -> Array:
        """What is resampled: groups if they are known, else samples."""
        return self.rows if self.groups is None else self.groups

    def by_group(self) -> Iterator[tuple[Any, Compared]]:
        """Yield the values of the group column and their rows, whose samples are resampled."""
        if self.groups is None:
            return
        codes, values = pd.factorize(self.groups, sort=True, use_na_sentinel=False)
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
    codes = pd.factorize(units, use_na_sentinel=False)[0]
    order = np.argsort(codes, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    alone = len(parts) == len(codes)
    rng, values = np.random.default_rng(0), {name: np.full(n, np.nan) for name in scores}
    for i in range(n if len(parts) >= FEWEST else 0):
        drawn = rng.integers(len(parts), size=len(parts))
        rows = order[drawn] if alone else np.concatenate([parts[j] for j in drawn])
        for name, score in scores.items():
            values[name][i] = score(true[rows], out[rows])
    bounds = dict.fromkeys(scores, (float("nan"), float("nan")))
    for name, found in values.items():
        finite = found[np.isfinite(found)]
        if len(finite) >= 0.9 * n:
            low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
            bounds[name] = float(low), float(high)
    return bounds


def score_table(compared: Compared, metrics: Any = None, level: float = 0.95) -> Table:
    """Return scores of all rows, and of each group, with intervals."""
    default = ["accuracy"] if compared.source.are_classes else ["rmse", "mae", "r2"]
    scores = find_scores(default if metrics is None else metrics, compared.source.meaning)
    groups = list(compared.by_group())
    lines = [_line("all rows", compared, scores, level)]
    lines += [_line(shown(group), part, scores, level) for group, part in groups[:MOST_GROUPS]]
    for name in lines[0]:  # intervals have the decimals of the largest bound
        pairs = {i: line[name] for i, line in enumerate(lines) if isinstance(line[name], tuple)}
        digits = decimals(bound for pair in pairs.values() for bound in pair)
        for i, pair in pairs.items():
            lines[i][name] = " to ".join(f"{bound:,.{digits}f}" for bound in pair)
    frame = pd.DataFrame(lines).rename(columns={"rows": compared.group_by or "rows"})
    notes = [_note(compared, groups, level)]
    for name, score in scores.items():
        if reason := score_or_nan(score, compared.true, compared.out, required=False)[1]:
            notes.append(f"{name} is undefined: {shown(reason)}.")
    return Table.of(f"Scores of {compared.name}", frame, " ".join(notes))


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


def _score(score: Score, true: Array, out: Array) -> float:
    return score_or_nan(score, true, out, required=False)[0]


def _plain(compared: Compared) -> tuple[Array, Array] | None:
    """Return targets and outputs for `_QUICK`: numbers of one shape, or one label per row."""
    out = compared.out.reshape(len(compared.out), -1)
    true = compared.true.reshape(len(compared.true), -1)
    if compared.source.are_classes:
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
    """Yield figures of outputs against targets, or why there are none."""
    source = compared.source
    if source.are_classes:
        kinds = {"confusion": "Confusion matrix"}
        if not source.are_labels:
            kinds["roc"] = "Receiver operating characteristic"
        for kind, title in kinds.items():
            yield from _drawn(compared, kind, title, {})
        return
    targets: list[str | None] = [*source.targets] or [None]
    for target in targets[:MOST_TARGETS]:
        what = f" of {target}" if len(targets) > 1 else ""
        chosen = {"target": target} if len(targets) > 1 else {}
        yield from _drawn(compared, "parity", f"Predicted over true values{what}", chosen)
        if compared.groups is not None and len(set(compared.groups.tolist())) <= MOST_BOXES:
            chosen = {**chosen, "group_by": compared.group_by}
        yield from _drawn(compared, "residuals", f"Residuals{what}", chosen)
    if len(targets) > MOST_TARGETS:
        yield f"The first {MOST_TARGETS} of {len(targets):,} targets are drawn."


def _drawn(
    compared: Compared, kind: str, title: str, options: Mapping[str, Any]
) -> Iterator[Figure | str]:
    try:
        if kind == "confusion" and len(np.unique(compared.true)) > MOST_CLASSES:
            raise DataError(f"there are more than {MOST_CLASSES} classes")
        figure = plot_rows(compared.source, kind, **options)
    except ModularMLError as error:
        yield f"{title}, {compared.name}: not drawn, as {error}"
        return
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    texts = [t.get_text() for legend in legends if legend for t in legend.get_texts()]
    labels = [f"{axes.get_ylabel()} over {axes.get_xlabel()}" for axes in figure.axes[:1]]
    words = [title, f"{len(compared.rows):,} values", *labels, *texts]
    yield from_matplotlib(
        figure,
        f"{title}, {compared.name}",
        "; ".join(" ".join(word.split()) for word in words if word),
        is_themed=kind != "confusion",
    )


def compared_results(
    name: str, results: EvalResults | FitResults, group_by: str | None, outputs: Meaning
) -> Iterator[Compared]:
    """Yield targets and outputs of each tail node that has targets."""
    tails = results._tails()
    for node_id, label in tails.items():
        first = results._recorded()[0]
        if first.compared_with(node_id) is not None:
            roles = first.roles(node_id)
            role = "default" if "default" in roles else roles[0]
            shown_as = name if len(tails) == 1 else f"{name}, {label}"
            try:
                rows = replace(results.compared_rows(node_id, role), meaning=outputs)
                compared = Compared.of(shown_as, rows, group_by)
            except ModularMLError as error:
                warn(f"{shown_as} is not scored: {error}")
            else:
                yield compared
