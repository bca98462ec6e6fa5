"""Folds, seeds and trials trained as one, against that many hand-written loops."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import torch

from benchmarks.cases import DATA, LEARNING_RATE, N_ROWS, Data
from benchmarks.loops import LOOPS, MODELS
from benchmarks.ours import columns, nodes
from benchmarks.timing import heap_bytes, interleave, one_thread, ratio
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
from modularml.callbacks import Callback
from modularml.results.recording import ResultRecording
from modularml.strategies.variants.runs import Work
from modularml.strategies.variants.variant import Variant

BATCH = 64
QUIET = dict.fromkeys(("show_fold_progress", "show_training_progress"), False)


class Job:
    """One architecture, its rows, and its plan: training, then evaluation on other rows."""

    def __init__(self, kind: str, n_rows: int, epochs: int) -> None:
        self.kind, self.epochs = kind, epochs
        self.data: Data = DATA[kind](n_rows)
        self.experiment = Experiment("many", registration_policy="overwrite")
        found = columns(self.data)
        inputs = [key for key in found if key != "y"]
        self.fs = FeatureSet.from_dict("rows", found, feature_keys=inputs, target_keys="y")
        self.fs.split_random({"train": 0.8, "val": 0.2})
        made = nodes(kind, self.fs, found, "torch")
        settings = {"lr": LEARNING_RATE, "weight_decay": 0.0}
        self.graph = ModelGraph(made, Optimizer("adam", opt_kwargs=settings))
        mse = [AppliedLoss(Loss("mse"), on="head", inputs=["outputs", "targets"])]
        sampler = SimpleSampler(batch_size=BATCH, shuffle=True, seed=0)
        train = {"split": "train", "sampler": sampler, "losses": mse, "n_epochs": epochs}
        phases = [
            TrainPhase.from_split("train", **train),
            EvalPhase.from_split("eval", split="val", losses=mse),
        ]
        self.plan = PhaseGroup("plan", phases)

    def folds(self, n: int, *, stacked: bool) -> Any:
        """Cross-validate, and return the losses of the rows held out."""
        binding = CVBinding(self.fs, ["train", "val"])
        cv = CrossValidation(
            bindings=binding,
            n_folds=n,
            phase=self.plan,
            experiment=self.experiment,
            stacked=stacked,
        )
        return cv.run(**QUIET).to_pandas()["eval.mse_head"].tolist()

    def seeds(self, n: int) -> list[Any]:
        """Train with several seeds."""
        return self.variants([Variant(f"seed_{i}", i) for i in range(n)])

    def trials(self, n: int) -> list[Any]:
        """Train with several learning rates and weight decays."""
        rng = np.random.default_rng(0)
        changes = [
            {
                "graph.optimizer.lr": float(10 ** rng.uniform(-4, -2)),
                "graph.optimizer.weight_decay": float(10 ** rng.uniform(-6, -3)),
            }
            for _ in range(n)
        ]
        return self.variants([Variant(f"trial_{i}", 0, changes=c) for i, c in enumerate(changes)])

    def variants(self, variants: list[Variant]) -> list[Any]:
        """Run variants as one, and return their experiments."""
        work = Work("many", {"show_training_progress": False})
        with closing(work.outcomes(self.experiment, self.plan, variants, stacked=True)) as ends:
            found = [outcome for _, outcome in ends]
        if errors := [outcome for outcome in found if isinstance(outcome, Exception)]:
            raise errors[0]
        return found

    def by_hand(self, n: int) -> list[float]:
        """Train that many models one after another, each with a loss on the other rows."""
        tensors = [torch.from_numpy(values) for values in self.data.values()]
        rows = torch.from_numpy(np.random.default_rng(0).permutation(len(tensors[0])))
        train, val = rows.split([len(rows) - len(rows) // 5, len(rows) // 5])
        losses = []
        for _ in range(n):
            model = MODELS[self.kind]()
            optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
            taken = [t[train] for t in tensors]
            LOOPS[self.kind](model, optimizer, *taken, batch_size=BATCH, epochs=self.epochs)
            model.eval()
            with torch.no_grad():
                *inputs, y = (t[val] for t in tensors)
                losses.append(torch.nn.functional.mse_loss(model(*inputs), y).item())
        return losses


def stacked(*, quick: bool = False, only: str = "") -> list[dict[str, Any]]:
    """Measure CPU time on one thread; the loops by hand run once and are scaled."""
    one_thread()
    n, epochs = (2_000, 1) if quick else (N_ROWS, 8)
    sizes = (3, 4, 5) if quick else (5, 20, 50)
    mlp, cnn, fusion = (Job(kind, n, epochs) for kind in ("mlp", "cnn", "fusion"))
    works: list[tuple[str, Job, Callable[[], Any], int, float, float]] = [
        (
            "5 folds of the MLP",
            mlp,
            lambda: mlp.folds(sizes[0], stacked=True),
            sizes[0],
            0.35,
            0.25,
        ),
        ("20 seeds of the MLP", mlp, lambda: mlp.seeds(sizes[1]), sizes[1], 0.18, 0.12),
        ("50 trials of the MLP", mlp, lambda: mlp.trials(sizes[2]), sizes[2], 0.15, 0.10),
        (
            "5 folds of the CNN",
            cnn,
            lambda: cnn.folds(sizes[0], stacked=True),
            sizes[0],
            0.80,
            0.60,
        ),
        ("10 seeds of two encoders", fusion, lambda: fusion.seeds(10), 10, 0.30, 0.20),
    ]
    rows = []
    for name, job, work, n_members, limit, aim in works:
        if only not in name:
            continue
        n_hand = 1 if quick else 2
        contestants = {"hand": lambda job=job, k=n_hand: job.by_hand(k), "ours": work}
        times = interleave(contestants, repeats=1 if quick else 3)  # type: ignore[arg-type]
        value = ratio(times, "ours") * n_hand / n_members
        row = {
            "work": f"{name}, {epochs} epochs, CPU time",
            "value": value,
            "limit": limit,
            "aim": aim,
        }
        rows.append({**row, "ok": value <= limit})
    if only in MEMORY:
        rows.append(memory(mlp, 4 if quick else 20))
    return rows


MEMORY = "memory of a further member, in weights, gradients, moments and batches of its own"


class Heap(Callback):
    """Notes the largest heap at the end of an epoch."""

    largest = 0

    def on_epoch_end(self, **facts: Any) -> None:
        """Look at the heap."""
        Heap.largest = max(Heap.largest, heap_bytes())


def memory(job: Job, n: int) -> dict[str, Any]:
    """Measure what a further member costs while it is trained, nothing recorded."""
    n_weights = sum(p.numel() for p in MODELS[job.kind]().parameters())
    own = 4 * (4 * n_weights + BATCH * (17 + 4 * 64 + 2))
    (train,) = (phase for phase in job.plan.flatten() if phase.label == "train")
    phase = TrainPhase("train", input_sources=train.input_sources, losses=train.losses, n_epochs=2)
    phase.recording = ResultRecording.NONE
    phase.add_callback(Heap())
    job.plan = PhaseGroup("plan", [phase])
    largest = []
    for members in (2, n):
        Heap.largest = 0
        job.variants([Variant(f"seed_{i}", i) for i in range(members)])
        largest.append(Heap.largest)
    value = (largest[1] - largest[0]) / (n - 2) / own
    return {"work": MEMORY, "value": value, "limit": None, "ok": True}


if __name__ == "__main__":
    import sys

    for row in stacked(only=sys.argv[1] if len(sys.argv) > 1 else ""):
        print(row)
