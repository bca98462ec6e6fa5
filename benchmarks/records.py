"""Records: queries, files and checkpoints that hold them, and the memory they take."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import environments
from benchmarks.cases import N_ROWS, table
from benchmarks.loops import loss_fn
from benchmarks.ours import OurJob
from benchmarks.rows import peak_over
from benchmarks.timing import cpu_seconds, interleave, one_thread, ratio
from modularml import Checkpointing, EvalPhase, InputBinding, TrainPhase
from modularml.callbacks import EvalLossMetric, Evaluation

QUIET = {"show_training_progress": False, "show_sampler_progress": False}


def records(*, quick: bool = False) -> list[dict[str, Any]]:
    """Return one row a measurement."""
    one_thread()
    found = [*_queries(quick), *_files(quick), _checkpoints(40 if quick else 400), _skipping(quick)]
    for recording, limit in (("all", 2.5), ("none", 1.6)):
        for who in ("ours", "by hand"):
            options = ["--quick"] if quick else []
            peak = environments.run_isolated("records", recording, who, *options)["times"]
            work = f"peak memory of an epoch above its rows, recording {recording}, {who} (x rows)"
            found.append(_row(work, peak, None if quick or who == "by hand" else limit))
    return found


def _queries(quick: bool) -> list[dict[str, Any]]:
    job = OurJob("mlp", table(N_ROWS), batch_size=N_ROWS // 1_000).build()
    job.run(2 if quick else 100)
    results = job.experiment.last_run.results.get_train_result()
    outputs = results.tensors("head", "outputs")
    n = f"of {len(results._execution):,} records (ms)"
    queries: dict[str, tuple[Callable[[], object], float]] = {
        "tensors()": (lambda: results.tensors("head", "outputs"), 50.0),
        "execution_contexts()": (results.execution_contexts, 50.0),
        "at(epoch, batch)": (lambda: outputs.at(epoch=1, batch=3), 1.0),
    }
    return [
        _row(f"{name} {n}", 1e3 * min(cpu_seconds(query) for _ in range(5)), limit)
        for name, (query, limit) in queries.items()
    ]


def _job(n_rows: int, epochs: int, **kwargs: Any) -> tuple[OurJob, Any]:
    job = OurJob("mlp", table(n_rows), batch_size=32).build()
    phase = TrainPhase(
        "train", input_sources=job.sources, losses=job.losses, n_epochs=epochs, **kwargs
    )
    return job, phase


def _files(quick: bool) -> list[dict[str, Any]]:
    """Save after many epochs, each of them evaluated on 90 rows."""
    epochs = 50 if quick else 2_000
    job, phase = _job(90, epochs, result_recording="last")
    source = InputBinding.for_evaluation(node="head", upstream="rows")
    val = EvalPhase("val", input_sources=[source])
    phase.add_callback(Evaluation(eval_phase=val, metrics=[EvalLossMetric(loss=job.losses[0])]))
    job.experiment.run_phase(phase, **QUIET)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a"
        seconds = min(
            cpu_seconds(lambda: job.experiment.save(path, overwrite=True)) for _ in range(5)
        )
        size = (Path(name) / "a.exp.mml").stat().st_size
    work = f"save after {epochs:,} epochs with an Evaluation each"
    return [_row(f"{work} (s)", seconds, 0.1), _row(f"{work} (MB)", size / 1e6, 1.0)]


def _checkpoints(epochs: int) -> dict[str, Any]:
    """Count the bytes of checkpoints on disk, one an epoch, all of them kept."""
    experiment, phase = _small(epochs)
    with tempfile.TemporaryDirectory() as name:
        experiment.set_checkpoint_dir(name)
        experiment.run_phase(phase, **QUIET)
        size = sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file())
    work = f"{epochs} checkpoints of a model of 57 weights, 210 rows recorded (MB)"
    return _row(work, size / 1e6, 6.0 * epochs / 400)


def _small(epochs: int) -> tuple[Any, Any]:
    """Return an experiment with a model of 57 weights, and its training phase."""
    import modularml as mm
    from modularml.models.torch import SequentialMLP

    data = table(210, 5)
    columns = {f"x{i}": data["x"][:, i] for i in range(5)} | {"y": data["y"][:, 0]}
    experiment = mm.Experiment("small", registration_policy="overwrite")
    rows = mm.FeatureSet.from_dict("rows", columns, [f"x{i}" for i in range(5)], "y")
    node = mm.ModelNode("head", SequentialMLP(n_layers=2, hidden_dim=8), rows)
    mm.ModelGraph([node], optimizer=mm.Optimizer("adam"))
    loss = mm.AppliedLoss(mm.Loss("mse"), on="head", inputs=["outputs", "targets"])
    sampler = mm.SimpleSampler(batch_size=32, shuffle=True, seed=0)
    source = InputBinding.for_training(node=node, sampler=sampler, upstream=rows)
    kept = Checkpointing(mode="disk", save_on="epoch_end")
    return experiment, TrainPhase(
        "train", input_sources=[source], losses=[loss], n_epochs=epochs, checkpointing=kept
    )


def _skipping(quick: bool) -> dict[str, Any]:
    job = OurJob("mlp", table(2_000 if quick else N_ROWS), batch_size=64).build()

    def run(on_nonfinite: Any) -> None:
        phase = TrainPhase(
            "train",
            input_sources=job.sources,
            losses=job.losses,
            n_epochs=3,
            on_nonfinite=on_nonfinite,
        )
        job.experiment.run_phase(phase, **QUIET)

    works = {"skip": lambda: run("skip"), "raise": lambda: run("raise")}
    times = interleave(works, repeats=2 if quick else 7)
    return _row("on_nonfinite='skip' / 'raise'", ratio(times, "skip", "raise"), 1.05)


def _row(work: str, value: float, limit: float | None) -> dict[str, Any]:
    return {"work": work, "value": value, "limit": limit, "ok": limit is None or value <= limit}


def main(recording: str, who: str, n_rows: int = 1_000_000) -> None:
    """Print the highest memory of an epoch, ours or by hand, in multiples of the rows.

    It is counted above what the rows and the FeatureSet take, and includes the tensors made of
    them. A small epoch comes first, so that everything is loaded.
    """
    one_thread()
    data, few = table(n_rows), table(20_000)
    for some in (few, data):
        job = OurJob("mlp", some, batch_size=512).build() if who == "ours" else None
        gc.collect()
        peak = peak_over(
            partial(by_hand, some, recording == "all")
            if job is None
            else partial(job.run, 1, recording=recording)
        )
    print(json.dumps({"times": peak / data["x"].nbytes}))


def by_hand(data: dict[str, np.ndarray[Any, Any]], recorded: bool, batch: int = 512) -> Any:
    """Train one epoch and return its outputs, which are written to one tensor."""
    x, y = torch.tensor(data["x"]), torch.tensor(data["y"])
    relu, linear = torch.nn.ReLU, torch.nn.Linear
    model = torch.nn.Sequential(linear(16, 64), relu(), linear(64, 64), relu(), linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters())
    order, outputs = torch.randperm(len(x)), torch.empty(len(x) if recorded else 0, 1)
    for at in range(0, len(x), batch):
        rows = order[at : at + batch]
        out = model(x[rows])
        loss = loss_fn(out, y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if recorded:
            outputs[at : at + batch] = out.detach()
    return outputs


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(*sys.argv[1:3], *([50_000] if "--quick" in sys.argv else []))
    else:
        started = time.perf_counter()
        for row in records():
            print(f"{row['value']:8.3f}  at most {row['limit'] or 'any':>5}  {row['work']}")
        print(f"{time.perf_counter() - started:.0f} s")
