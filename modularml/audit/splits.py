"""Rows shared by two splits, and scalers fitted on other splits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from modularml.audit.pairs import is_training
from modularml.audit.table import Table
from modularml.data.audit_report import Finding
from modularml.data.schema import RAW

__all__ = ["scaler_fits", "shared_rows"]


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
            rows = pair.test[fitted[pair.test] & ~pair.in_train[pair.test]]
            finding = f"were seen by {record.scaler.scaler_name} on {', '.join(record.keys[:4])}"
            by = record.fit_to_split
            sure = by != pair.origin and (is_training(pair.names[0]) or by in pair.names)
            severity = pair.severity if sure or by is None else "info"  # else of another division
            yield t.finding(
                "scaler_fit", severity, rows, finding, columns, pair,
                remedy=f"undo it and call fit_transform with fit_to_split={pair.names[0]!r}",
                measure=f"fitted on {int(fitted.sum())} rows, {len(rows)} of which are tested on",
            )  # fmt: skip
