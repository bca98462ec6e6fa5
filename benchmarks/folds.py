"""Five-fold cross-validation of the MLP, against five hand-written loops."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.cases import LEARNING_RATE, N_ROWS, Data, table
from benchmarks.loops import loss_fn, mlp, train
from benchmarks.ours import columns, nodes
from benchmarks.timing import interleave, one_thread, ratio
from modularml import (
    AppliedLoss,
    CrossValidation,
    CVBinding,
    EvalPhase,
    Experiment,
    FeatureSet,
    Loss,
    ModelGraph,
    Optimizer,
    PhaseGroup,
    SimpleSampler,
    TrainPhase,
)

BATCH, EPOCHS, FOLDS = 64, 2, 5
QUIET = dict.fromkeys(("show_fold_progress", "show_training_progress"), False)


def by_hand(data: Data) -> list[float]:
    """Train a fresh model in each fold and return the loss on the rows held out."""
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    parts = order.chunk(FOLDS)
    losses = []
    for i, val in enumerate(parts):
        rows = torch.cat([part for j, part in enumerate(parts) if j != i])
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        train(model, optimizer, x[rows], y[rows], batch_size=BATCH, epochs=EPOCHS)
        model.eval()
        with torch.no_grad():
            losses.append(loss_fn(model(x[val]), y[val]).item())
    return losses


def job(data: Data) -> Callable[..., list[float]]:
    """Return a function that cross-validates the same model and returns the same losses."""
    experiment = Experiment("folds", registration_policy="overwrite")
    found = columns(data)
    inputs = [key for key in found if key != "y"]
    fs = FeatureSet.from_dict("rows", found, feature_keys=inputs, target_keys="y")
    fs.split_random({"train": 0.8, "val": 0.2})
    ModelGraph(
        nodes("mlp", fs, found, "torch"), Optimizer("adam", opt_kwargs={"lr": LEARNING_RATE})
    )
    mse = [AppliedLoss(Loss("mse"), on="head", inputs=["outputs", "targets"])]
    sampler = SimpleSampler(batch_size=BATCH, shuffle=True, seed=0)
    phases = [
        TrainPhase.from_split("train", split="train", sampler=sampler, losses=mse, n_epochs=EPOCHS),
        EvalPhase.from_split("eval", split="val", losses=mse),
    ]
    plan, binding = PhaseGroup("plan", phases), CVBinding(fs, ["train", "val"])

    def run(n_jobs: int) -> list[float]:
        cv = CrossValidation(
            bindings=binding,
            n_folds=FOLDS,
            phase=plan,
            experiment=experiment,
            n_jobs=n_jobs,
            stacked=False,
        )
        scores: list[float] = cv.run(**QUIET).to_pandas()["eval.mse_head"].tolist()
        return scores

    return run


def folds(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure serial folds in CPU time and two processes in wall time."""
    one_thread()
    data, repeats = table(2_000 if quick else N_ROWS), 2 if quick else 5
    run = job(data)
    works = {"hand": lambda: by_hand(data), "serial": lambda: run(1), "two": lambda: run(2)}
    cpu = interleave({name: works[name] for name in ("hand", "serial")}, repeats=repeats)
    start = time.perf_counter()
    run(2)  # workers start, import and read
    first = time.perf_counter() - start
    wall = _wall(works, 2 * repeats)
    name = "5-fold CV of the MLP, 2 epochs, against five hand-written loops"
    return [
        _row(f"{name}: serial, CPU time", ratio(cpu, "serial"), 0.85),
        _row(f"{name}: n_jobs=2, wall time", wall["two"] / wall["hand"], 0.75),
        _row("the same, serial, wall time", wall["serial"] / wall["hand"], None),
        _row(
            "n_jobs=2, later calls of a session, against serial folds (wall time; aim 0.6)",
            wall["two"] / wall["serial"],
            0.75,
        ),
        _row("the first call of a session, in which two workers start (s)", first, None),
    ]


def _wall(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Time contestants in turn and return the best of each, when least else ran beside it.

    The first round, in which workers start, does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return {name: min(found[1:]) for name, found in times.items()}


def _row(work: str, value: float, limit: float | None) -> dict[str, Any]:
    return {"work": work, "value": value, "limit": limit, "ok": limit is None or value <= limit}
