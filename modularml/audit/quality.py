"""Constant columns and non-finite values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from modularml.audit.table import Table
from modularml.data.audit_report import Finding
from modularml.data.padding import held
from modularml.data.selectors import newest

__all__ = ["constant", "not_finite"]


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
                    np.arange(len(t.fs)), f"{c.key!r} is the same in every row", (c.name,),
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
