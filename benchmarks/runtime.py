"""What the runtime adds: callbacks, evaluations, recording, queries."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable
from typing import Any

import torch

from benchmarks import environments
from benchmarks.cases import N_ROWS, table
from benchmarks.loops import loss_fn
from benchmarks.ours import OurJob
from benchmarks.timing import (
    cpu_seconds,
    heap_bytes,
    interleave,
    one_thread,
    ratio,
    rss_bytes,
)
from modularml import EvalPhase, InputBinding
from modularml.callbacks import Callback, EvalLossMetric, Evaluation


class Nothing(Callback):
    """Overrides no hook."""


def runtime(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure all of it."""
    one_thread()
    repeats, n = (2, 2_000) if quick else (11, N_ROWS)
    found = environments.run_isolated("runtime", *(["--quick"] if quick else []))
    name = "memory of 50 epochs recorded / their outputs"
    rows = [*_recording(repeats, n), *_evaluation(repeats, n), *_queries(n)]
    rows.append(_row(f"resident {name}", found["times_outputs"], 1.1))
    in_use = {"work": "the same, memory in use", "value": found["in_use"], "limit": None}
    rows.append({**in_use, "ok": True})
    return rows


def _recording(repeats: int, n: int) -> Iterable[dict[str, Any]]:
    job = OurJob("mlp", table(n), batch_size=64).build()
    listeners: list[Callback] = [Nothing(str(i)) for i in range(10)]
    works = {
        "none": lambda: job.run(3, recording="none"),
        "callbacks": lambda: job.run(3, recording="none", callbacks=listeners),
        "all": lambda: job.run(3, recording="all"),
    }
    times = interleave(works, repeats=repeats)
    yield _row(
        "ten callbacks that override nothing / none", ratio(times, "callbacks", "none"), 1.01
    )
    yield _row("every output recorded / none", ratio(times, "all", "none"), 1.05)


def _evaluation(repeats: int, n: int) -> Iterable[dict[str, Any]]:
    """Evaluate 4,000 rows in batches of 64; by hand with the loss of each batch."""
    n = min(4_000, n)
    data = table(n)
    job = OurJob("mlp", data, batch_size=64).build()
    source = InputBinding.for_evaluation(node="head", upstream="rows")
    phase = EvalPhase("val", input_sources=[source], batch_size=64)
    evaluation = Evaluation(eval_phase=phase, metrics=[EvalLossMetric(loss=job.losses[0])])
    x, y = torch.tensor(data["x"]), torch.tensor(data["y"])
    module = job.graph.get_node("head").model

    def by_hand() -> None:
        for _ in range(20):
            module.eval()
            outs, total = [], 0.0
            with torch.no_grad():
                for at in range(0, n, 64):
                    out = module(x[at : at + 64])
                    total += loss_fn(out, y[at : at + 64]).item() * len(out)
                    outs.append(out)
            module.train()

    def ours() -> None:
        with job.experiment.ctx.activate():
            for _ in range(20):
                evaluation._evaluate(job.experiment, None)

    times = interleave({"hand": by_hand, "ours": ours}, repeats=repeats)
    yield _row("Evaluation on 4,000 rows / the same forward by hand", ratio(times, "ours"), 1.1)


def _queries(n: int) -> Iterable[dict[str, Any]]:
    job = OurJob("mlp", table(n), batch_size=n // 1_000).build()
    job.run(100)
    results = job.experiment.last_run.results.get_train_result()
    queries = {
        "losses(node).where(epoch=7).values()": lambda: (
            results.losses("head").where(epoch=7).values()
        ),
        "losses(node).collapse('batch')": lambda: results.losses("head").collapse("batch"),
        "losses(node).last()": lambda: results.losses("head").last(),
        "metrics().where(batch=None)": lambda: results.metrics().where(batch=None),
    }
    for name, query in queries.items():
        best = 1e3 * min(cpu_seconds(query) for _ in range(5))
        yield _row(f"{name} of {len(results._execution):,} records (ms)", best, 50.0)


def _row(work: str, value: float, limit: float) -> dict[str, Any]:
    return {"work": work, "value": value, "limit": limit, "ok": value <= limit}


def main(n_rows: int = N_ROWS, epochs: int = 50) -> None:
    """Print the memory that recorded epochs take, in multiples of their outputs.

    ``python -m benchmarks.runtime`` prints one line of JSON: the mean over runs, and their median,
    as now and then the allocator takes a piece from the system that several runs then live on. A
    run that records nothing comes first, so that what the loop itself takes is there already.
    """
    one_thread()
    job = OurJob("mlp", table(n_rows), batch_size=64).build()
    for recording in ("none", "all", "all"):
        job.run(epochs, recording=recording)
    outputs = epochs * n_rows * 4
    grown, held = [], heap_bytes()
    for _ in range(8):
        before = rss_bytes()
        job.run(epochs, recording="all")
        grown.append((rss_bytes() - before) / outputs)
    held = (heap_bytes() - held) / (8 * outputs)
    answer = {"times_outputs": statistics.mean(grown), "median": statistics.median(grown)}
    print(json.dumps({**answer, "in_use": held}))


if __name__ == "__main__":
    main(2_000, 12) if "--quick" in sys.argv else main()
