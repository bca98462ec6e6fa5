"""The checks of an audit; each yields what it finds, and findings on no row do not count."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from modularml._typing import Array, Columns, IntArray
from modularml.data.audit import likeness
from modularml.data.audit.findings import AuditReport, Finding
from modularml.data.audit.pairs import Pair, is_training
from modularml.data.audit.subject import Subject
from modularml.data.schema import RAW
from modularml.data.selectors import newest
from modularml.errors import ConfigError

if TYPE_CHECKING:
    from modularml.data.featureset import FeatureSet

__all__ = ["audit"]

_EXACT = 1e-5
"""A copy in float32 is this near, as a share of a column's standard deviation."""

_FEWEST = 10
"""Rows below which a straight line fits by chance."""


def audit(
    fs: FeatureSet, groups: Columns, time: Columns, tolerance: float, max_rows: int | None
) -> AuditReport:
    """Look for leaks between the splits of a FeatureSet; see `FeatureSet.audit`."""
    if not tolerance >= 0:
        raise ConfigError(f"tolerance must be at least 0, got {tolerance!r}")
    if max_rows is not None and not max_rows >= 1:
        raise ConfigError(f"max_rows must be at least 1, or None for all rows, got {max_rows!r}")
    subject = Subject.of(fs, groups, time, tolerance, max_rows)
    found = [
        f for check in (*_ON_SPLITS, *_ON_COLUMNS) if len(fs) for f in check(subject) if f.count
    ]
    found.sort(key=lambda f: ("error", "warning", "info").index(f.severity))
    return AuditReport(fs.label, tuple(found))


def _shared_rows(s: Subject) -> Iterator[Finding]:
    for pair in s.pairs:
        said = f"are in {pair.names[0]!r} too; make conditions exclude each other, or split once"
        yield s.finding("shared_rows", pair.severity, pair.shared, said, pair=pair)


def _shared_groups(s: Subject) -> Iterator[Finding]:
    for name, guessed in s.groups.items():
        codes, key = s.fs.collection.codes(name), name.split(".")[1]
        for pair in s.pairs:
            rows = _with_code(codes, pair)
            n, of = (len(np.unique(codes[part])) for part in (rows, pair.test))
            said = (
                f"share their {key!r} with {pair.names[0]!r} ({n} of {of} values{guessed}); split "
                f"with group_by={key!r}"
            )
            severity = "warning" if guessed else pair.severity
            yield s.finding("shared_groups", severity, rows, said, (name,), pair)


def _duplicates(s: Subject) -> Iterator[Finding]:
    """Find rows with equal features, and sequences that are nearly equal."""
    pairs = s.thinned()
    seen = np.zeros(len(s.fs), dtype=bool)
    for pair in pairs:
        seen[pair.train] = seen[pair.test] = True
    every = np.flatnonzero(seen)
    columns = s.values("features", rows=None if seen.all() else every)
    if not columns or not len(every):
        return
    at = np.cumsum(seen) - 1  # where a row stands in the columns
    codes = likeness.row_codes(list(columns.values()))[at]
    for pair in pairs:
        rows = _with_code(codes, pair)
        rows = rows[~pair.in_train[rows]]
        severity, why = "warning", "drop the copies, or give them a tag in common to group_by"
        if len(rows) and likeness.is_coarse(list(columns.values())):
            severity, why = "info", "with so few different values that comes by chance"
        said = f"have the features of a row of {pair.names[0]!r}; {why}"
        yield s.finding("duplicate_rows", severity, rows, said, tuple(columns), pair)
        fresh = pair.test[~pair.in_train[pair.test] & ~np.isin(pair.test, rows)]
        for name, values in columns.items():
            flat = values.reshape(len(values), -1)
            if not s.tolerance or flat.dtype.kind != "f" or flat.shape[1] < likeness.SEQUENCE:
                continue
            rows = every[likeness.like_rows(flat, at[pair.train], at[fresh], s.tolerance)]
            said = (
                f"have a {name.split('.')[1]!r} within {s.tolerance:g} standard deviations of one "
                f"in {pair.names[0]!r}; keep what was recorded together in one split (group_by=)"
            )
            yield s.finding("similar_sequences", "warning", rows, said, (name,), pair)


def _scaler_fits(s: Subject) -> Iterator[Finding]:
    for record in (r for r in s.fs.scaler_records if r.scaler.learns):
        fitted = np.zeros(len(s.fs), dtype=bool)
        fitted[slice(None) if record.fit_rows is None else record.fit_rows] = True
        columns = tuple(f"{record.domain}.{key}.{RAW}" for key in record.keys)
        for pair in s.pairs:
            if not is_training(pair.names[0]) and not fitted[pair.train].any():
                continue  # which of the two is trained on is not known
            rows = pair.test[fitted[pair.test] & ~pair.in_train[pair.test]]
            said = (
                f"were seen by {record.scaler.scaler_name} on {', '.join(record.keys[:4])}; undo it"
                f" and call fit_transform with fit_to_split={pair.names[0]!r}"
            )
            by = record.fit_to_split
            sure = by != pair.origin and (is_training(pair.names[0]) or by in pair.names)
            severity = pair.severity if sure or by is None else "info"  # else of another division
            yield s.finding("scaler_fit", severity, rows, said, columns, pair)


def _time_order(s: Subject) -> Iterator[Finding]:
    for name, guessed in s.times.items():
        times = s.fs.collection.numpy(name)
        for pair in (p for p in s.pairs if len(p.train) and (not guessed or _is_dealt(p))):
            rows = pair.test[times[pair.test] < times[pair.train].max()]
            said = (
                f"are older than the newest of {pair.names[0]!r} by {name.split('.')[1]!r}"
                f"{guessed}; to foretell, split by a condition on time, or by TimeSeriesSplitter"
            )
            severity = "warning" if guessed else pair.severity
            yield s.finding("time_order", severity, rows, said, (name,), pair)


def _target_copies(s: Subject) -> Iterator[Finding]:
    features, targets = (
        {n: v.reshape(len(v), -1) for n, v in s.values(d, rows=s.rows).items() if _is_number(v)}
        for d in ("features", "targets")
    )
    every = np.arange(len(s.fs))
    wanted = {name: likeness.standardised(values) for name, values in targets.items()}
    pairs = product(features, targets) if len(every) >= _FEWEST else ()
    for name, target in pairs:
        left = likeness.affine_residuals(features[name], wanted[target]).min()
        if left <= max(s.tolerance, _EXACT):
            said = (
                f"feature {name.split('.')[1]!r} repeats target {target.split('.')[1]!r}, up to an "
                f"offset, a factor and {left:.1g} standard deviations; leave it out"
            )
            severity = "error" if left <= _EXACT else "warning"
            yield s.finding("target_copy", severity, every, said, (name, target))


def _constant(s: Subject) -> Iterator[Finding]:
    every = np.arange(len(s.fs))
    for name, values in s.values("features", "targets", rows=s.rows).items():
        if len(values) > 1 and (values[1] == values[0]).all() and (values == values[0]).all():
            domain, key, _ = name.split(".")
            said = f"{key!r} is the same in every row; leave it out"
            severity = "warning" if domain == "targets" else "info"
            yield s.finding("constant", severity, every, said, (name,))


def _not_finite(s: Subject) -> Iterator[Finding]:
    data = s.fs.collection
    every = np.arange(len(s.fs)) if s.rows is None else s.rows
    for name in newest(data.schema, data.names):  # as models read them; what was filled is finite
        spec = data.schema[name]
        if spec.domain == "tags" or spec.dtype.kind != "f":
            continue
        finite = np.isfinite(data.gather([spec.name], s.rows))
        if not finite.all():
            rows = every[~finite.reshape(len(finite), -1).all(axis=1)]
            said = f"{spec.key!r} ({spec.rep}) holds NaN or infinity in {len(rows)} rows; fill them"
            yield s.finding("not_finite", "warning", rows, f"{said} or drop them", (spec.name,))


def _is_number(values: Array) -> bool:
    return values.dtype.kind in "biuf"


def _is_dealt(pair: Pair) -> bool:
    """Tell whether single rows were dealt at random, to train on and not."""
    facts = [getattr(pair.splitter, name, None) for name in ("seed", "shuffle", "group_by")]
    dealt = facts[0] is not None and facts[1] is not False and not facts[2]
    return dealt and is_training(pair.names[0])


def _with_code(codes: IntArray, pair: Pair) -> IntArray:
    """Return the test rows whose code comes in the training rows."""
    seen = np.zeros(codes.max(initial=0) + 1, dtype=bool)
    seen[codes[pair.train]] = True
    return pair.test[seen[codes[pair.test]]]


_ON_SPLITS = (_shared_rows, _shared_groups, _duplicates, _scaler_fits, _time_order)
_ON_COLUMNS = (_target_copies, _not_finite, _constant)
