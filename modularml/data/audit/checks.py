"""What is audited, and the checks on its splits; each yields what it finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from modularml._typing import Array, IntArray
from modularml.data.audit.findings import Finding
from modularml.data.audit.likeness import SEQUENCE, is_coarse, like_rows, row_codes
from modularml.data.audit.pairs import Pair, is_training, pairs_of
from modularml.data.collection import id_texts
from modularml.data.schema import RAW

if TYPE_CHECKING:
    from modularml.data.featureset import FeatureSet

__all__ = ["Subject", "duplicates", "scaler_fits", "shared_groups", "shared_rows", "time_order"]


@dataclass(frozen=True, eq=False)
class Subject:
    """What is audited, and how closely.

    Parameters
    ----------
    fs : FeatureSet
    groups, times : mapping of str to str
        Columns, and how each was guessed; empty where the user named it.
    tolerance : float
    max_rows : int or None
        The most rows of a split that checks on values look at.
    """

    fs: FeatureSet
    groups: Mapping[str, str]
    times: Mapping[str, str]
    tolerance: float
    max_rows: int | None

    @cached_property
    def pairs(self) -> list[Pair]:
        """Splits that must be apart."""
        return pairs_of(self.fs)

    def values(self, domain: str) -> dict[str, Array]:
        """Return the raw columns of a domain by full name, text as numbers."""
        data, found = self.fs.collection, {}
        for name, spec in data.schema.columns.items():
            if (spec.domain, spec.rep) == (domain, RAW):
                if spec.dtype.kind != "O":
                    found[name] = data.numpy(name)
                elif not spec.shape:
                    found[name] = data.codes(name)
        return found

    def some(self, n: int) -> slice:
        """Return which of n rows are looked at: at most `max_rows`, evenly spread."""
        return slice(None, None, max(1, -(-n // (self.max_rows or n or 1))))

    def finding(
        self,
        kind: str,
        severity: str,
        message: str,
        rows: IntArray,
        *,
        columns: tuple[str, ...] = (),
        splits: tuple[str, ...] = (),
    ) -> Finding:
        """Return a finding about some rows."""
        rows = np.unique(rows)
        ids = id_texts(self.fs.collection.ids[rows[:5]]).tolist() if len(rows) else ()
        return Finding(severity, kind, message, columns, splits, len(rows), tuple(ids))


def shared_rows(subject: Subject) -> Iterator[Finding]:
    """Find rows in two splits."""
    for pair in subject.pairs:
        if len(pair.shared):
            a, b = pair.names
            yield subject.finding(
                "shared_rows",
                pair.severity,
                f"{len(pair.shared)} of {len(pair.test)} rows of {b!r} are in {a!r} too; make the "
                "conditions exclude each other, or split once",
                pair.shared,
                splits=pair.names,
            )


def shared_groups(subject: Subject) -> Iterator[Finding]:
    """Find groups that have rows in two splits."""
    for name, guessed in subject.groups.items():
        codes = subject.fs.collection.codes(name)
        key = subject.fs.collection.schema[name].key
        for pair in subject.pairs:
            rows = _with_code(codes, pair)
            n, of = len(np.unique(codes[rows])), len(np.unique(codes[pair.test]))
            if n:
                yield subject.finding(
                    "shared_groups",
                    "warning" if guessed else pair.severity,
                    f"{n} of {of} values of {key!r} in {pair.names[1]!r} are in {pair.names[0]!r} "
                    f"too{guessed}; split with group_by={key!r}",
                    rows,
                    columns=(name,),
                    splits=pair.names,
                )


def duplicates(subject: Subject) -> Iterator[Finding]:
    """Find rows with the same features in two splits, and sequences that are nearly the same."""
    columns = subject.values("features")
    pairs = [
        replace(
            p,
            train=p.train[subject.some(len(p.train))],
            test=p.test[subject.some(len(p.test))],
        )
        for p in subject.pairs
    ]
    if not columns or not pairs:
        return
    looked_at = np.zeros(len(subject.fs), dtype=bool)
    for pair in pairs:
        looked_at[pair.train] = looked_at[pair.test] = True
    every = np.flatnonzero(looked_at)
    part = [values[every] for values in columns.values()]
    codes = np.zeros(len(subject.fs), dtype=np.int64)
    codes[every] = row_codes(part)
    for pair in pairs:
        rows = _with_code(codes, pair)
        rows = rows[~pair.in_train[rows]]
        if len(rows):
            coarse = is_coarse(part, len(every))
            yield subject.finding(
                "duplicate_rows",
                "info" if coarse else "warning",
                f"{len(rows)} of {len(pair.test)} rows of {pair.names[1]!r} have the features of a "
                f"row of {pair.names[0]!r}"
                + (
                    "; with so few different values that is likely by chance"
                    if coarse
                    else "; drop the copies, or give them a tag in common and split by group_by="
                ),
                rows,
                columns=tuple(columns),
                splits=pair.names,
            )
        if subject.tolerance:
            yield from _similar(subject, columns, pair, rows)


def _similar(
    subject: Subject, columns: Mapping[str, Array], pair: Pair, known: IntArray
) -> Iterator[Finding]:
    fresh = pair.test[~pair.in_train[pair.test] & ~np.isin(pair.test, known)]
    for name, values in columns.items():
        flat = values.reshape(len(values), -1)
        if flat.dtype.kind != "f" or flat.shape[1] < SEQUENCE:
            continue
        rows = like_rows(flat, pair.train, fresh, subject.tolerance)
        if len(rows):
            key = subject.fs.collection.schema[name].key
            yield subject.finding(
                "similar_sequences",
                "warning",
                f"{len(rows)} of {len(pair.test)} samples of {key!r} in {pair.names[1]!r} differ "
                f"by less than {subject.tolerance:g} standard deviations from one in "
                f"{pair.names[0]!r}; keep what was recorded together in one split (group_by=)",
                rows,
                columns=(name,),
                splits=pair.names,
            )


def scaler_fits(subject: Subject) -> Iterator[Finding]:
    """Find scalers that were fitted on rows that the model is tested on."""
    n = len(subject.fs)
    for record in subject.fs.scaler_records:
        if not record.scaler.learns:
            continue
        fitted = np.zeros(n, dtype=bool)
        fitted[slice(None) if record.fit_rows is None else record.fit_rows] = True
        for pair in subject.pairs:
            rows = pair.test[fitted[pair.test] & ~pair.in_train[pair.test]]
            if not len(rows) or not (is_training(pair.names[0]) or fitted[pair.train].any()):
                continue
            within = record.fit_to_split is not None and pair.origin == record.fit_to_split
            source = pair.names[0] if is_training(pair.names[0]) else "the split you train on"
            yield subject.finding(
                "scaler_fit",
                "info" if within else pair.severity,
                f"{record.scaler.scaler_name} on {', '.join(record.keys[:4])} was fitted on "
                f"{len(rows)} of {len(pair.test)} rows of {pair.names[1]!r}; undo_last_transform, "
                f"then fit_transform(..., fit_to_split={source!r})",
                rows,
                columns=tuple(f"{record.domain}.{key}.{RAW}" for key in record.keys),
                splits=pair.names,
            )


def time_order(subject: Subject) -> Iterator[Finding]:
    """Find test rows that are older than the newest training row."""
    for name, guessed in subject.times.items():
        times = subject.fs.collection.numpy(name)
        key = subject.fs.collection.schema[name].key
        for pair in subject.pairs:
            if guessed and not _is_shuffled(pair):
                continue
            newest = times[pair.train].max(initial=times.min()) if len(pair.train) else None
            rows = pair.test[times[pair.test] < newest] if newest is not None else pair.test[:0]
            if len(rows):
                yield subject.finding(
                    "time_order",
                    "warning" if guessed else pair.severity,
                    f"{len(rows)} of {len(pair.test)} rows of {pair.names[1]!r} are older than the "
                    f"newest of {pair.names[0]!r} by {key!r}{guessed}; to foretell later rows, "
                    "split by a condition on time, or with TimeSeriesSplitter",
                    rows,
                    columns=(name,),
                    splits=pair.names,
                )


def _is_shuffled(pair: Pair) -> bool:
    """Tell whether single rows were dealt at random."""
    splitter = pair.splitter
    return (
        getattr(splitter, "seed", None) is not None
        and getattr(splitter, "shuffle", True)
        and not getattr(splitter, "group_by", None)
    )


def _with_code(codes: IntArray, pair: Pair) -> IntArray:
    """Return the test rows whose code comes in the training rows."""
    seen = np.zeros(codes.max(initial=0) + 1, dtype=bool)
    seen[codes[pair.train]] = True
    return pair.test[seen[codes[pair.test]]]
