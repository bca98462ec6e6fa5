"""The commands ``migrate`` and ``convert``: scripts and files of ModularML 1.0."""

from __future__ import annotations

import argparse
from pathlib import Path

from modularml._optional import require
from modularml.cli.console import Command, Reply

__all__ = ["CONVERT", "MIGRATE"]


def _add_migrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", help=".py and .ipynb files, which are read and not run")


def _migrate(args: argparse.Namespace) -> Reply:
    """List what scripts must change; the status is 1 if there is anything."""
    check = require("modularml.migrate").check
    found = [(file, finding) for file in args.files for finding in check(Path(file))]
    text = "\n".join(f"{file}:{finding}" for file, finding in found) or "nothing to change"
    data = [{"file": file, **finding._asdict()} for file, finding in found]
    return Reply(text, data, 1 if found else 0)


MIGRATE = Command(
    _add_migrate,
    _migrate,
    """
  modularml migrate train.py analysis.ipynb""",
)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a .fs.mml file that ModularML 1.0 wrote")
    parser.add_argument("-o", "--out", help="new file; by default NAME_converted beside the old")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _convert(args: argparse.Namespace) -> Reply:
    """Write the rows, ids and splits of an old file to a new one."""
    convert = require("modularml.migrate").convert
    done = convert(args.file, args.out, overwrite=args.overwrite)
    lines = [f"wrote {done.path}", *(f"  {name}" for name in done.kept)]
    if done.left_out:
        lines += ["left out", *(f"  {name}: {why}" for name, why in done.left_out.items())]
    return Reply("\n".join(lines), {**done._asdict(), "path": str(done.path)})


CONVERT = Command(
    _add_convert,
    _convert,
    """
  modularml convert cycles.fs.mml
  modularml convert cycles.fs.mml --out new/cycles""",
)
