"""The commands ``inspect``, ``extract``, ``diff`` and ``compare``: what is in files."""

from __future__ import annotations

import argparse
from pathlib import Path

from modularml._optional import require
from modularml.cli.console import Command, Reply, check_folder
from modularml.io import diff, extract, inspect, render

__all__ = ["COMPARE", "DIFF", "EXTRACT", "INSPECT"]


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a file that save() wrote")


def _inspect(args: argparse.Namespace) -> Reply:
    contents = inspect(args.file)
    return Reply(render(contents), contents)


INSPECT = Command(
    _add_inspect,
    _inspect,
    """
  modularml inspect study.exp.mml
  modularml inspect study.exp.mml --json | jq .config""",
)


def _add_extract(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a file that save() wrote")
    parser.add_argument("--out", help="new folder; by default named after the file")


def _extract(args: argparse.Namespace) -> Reply:
    folder = Path(args.out or Path(args.file).name.partition(".")[0])
    written = [str(path) for path in extract(args.file, folder)]
    return Reply("\n".join(written), written)


EXTRACT = Command(
    _add_extract,
    _extract,
    """
  modularml extract study.exp.mml --out study""",
)


def _add_diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", help="a file that save() wrote")
    parser.add_argument("second", help="another file of the same kind")


def _diff(args: argparse.Namespace) -> Reply:
    differences = {group: lines for group, lines in diff(args.first, args.second).items() if lines}
    shown = ["\n  ".join([group, *lines]) for group, lines in differences.items()]
    return Reply("\n".join(shown) or "no difference", differences)


DIFF = Command(
    _add_diff,
    _diff,
    """
  modularml diff monday.exp.mml tuesday.exp.mml""",
)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", help=".exp.mml files, or folders of them")
    parser.add_argument("--recursive", action="store_true", help="read subfolders too")
    parser.add_argument("--all", action="store_true", help="show settings that are equal, too")
    parser.add_argument("--out", help="CSV file to write the table to")


def _compare(args: argparse.Namespace) -> Reply:
    """Show a table of experiments, one column each."""
    check_folder("--out", args.out)
    collection = require("modularml.strategies").ExperimentCollection
    runs = collection(args.paths, recursive=args.recursive)
    table = runs.compare(differences_only=not args.all)
    if args.out:
        table.to_csv(args.out)
    return Reply(table.T.to_string(), table.to_dict("index"))


COMPARE = Command(
    _add_compare,
    _compare,
    """
  modularml compare runs/ --recursive
  modularml compare a.exp.mml b.exp.mml --all --out table.csv""",
)
