"""The command ``audit``: look for leaks in a table."""

from __future__ import annotations

import argparse
from pathlib import Path

from modularml.cli.console import Reply, check_folder, column_names, is_parquet
from modularml.data.featureset import FeatureSet
from modularml.errors import ConfigError, DataError


def run_audit(args: argparse.Namespace) -> Reply:
    """Audit a file; the status is 1 if the audit failed."""
    path = Path(args.file)
    if not path.is_file():
        raise DataError(f"there is no file {args.file!r}; check the path")
    check_folder("--html", args.html)
    if path.suffix == ".mml":
        fs = FeatureSet.load(path)
    else:
        if not args.target:
            raise ConfigError("--target is required for tables: pass the column to predict")
        named = [*args.group, *args.tag, *filter(None, (args.time, args.split))]
        tags = list(dict.fromkeys(named))
        kind = "parquet" if is_parquet(path) else "csv"
        features = [c for c in column_names(path, kind) if c not in (*args.target, *tags)]
        read = getattr(FeatureSet, f"from_{kind}")
        fs = read(path.stem, str(path), features, args.target, tags or None, register=False)
    if args.split:
        for name in sorted({str(value) for value in fs.collection.numpy(f"tags.{args.split}.raw")}):
            fs.add_split(fs.filter(conditions={args.split: name}, label=name))
    elif not fs.available_splits:
        fs.split_random({"train": 0.75, "test": 0.25}, group_by=args.group or None)
    report = fs.audit(groups=args.group or None, time=args.time, allow=args.allow)
    if args.html:
        Path(args.html).write_text(report._repr_html_(), "utf-8")
    findings = report.to_pandas().to_dict("records")
    data = {"ok": report.ok, "findings": findings, "allowed": report.allowed, "notes": report.notes}
    return Reply(str(report), {"label": report.label, **data}, 0 if report.ok else 1)
