"""Temporal order of training and test rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml.audit.audited_table import Column, Side, Table, is_training
from modularml.audit.similarity import ALPHA, scores, within, z_to_p
from modularml.data.audit_report import Finding

_NAMED = re.compile(
    r"(^|_)(t|ts|time|times|timestamp|date|datetime|day|days|hour|hours|minute|minutes|second|seconds"
    r"|sec|month|week|year|epoch|elapsed|recorded|when|at|on)(_?(s|ms|ns|utc))?$"
)

SAME = 0.99
"""Correlation of ranks from which on a column is the time in another form."""

ALIKE = 0.2
"""Share of a column's variance that neighbours in time must have in common."""


_CYCLES = {"hour": 24, "month": 12, "weekday": 7, "dayofweek": 7, "minute": 60, "second": 60}
"""Parts of a calendar that begin again: alone they are no order."""

_BORN = re.compile(r"(^|_)(born|dob|bday)(_|$)|birth")


@dataclass(frozen=True, eq=False)
class _Clock:
    """A column read as time, of all rows, and how sure that is; none where it is their order."""

    names: tuple[str, ...]
    times: Array
    why: str
    is_date: bool = False

    @property
    def key(self) -> str:
        return "-".join(name.split(".")[1] for name in self.names)


def time_order(t: Table) -> Iterator[Finding]:
    """Find splits that do not go forward in time, where time bears on the rows."""
    for clock in _clocks(t):
        alike = "" if t.times is not None else _alike(t, clock)
        for pair, side in zip(t.pairs, t.sides, strict=True):
            if not len(pair.train) or not len(pair.test):
                continue
            train, test = clock.times[pair.train], clock.times[pair.test]
            older = pair.test[test < np.nanmax(train)]
            finding = f"are older than the newest of {pair.names[0]!r} by {clock.key!r}{clock.why}"
            turned = len(test) >= 10 and np.nanmax(test) < np.nanmin(train)
            whole = bool(getattr(pair.splitter, "group_by", None))
            if t.times is not None:
                severity, measure = pair.severity, "time was named by you"
            elif clock.is_date and turned and is_training(pair.names[0]):
                severity, measure = "warning", "every test row is older than every training row"
            elif alike and not whole and _is_dealt(clock, side, t):
                severity, measure = "warning", alike
            else:
                if alike and np.nanmin(test) >= np.nanmax(train):  # the cut may be within a time
                    yield t.finding(
                        "time_ties", "warning", pair.test[test == np.nanmax(train)],
                        f"have the same {clock.key!r} as the newest of {pair.names[0]!r}",
                        clock.names, pair,
                        remedy="cut between two times, so that equal times stay together",
                        measure="they are equal",
                    )  # fmt: skip
                continue
            yield t.finding(
                "time_order", severity, older, finding, clock.names, pair, measure=measure,
                remedy="to forecast, split by a condition on time, or by TimeSeriesSplitter",
                p_value=ALPHA if alike else None,
            )  # fmt: skip


def row_order(t: Table) -> Iterator[Finding]:
    """Find rows dealt singly though those next to each other in the table are alike.

    Rows must be much nearer to the next one than to the eighth, in three columns at least that are
    not sorted by; rows that are sorted by a class or a column are not.
    """
    if t.times is not None or t.groups is not None or not t.is_whole or len(t.rows) < 60:
        return
    place = scores(np.arange(len(t.rows), dtype=float)[:, None])[:, 0]
    z = _apart_from(t.bearing_without(), place) if t.bearing else np.zeros((len(t.rows), 0))
    near, far = (np.square(z[k:] - z[:-k]).mean(axis=0) for k in (1, 8))
    alike = (near < 0.5 * far) & (near < 0.8)
    if alike.sum() < 3:
        return
    clock = _Clock((), np.arange(len(t.fs), dtype=float), "")
    for pair, side in zip(t.pairs, t.sides, strict=True):
        if not getattr(pair.splitter, "group_by", None) and _is_dealt(clock, side, t):
            share = 1 - near[alike].mean() / far[alike].mean()
            yield t.finding(
                "row_order", "warning", side.test, f"lie among those of {pair.names[0]!r} in the "
                "order of the table, in which neighbours are alike", (), pair,
                remedy="if the order is time or what was measured together, give it a column and "
                "split by that (group_by=, or a condition on time)",
                measure=f"in {int(alike.sum())} columns rows are {share:.0%} nearer to the next "
                "row than to the eighth", p_value=ALPHA,
            )  # fmt: skip


def _clocks(t: Table) -> Iterator[_Clock]:
    """Yield the columns that the user named, else those that are dates or look like time."""
    data = t.fs.collection
    if t.times is not None:
        for name in t.times:
            found = as_times(data.numpy(name))
            times = data.codes(name).astype(float) if found is None else found
            yield _Clock((name,), times, "")
        return
    parts = _calendar(t)
    if parts:
        texts = [data.numpy(name).astype(np.int64) for name in parts]
        days = sum(v * 100 ** (len(texts) - i) for i, v in enumerate(texts))
        yield _Clock(parts, np.asarray(days, dtype=np.float64), ", parts of a date")
    for c in t.of_domain("tags", "features"):
        is_number, is_named = c.values.dtype.kind in "iuf", bool(_NAMED.search(c.key.lower()))
        if not c.is_scalar or (c.domain == "features" and is_number and not is_named):
            continue
        if c.n_values < 8 or (is_number and not (is_named or _is_even(c.values))):
            continue
        if c.name in parts or _BORN.search(c.key.lower()) or (is_number and _is_cycle(c)):
            continue
        if as_times(c.values) is not None and (found := as_times(data.numpy(c.name))) is not None:
            why = ", a column of dates" if not is_number else ", which looks like time"
            yield _Clock((c.name,), found, why, not is_number)


def _calendar(t: Table) -> tuple[str, ...]:
    """Return whole columns for year, month and perhaps day and hour, where there are such."""
    wanted = {"year": (1000, 3000), "month": (1, 12), "day": (1, 31), "hour": (0, 24)}
    found: dict[str, str] = {}
    for c in t.of_domain("tags", "features"):
        part = c.key.lower().rsplit("_", 1)[-1]
        if part in wanted and c.is_scalar and c.values.dtype.kind in "iu" and len(c.values):
            low, high = wanted[part]
            if low <= c.values.min() and c.values.max() <= high:
                found.setdefault(part, c.name)
    names = []
    for part in wanted:
        if part not in found:
            break
        names.append(found[part])
    return tuple(names) if len(names) > 1 else ()


def _is_cycle(c: Column) -> bool:
    """Tell whether a column is a part of a calendar that begins again, over most of its range."""
    size = _CYCLES.get(c.key.lower().rsplit("_", 1)[-1], 0)
    span = float(np.ptp(c.values)) if size and len(c.values) else np.inf
    return 0.8 * size - 1 <= span <= size


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
    z, times = t.bearing_without(*clock.names), clock.times[t.rows]
    known = np.flatnonzero(np.isfinite(times))
    order = known[np.argsort(times[known], kind="stable")]
    if len(order) < 30 or not z.shape[1]:
        return ""
    z = _apart_from(z, scores(times[:, None])[:, 0])
    if not z.shape[1]:
        return ""
    after = z[np.roll(order, -1)]
    share, sigmas = within(z[order], (after, after**2), np.random.default_rng(0))
    best = int(np.argmax(sigmas))
    if share[best] < ALIKE or z_to_p(sigmas[best]) * len(sigmas) > ALPHA:
        return ""
    return (
        f"rows next to each other in time have {share[best]:.0%} of a column's variance in common"
    )


def _apart_from(z: Array, time: Array) -> Array:
    """Leave out columns that are the time in another form, as an age is, and what they explain."""
    same = np.abs(z.T @ time) / len(z) > SAME
    for column in z.T[same]:
        z = z - np.outer(column, column @ z) / len(z)
    return scores(z[:, ~same])


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
