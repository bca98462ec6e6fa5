"""`compile=True` for torch, against hand-written loops with the default Adam.

Each work is timed in a process of its own: ``python -m benchmarks.compiled NAME`` prints one line
of JSON. The seconds that compiling takes are shown apart, and are not part of the ratio.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import environments
from benchmarks.cases import LEARNING_RATE, Data, sequences, table
from benchmarks.loops import cnn, mlp, train
from benchmarks.timing import interleave, one_thread, ratio
from modularml import (
    AppliedLoss,
    Experiment,
    FeatureSet,
    InputBinding,
    Loss,
    ModelGraph,
    ModelNode,
    Optimizer,
    TrainPhase,
)
from modularml.samplers import SimpleSampler

BATCH = 64
WORKS = {
    "mlp": ("MLP 16-64-64-1", 0.36, 0.28, 20_000, 4),
    "cnn": ("1-D CNN on (1, 100)", 0.80, 0.70, 20_000, 1),
    "wide": ("MLP 16-1024-1024-1", 0.72, 0.65, 20_000, 1),
    "transformer": ("Transformer, two layers of 32, on (20, 5)", 0.80, 0.70, 6_400, 1),
}
"""Title, largest and hoped-for ratio, rows and epochs by work."""
_ROUNDING = 1e-5  # of the losses of an epoch


class Transformer(nn.Module):
    """An encoder of shape (n, 1, 100) -> (n, 1), in 20 steps of 5 values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, 1)."""
        return self.head(self.encoder(self.embed(x.reshape(-1, 20, 5))).mean(dim=1))


def wide() -> nn.Module:
    """Return an MLP of shape (n, 16) -> (n, 1), 1024 wide."""
    layers = nn.Linear(16, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1)
    return nn.Sequential(*layers)


MODELS = {"mlp": mlp, "cnn": cnn, "wide": wide, "transformer": Transformer}


def data_of(name: str, n_rows: int) -> Data:
    """Return the rows of a work."""
    return sequences(n_rows) if name in ("cnn", "transformer") else table(n_rows)


class Ours:
    """A phase that trains a module, ready to run; every batch is recorded."""

    def __init__(self, module: nn.Module, data: Data, *, compile: bool) -> None:
        self.experiment = Experiment("compiled", registration_policy="overwrite")
        x, y = data["x"], data["y"][:, 0]
        columns = {f"x{i}": x[:, i] for i in range(x.shape[1])}
        fs = FeatureSet.from_dict("rows", {**columns, "y": y}, [*columns], "y")
        node = ModelNode("net", module, fs.reference(features=[*columns], targets="y"))
        self.graph = ModelGraph([node], Optimizer("adam", opt_kwargs={"lr": LEARNING_RATE}))
        self.graph.build()
        sampler = SimpleSampler(batch_size=BATCH, shuffle=True, seed=0)
        self.source = InputBinding.for_training(node=node, sampler=sampler, upstream=fs)
        self.loss = AppliedLoss(Loss("mse"), on="net", inputs=["outputs", "targets"])
        self.compile = compile

    def run(self, epochs: int) -> list[float]:
        """Train on and return the loss of each batch."""
        phase = TrainPhase(
            "train",
            input_sources=[self.source],
            losses=[self.loss],
            n_epochs=epochs,
            compile=self.compile,
        )
        results = self.experiment.run_phase(
            phase, show_training_progress=False, show_sampler_progress=False
        )
        losses = [results.metrics().where(name="train_loss", epoch=e) for e in range(epochs)]
        return [v for own in losses for v in own.values()]


class Seconds(logging.Handler):
    """Adds up what compiling took, from the notes of it."""

    total = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Read the seconds of a note."""
        if "compiled in" in record.msg and isinstance(record.args, tuple):
            self.total += float(str(record.args[0]))


def measure(name: str, *, quick: bool = False) -> dict[str, Any]:
    """Time one work: by hand, by hand with fused Adam, and ours, plain and compiled."""
    one_thread()
    _, _, _, n_rows, epochs = WORKS[name]
    if quick:
        n_rows, epochs = BATCH * 50, 1
    data = data_of(name, n_rows)
    torch.manual_seed(0)
    module = MODELS[name]()
    modules = [copy.deepcopy(module) for _ in range(4)]
    x, y = (torch.from_numpy(values) for values in data.values())
    by_hand = {
        "hand": (modules[0], torch.optim.Adam(modules[0].parameters(), LEARNING_RATE)),
        "fused": (modules[1], torch.optim.Adam(modules[1].parameters(), LEARNING_RATE, fused=True)),
    }
    plain = Ours(modules[2], data, compile=False)
    compiled = Ours(modules[3], data, compile=True)
    seconds = Seconds(logging.INFO)
    log = logging.getLogger("modularml.backends.torch_compiled")
    log.addHandler(seconds)
    log.setLevel(logging.INFO)
    log.propagate = False
    differ = np.abs(np.subtract(plain.run(1), compiled.run(1))).max()
    works: dict[str, Any] = {
        key: (lambda parts=parts: train(*parts, x, y, batch_size=BATCH, epochs=epochs))
        for key, parts in by_hand.items()
    }
    works |= {"plain": lambda: plain.run(epochs), "compiled": lambda: compiled.run(epochs)}
    times = interleave(works, repeats=2 if quick else 5)
    return {
        **{key: ratio(times, key) for key in works},
        "us": 1e6 * min(times["hand"]) / (epochs * -(-n_rows // BATCH)),
        "seconds": seconds.total,
        "differ": float(differ),
    }


def compiled(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield one row a work."""
    for name, (title, limit, aim, *_) in WORKS.items():
        row = environments.run_isolated("compiled", name, *(["--quick"] if quick else []))
        ok = row["compiled"] <= limit and row["differ"] <= _ROUNDING
        yield {**row, "work": title, "ours": row["compiled"], "limit": limit, "aim": aim, "ok": ok}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], quick="--quick" in sys.argv)))
