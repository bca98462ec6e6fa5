"""One audit: which columns are groups and times, then every check."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from modularml._typing import Columns
from modularml.data.audit import checks, columns
from modularml.data.audit.checks import Subject
from modularml.data.audit.findings import SEVERITIES, AuditReport
from modularml.data.schema import RAW, ColumnSpec
from modularml.data.selectors import as_list, select_one
from modularml.errors import ConfigError

if TYPE_CHECKING:
    from modularml.data.featureset import FeatureSet

__all__ = ["audit"]

_CHECKS = (
    checks.shared_rows,
    checks.shared_groups,
    checks.duplicates,
    checks.scaler_fits,
    checks.time_order,
    columns.target_copies,
    columns.not_finite,
    columns.constant,
)

_GROUPS = re.compile(
    r"(^|_)(group|cell|battery|patient|subject|participant|person|user|donor|animal|specimen"
    r"|machine|device|engine|recording|session|scan|id)(_?(id|no|nr|num|number|name))?$"
)
"""Names of tags that tell rows which belong together, in lower case."""


def audit(
    fs: FeatureSet,
    *,
    groups: Columns = None,
    time: Columns = None,
    tolerance: float = 1e-3,
    max_rows: int | None = None,
) -> AuditReport:
    """Look for leaks between the splits of a FeatureSet; see `FeatureSet.audit`."""
    if not tolerance >= 0:
        raise ConfigError(f"tolerance must be at least 0, got {tolerance!r}")
    if max_rows is not None and not max_rows >= 1:
        raise ConfigError(f"max_rows must be at least 1, or None for all rows, got {max_rows!r}")
    subject = Subject(
        fs,
        dict(_guessed_groups(fs)) if groups is None else _named(fs, groups),
        dict(_guessed_times(fs)) if time is None else _named(fs, time),
        tolerance,
        max_rows,
    )
    found = [finding for check in _CHECKS if len(fs) for finding in check(subject)]
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return AuditReport(fs.label, tuple(found))


def _named(fs: FeatureSet, wanted: Columns) -> dict[str, str]:
    return {select_one(fs.collection.schema, name): "" for name in as_list(wanted)}


def _guessed_groups(fs: FeatureSet) -> Iterator[tuple[str, str]]:
    """Yield tags that a split was made by, and tags that are named like a group and repeat."""
    schema, data = fs.collection.schema, fs.collection
    by = {
        select_one(schema, key)
        for record in fs.split_records
        for key in as_list(getattr(record.splitter, "group_by", None))
    }
    for name, spec in schema.columns.items():
        if name in by:
            yield name, f" (a group, as a split has group_by={spec.key!r})"
        elif _is_named_like_a_group(spec) and 1 <= data.codes(name).max(initial=0) < len(fs) / 2:
            yield name, " (taken for a group by its name and because its values repeat)"


def _is_named_like_a_group(spec: ColumnSpec) -> bool:
    return (spec.domain, spec.shape) == ("tags", ()) and bool(_GROUPS.search(spec.key.lower()))


def _guessed_times(fs: FeatureSet) -> Iterator[tuple[str, str]]:
    for name, spec in fs.collection.schema.columns.items():
        if (spec.domain, spec.rep, spec.shape, spec.dtype.kind) == ("tags", RAW, (), "M"):
            yield name, " (a tag with dates)"
