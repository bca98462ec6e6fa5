"""The commands ``run`` and ``schema``: experiments from plan files."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from modularml._optional import require
from modularml.cli.console import Command, Reply
from modularml.cli.plan import read_plan
from modularml.cli.plan_build import resolved_text
from modularml.cli.plan_check import check_plan
from modularml.cli.plan_run import prepare, results_folder, run_plan
from modularml.cli.plan_schema import load_classes, plan_schema
from modularml.errors import ConfigError, MissingDependencyError
from modularml.io.yamltext import load_yaml

__all__ = ["RUN", "SCHEMA"]


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "plan", nargs="+", help="plan files, or what to_yaml() wrote; - for standard input"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="change a setting, such as graph.optimizer.lr=0.01; the value is YAML",
    )
    parser.add_argument("-o", "--out", help="folder of results, by default <plan>-results")
    parser.add_argument("--dry-run", action="store_true", help="check all, train nothing, show it")
    parser.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument(
        "--allow-import",
        action="append",
        default=[],
        metavar="MODULE",
        help="module whose classes the plan may name; it is imported, so trust it",
    )


def _run(args: argparse.Namespace) -> Reply:
    """Check a plan, run it, and write its results to a folder."""
    _import(args.allow_import)
    plan = read_plan(args.plan, args.set, args.allow_import)
    check_plan(plan)
    sets, experiment = prepare(plan)
    if args.dry_run:
        text = resolved_text(plan, sets, Path())
        return Reply(text.rstrip("\n"), load_yaml(text))
    folder = results_folder(plan, args.out)
    with (
        _hint_to_resume(),
        nullcontext() if args.quiet or sys.stderr.isatty() else _logged_progress(),
    ):
        facts = run_plan(
            plan,
            sets,
            experiment,
            folder,
            resume=args.resume,
            overwrite=args.overwrite,
            quiet=args.quiet,
        )
    return Reply(_shown(facts), facts, 1 if facts.get("failed") else 0)


def _import(names: list[str]) -> None:
    """Import modules of the user's, which may lie in the current folder."""
    sys.path[:0] = [""] if names and "" not in sys.path else []
    for name in names:
        try:
            require(name)
        except MissingDependencyError as error:
            raise ConfigError(
                f"--allow-import {name}: there is no such module here; it is looked for in the "
                "current folder and where Python finds packages"
            ) from error


@contextmanager
def _hint_to_resume() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        print("modularml: stopped; pass --resume to continue", file=sys.stderr)
        raise


@contextmanager
def _logged_progress() -> Iterator[None]:
    """Let epochs go to standard error, where no bar can be drawn."""
    logger, handler = logging.getLogger("modularml"), logging.StreamHandler(sys.stderr)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _shown(facts: dict[str, Any]) -> str:
    lines = [f"{facts['label']}: {facts['status']}"]
    for phase, figures in facts.get("figures", {}).items():
        shown = ", ".join(f"{name} {value:.6g}" for name, value in figures.items())
        lines += [f"  {phase}: {shown}"] if shown else []
    if best := facts.get("best"):
        settings = ", ".join(f"{name}={value}" for name, value in best["params"].items())
        lines.append(f"  best of {facts['trials']} trials: {best['value']:.6g} with {settings}")
    lines += [f"  {fold} failed: {error}" for fold, error in facts.get("failed", {}).items()]
    lines.append(f"  in {facts['folder']}: {', '.join(facts['files'])}")
    return "\n".join(lines)


RUN = Command(
    _add,
    _run,
    """
  modularml run plan.yaml
  modularml run plan.yaml --set graph.optimizer.lr=0.01 --set phases.train.n_epochs=50 -o lr001
  modularml run plan.yaml --dry-run
  modularml run plan.yaml --resume
  modularml run cells.yaml study.yaml        # of fs.to_yaml() and experiment.to_yaml()""",
)


def _schema(args: argparse.Namespace) -> Reply:
    load_classes(models=True)
    schema = plan_schema()
    return Reply(json.dumps(schema, indent=2), schema)


SCHEMA = Command(
    lambda parser: None,
    _schema,
    """
  modularml schema > plan.schema.json
  # then, as the first line of a plan: # yaml-language-server: $schema=plan.schema.json""",
)
