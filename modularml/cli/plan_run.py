"""Running a plan: a folder of results, which a stopped run continues in."""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modularml.cli.console import plain
from modularml.cli.plan import Plan
from modularml.cli.plan_build import (
    build_data,
    build_experiment,
    build_folds,
    build_sweep,
    resolved_text,
)
from modularml.data.featureset import FeatureSet
from modularml.engine.checkpointing import Checkpointing
from modularml.errors import ConfigError
from modularml.experiment import Experiment, TrainPhase
from modularml.io.names import folder_at
from modularml.io.randomness import seed_all

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["prepare", "results_folder", "run_plan"]

PLAN, METRICS, FIGURES, CHECKPOINTS = "plan.yaml", "metrics.csv", "metrics.json", "checkpoints"
STUDY, TRIALS = "sweep.db", "trials.csv"
MOST_CHECKPOINTS = 20
"""Checkpoints that a training phase writes, if the plan does not say how often."""


def results_folder(plan: Plan, out: str | None) -> Path:
    """Return the folder of results: of the command, else of the plan, else by its name."""
    asked = plan.tree.get("output", {})
    asked = {"folder": asked} if isinstance(asked, str) else asked
    if out is not None:
        return Path(out)
    if "folder" in asked:
        return plan.output_folder / str(asked["folder"])
    return Path(f"{'plan' if plan.name == '<stdin>' else Path(plan.name).stem}-results")


def prepare(plan: Plan) -> tuple[dict[str, FeatureSet], Experiment]:
    """Read the data of a plan and build all that it asks for in the active context.

    Raises
    ------
    PlanError
        If a part cannot be built; the message names the position.
    """
    seed = plan.tree["experiment"]["params"].get("seed")
    if seed is not None:  # of encoders that draw random numbers
        seed_all(seed, "data")
    sets = build_data(plan)
    experiment = build_experiment(plan, sets)
    if "sweep" in plan.tree:
        build_sweep(plan, experiment, None)
    elif "folds" in plan.tree:
        _ = build_folds(plan, experiment).folds
    return sets, experiment


def run_plan(
    plan: Plan,
    sets: dict[str, FeatureSet],
    experiment: Experiment,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a prepared plan and write its results to a folder.

    Parameters
    ----------
    plan, sets, experiment
        As `prepare` returned them.
    folder : Path
    resume : bool
        Whether a run that was stopped continues; one that is finished is not run again.
    overwrite : bool
        Whether results of an earlier run are replaced.
    quiet : bool
        Whether no bars are drawn.

    Returns
    -------
    dict
        What stands in ``metrics.json``.

    Raises
    ------
    ConfigError
        If the folder has results, or those of another plan.
    """
    text = resolved_text(plan, sets, folder)
    done: dict[str, Any] | None = _open_folder(folder, text, resume=resume, overwrite=overwrite)
    if done is not None:
        return done
    (folder / PLAN).write_text(text, "utf-8")
    experiment.set_checkpoint_dir(folder / CHECKPOINTS)
    options = plan.tree.get("output", {})
    options = {} if isinstance(options, str) else options
    many = "sweep" in plan.tree or ("folds" in plan.tree and "checkpoint_every" not in options)
    added = [] if many else _add_checkpointing(experiment, options)
    flags = {"show_training_progress": not quiet, "show_eval_progress": not quiet}
    if "sweep" in plan.tree:
        facts = _run_sweep(plan, experiment, folder, resume, quiet)
    elif "folds" in plan.tree:
        facts = _run_folds(plan, experiment, folder, options, quiet)
    else:
        experiment.run(resume="auto" if resume else None, **flags)
        _remove_checkpointing(added)
        facts = _write_run(experiment, folder, options)
    facts = {"label": experiment.label, "status": "completed", "seed": experiment.seed, **facts}
    facts["folder"] = folder.as_posix()
    if not [p for p in experiment.execution_plan.flatten() if getattr(p, "checkpointing", None)]:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    (folder / FIGURES).write_text(json.dumps(plain(facts), indent=2) + "\n", "utf-8")
    return facts


def _open_folder(folder: Path, text: str, *, resume: bool, overwrite: bool) -> Any:
    """Make the folder ready; return the results of a run that is finished already."""
    folder_at(folder)
    stored = folder / PLAN
    if not stored.exists():
        return None
    if resume:
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
    if not overwrite:
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


def _add_checkpointing(experiment: Experiment, options: Mapping[str, Any]) -> list[TrainPhase]:
    """Let training phases without checkpoints write some; return these phases."""
    every = options.get("checkpoint_every")
    phases = [p for p in experiment.execution_plan.flatten() if isinstance(p, TrainPhase)]
    added = [p for p in phases if p.checkpointing is None]
    for phase in added:
        n = every or max(1, phase.n_epochs // MOST_CHECKPOINTS)
        phase.set_checkpointing(Checkpointing(mode="disk", every_n=n, max_to_keep=2))
    return added


def _remove_checkpointing(phases: list[TrainPhase]) -> None:
    for phase in phases:
        phase.set_checkpointing(None)


def _write_run(experiment: Experiment, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    run = experiment.last_run
    assert run is not None
    run.to_pandas().reset_index().to_csv(folder / METRICS, index=False)
    path = experiment.save(
        folder / experiment.label, overwrite=True, rows=options.get("rows", True)
    )
    figures = {label: _figures(result) for label, result in run.results.flatten().items()}
    return {"figures": figures, "seconds": run.seconds, "files": [path.name, METRICS]}


def _figures(result: Any) -> dict[str, float]:
    """Return the metrics of a phase: of the epoch that was kept, or of its only pass."""
    if hasattr(result, "figures"):
        found: dict[str, float] = result.figures()
        return found
    frame = result._metrics.to_pandas()
    return {} if not len(frame) else {k: float(v) for k, v in frame.iloc[-1].items()}


def _run_folds(
    plan: Plan, experiment: Experiment, folder: Path, options: Mapping[str, Any], quiet: bool
) -> dict[str, Any]:
    cv = build_folds(plan, experiment)
    results = cv.run(resume="auto", show_fold_progress=not quiet, show_training_progress=False)
    frame: pd.DataFrame = results.to_pandas()
    frame.reset_index().to_csv(folder / METRICS, index=False)
    files = []
    for label in results.fold_labels:
        fold = results.get_experiment(label)
        name = folder / f"{experiment.label}-{label}"
        files.append(fold.save(name, overwrite=True, rows=options.get("rows", True)).name)
    summary = results.summary()
    return {
        "folds": len(files),
        "failed": {label: str(error) for label, error in results.failed_folds.items()},
        "figures": {str(k): v.to_dict() for k, v in summary.iterrows()},
        "files": [*files, METRICS],
    }


def _run_sweep(
    plan: Plan, experiment: Experiment, folder: Path, resume: bool, quiet: bool
) -> dict[str, Any]:
    sweep = build_sweep(plan, experiment, folder / STUDY)
    results = sweep.run(resume=resume, show_progress=not quiet)
    results.to_pandas().reset_index().to_csv(folder / TRIALS, index=False)
    best = results.best
    path = results.best_experiment().save(folder / f"{experiment.label}-best", overwrite=True)
    facts = {"number": best.number, "value": best.value, "params": dict(best.params)}
    return {"trials": len(results), "best": facts, "files": [path.name, TRIALS, STUDY]}
