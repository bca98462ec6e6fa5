"""The command ``report``: one HTML file of results."""

from __future__ import annotations

import argparse
from pathlib import Path

from modularml._optional import require
from modularml.cli.console import Command, Reply

__all__ = ["COMMAND"]


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FILE", help="an .exp.mml or .fs.mml file")
    parser.add_argument("-o", "--out", help="HTML file; by default named after the first")
    parser.add_argument("--title", help="by default the label of the source")
    parser.add_argument("--notes", default="", help="your own introduction")
    parser.add_argument("--group-by", help="column of groups, such as a patient")
    parser.add_argument("--metric", action="append", help="score to report, such as rmse")
    parser.add_argument(
        "--allow-import", action="append", default=[], metavar="MODULE", help="your own classes"
    )


def _run(args: argparse.Namespace) -> Reply:
    out = args.out or f"{Path(args.source).name.partition('.')[0]}.html"
    given = {"title": args.title, "notes": args.notes, "group_by": args.group_by}
    given["metrics"] = args.metric
    if args.allow_import:
        given["allow_import"] = args.allow_import
    path = require("modularml.report").write_report(args.source, out, **given)
    return Reply(f"report in {path}", {"file": str(path)})


COMMAND = Command(
    _add,
    _run,
    """
  modularml report study.exp.mml -o study.html
  modularml report study.exp.mml --group-by cell --metric rmse --metric r2""",
)
