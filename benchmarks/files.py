"""Saving and loading, against Arrow and safetensors files written and read by hand."""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import safetensors.torch
import torch

from benchmarks.rows import FEATURES, TAGS, TARGETS, table
from benchmarks.timing import interleave, ratio
from modularml import BaseModel, ExperimentContext, FeatureSet
from modularml.models.torch import SequentialMLP


def files(*, quick: bool = False) -> list[dict[str, Any]]:
    """Return one row a measurement; wall time, as most of a save is waiting for the disk."""
    with tempfile.TemporaryDirectory() as name, ExperimentContext().activate():
        job = _Job(Path(name), 50_000 if quick else 1_000_000, 100 if quick else 1100)
        repeats = 3 if quick else 9
        clock = time.perf_counter
        saves = interleave(
            {"hand": job.save_by_hand, "ours": job.save}, repeats=repeats, clock=clock
        )
        loads = interleave(
            {"hand": job.load_by_hand, "ours": job.load}, repeats=repeats, clock=clock
        )
        small = interleave({"load": job.load_small, "map": job.map}, repeats=repeats, clock=clock)
        size = job.size / 1e6
        what = f"{job.fs.n_samples:,} rows and a model, {size:.0f} MB"
        return [
            _row(f"save {what} (fsync) / by hand", ratio(saves, "ours"), 1.3),
            _row("load and verify them / the same with sha256 by hand", ratio(loads, "ours"), 1.25),
            _row("open the rows, mapped, unverified (ms)", _ms(small["map"]), 20.0),
            _row("load a small model (ms)", _ms(small["load"]), 5.0),
        ]


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
        data = [path.read_bytes() for path in self.paths]
        assert [hashlib.sha256(part).hexdigest() for part in data] == self.hashes
        rows = pa.ipc.open_file(data[0]).read_all()
        model = SequentialMLP(n_layers=4, hidden_dim=self.model.hidden_dim)
        model.build((10,), (1,))
        model.load_state_dict(safetensors.torch.load(data[1]))
        assert rows.num_rows == self.fs.n_samples

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


def _ms(times: list[float]) -> float:
    return 1e3 * statistics.median(times)


def _row(work: str, value: float, limit: float) -> dict[str, Any]:
    return {"work": work, "value": value, "limit": limit, "ok": value <= limit}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in files():
        print(f"{row['value']:8.2f}  at most {row['limit']:5.2f}  {row['work']}")
