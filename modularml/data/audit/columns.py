"""The checks of an audit on columns; each yields what it finds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from modularml._typing import Array
from modularml.data.audit.checks import Subject
from modularml.data.audit.findings import Finding
from modularml.data.audit.likeness import affine_residuals

__all__ = ["constant", "not_finite", "target_copies"]

_EXACT = 1e-5
"""A copy in float32 is this near, as a share of a column's standard deviation."""

_FEWEST = 10
"""Rows below which a straight line fits by chance."""


def target_copies(subject: Subject) -> Iterator[Finding]:
    """Find features that repeat a target, or an affine copy of it."""
    some, every = subject.some(len(subject.fs)), np.arange(len(subject.fs))
    features, targets = (_numbers(subject, domain) for domain in ("features", "targets"))
    if len(every[some]) < _FEWEST or not features or not targets:
        return
    for target, values in targets.items():
        left = affine_residuals([v[some] for v in features.values()], values[some]).min(axis=1)
        for name, share in zip(features, left, strict=True):
            if share <= max(subject.tolerance, _EXACT):
                exact = share <= _EXACT
                yield subject.finding(
                    "target_copy",
                    "error" if exact else "warning",
                    f"feature {name.split('.')[1]!r} {'repeats' if exact else 'all but repeats'} "
                    f"target {target.split('.')[1]!r} (up to an offset and a factor); leave it out "
                    "of the features",
                    every,
                    columns=(name, target),
                )


def _numbers(subject: Subject, domain: str) -> dict[str, Array]:
    columns = subject.values(domain).items()
    return {n: v.reshape(len(v), -1) for n, v in columns if v.dtype.kind in "biuf"}


def constant(subject: Subject) -> Iterator[Finding]:
    """Find features and targets that are the same in every row."""
    if len(subject.fs) < 2:
        return
    for domain, severity in (("features", "info"), ("targets", "warning")):
        for name, values in subject.values(domain).items():
            if (values[1] == values[0]).all() and (values == values[0]).all():
                yield subject.finding(
                    "constant",
                    severity,
                    f"{name.split('.')[1]!r} is the same in every row; leave it out",
                    np.arange(len(values)),
                    columns=(name,),
                )


def not_finite(subject: Subject) -> Iterator[Finding]:
    """Find features and targets that hold NaN or infinity, raw or once they were scaled."""
    data, seen = subject.fs.collection, set()
    for name, spec in data.schema.columns.items():
        if spec.domain == "tags" or spec.dtype.kind != "f" or spec.key in seen:
            continue
        bad = ~np.isfinite(data.numpy(name))
        if bad.any():
            seen.add(spec.key)
            rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
            yield subject.finding(
                "not_finite",
                "warning",
                f"{spec.key!r} ({spec.rep}) holds NaN or infinity in {len(rows)} of {len(bad)} "
                "rows; drop or fill them before building the set",
                rows,
                columns=(name,),
            )
