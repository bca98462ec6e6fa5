"""The command line: ``modularml demo``, ``modularml inspect FILE``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from modularml.demo import run_demo
from modularml.errors import ModularMLError
from modularml.io import inspect, render

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
    demo.set_defaults(run=lambda args: run_demo(Path(args.out), quiet=args.quiet))
    look = commands.add_parser("inspect", help="show what a .mml file holds; builds nothing")
    look.add_argument("file", help="a file that save() wrote")
    look.set_defaults(run=lambda args: print(render(inspect(args.file))))
    return parser
