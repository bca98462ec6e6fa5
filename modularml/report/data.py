"""Sections of a report about rows: columns, lineage, splits and audits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd

from modularml.data.audit_report import AuditReport, Finding
from modularml.data.featureset import FeatureSet
from modularml.data.schema import DOMAINS
from modularml.data.split_records import count_by_reason
from modularml.data.view import FeatureSetView
from modularml.experiment.run_audit import quick_audit
from modularml.report.blocks import Block, Facts, Notes, Section, Table, from_diagram, shown

MOST_COLUMNS, MOST_SPLITS, MOST_FINDINGS = 40, 12, 30


def featureset_sections(fs: FeatureSet) -> Iterator[Section]:
    """Yield the sections of a FeatureSet."""
    yield Section(f"Rows of {fs.label}", tuple(_rows(fs)), 3)
    if fs._splits:
        yield Section(f"Splits of {fs.label}", tuple(_splits(fs)), 3)
    yield Section(f"Audit of {fs.label}", (_audit(fs),), 3)


def _rows(fs: FeatureSet) -> Iterator[Block]:
    collection, schema = fs.collection, fs.collection.schema
    counts = {domain: len(schema.keys(domain)) for domain in DOMAINS}
    yield Facts.of(
        rows=collection.n_absent or len(fs),
        **{domain: n for domain, n in counts.items() if n},
        fingerprint=collection.fingerprint[:16],
    )
    if not fs.has_rows:
        text = "The file was saved without rows: columns, splits and scalers are known, not values."
        yield Notes((("info", "Without rows", text),))
    drops = {id(d): d for parts in fs._dropped.values() for d in parts}  # each once
    if dropped := count_by_reason(drops.values()):
        yield Table.of_lines(
            "Rows left out", [{"reason": r, "rows": n} for r, n in dropped.items()]
        )
    yield _columns(fs)
    lines = [
        {
            "scaler": repr(record.scaler),
            "columns": f"{record.domain}: {shown(record.keys)}",
            "fitted on": record.fit_to_split or "all rows",
            "rows": None if record.fit_rows is None else len(record.fit_rows),
            "per": shown(record.per) if record.per else None,
        }
        for record in fs.scaler_records
    ]
    if lines:
        yield Table.of_lines("Scalers, in the order of fitting", lines)


def _columns(fs: FeatureSet) -> Table:
    names = fs.collection.names
    if fs.has_rows:
        view = FeatureSetView.from_featureset(fs, columns=names[:MOST_COLUMNS])
        frame = view.summary().drop(columns=["n_dropped"], errors="ignore")
    else:
        specs = [fs.collection.schema[name] for name in names[:MOST_COLUMNS]]
        facts = ("domain", "key", "rep", "kind", "unit", "dtype", "shape")
        frame = pd.DataFrame([{k: getattr(s, k) for k in facts} for s in specs])
    frame["shape"] = [" × ".join(map(str, shape)) or "scalar" for shape in frame["shape"]]
    frame["unit"] = [unit or None for unit in frame["unit"]]
    if not frame["unit"].any():
        frame = frame.drop(columns="unit")
    frame = frame.rename(columns={"rep": "representation", "not_finite": "not finite"})
    more = len(names) - MOST_COLUMNS
    note = f"The first {MOST_COLUMNS} of {len(names):,} columns." if more > 0 else ""
    return Table.of("Columns", frame, note)


def _splits(fs: FeatureSet) -> Iterator[Block]:
    total = fs.collection.n_absent or len(fs)
    made = {name: record for record in fs.split_records for name in record.names}
    lines, seen = [], None
    for name, n in fs._split_sizes().items():
        record = made.get(name)
        line = {"split": name, "rows": n, "share": f"{n / max(total, 1):.1%}"}
        line["of"] = "all rows" if record is None or record.source is None else record.source
        how = "by hand" if record is None else repr(record.splitter)
        line["made by"] = "the same" if record is not None and record is seen else how
        lines.append(line)
        seen = record
    if not fs.has_rows:  # how they were made is not in the file
        lines = [{k: line[k] for k in ("split", "rows", "share")} for line in lines]
    yield Table.of_lines("Splits", lines)
    if fs.has_rows and len(lines) <= MOST_SPLITS:
        show = {"show_features": False, "show_targets": False, "show_tags": False}
        yield from_diagram(fs.visualize(**show), f"Splits of {fs.label}")


def _audit(fs: FeatureSet) -> Notes:
    if not fs.has_rows:
        text = "The file was saved without rows. Attach them and write the report again."
        return Notes((("info", "Not audited", text),))
    if fs.collection.maps:
        text = "The columns lie in files, so an audit takes long; fs.audit() makes one."
        return Notes((("info", "Not audited", text),))
    report: AuditReport = quick_audit(fs)
    items = audit_notes(report.findings) or (
        ("ok", "Nothing found", "No leak between splits, and no column that harms a model."),
    )
    if report.allowed:
        items += (("info", "Allowed by the author", shown(report.allowed)),)
    return Notes(items + tuple(("info", "Extent", note) for note in report.notes))


def audit_notes(findings: Iterable[Finding]) -> tuple[tuple[str, str, str], ...]:
    """Return findings as notes."""
    found = list(findings)
    notes = []
    for f in found[:MOST_FINDINGS]:
        chance = "" if f.p_value is None else f"; p = {f.p_value:.1g}"
        measured = f"{f.measure}{chance}".lstrip("; ")
        text = f"{f.message} ({measured})" if measured else f.message
        notes.append((f.severity, f.kind.replace("_", " "), text))
    if len(found) > MOST_FINDINGS:
        notes.append(("info", "More", f"{len(found) - MOST_FINDINGS} more findings: fs.audit()"))
    return tuple(notes)


def group_columns(sets: Iterable[FeatureSet]) -> list[str]:
    """Return the columns whose rows splits keep together, the first of each splitter."""
    found: dict[str, None] = {}
    for fs in sets:
        for record in fs.split_records:
            keys = getattr(record.splitter, "group_by", None)
            if keys:
                found[keys if isinstance(keys, str) else next(iter(keys))] = None
    return list(found)
