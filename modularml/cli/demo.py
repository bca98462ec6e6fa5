"""The command ``demo``, the only one that needs a framework."""

from __future__ import annotations

import argparse
from pathlib import Path

from modularml._optional import require
from modularml.cli.console import Command, Reply

__all__ = ["DEMO"]


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="modularml-demo", help="folder for the pictures")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _run(args: argparse.Namespace) -> Reply:
    require("modularml.demo").run_demo(Path(args.out), quiet=args.quiet)
    return Reply(data={"folder": args.out})


DEMO = Command(_add, _run)
