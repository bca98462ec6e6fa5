"""The command line: the demo, and commands to audit and inspect files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pyarrow import parquet

from modularml._optional import require
from modularml.data.featureset import FeatureSet
from modularml.errors import ConfigError, DataError, ModularMLError
from modularml.io import diff, extract, inspect, render

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; by default those of the process.

    Returns
    -------
    int
        0 on success, 1 if an error was shown or an audit failed, 130 after Ctrl-C.
    """
    args = _parser().parse_args(argv)
    try:
        status: int | None = args.run(args)
    except ModularMLError as error:
        print(f"modularml: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("modularml: interrupted", file=sys.stderr)
        return 130
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="modularml", description="Experiments with rows and graphs."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="train on two real data sets and draw the results")
    demo.add_argument("--out", default="modularml-demo", help="folder for the pictures")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    demo.set_defaults(run=_demo)
    audit = commands.add_parser("audit", help="look for leaks in a table or a .fs.mml file")
    audit.add_argument("file", help="a .csv, .parquet or .fs.mml file")
    audit.add_argument("--target", action="append", default=[], help="column to predict")
    audit.add_argument("--group", action="append", default=[], help="column of groups")
    audit.add_argument("--time", help="column of times: training rows come before test rows")
    audit.add_argument("--tag", action="append", default=[], help="column that no model reads")
    audit.add_argument("--split", help="column with the split of each row; random if not given")
    audit.add_argument("--allow", action="append", default=[], help="finding to allow")
    audit.add_argument("--html", help="HTML file to write the report to")
    audit.set_defaults(run=_audit)
    look = commands.add_parser("inspect", help="show what a .mml file holds; builds nothing")
    look.add_argument("file", help="a file that save() wrote")
    look.set_defaults(run=lambda args: print(render(inspect(args.file))))
    take = commands.add_parser("extract", help="write a file's arrays and tables to a folder")
    take.add_argument("file", help="a file that save() wrote")
    take.add_argument("--out", help="new folder; by default named after the file")
    take.set_defaults(run=_extract)
    differ = commands.add_parser("diff", help="show what differs between two files")
    differ.add_argument("first", help="a file that save() wrote")
    differ.add_argument("second", help="another file of the same kind")
    differ.set_defaults(run=_diff)
    compare = commands.add_parser("compare", help="compare experiments: settings and metrics")
    compare.add_argument("paths", nargs="+", help=".exp.mml files, or folders of them")
    compare.add_argument("--recursive", action="store_true", help="read subfolders too")
    compare.add_argument("--all", action="store_true", help="show settings that are equal, too")
    compare.add_argument("--out", help="CSV file to write the table to")
    compare.set_defaults(run=_compare)
    return parser


def _demo(args: argparse.Namespace) -> None:
    """Run the demo, the only command that needs a framework."""
    require("modularml.demo").run_demo(Path(args.out), quiet=args.quiet)


def _audit(args: argparse.Namespace) -> int:
    """Audit a file, print the report, and return 1 if the audit failed."""
    path = Path(args.file)
    if not path.is_file():
        raise DataError(f"there is no file {args.file!r}; check the path")
    if args.html and not Path(args.html).absolute().parent.is_dir():
        raise ConfigError(f"--html needs a file in an existing folder, got {args.html!r}")
    if path.suffix == ".mml":
        fs = FeatureSet.load(path)
    else:
        if not args.target:
            raise ConfigError("--target is required for tables: pass the column to predict")
        named = [*args.group, *args.tag, *filter(None, (args.time, args.split))]
        tags = list(dict.fromkeys(named))
        is_parquet = path.suffix == ".parquet"
        read = FeatureSet.from_parquet if is_parquet else FeatureSet.from_csv
        features = [c for c in _header(path, is_parquet) if c not in (*args.target, *tags)]
        fs = read(path.stem, str(path), features, args.target, tags or None, register=False)
    if args.split:
        for name in sorted({str(value) for value in fs.collection.numpy(f"tags.{args.split}.raw")}):
            fs.add_split(fs.filter(conditions={args.split: name}, label=name))
    elif not fs.available_splits:
        fs.split_random({"train": 0.75, "test": 0.25}, group_by=args.group or None)
    report = fs.audit(groups=args.group or None, time=args.time, allow=args.allow)
    print(report)
    if args.html:
        Path(args.html).write_text(report._repr_html_(), "utf-8")
    return 0 if report.ok else 1


def _header(path: Path, is_parquet: bool) -> list[str]:
    """Return the names of a table's columns."""
    try:
        if is_parquet:
            return [str(name) for name in parquet.read_schema(path).names]
        return [str(name) for name in require("pandas").read_csv(path, nrows=0)]
    except ValueError as error:  # of pandas, of pyarrow, and of other text encodings
        kind = "Parquet" if is_parquet else "CSV with a first line of column names"
        reason = str(error).partition("\n")[0].strip(" .")
        raise DataError(f"{str(path)!r} cannot be read as {kind}: {reason}") from error


def _extract(args: argparse.Namespace) -> None:
    folder = Path(args.out or Path(args.file).name.partition(".")[0])
    written = extract(args.file, folder)
    print("\n".join(map(str, written)))


def _diff(args: argparse.Namespace) -> None:
    differences = {group: lines for group, lines in diff(args.first, args.second).items() if lines}
    for group, lines in differences.items():
        print("\n  ".join([group, *lines]))
    if not differences:
        print("no difference")


def _compare(args: argparse.Namespace) -> None:
    """Print a table of experiments, one column each."""
    collection = require("modularml.strategies").ExperimentCollection
    runs = collection(args.paths, recursive=args.recursive)
    table = runs.compare(differences_only=not args.all)
    print(table.T.to_string())
    if args.out:
        if not Path(args.out).absolute().parent.is_dir():
            raise ConfigError(f"--out needs a file in an existing folder, got {args.out!r}")
        table.to_csv(args.out)
