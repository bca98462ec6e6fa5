"""The command line: ``modularml demo``, and files looked at, taken apart and compared."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from modularml._optional import require
from modularml.errors import ModularMLError
from modularml.io import diff, extract, inspect, render

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; those of the process where none are given.

    Returns
    -------
    int
        0 where all went well, 1 where an error was shown, 130 after Ctrl-C.
    """
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except ModularMLError as error:
        print(f"modularml: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("modularml: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="modularml", description="Experiments with rows and graphs."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="train on two real data sets and draw the results")
    demo.add_argument("--out", default="modularml-demo", help="folder for the pictures")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    demo.set_defaults(run=_demo)
    look = commands.add_parser("inspect", help="show what a .mml file holds; builds nothing")
    look.add_argument("file", help="a file that save() wrote")
    look.set_defaults(run=lambda args: print(render(inspect(args.file))))
    take = commands.add_parser("extract", help="write a file's arrays and tables into a folder")
    take.add_argument("file", help="a file that save() wrote")
    take.add_argument("--out", help="folder, made anew; named for the file where not given")
    take.set_defaults(run=_extract)
    compare = commands.add_parser("diff", help="show what differs between two files")
    compare.add_argument("first", help="a file that save() wrote")
    compare.add_argument("second", help="another one of its kind")
    compare.set_defaults(run=_diff)
    return parser


def _demo(args: argparse.Namespace) -> None:
    """Run the demo; it alone needs frameworks, and files can be looked at without any."""
    require("modularml.demo").run_demo(Path(args.out), quiet=args.quiet)


def _extract(args: argparse.Namespace) -> None:
    folder = Path(args.out or Path(args.file).name.partition(".")[0])
    written = extract(args.file, folder)
    print("\n".join(map(str, written)))


def _diff(args: argparse.Namespace) -> None:
    found = {group: lines for group, lines in diff(args.first, args.second).items() if lines}
    for group, lines in found.items():
        print("\n  ".join([group, *lines]))
    if not found:
        print("no difference")
