"""The commands ``run`` and ``schema``: experiments from plan files."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from modularml._optional import require
from modularml.cli.console import Reply, plain
from modularml.cli.plan import Plan, read_plan
from modularml.cli.plan_build import (
    build_data,
    build_experiment,
    build_folds,
    build_sweep,
    resolved_text,
)
from modularml.cli.plan_check import check_plan
from modularml.cli.plan_schema import load_classes, plan_schema
from modularml.data.featureset import FeatureSet
from modularml.engine.checkpointing import Checkpointing
from modularml.errors import ConfigError, MissingDependencyError
from modularml.experiment import Experiment, TrainPhase
from modularml.io.names import folder_at
from modularml.io.randomness import seed_all
from modularml.io.yamltext import load_yaml

PLAN, METRICS, FIGURES, CHECKPOINTS = "plan.yaml", "metrics.csv", "metrics.json", "checkpoints"
STUDY, TRIALS = "sweep.db", "trials.csv"
MOST_CHECKPOINTS = 20
"""Checkpoints that a training phase writes, if the plan does not say how often."""


def run_plan_files(args: argparse.Namespace) -> Reply:
    """Check a plan, run it, and write its results to a folder."""
    # modules of the user's, which may lie in the current folder
    sys.path[:0] = [""] if args.allow_import and "" not in sys.path else []
    for name in args.allow_import:
        try:
            require(name)
        except MissingDependencyError as error:
            raise ConfigError(
                f"--allow-import {name}: there is no such module here; it is looked for in the "
                "current folder and where Python finds packages"
            ) from error
    plan = read_plan(args.plan, args.set, args.allow_import)
    check_plan(plan)
    seed = plan.tree["experiment"]["params"].get("seed")
    if seed is not None:  # of encoders that draw random numbers
        seed_all(seed, "data")
    sets = build_data(plan)
    experiment = build_experiment(plan, sets)
    if "sweep" in plan.tree:
        build_sweep(plan, experiment, None)
    elif "folds" in plan.tree:
        _ = build_folds(plan, experiment).folds
    if args.dry_run:
        text = resolved_text(plan, sets, Path())
        return Reply(text.rstrip("\n"), load_yaml(text))
    if args.out is not None:
        folder = Path(args.out)
    elif "folder" in plan.output:
        folder = plan.output_folder / str(plan.output["folder"])
    else:
        folder = Path(f"{'plan' if plan.name == '<stdin>' else Path(plan.name).stem}-results")
    try:
        with nullcontext() if args.quiet or sys.stderr.isatty() else _logged_progress():
            facts = _run_plan(plan, sets, experiment, folder, args)
    except (KeyboardInterrupt, SystemExit):
        print("modularml: stopped; pass --resume to continue", file=sys.stderr)
        raise
    return Reply(_shown(facts), facts, 1 if facts.get("failed") else 0)


def run_schema(args: argparse.Namespace) -> Reply:
    """Show the JSON schema of plans."""
    load_classes(models=True)
    schema = plan_schema()
    return Reply(json.dumps(schema, indent=2), schema)


def _run_plan(
    plan: Plan,
    sets: dict[str, FeatureSet],
    experiment: Experiment,
    folder: Path,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Run a prepared plan, and return what is written to ``metrics.json``.

    A finished run that is resumed is not run again.
    """
    text = resolved_text(plan, sets, folder)
    done: dict[str, Any] | None = _open_folder(folder, text, args)
    if done is not None:
        return done
    (folder / PLAN).write_text(text, "utf-8")
    experiment.set_checkpoint_dir(folder / CHECKPOINTS)
    options = plan.output
    every = options.get("checkpoint_every")
    many = "sweep" in plan.tree or ("folds" in plan.tree and "checkpoint_every" not in options)
    phases = [] if many else experiment.execution_plan.flatten()
    added = [p for p in phases if isinstance(p, TrainPhase) and p.checkpointing is None]
    for phase in added:
        n = every or max(1, phase.n_epochs // MOST_CHECKPOINTS)
        phase.set_checkpointing(Checkpointing(mode="disk", every_n=n, max_to_keep=2))
    if "sweep" in plan.tree:
        sweep = build_sweep(plan, experiment, folder / STUDY)
        results = sweep.run(resume=args.resume, show_progress=not args.quiet)
        results.to_pandas().reset_index().to_csv(folder / TRIALS, index=False)
        best = results.best
        path = results.best_experiment().save(folder / f"{experiment.label}-best", overwrite=True)
        shown = {"number": best.number, "value": best.value, "params": dict(best.params)}
        facts = {"trials": len(results), "best": shown, "files": [path.name, TRIALS, STUDY]}
    elif "folds" in plan.tree:
        facts = _run_folds(plan, experiment, folder, args)
    else:
        experiment.run(
            resume="auto" if args.resume else None,
            show_training_progress=not args.quiet,
            show_eval_progress=not args.quiet,
        )
        for phase in added:
            phase.set_checkpointing(None)
        facts = _write_run(experiment, folder, options)
    facts = {"label": experiment.label, "status": "completed", "seed": experiment.seed, **facts}
    facts["folder"] = folder.as_posix()
    if not [p for p in experiment.execution_plan.flatten() if getattr(p, "checkpointing", None)]:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    (folder / FIGURES).write_text(json.dumps(plain(facts), indent=2) + "\n", "utf-8")
    return facts


def _open_folder(folder: Path, text: str, args: argparse.Namespace) -> Any:
    """Make the folder ready; return the results of a run that is finished already."""
    folder_at(folder)
    stored = folder / PLAN
    if not stored.exists():
        return None
    if args.resume:
        lines = stored.read_text("utf-8").splitlines(), text.splitlines()
        different = [d for d in difflib.ndiff(*lines) if d.startswith(("- ", "+ "))]
        if different:
            raise ConfigError(
                f"{str(folder)!r} holds a run of another plan, which cannot be resumed with this "
                f"one; they differ in {'; '.join(' '.join(d.split()) for d in different[:4])}. "
                "Use the plan.yaml that is there, or another folder (-o)"
            )
        figures = folder / FIGURES
        return json.loads(figures.read_text("utf-8")) if figures.exists() else None
    if not args.overwrite:
        raise ConfigError(
            f"{str(folder)!r} has results already; pass --resume to continue a run that was "
            "stopped, --overwrite to replace them, or another folder (-o)"
        )
    for name in (PLAN, METRICS, FIGURES, STUDY, TRIALS):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("*.exp.mml"):
        path.unlink()
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return None


def _write_run(experiment: Experiment, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    run = experiment.last_run
    assert run is not None
    run.to_pandas().reset_index().to_csv(folder / METRICS, index=False)
    path = experiment.save(
        folder / experiment.label, overwrite=True, rows=options.get("rows", True)
    )
    figures: dict[str, dict[str, float]] = {}
    for label, result in run.results.flatten().items():
        if hasattr(result, "figures"):  # of the epoch that was kept
            figures[label] = result.figures()
        else:  # of the only pass
            last = result._metrics.to_pandas().tail(1).to_dict("records")
            figures[label] = {str(name): float(v) for row in last for name, v in row.items()}
    return {"figures": figures, "seconds": run.seconds, "files": [path.name, METRICS]}


def _run_folds(
    plan: Plan, experiment: Experiment, folder: Path, args: argparse.Namespace
) -> dict[str, Any]:
    cv = build_folds(plan, experiment)
    results = cv.run(resume="auto", show_fold_progress=not args.quiet, show_training_progress=False)
    results.to_pandas().reset_index().to_csv(folder / METRICS, index=False)
    files = []
    for label in results.fold_labels:
        fold = results.get_experiment(label)
        name = folder / f"{experiment.label}-{label}"
        files.append(fold.save(name, overwrite=True, rows=plan.output.get("rows", True)).name)
    return {
        "folds": len(files),
        "failed": {label: str(error) for label, error in results.failed_folds.items()},
        "figures": {str(k): v.to_dict() for k, v in results.summary().iterrows()},
        "files": [*files, METRICS],
    }


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
