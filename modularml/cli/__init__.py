"""The command line: run plans, predict, audit, and look into files."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from modularml._optional import require
from modularml.cli.console import INTERRUPTED, USAGE, Reply, ready_streams, show
from modularml.context import ExperimentContext
from modularml.errors import ModularMLError, PlanError
from modularml.progress import leave_stdout

__all__ = ["main"]

MANY = {"action": "append", "default": []}
FLAG = {"action": "store_true"}
ALLOW_IMPORT = {**MANY, "metavar": "MODULE", "help": "your own classes"}
SAVED = {"help": "a file that save() wrote"}


class Command(NamedTuple):
    """A command.

    Attributes
    ----------
    run : str
        Module of this package and function that runs the command.
    help : str
    arguments : mapping of str to dict
        Options of `add_argument`, by the names of the argument.
    examples : str
    """

    run: str
    help: str
    arguments: Mapping[str, Mapping[str, Any]]
    examples: str = ""


COMMANDS = {
    "demo": Command(
        "file_commands:run_demo",
        "train on two real data sets and draw the results",
        {
            "--out": {"default": "modularml-demo", "help": "folder for the pictures"},
            "--quiet": {**FLAG, "help": "no progress bars"},
        },
    ),
    "audit": Command(
        "audit:run_audit",
        "look for leaks in a table or a .fs.mml file",
        {
            "file": {"help": "a .csv, .parquet or .fs.mml file"},
            "--target": {**MANY, "help": "column to predict"},
            "--group": {**MANY, "help": "column of groups"},
            "--time": {"help": "column of times: training rows come before test rows"},
            "--tag": {**MANY, "help": "column that no model reads"},
            "--split": {"help": "column with the split of each row; random if not given"},
            "--allow": {**MANY, "help": "finding to allow"},
            "--html": {"help": "HTML file to write the report to"},
        },
        """
  modularml audit cells.csv --target soh --group cell
  modularml audit cells.fs.mml --html report.html
  modularml audit cells.csv --target soh --group cell --json | jq .findings""",
    ),
    "run": Command(
        "run:run_plan_files",
        "run the experiment of a plan file",
        {
            "plan": {
                "nargs": "+",
                "help": "plan files, or what to_yaml() wrote; - for standard input",
            },
            "--set": {
                **MANY,
                "metavar": "PATH=VALUE",
                "help": "change a setting, such as graph.optimizer.lr=0.01; the value is YAML",
            },
            "-o --out": {"help": "folder of results, by default <plan>-results"},
            "--dry-run": {**FLAG, "help": "check all, train nothing, show it"},
            "--resume": {**FLAG, "help": "continue a run that was stopped"},
            "--overwrite": {**FLAG, "help": "replace earlier results"},
            "--quiet": {**FLAG, "help": "no progress"},
            "--allow-import": {
                **ALLOW_IMPORT,
                "help": ("module whose classes the plan may name; it is imported, so trust it"),
            },
        },
        """
  modularml run plan.yaml
  modularml run plan.yaml --set graph.optimizer.lr=0.01 --set phases.train.n_epochs=50 -o lr001
  modularml run plan.yaml --dry-run
  modularml run plan.yaml --resume
  modularml run cells.yaml study.yaml        # of fs.to_yaml() and experiment.to_yaml()""",
    ),
    "predict": Command(
        "predict:run_predict",
        "predict the rows of a table with a trained model",
        {
            "model": {"help": "an experiment (.exp.mml), graph (.mg.mml) or ensemble"},
            "tables": {
                "nargs": "+",
                "metavar": "TABLE",
                "help": (
                    "CSV or Parquet; - for CSV from standard input; label=path for several tables"
                ),
            },
            "-o --out": {"help": "CSV or Parquet file; by default CSV to the output"},
            "--node": {"help": "node whose outputs are written; by default all tail nodes"},
            "--tags": {**FLAG, "help": "write the tags of the rows too"},
            "--decode": {**FLAG, "help": "labels instead of class numbers"},
            "--interval": {"type": float, "metavar": "SHARE", "help": "bounds, such as 0.9"},
            "--calibration": {"help": "split, or table, to calibrate the bounds on"},
            "--group-by": {"help": "column whose groups get bounds of their own"},
            "--allow-import": ALLOW_IMPORT,
        },
        """
  modularml predict study.exp.mml new.csv -o predictions.csv
  modularml predict study.exp.mml new.parquet --interval 0.9 --tags -o predictions.parquet
  modularml predict study.exp.mml windows=w.parquet facts=f.csv
  cut -d, -f1-4 new.csv | modularml predict study.exp.mml - > predictions.csv""",
    ),
    "compare": Command(
        "file_commands:run_compare",
        "compare experiments: settings and metrics",
        {
            "paths": {"nargs": "+", "help": ".exp.mml files, or folders of them"},
            "--recursive": {**FLAG, "help": "read subfolders too"},
            "--all": {**FLAG, "help": "show settings that are equal, too"},
            "--out": {"help": "CSV file to write the table to"},
        },
        """
  modularml compare runs/ --recursive
  modularml compare a.exp.mml b.exp.mml --all --out table.csv""",
    ),
    "report": Command(
        "file_commands:run_report",
        "write a report of results as one HTML file",
        {
            "source": {"metavar": "FILE", "help": "an .exp.mml or .fs.mml file"},
            "-o --out": {"help": "HTML file; by default named after the first"},
            "--title": {"help": "by default the label of the source"},
            "--notes": {"default": "", "help": "your own introduction"},
            "--group-by": {"help": "column of groups, such as a patient"},
            "--metric": {"action": "append", "help": "score to report, such as rmse"},
            "--allow-import": ALLOW_IMPORT,
        },
        """
  modularml report study.exp.mml -o study.html
  modularml report study.exp.mml --group-by cell --metric rmse --metric r2""",
    ),
    "inspect": Command(
        "file_commands:run_inspect",
        "show what a .mml file holds; builds nothing",
        {"file": SAVED},
        """
  modularml inspect study.exp.mml
  modularml inspect study.exp.mml --json | jq .config""",
    ),
    "diff": Command(
        "file_commands:run_diff",
        "show what differs between two files",
        {"first": SAVED, "second": {"help": "another file of the same kind"}},
        """
  modularml diff monday.exp.mml tuesday.exp.mml""",
    ),
    "extract": Command(
        "file_commands:run_extract",
        "write a file's arrays and tables to a folder",
        {"file": SAVED, "--out": {"help": "new folder; by default named after the file"}},
        """
  modularml extract study.exp.mml --out study""",
    ),
    "migrate": Command(
        "file_commands:run_migrate",
        "list what scripts for ModularML 1.0 must change",
        {"files": {"nargs": "+", "help": ".py and .ipynb files, which are read and not run"}},
        """
  modularml migrate train.py analysis.ipynb""",
    ),
    "convert": Command(
        "file_commands:run_convert",
        "take over the rows of a file of ModularML 1.0",
        {
            "file": {"help": "a .fs.mml file that ModularML 1.0 wrote"},
            "-o --out": {"help": "new file; by default NAME_converted beside the old"},
            "--overwrite": {**FLAG, "help": "replace an existing file"},
        },
        """
  modularml convert cycles.fs.mml
  modularml convert cycles.fs.mml --out new/cycles""",
    ),
    "schema": Command(
        "run:run_schema",
        "write the JSON schema of plan files, for editors",
        {},
        """
  modularml schema > plan.schema.json
  # then, as the first line of a plan: # yaml-language-server: $schema=plan.schema.json""",
    ),
}
"""Commands in the order of the help."""

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
    ready_streams()
    args = _parser().parse_args(argv)
    module, _, function = COMMANDS[args.command].run.partition(":")
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, category, *_, **__: (
        f"modularml: {category.__name__}: {message}\n"
    )
    try:
        with ExperimentContext(registration_policy="error").activate():
            reply: Reply = getattr(require(f"modularml.cli.{module}"), function)(args)
        show(reply, as_json=args.json)
        return reply.status
    except ModularMLError as error:
        # in one line, and with --json on standard output too
        status = USAGE if isinstance(error, PlanError) else 1
        print(f"modularml: {error}", file=sys.stderr)
        if args.json:
            facts = {"error": str(error), "type": type(error).__name__, "status": status}
            print(json.dumps({**facts, "code": error.code} if error.code else facts))
        return status
    except KeyboardInterrupt:
        print("modularml: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        leave_stdout()
        return 0
    finally:
        warnings.formatwarning = before


def _parser() -> argparse.ArgumentParser:
    """Return a parser of all commands, whose modules are not imported."""
    look: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(
        prog="modularml", description="Experiments with rows and graphs.", epilog=EXIT, **look
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        text = f"{command.help[0].upper()}{command.help[1:]}."
        epilog = f"examples:{command.examples}\n\n{EXIT}" if command.examples else EXIT
        sub = commands.add_parser(name, help=command.help, description=text, epilog=epilog, **look)
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        for names, options in command.arguments.items():
            sub.add_argument(*names.split(), **options)
    return parser
