"""Features computed from targets, such as target encodings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from modularml._typing import Array, IntArray
from modularml.audit.table import Side, Table
from modularml.data.audit_report import Finding

__all__ = ["target_encoding", "target_of_neighbour"]

LAGS = (1, 2, 3)
"""Rows before or behind whose targets are looked for."""


def target_of_neighbour(t: Table) -> Iterator[Finding]:
    """Find features that are the target of the row before or behind."""
    features = [c for c in t.of_domain("features") if c.is_number and c.is_scalar]
    orders = {"": np.arange(len(t.rows))}
    for c in t.of_domain("tags", "features"):
        if c.is_scalar and c.values.dtype.kind in "mM" and c.n_values == len(t.rows):
            orders[f" by {c.key!r}"] = np.argsort(c.codes)
    for y in t.of_domain("targets") if t.is_whole else ():
        if not (y.is_number and y.is_scalar) or y.n_values < 20:
            continue
        if not np.isfinite(y.values).all():
            continue
        for how, order in orders.items():
            goal = y.values[order].astype(np.float64)
            apart = 1e-7 * float(np.median(np.abs(goal - np.median(goal))))
            for c in features:
                x = c.values[order].astype(np.float64)
                for lag in (*LAGS, *(-k for k in LAGS)):
                    mine, theirs = (x[lag:], goal[:-lag]) if lag > 0 else (x[:lag], goal[-lag:])
                    few = np.isclose(mine[:64], theirs[:64], rtol=1e-5, atol=apart)
                    if few.mean() < 0.5:
                        continue
                    same = np.isclose(mine, theirs, rtol=1e-5, atol=apart)
                    if (
                        len(same) < 20
                        or same.mean() < 0.9
                        or np.isclose(x, goal, rtol=1e-5, atol=apart).mean() > 0.5
                    ):
                        continue
                    rows = order[lag:] if lag > 0 else order[:lag]
                    before = order[:-lag] if lag > 0 else order[-lag:]
                    reached = rows if lag < 0 else _told(t, rows, before)
                    if len(reached):
                        where = f"{abs(lag)} {'before' if lag > 0 else 'behind'}"
                        yield t.finding(
                            "target_of_neighbour", "warning", t.rows[np.sort(reached)],
                            f"feature {c.key!r} is target {y.key!r} of the row {where}{how}, and "
                            "such rows are in other splits", (c.name, y.name),
                            remedy="split by time, so that what is tested comes last",
                            measure=f"{same.mean():.0%} of the values are equal",
                        )  # fmt: skip
                        break


def _told(t: Table, rows: IntArray, before: IntArray) -> IntArray:
    """Return training rows that hold the target of a test row, where these are many."""
    found: set[int] = set()
    for side in t.sides:
        train, test = np.zeros(len(t.rows), dtype=bool), np.zeros(len(t.rows), dtype=bool)
        train[side.train], test[side.test] = True, True
        matched = rows[train[rows] & test[before]]
        if len(matched) > max(3, 0.1 * len(side.test)):
            found |= set(matched.tolist())
    return np.array(sorted(found), dtype=np.int64)


def target_encoding(t: Table) -> Iterator[Finding]:
    """Find features that are means of the target by category, test rows included."""
    if t.quick and not t.is_whole:
        return
    data, n = t.fs.collection, len(t.fs)
    targets = [c for c in t.of_domain("targets") if c.is_scalar and c.is_number]
    features = [
        c
        for c in t.of_domain("features")
        if c.is_scalar and c.values.dtype.kind == "f" and c.n_values >= 5
    ]
    keys = [
        c
        for c in t.of_domain("features", "tags")
        if c.is_scalar and 5 <= c.n_values <= 0.5 * len(t.rows)
    ]
    for y in targets:
        for c in features:
            by = [c] * (c in keys) + [k for k in keys if k is not c]
            x, goal = (data.numpy(column.name).astype(np.float64) for column in (c, y))
            if not (by and np.isfinite(x).all() and np.isfinite(goal).all()):
                continue
            for name in (k.name for k in by):
                codes = data.codes(name)
                found = next(
                    (found for side in t.main_sides if (found := _encodes(codes, x, goal, side))),
                    "",
                )
                if found:
                    key = name.split(".")[1]
                    of = "its own values" if name == c.name else repr(key)
                    yield t.finding(
                        "target_encoding", "warning", np.arange(n),
                        f"feature {c.key!r} is the mean of target {y.key!r} by {of} over all rows, "
                        "those that are tested on too", (c.name, y.name),
                        remedy="encode with the means of the training rows (TargetEncoder as a "
                        "recorded step)", measure=found,
                    )  # fmt: skip
                    break


def _encodes(codes: IntArray, x: Array, y: Array, side: Side) -> str:
    """Tell in words how x is a mean of y by category over all rows, else return an empty text."""
    n = np.bincount(codes)
    known = n > 0
    sums = np.bincount(codes, y)
    if len(n) > len(y) / 2:
        return ""
    train = np.zeros(len(y), dtype=bool)
    train[side.pair.train] = True
    first = np.bincount(codes, x) / np.maximum(n, 1)
    if np.abs(x - first[codes]).max() > 1e-6 * (x.std() or 1.0):
        many = n[codes] > 2
        if many.sum() < 20:
            return ""
        own = x[many] * (n[codes][many] - 1) + y[many] - sums[codes][many]
        return "it leaves each row's own target out" if _is_zero(own, y) else ""
    n_train, s_train = (
        np.bincount(codes[train], minlength=len(n)),
        np.bincount(codes[train], y[train], minlength=len(n)),
    )
    both = known & (n_train > 0) & (n_train < n)
    if both.sum() < 5:
        return ""

    def left(count: IntArray, total: Array) -> float:
        """Return what ``x (n + m) = S + m c`` leaves, for the best m and c."""
        rest = (x_of[both] * count[both] - total[both]) / y.std()
        design = np.stack([x_of[both], np.ones(int(both.sum()))], axis=1)
        weights = np.linalg.lstsq(design, rest, rcond=None)[0]
        return float(np.abs(rest - design @ weights).max())

    x_of = first
    if left(n, sums) < 1e-4 and left(n_train, s_train) > 1e-2:
        return "the means of all rows fit to the last digit, those of the training rows do not"

    def between(count: IntArray, total: Array) -> float:
        """Return the share of categories whose x lies between their mean and the mean of all."""
        middle = total.sum() / count.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            pull = (x_of[both] - middle) / (total[both] / count[both] - middle)
        return float(((pull > 0) & (pull <= 1 + 1e-9)).mean())

    if both.sum() >= 15 and between(n, sums) > 0.98 and between(n_train, s_train) < 0.9:
        return "it lies between the mean of all rows and that of the category, for all categories"
    return ""


def _is_zero(left: Array, y: Array) -> bool:
    return bool(np.abs(left).max() < 1e-5 * (y.std() or 1.0) * max(1, len(y) ** 0.5))
