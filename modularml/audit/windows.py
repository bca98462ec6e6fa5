"""Windows of one series that overlap across splits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from modularml._typing import Array, IntArray
from modularml.audit.pairs import Pair
from modularml.audit.table import Table
from modularml.data.audit_report import Finding
from modularml.data.schema import RAW

__all__ = ["overlapping_windows"]


def overlapping_windows(t: Table) -> Iterator[Finding]:
    """Find windows that share steps of their series with windows of a training split."""
    schema, data = t.fs.collection.schema, t.fs.collection
    starts, stops = schema.window_keys("start"), schema.window_keys("stop")
    series = schema.window_keys("series", "loose_series")
    if not (starts and stops and series):
        return
    start, stop = (data.numpy(f"tags.{keys[0]}.{RAW}") for keys in (starts, stops))
    names = tuple(f"{schema.domain_of(key)}.{key}.{RAW}" for key in series)
    codes = np.unique(np.stack([data.codes(n) for n in names]), axis=1, return_inverse=True)[1]
    for pair in t.pairs:
        rows = _overlapping(codes.ravel(), start, stop, pair)
        yield t.finding(
            "overlapping_windows", pair.severity, rows,
            f"share steps of their series with windows of {pair.names[0]!r}", names, pair,
            remedy=f"split with group_by={series}, or leave a gap of the window's length",
            measure=f"{len(rows)} windows overlap",
        )  # fmt: skip


def _overlapping(series: IntArray, start: Array, stop: Array, pair: Pair) -> IntArray:
    """Return the test rows that overlap a training row of the same series."""
    test = pair.test[~pair.in_train[pair.test]]
    if not len(pair.train) or not len(test):
        return test[:0]
    base = series * (int(stop.max()) + 1)  # series lie one after another on one axis
    first, end = base + start, base + stop
    order = pair.train[np.argsort(first[pair.train], kind="stable")]
    latest = np.maximum.accumulate(end[order])
    place = np.searchsorted(first[order], end[test], side="left") - 1
    overlaps = (place >= 0) & (latest[np.maximum(place, 0)] > first[test])
    rows: IntArray = test[overlaps]
    return rows
