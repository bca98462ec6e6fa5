"""The command line: run plans, predict, audit, and look into files."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from modularml._optional import require
from modularml.context import ExperimentContext
from modularml.errors import ModularMLError, PlanError

__all__ = ["main"]

COMMANDS = {
    "demo": ("demo:DEMO", "train on two real data sets and draw the results"),
    "audit": ("audit:COMMAND", "look for leaks in a table or a .fs.mml file"),
    "run": ("run:RUN", "run the experiment of a plan file"),
    "predict": ("predict:COMMAND", "predict the rows of a table with a trained model"),
    "compare": ("files:COMPARE", "compare experiments: settings and metrics"),
    "report": ("report:COMMAND", "write a report of results as one HTML file"),
    "inspect": ("files:INSPECT", "show what a .mml file holds; builds nothing"),
    "diff": ("files:DIFF", "show what differs between two files"),
    "extract": ("files:EXTRACT", "write a file's arrays and tables to a folder"),
    "migrate": ("migrate:MIGRATE", "list what scripts for ModularML 1.0 must change"),
    "convert": ("migrate:CONVERT", "take over the rows of a file of ModularML 1.0"),
    "schema": ("run:SCHEMA", "write the JSON schema of plan files, for editors"),
}
"""Commands in the order of the help: the `Command` in this package, and its help."""

EXIT = """exit status:
  0    all went well
  1    an error, findings of an audit or of migrate, or folds that failed
  2    a command or a plan file with a mistake; nothing has run
  130  interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; by default those of the process.

    Returns
    -------
    int
        0 on success, 1 if an error was shown, an audit failed or folds failed, 2 if a plan file
        has a mistake, 130 after Ctrl-C.
    """
    console = require("modularml.cli.console")
    console.ready_streams()
    given = sys.argv[1:] if argv is None else list(argv)
    args = _parser(given).parse_args(given)
    before, warnings.formatwarning = warnings.formatwarning, _warning
    try:
        with ExperimentContext(registration_policy="error").activate():
            reply = args.run(args)
        console.show(reply, as_json=args.json)
    except ModularMLError as error:
        status = console.USAGE if isinstance(error, PlanError) else 1
        return _failed(error, status, as_json=args.json)
    except KeyboardInterrupt:
        print("modularml: interrupted", file=sys.stderr)
        return int(console.INTERRUPTED)
    except BrokenPipeError:
        console.leave_stdout()
        return 0
    finally:
        warnings.formatwarning = before
    return int(reply.status)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser; only the module of the command that is asked for is imported."""
    parser = argparse.ArgumentParser(
        prog="modularml",
        description="Experiments with rows and graphs.",
        epilog=EXIT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (place, text) in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in argv[:1]:
            module, _, attribute = place.partition(":")
            command = getattr(require(f"modularml.cli.{module}"), attribute)
            sub.epilog = f"examples:{command.examples}\n\n{EXIT}" if command.examples else EXIT
            sub.add_argument("--json", action="store_true", help="print the result as JSON")
            command.add(sub)
            sub.set_defaults(run=command.run)
    return parser


def _failed(error: ModularMLError, status: int, *, as_json: bool) -> int:
    """Show an error in one line, and with ``--json`` on standard output too."""
    print(f"modularml: {error}", file=sys.stderr)
    if as_json:
        facts = {"error": str(error), "type": type(error).__name__, "status": status}
        print(json.dumps({**facts, "code": error.code} if error.code else facts))
    return status


def _warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> str:
    return f"modularml: {category.__name__}: {message}\n"
