"""Training on Parquet larger than memory, against pyarrow batches by hand with a window."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import modularml as mm
from benchmarks.environments import run_isolated
from benchmarks.report import show
from benchmarks.timing import cpu_seconds, interleave, one_thread, ratio

FEATURES = [f"x{i}" for i in range(32)]
WINDOW, BATCH = 262_144, 4_096
QUICK_ROWS, FULL_ROWS = 2_400_000, 24_000_000
CPU_AT_MOST, BYTES_AT_MOST = 1.2, 1.1


def write(path: Path, n: int) -> None:
    """Write 32 features and a target of float32: 132 bytes a row."""
    rng = np.random.default_rng(0)
    schema = pa.schema(dict.fromkeys([*FEATURES, "y"], pa.float32()))
    with pq.ParquetWriter(path, schema, use_dictionary=False) as file:
        for at in range(0, n, 1_000_000):
            size = min(1_000_000, n - at)
            columns = [pa.array(rng.standard_normal(size, dtype="f4")) for _ in schema]
            file.write_table(pa.Table.from_arrays(columns, schema=schema))


def epoch_by_hand(path: Path, epoch: int = 0) -> float:
    """Train an epoch on windows that pyarrow reads, and return the last loss."""
    net = torch.nn.Linear(32, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    rng, losses = np.random.default_rng(epoch), [0.0]
    with pq.ParquetFile(path, memory_map=True) as file:
        for window in file.iter_batches(WINDOW, use_threads=False):
            columns = [window.column(i).to_numpy() for i in range(33)]
            x = torch.from_numpy(np.column_stack(columns[:32]))
            y = torch.from_numpy(columns[32][:, None].copy())
            for rows in torch.from_numpy(rng.permutation(len(x))).split(BATCH):
                optimizer.zero_grad()
                loss = torch.nn.functional.mse_loss(net(x[rows]), y[rows])
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    return losses[-1]


class Ours:
    """The same training through an experiment; each call runs an epoch."""

    def __init__(self, path: Path) -> None:
        self.experiment = mm.Experiment("beyond", registration_policy="overwrite", audit="off")
        fs = mm.FeatureSet.from_parquet("big", path, FEATURES, "y", in_memory=False)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32, 1))
        node = mm.ModelNode("net", net, fs)
        mm.ModelGraph([node], optimizer=mm.Optimizer("sgd", opt_kwargs={"lr": 1e-3}))
        sampler = mm.SimpleSampler(batch_size=BATCH, shuffle=True, shuffle_window=WINDOW, seed=0)
        self.phase = mm.TrainPhase(
            "train",
            input_sources=[mm.InputBinding(node.node_id, node.feature_refs[0], None, sampler)],
            losses=[mm.AppliedLoss(mm.Loss("mse"), on="net", inputs=["outputs", "targets"])],
            n_epochs=1,
            result_recording="none",
        )

    def __call__(self) -> None:
        self.experiment.run_phase(self.phase, show_training_progress=False)


def beyond_memory(n: int, folder: str) -> list[dict[str, Any]]:
    """Measure CPU time, bytes read and memory; `folder` is on a disk, not in memory."""
    one_thread()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "big.parquet"
        write(path, n)
        weighed = run_isolated("beyond_memory", "--weigh", str(path))
        ours = Ours(path)
        first = cpu_seconds(ours)
        times = interleave({"hand": lambda: epoch_by_hand(path), "ours": ours}, repeats=3)
        size = n * 33 * 4
        work = f"an epoch of {size / 1e9:.1f} GB in windows of {WINDOW:,} rows"
        rows = [
            (f"{work} / pyarrow batches by hand", ratio(times, "ours"), CPU_AT_MOST),
            ("the same, the first epoch, which writes the rows", first / min(times["hand"]), None),
            ("bytes read in an epoch, empty page cache (x data)", weighed["read"] / size,
             BYTES_AT_MOST),
            ("peak memory of file and epoch above the imports (MB)", weighed["peak"], None),
            ("of which not pages of files (MB)", weighed["own"], None),
        ]  # fmt: skip
    return [
        {"work": w, "value": v, "limit": limit, "ok": limit is None or v <= limit}
        for w, v, limit in rows
    ]


# -- in a process of its own -----------------------------------------------------------------


def weigh(path: Path) -> None:
    """Print peak memory of an epoch, and the bytes that another reads from the disk."""
    own, start, over = [0.0], _status(), threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            own[0] = max(own[0], _status()["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    ours = Ours(path)
    ours()
    over.set()
    watcher.join()
    peak = _status()["VmHWM"]
    for fd in list(_temporary_files()):
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    before = _bytes_read()
    ours()
    read = _bytes_read() - before
    above = {"peak": peak - start["VmRSS"], "own": own[0] - start["RssAnon"]}
    print(json.dumps({"read": read, **above}))


def _status() -> dict[str, float]:
    """Return the memory of this process in MB, by the names of /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: int(rest.split()[0]) / 1e3 for name, _, rest in (x.partition(":") for x in lines)
            if rest.endswith("kB")}  # fmt: skip


def _temporary_files() -> Iterator[int]:
    """Return the descriptors of the temporary files of columns and rows."""
    for link in Path("/proc/self/fd").iterdir():
        target = str(link.readlink()) if link.is_symlink() else ""
        if target.startswith(tempfile.gettempdir()) and target.endswith("(deleted)"):
            yield int(link.name)


def _bytes_read() -> int:
    line = next(x for x in Path("/proc/self/io").read_text().splitlines() if "read_bytes" in x)
    return int(line.split()[1])


def main() -> int:
    """Print the rows; exit with 1 if a limit of the full size is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="3.2 GB; needs three times as much")
    parser.add_argument("--weigh", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="for the files")
    options = parser.parse_args()
    if options.weigh:
        one_thread()
        weigh(options.weigh)
        return 0
    tempfile.tempdir = os.environ["TMPDIR"] = options.folder
    rows = beyond_memory(FULL_ROWS if options.full else QUICK_ROWS, options.folder)
    cells = [(row["work"], row["value"], row["limit"]) for row in rows]
    show("Data beyond memory", ("what", "value", "at most"), cells)
    return 0 if not options.full or all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
