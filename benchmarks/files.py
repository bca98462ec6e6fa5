"""Saving and loading, against Arrow and safetensors files written and read by hand."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import safetensors.torch
import torch

from benchmarks.rows import FEATURES, TAGS, TARGETS, table
from benchmarks.timing import interleave
from modularml import BaseModel, ExperimentContext, FeatureSet
from modularml.models.torch import SequentialMLP


def files(*, quick: bool = False) -> list[dict[str, Any]]:
    """Return one row a measurement; wall time, as most of a save is waiting for the disk.

    Of the rounds the best counts, for two threads share two cores with whatever else runs there.
    """
    with tempfile.TemporaryDirectory() as name, ExperimentContext().activate():
        job = _Job(Path(name), 50_000 if quick else 1_000_000, 100 if quick else 1100)
        rounds = 3 if quick else 15
        saves = _timed(rounds, hand=job.save_by_hand, ours=job.save)
        works = {"hand": job.load_by_hand, "hashed": job.load_and_hash, "ours": job.load}
        loads = _timed(rounds, sha256=job.hash, **works)
        small = _timed(rounds, load=job.load_small, map=job.map)
        what = f"{job.fs.n_samples:,} rows and a model, {job.size / 1e6:.0f} MB"
        load = "load and verify them / by hand"
        return [
            _row(f"save {what} (fsync) / by hand", saves["ours"] / saves["hand"], 1.3),
            _row(f"{load}, unverified", loads["ours"] / loads["hand"], 1.25),
            _row(f"{load}, with sha256", loads["ours"] / loads["hashed"], None),
            _row(
                "sha256 of the files alone / loading unverified",
                loads["sha256"] / loads["hand"],
                None,
            ),
            _row("open the rows, mapped, unverified (ms)", 1e3 * small["map"], 20.0),
            _row("load a small model (ms)", 1e3 * small["load"], 5.0),
        ]


def _timed(rounds: int, **works: Callable[[], object]) -> dict[str, float]:
    """Return the best time of each work, taken in turn."""
    found = interleave(works, repeats=rounds, clock=time.perf_counter)
    return {name: min(own) for name, own in found.items()}


class _Job:
    def __init__(self, folder: Path, n: int, width: int) -> None:
        self.folder = folder
        self.fs = FeatureSet.from_pandas("rows", table(n), FEATURES, TARGETS, tag_cols=TAGS)
        self.model = SequentialMLP(n_layers=4, hidden_dim=width)
        self.model.build((10,), (1,))
        small = SequentialMLP(hidden_dim=8)
        small.build((10,), (1,))
        self.small = small.save(folder / "small")
        self.paths = [folder / "rows.arrow", folder / "model.safetensors"]
        self.save_by_hand()
        self.size = sum(path.stat().st_size for path in self.paths)
        self.hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.paths]

    def save_by_hand(self) -> None:
        rows = self.fs.collection.table
        with pa.OSFile(str(self.paths[0]), "wb") as out, pa.ipc.new_file(out, rows.schema) as file:
            file.write_table(rows)
        safetensors.torch.save_file(self.model.state_dict(), self.paths[1])
        for path in self.paths:
            with path.open("rb+") as file:
                os.fsync(file.fileno())

    def save(self) -> None:
        self.fs.save(self.folder / "rows", overwrite=True)
        self.model.save(self.folder / "model", overwrite=True)

    def load_by_hand(self) -> None:
        with pa.OSFile(str(self.paths[0])) as file:
            rows = pa.ipc.open_file(file).read_all()
        model = SequentialMLP(n_layers=4, hidden_dim=self.model.hidden_dim)
        model.build((10,), (1,))
        model.load_state_dict(safetensors.torch.load_file(self.paths[1]))
        assert rows.num_rows == self.fs.n_samples

    def hash(self) -> None:
        for path, known in zip(self.paths, self.hashes, strict=True):
            with path.open("rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == known

    def load_and_hash(self) -> None:
        self.hash()
        self.load_by_hand()

    def load(self) -> None:
        with ExperimentContext().activate():
            rows = FeatureSet.load(self.folder / "rows")
            BaseModel.load(self.folder / "model")
        assert rows.n_samples == self.fs.n_samples

    def load_small(self) -> None:
        BaseModel.load(self.small)

    def map(self) -> None:
        with ExperimentContext().activate():
            FeatureSet.load(self.folder / "rows", verify=False)


def _row(work: str, value: float, limit: float | None) -> dict[str, Any]:
    return {"work": work, "value": value, "limit": limit, "ok": limit is None or value <= limit}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in files():
        print(f"{row['value']:8.2f}  at most {row['limit'] or 'any':>5}  {row['work']}")
