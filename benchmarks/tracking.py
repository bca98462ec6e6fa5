"""What trackers cost: epochs of a small MLP with and without each, in turn.

``python -m benchmarks.tracking`` prints, for epochs of two lengths, the ratio to a run without a
tracker (the median of five) of the CPU time of the epochs, with all threads, and of their time on
the clock; the CPU time that the tracker itself takes in its thread and its hook during the epochs,
as a share of the rest, which other work on the machine does not disturb; and what the start and
the end of a run add, files included. The limit is 1.02 for epochs of about 40 ms.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import modularml as mm
from benchmarks.cases import table
from modularml.tracking import MLflowTracker, TensorBoardTracker, WandbTracker, tracker
from modularml.tracking.tracked_run import Session

QUIET = {"show_training_progress": False, "show_sampler_progress": False}
LIMIT = 1.02


class Measured(Session):
    """A session that adds up the CPU time it takes."""

    own = 0.0

    def submit(self, call):
        def timed(store):
            started = time.thread_time()
            call(store)
            Measured.own += time.thread_time() - started

        super().submit(timed)

    def add(self, *args):
        started = time.thread_time()
        super().add(*args)
        Measured.own += time.thread_time() - started


class Clock(mm.callbacks.Callback):
    """Notes the CPU and clock time at the start and the end of a phase."""

    def on_phase_start(self, **facts):
        self.started = time.process_time(), time.perf_counter(), Measured.own

    def on_phase_end(self, **facts):
        self.ended = time.process_time(), time.perf_counter(), Measured.own


def seconds(n_rows: int, n_epochs: int, callbacks: list) -> tuple[float, ...]:
    """Return CPU, clock and the tracker's CPU time of epochs, and clock time of the rest."""
    data = table(n_rows)
    with mm.ExperimentContext().activate():
        fs = mm.FeatureSet.from_dict("rows", {"x": data["x"], "y": data["y"]}, "x", "y")
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )
        node = mm.ModelNode("net", net, fs)
        graph = mm.ModelGraph([node], optimizer=mm.Optimizer("adam"))
        sampler = mm.SimpleSampler(batch_size=64, shuffle=True, seed=0)
        clock = Clock()
        phase = mm.TrainPhase(
            "train",
            input_sources=[mm.InputBinding(node.node_id, node.feature_refs[0], None, sampler)],
            losses=[mm.AppliedLoss(mm.Loss("mse"), on="net", inputs=["outputs", "targets"])],
            n_epochs=n_epochs,
            callbacks=[clock],
            result_recording="none",
        )
        experiment = mm.Experiment.from_active_context("bench", callbacks=callbacks, audit="off")
        experiment.execution_plan.add_items([phase])
        graph.build()
        started = time.perf_counter()
        experiment.run(**QUIET)
        whole = time.perf_counter() - started
    cpu, wall, own = (b - a for a, b in zip(clock.started, clock.ended, strict=True))
    return cpu, wall, own, whole - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    tracker.Session = Measured
    warnings.simplefilter("ignore")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = {
            "none": list,
            "MLflow": lambda: [MLflowTracker(folder / "mlflow")],
            "TensorBoard": lambda: [TensorBoardTracker(folder / "tensorboard")],
            "W&B offline": lambda: [WandbTracker("bench", folder=folder / "wandb")],
        }
        for n_rows, n_epochs in ((20_000, 80), (2_000, 400)):
            for make in kinds.values():  # imports, databases and services start here
                seconds(n_rows, 3, make())
            found: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in kinds}
            for _ in range(repeats):
                for kind, make in kinds.items():
                    found[kind].append(seconds(n_rows, n_epochs, make()))
            epoch = statistics.median(row[0] for row in found["none"]) / n_epochs
            print(f"{n_epochs} epochs of {1000 * epoch:.1f} ms")
            for kind in list(kinds)[1:]:
                pairs = list(zip(found[kind], found["none"], strict=True))
                cpu, wall = (statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1))
                own = statistics.median(a[2] / (a[0] - a[2]) for a, _ in pairs)
                rest = statistics.median(a[3] - b[3] for a, b in pairs)
                facts = f"CPU x {cpu:.3f}  clock x {wall:.3f}  itself x {1 + own:.4f}"
                print(f"  {kind:<12} {facts}  start and end {rest:.2f} s", flush=True)


if __name__ == "__main__":
    main()
