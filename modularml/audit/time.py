"""Time and order: test rows older than training rows, dealt among them, or of the same stamp."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml.audit.likeness import ALPHA, within, z_to_p
from modularml.audit.pairs import Pair, is_training
from modularml.audit.report import Finding
from modularml.audit.table import Side, Table

__all__ = ["as_times", "time_order"]

_NAMED = re.compile(
    r"(^|_)(t|ts|time|times|timestamp|date|datetime|day|days|hour|hours|minute|minutes|second|seconds"
    r"|sec|month|week|year|epoch|elapsed|recorded|when|at|on)(_?(s|ms|ns|utc))?$"
)

ALIKE = 0.2
"""Share of a column's variance that neighbours in time must have in common."""


@dataclass(frozen=True, eq=False)
class _Clock:
    """A column read as time, of all rows, and how sure that is."""

    name: str
    times: Array
    why: str
    is_date: bool = False

    @property
    def key(self) -> str:
        return self.name.split(".")[1]


def time_order(t: Table) -> Iterator[Finding]:
    """Find splits that do not go forward in time, where time bears on the rows."""
    for clock in _clocks(t):
        alike = "" if t.times is not None else _alike(t, clock)
        for pair, side in zip(t.pairs, t.sides, strict=True):
            if not len(pair.train) or not len(pair.test):
                continue
            train, test = clock.times[pair.train], clock.times[pair.test]
            older = pair.test[test < np.nanmax(train)]
            said = f"are older than the newest of {pair.names[0]!r} by {clock.key!r}{clock.why}"
            turned = len(test) >= 10 and np.nanmax(test) < np.nanmin(train)
            whole = bool(getattr(pair.splitter, "group_by", None))
            if t.times is not None:
                severity, measure = pair.severity, "time was named by you"
            elif clock.is_date and turned and is_training(pair.names[0]):
                severity, measure = "warning", "every test row is older than every training row"
            elif alike and not whole and _is_dealt(clock, side, t):
                severity, measure = "warning", alike
            else:
                yield from _ties(t, clock, pair, bool(alike))
                continue
            yield t.finding(
                "time_order", severity, older, said, (clock.name,), pair, measure=measure,
                remedy="to forecast, split by a condition on time, or by TimeSeriesSplitter",
                p_value=ALPHA if alike else None,
            )  # fmt: skip


def _clocks(t: Table) -> Iterator[_Clock]:
    """Yield the columns that the user named, else those that are dates or look like time."""
    data = t.fs.collection
    if t.times is not None:
        for name in t.times:
            found = as_times(data.numpy(name))
            times = data.codes(name).astype(float) if found is None else found
            yield _Clock(name, times, "")
        return
    for c in t.of_domain("tags", "features"):
        is_number, is_named = c.values.dtype.kind in "iuf", bool(_NAMED.search(c.key.lower()))
        if not c.is_scalar or (c.domain == "features" and is_number and not is_named):
            continue
        if c.n_values < 8 or (is_number and not (is_named or _is_even(c.values))):
            continue
        if as_times(c.values) is not None and (found := as_times(data.numpy(c.name))) is not None:
            why = ", a column of dates" if not is_number else ", which looks like time"
            yield _Clock(c.name, found, why, not is_number)


def as_times(values: Array) -> Array | None:
    """Read a column as time, in any unit; None where it cannot be.

    Returns
    -------
    ndarray of float64, shape (n,), or None
        NaN where a time is missing.
    """
    if values.dtype.kind in "mM":
        found = values.astype(np.int64).astype(np.float64)
        found[np.isnat(values)] = np.nan
        return found
    if values.dtype.kind in "iuf":
        return values.astype(np.float64)
    if values.dtype.kind != "O" or values.ndim > 1:
        return None
    texts = values[:50].astype(str)
    if not all(re.search(r"\d{1,4}[-/.:]\d{1,2}", text) for text in texts):
        return None
    read = require("pandas").to_datetime(
        values.astype(str), errors="coerce", format="mixed", utc=True
    )
    known = np.asarray(read.notna())
    if known.mean() < 0.95:
        return None
    found = np.asarray(read.tz_localize(None).values).astype("datetime64[ns]").astype(np.int64)
    return np.where(known, found, np.nan)


def _is_even(values: Array) -> bool:
    """Tell whether numbers are all different and evenly spaced, or seconds since 1970."""
    known = np.sort(values.astype(np.float64))
    known = known[np.isfinite(known)]
    if len(known) < 10:
        return False
    steps = np.diff(known)
    if known[0] > 3e8 and known[-1] < 4e9 and steps.max() > 0:
        return True
    return bool(steps.min() > 0 and steps.max() <= 3 * np.median(steps))


def _alike(t: Table, clock: _Clock) -> str:
    """Say how alike neighbours in time are; empty where they are not."""
    z, times = t.bearing_without(clock.name), clock.times[t.rows]
    if not z.shape[1]:
        return ""
    known = np.flatnonzero(np.isfinite(times))
    order = known[np.argsort(times[known], kind="stable")]
    if len(order) < 30:
        return ""
    after = z[np.roll(order, -1)]
    share, sigmas = within(z[order], (after, after**2), np.random.default_rng(0))
    best = int(np.argmax(sigmas))
    if z_to_p(sigmas[best]) * len(sigmas) > ALPHA or share[best] < ALIKE:
        return ""
    return (
        f"rows next to each other in time have {share[best]:.0%} of a column's variance in common"
    )


def _is_dealt(clock: _Clock, side: Side, t: Table) -> bool:
    """Tell whether test rows lie among the training rows, not beside them."""
    times = clock.times[t.rows]
    train, test = times[side.train], times[side.test]
    train, test = np.sort(train[np.isfinite(train)]), np.sort(test[np.isfinite(test)])
    if len(train) < 10 or len(test) < 5:
        return False
    both = np.argsort(np.concatenate([train, test]), kind="stable")
    changes = int((np.diff((both < len(train)).astype(int)) != 0).sum())
    usual = 2 * len(train) * len(test) / (len(train) + len(test))
    return changes > 0.3 * usual


def _ties(t: Table, clock: _Clock, pair: Pair, alike: bool) -> Iterator[Finding]:
    """Find a cut in time that goes through rows of one stamp."""
    train, test = clock.times[pair.train], clock.times[pair.test]
    if not alike or np.nanmin(test) < np.nanmax(train):
        return
    rows = pair.test[test == np.nanmax(train)]
    yield t.finding(
        "time_ties", "warning", rows,
        f"have the same {clock.key!r} as the newest of {pair.names[0]!r}", (clock.name,), pair,
        remedy="cut between two times, so that equal times stay together",
        measure="they are equal",
    )  # fmt: skip
