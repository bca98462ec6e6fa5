"""What a sweep adds to each trial, beside the training itself and Optuna's own work."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy import event
from sqlalchemy.engine import Engine

from benchmarks.cases import LEARNING_RATE, table
from benchmarks.ours import columns, nodes
from benchmarks.timing import one_thread
from modularml import (
    AppliedLoss,
    EvalLossMetric,
    Evaluation,
    Experiment,
    FeatureSet,
    Loss,
    ModelGraph,
    Optimizer,
    SimpleSampler,
    Sweep,
    TrainPhase,
    space,
)
from modularml.io.randomness import derived_seed
from modularml.strategies.variants.runs import Work
from modularml.strategies.variants.variant import Variant

LIMIT_MS = 5.0
LR, DECAY = "graph.optimizer.lr", "graph.optimizer.weight_decay"
QUIET = {"show_training_progress": False, "show_sampler_progress": False}


def job(n_rows: int) -> Experiment:
    """Return an experiment that trains the MLP for one epoch and evaluates it."""
    data = table(n_rows)
    experiment = Experiment("sweep", registration_policy="overwrite", audit="off")
    found = columns(data)
    inputs = [key for key in found if key != "y"]
    fs = FeatureSet.from_dict("rows", found, feature_keys=inputs, target_keys="y")
    fs.split_random({"train": 0.8, "val": 0.2})
    ModelGraph(
        nodes("mlp", fs, found, "torch"), Optimizer("adam", opt_kwargs={"lr": LEARNING_RATE})
    )
    mse = AppliedLoss(Loss("mse"), on="head", inputs=["outputs", "targets"])
    watch = Evaluation.from_split("watch", split="val", metrics=[EvalLossMetric(loss=mse)])
    experiment.execution_plan.add_phase(
        TrainPhase.from_split(
            "train",
            split="train",
            sampler=SimpleSampler(batch_size=64, shuffle=True, seed=0),
            losses=[mse],
            callbacks=[watch],
        )
    )
    assert experiment.model_graph is not None
    experiment.model_graph.build()
    return experiment


def sweeps(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure the time a trial takes beyond its training and Optuna, by kind of storage."""
    one_thread()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    n, rounds = (8, 2) if quick else (40, 5)
    experiment = job(500)
    with tempfile.TemporaryDirectory() as folder:
        in_memory = [_beyond(experiment, n, None, None) for _ in range(rounds)]
        paths = [Path(folder, f"{i}.db") for i in range(2 * rounds)]
        stored = [
            _beyond(experiment, n, _storage(ours), _storage(by_hand))
            for ours, by_hand in zip(paths[::2], paths[1::2], strict=True)
        ]
        more = _more_transactions(experiment, Path(folder))
    beyond = "a trial beyond its training and Optuna's own"
    return [
        _row(f"sweep, in memory: {beyond} (ms)", statistics.median(in_memory), LIMIT_MS),
        _row(f"sweep, SQLite: {beyond} (ms; disks vary)", statistics.median(stored), None),
        _row("sweep, SQLite: transactions of a trial beyond Optuna's own", more, 0.0),
    ]


def _row(work: str, value: float, limit: float | None) -> dict[str, Any]:
    return {"work": work, "value": value, "limit": limit, "ok": limit is None or value <= limit}


def _storage(path: Path) -> Any:
    """Return a storage whose tables, which take a second to make, are there."""
    return optuna.storages.RDBStorage(f"sqlite:///{path}")


def _more_transactions(experiment: Experiment, folder: Path) -> float:
    """Count the transactions of a trial, from sweeps of 4 and 12 trials, less Optuna's."""
    counts = []
    for n in (4, 12):
        ours, by_hand = (_storage(folder / f"count-{n}-{who}.db") for who in ("ours", "hand"))
        with _counted() as of_sweep:
            _sweep(experiment, n, ours).run(show_progress=False)
        with _counted() as of_optuna:
            _optuna_by_hand(n, _sampler(), by_hand)
        counts.append(len(of_sweep) - len(of_optuna))
    return (counts[1] - counts[0]) / 8


@contextmanager
def _counted() -> Iterator[list[Any]]:
    """Collect the connections of SQLAlchemy that commit."""
    found: list[Any] = []
    listen = found.append
    event.listen(Engine, "commit", listen)
    try:
        yield found
    finally:
        event.remove(Engine, "commit", listen)


def _sampler() -> Any:
    return optuna.samplers.RandomSampler(seed=0)


def _sweep(experiment: Experiment, n: int, storage: Any) -> Sweep:
    ranges = {LR: space.log_float(1e-4, 1e-1), DECAY: space.log_float(1e-6, 1e-2)}
    options = {"sampler": _sampler(), "storage": storage, "stacked": False}
    return Sweep(experiment, ranges, n_trials=n, seed=0, **options)


def _beyond(experiment: Experiment, n: int, ours: Any, by_hand: Any) -> float:
    """Return the milliseconds of a trial of a sweep less those of training and Optuna by hand."""
    sweep = _sweep(experiment, n, ours)
    started = time.perf_counter()
    trials = sweep.run(show_progress=False).study.trials
    whole = time.perf_counter() - started
    started = time.perf_counter()
    _optuna_by_hand(n, _sampler(), by_hand)
    _train_by_hand(experiment, [trial.params for trial in trials])
    return 1e3 * (whole - (time.perf_counter() - started)) / n


def _optuna_by_hand(n: int, sampler: Any, storage: Any) -> None:
    study = optuna.create_study(storage=storage, sampler=sampler)
    for _ in range(n):
        trial = study.ask()
        trial.suggest_float(LR, 1e-4, 1e-1, log=True)
        trial.suggest_float(DECAY, 1e-6, 1e-2, log=True)
        study.tell(trial, 0.0)


def _train_by_hand(experiment: Experiment, settings: list[dict[str, float]]) -> None:
    work = Work("by_hand", QUIET)
    for i, changes in enumerate(settings):
        variant = Variant(f"trial_{i}", derived_seed(0, "trial", i) % 2**32, changes=changes)
        work.run(experiment, experiment.execution_plan, variant)
