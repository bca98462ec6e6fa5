"""Checks of splits, windows and values, and the run of all checks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from modularml._typing import Columns
from modularml.audit.audited_table import MAPPED, Table, is_training, pairs_of
from modularml.audit.duplicates import duplicates, sequences
from modularml.audit.groups import shared_groups
from modularml.audit.preprocessing import (
    prepared_before,
    target_encoding,
    target_of_neighbour,
    uncorrelated,
)
from modularml.audit.target import target_in_feature, target_in_features, target_in_id
from modularml.audit.time import row_order, time_order
from modularml.data.audit_report import SEVERITIES, AuditReport, Finding
from modularml.data.samples import held
from modularml.data.schema import RAW
from modularml.data.selectors import as_list, newest, select_one
from modularml.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from modularml.data.featureset import FeatureSet


def shared_rows(t: Table) -> Iterator[Finding]:
    """Find rows that are in two splits which should have nothing in common."""
    for pair in t.pairs:
        rows = pair.shared
        yield t.finding(
            "shared_rows", pair.severity, rows, f"are in {pair.names[0]!r} too", pair=pair,
            remedy="make conditions exclude each other, or split once",
            measure=f"{len(rows)} rows are the same by their ids",
        )  # fmt: skip


def scaler_fits(t: Table) -> Iterator[Finding]:
    """Find scalers that learned from rows which the model is tested on."""
    for record in (r for r in t.fs.scaler_records if r.scaler.learns):
        fitted = np.zeros(len(t.fs), dtype=bool)
        fitted[slice(None) if record.fit_rows is None else record.fit_rows] = True
        columns = tuple(f"{record.domain}.{key}.{RAW}" for key in record.keys)
        for pair in t.pairs:
            if not is_training(pair.names[0]) and not fitted[pair.train].any():
                continue  # which of the two is trained on is not known
            rows = pair.tested[fitted[pair.tested]]
            finding = f"were seen by {record.scaler.scaler_name} on {', '.join(record.keys[:4])}"
            by = record.fit_to_split
            sure = by != pair.origin and (is_training(pair.names[0]) or by in pair.names)
            severity = pair.severity if sure or by is None else "info"  # else of another division
            yield t.finding(
                "scaler_fit", severity, rows, finding, columns, pair,
                remedy=f"undo it and call fit_transform with fit_to_split={pair.names[0]!r}",
                measure=f"fitted on {int(fitted.sum())} rows, {len(rows)} of which are tested on",
            )  # fmt: skip


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
        rows, train = pair.tested, pair.train
        if len(train) and len(rows):
            base = codes.ravel() * (int(stop.max()) + 1)  # series lie one after another on one axis
            first, end = base + start, base + stop
            order = train[np.argsort(first[train], kind="stable")]
            latest = np.maximum.accumulate(end[order])
            place = np.searchsorted(first[order], end[rows], side="left") - 1
            rows = rows[(place >= 0) & (latest[np.maximum(place, 0)] > first[rows])]
        else:
            rows = rows[:0]
        yield t.finding(
            "overlapping_windows", pair.severity, rows,
            f"share steps of their series with windows of {pair.names[0]!r}", names, pair,
            remedy=f"split with group_by={series}, or leave a gap of the window's length",
            measure=f"{len(rows)} windows overlap",
        )  # fmt: skip


def constant(t: Table) -> Iterator[Finding]:
    """Find columns that are the same in every row."""
    data = t.fs.collection
    for c in t.of_domain("features", "targets"):
        values = c.values
        if len(values) > 1 and np.all(values[1] == values[0]) and (values == values[0]).all():
            every = data.numpy(c.name)
            if t.is_whole or data.is_mapped([c.name]) or (every == every[0]).all():
                yield t.finding(
                    "constant", "warning" if c.domain == "targets" else "info",
                    None, f"{c.key!r} is the same in every row", (c.name,),
                    remedy="leave it out", measure="it has one value",
                )  # fmt: skip


def not_finite(t: Table) -> Iterator[Finding]:
    """Find NaN and infinity in what a model reads: the newest representation of each column."""
    data = t.fs.collection
    some = t.some(len(t.fs))
    every = np.arange(len(t.fs)) if some is None else some
    for name in newest(data.schema, data.names):  # as models read them; what was filled is finite
        spec = data.schema[name]
        if spec.domain == "tags" or spec.dtype.kind != "f":
            continue
        finite = np.isfinite(data.gather([spec.name], some))
        if (holds := held(data, [spec.name], some)) is not None:
            finite |= ~holds  # padding may be NaN
        if not finite.all():
            rows = every[~finite.reshape(len(finite), -1).all(axis=1)]
            yield t.finding(
                "not_finite", "warning", rows,
                f"{spec.key!r} ({spec.rep}) holds NaN or infinity in {len(rows)} rows",
                (spec.name,),
                remedy="fill them or drop them", measure=f"{len(rows)} rows are not finite",
            )  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One test of an audit.

    Parameters
    ----------
    family : str
    measures : str
        What it goes by, in a line.
    look : callable
        Takes the `Table` and yields findings; those on no row do not count.
    """

    family: str
    measures: str
    look: Callable[[Table], Iterator[Finding]]


CHECKS = (
    Check("splits", "rows that two splits share", shared_rows),
    Check("windows", "steps of a series that windows of two splits share", overlapping_windows),
    Check("groups", "likeness of test rows to training rows of one value", shared_groups),
    Check("duplicates", "nearest training row against the usual distances", duplicates),
    Check("sequences", "normalised cross-correlation over lags and signs", sequences),
    Check("preparation", "rows that a recorded scaler was fitted on", scaler_fits),
    Check("preparation", "moments that are exact over all rows", prepared_before),
    Check("preparation", "correlations that vanish over all rows", uncorrelated),
    Check("time", "likeness of neighbours in time, and who comes first", time_order),
    Check("time", "likeness of neighbours in the order of the table", row_order),
    Check("target", "prediction by one feature on held-out rows", target_in_feature),
    Check("target", "a weighted sum or product of two or three features", target_in_features),
    Check("target", "prediction by the parts and order of names", target_in_id),
    Check("target", "equality with the target of the row before or behind", target_of_neighbour),
    Check("target", "means of the target by category, over all rows", target_encoding),
    Check("quality", "values that are not finite", not_finite),
    Check("quality", "columns of one value", constant),
)
"""What an audit looks for."""

KINDS = (
    *(
        "overlapping_windows",
        "shared_rows",
        "duplicate_rows",
        "near_duplicate_rows",
        "similar_sequences",
    ),
    *("shared_groups", "target_copy", "target_in_feature", "target_in_features"),
    *("target_of_neighbour", "target_encoding", "target_in_id", "scaler_fit", "prepared_before"),
    *("time_order", "time_ties", "row_order", "not_finite", "constant"),
    *("plan_trains_on_test", "plan_chooses_on_test"),
)
"""Kinds of findings, of rows and of plans."""


def check_allowed(fs: FeatureSet, entries: Iterable[str]) -> None:
    """Refuse entries of ``allow=`` that no finding can have.

    Raises
    ------
    UnknownNameError
        If there is no such kind or column; the closest are listed.
    """
    columns = {spec.key for spec in fs.collection.schema.columns.values()}
    for entry in entries:
        kind, _, key = entry.partition(":")
        if not any(fnmatchcase(known, kind) for known in KINDS):
            raise UnknownNameError("kind of finding", kind, KINDS, f"allow={entry!r} asks for it")
        if key and key not in columns:
            raise UnknownNameError("column", key, columns, f"allow={entry!r} asks for it")


def audit(
    fs: FeatureSet,
    groups: Columns = None,
    time: Columns = None,
    tolerance: float | None = None,
    max_rows: int | None = None,
    allowed: Collection[str] = (),
    quick: bool = False,
) -> AuditReport:
    """Look for leaks between the splits of a FeatureSet; see `FeatureSet.audit`."""
    if tolerance is not None and not tolerance >= 0:
        raise ConfigError(f"tolerance must be at least 0, got {tolerance!r}")
    if max_rows is not None and not max_rows >= 1:
        raise ConfigError(f"max_rows must be at least 1, or None for all rows, got {max_rows!r}")
    named = [
        None if wanted is None else [select_one(fs.collection.schema, n) for n in as_list(wanted)]
        for wanted in (groups, time)
    ]
    if max_rows is None and fs.collection.is_mapped(fs.collection.names):
        max_rows = MAPPED
    table = Table(fs, pairs_of(fs), named[0], named[1], tolerance, max_rows, quick)
    found = [f for check in CHECKS if len(fs) for f in check.look(table) if f.count]
    used = tuple(entry for entry in allowed if any(_allows(entry, f) for f in found))
    kept = [f for f in found if not any(_allows(entry, f) for entry in allowed)]
    kept = sorted(_without_echoes(kept), key=lambda f: SEVERITIES.index(f.severity))
    note = (
        f"statistics are of {len(table.rows):,} of {len(fs):,} rows, drawn from a seed; equal rows "
        "are looked for in all"
    )
    return AuditReport(fs.label, tuple(kept), used, () if table.is_whole else (note,))


def _allows(entry: str, finding: Finding) -> bool:
    """Tell whether an entry, ``kind`` or ``kind:column``, covers a finding."""
    kind, _, key = entry.partition(":")
    keys = [name.split(".")[1] for name in finding.columns]
    return fnmatchcase(finding.kind, kind) and (not key or key in keys)


def _without_echoes(found: list[Finding]) -> list[Finding]:
    """Leave out what follows from another finding: copies seen twice, sums of a copied target."""
    known = {
        c for f in found if f.kind.startswith("target_") and len(f.columns) < 3 for c in f.columns
    }
    known = {c for c in known if not c.startswith("targets.")}
    copies = {
        f.splits: f.count for f in found if f.kind == "duplicate_rows" and f.severity != "info"
    }
    curves = {f.splits for f in found if f.kind == "similar_sequences"}
    explained = {f.splits for f in found if f.kind in ("shared_groups", "time_order")}

    def is_echo(f: Finding) -> bool:
        if f.kind == "target_in_features":
            return bool(known & set(f.columns))
        if f.kind == "row_order":
            return f.splits in explained
        if f.kind == "similar_sequences":
            return copies.get(f.splits, 0) >= f.count
        return f.kind == "near_duplicate_rows" and f.splits in curves

    return [f for f in found if not is_echo(f)]
