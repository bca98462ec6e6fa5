"""Commands about files: show, compare and report what is in them, or convert them; the demo."""

from __future__ import annotations

import argparse
from pathlib import Path

from modularml._optional import require
from modularml.cli.console import Reply, check_folder
from modularml.io.extract_diff import diff, extract
from modularml.io.inspection import inspect, render


def run_demo(args: argparse.Namespace) -> Reply:
    """Run the demo, the only command that needs a framework."""
    require("modularml.demo").run_demo(Path(args.out), quiet=args.quiet)
    return Reply(data={"folder": args.out})


def run_inspect(args: argparse.Namespace) -> Reply:
    """Show what a file holds."""
    contents = inspect(args.file)
    return Reply(render(contents), contents)


def run_extract(args: argparse.Namespace) -> Reply:
    """Write the arrays and tables of a file to a folder."""
    folder = Path(args.out or Path(args.file).name.partition(".")[0])
    written = [str(path) for path in extract(args.file, folder)]
    return Reply("\n".join(written), written)


def run_diff(args: argparse.Namespace) -> Reply:
    """Show what differs between two files."""
    differences = {group: lines for group, lines in diff(args.first, args.second).items() if lines}
    shown = ["\n  ".join([group, *lines]) for group, lines in differences.items()]
    return Reply("\n".join(shown) or "no difference", differences)


def run_compare(args: argparse.Namespace) -> Reply:
    """Show a table of experiments, one column each."""
    check_folder("--out", args.out)
    collection = require("modularml.strategies").ExperimentCollection
    runs = collection(args.paths, recursive=args.recursive)
    table = runs.compare(differences_only=not args.all)
    if args.out:
        table.to_csv(args.out)
    return Reply(table.T.to_string(), table.to_dict("index"))


def run_report(args: argparse.Namespace) -> Reply:
    """Write one HTML file of results."""
    out = args.out or f"{Path(args.source).name.partition('.')[0]}.html"
    given = {"title": args.title, "notes": args.notes, "group_by": args.group_by}
    given["metrics"] = args.metric
    if args.allow_import:
        given["allow_import"] = args.allow_import
    path = require("modularml.report").write_report(args.source, out, **given)
    return Reply(f"report in {path}", {"file": str(path)})


def run_migrate(args: argparse.Namespace) -> Reply:
    """List what scripts must change; the status is 1 if there is anything."""
    check = require("modularml.migrate").check
    found = [(file, finding) for file in args.files for finding in check(Path(file))]
    text = "\n".join(f"{file}:{finding}" for file, finding in found) or "nothing to change"
    data = [{"file": file, **finding._asdict()} for file, finding in found]
    return Reply(text, data, 1 if found else 0)


def run_convert(args: argparse.Namespace) -> Reply:
    """Write the rows, ids and splits of an old file to a new one."""
    convert = require("modularml.migrate").convert
    done = convert(args.file, args.out, overwrite=args.overwrite)
    lines = [f"wrote {done.path}", *(f"  {name}" for name in done.kept)]
    if done.left_out:
        lines += ["left out", *(f"  {name}: {why}" for name, why in done.left_out.items())]
    return Reply("\n".join(lines), {**done._asdict(), "path": str(done.path)})
