"""Tracking stores in a folder, and what their own readers find there."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
import time
import types
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from modularml.tracking import MLflowTracker, TensorBoardTracker, WandbTracker
from modularml.tracking.wandb import rows_in


@dataclass
class Logged:
    """One run, as it stands in a store."""

    name: str
    run_id: str
    parent: str | None
    status: str
    params: dict[str, str]
    files: set[str]
    metrics: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Step and value of every entry, in order of steps, duplicates included."""


class MLflowFolder:
    def __init__(self, folder: Path, uri: str | None = None) -> None:
        self.folder, self.uri = folder, uri

    def tracker(self, **options: Any) -> MLflowTracker:
        if not self.uri and not self.folder.exists():
            shutil.copytree(_empty_database().parent, self.folder)
        return MLflowTracker(self.uri or self.folder, **options)

    def runs(self) -> dict[str, Logged]:
        client = mlflow.MlflowClient(self.uri or f"sqlite:///{self.folder / 'mlflow.db'}")
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        return {run.info.run_name: self._run(client, run) for run in client.search_runs(ids)}

    def _run(self, client: Any, run: Any) -> Logged:
        run_id, tags = run.info.run_id, run.data.tags
        return Logged(
            run.info.run_name,
            run_id,
            tags.get("mlflow.parentRunId"),
            {"FINISHED": "completed", "FAILED": "failed", "KILLED": "interrupted"}.get(
                run.info.status, run.info.status
            ),
            run.data.params,
            {file.path for file in client.list_artifacts(run_id)},
            {
                name: sorted((m.step, m.value) for m in client.get_metric_history(run_id, name))
                for name in run.data.metrics
            },
        )


@cache
def _empty_database() -> Path:
    """Return a database without runs, which takes seconds to make."""
    path = Path(tempfile.mkdtemp()) / "mlflow.db"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


class TensorBoardFolder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tracker(self, **options: Any) -> TensorBoardTracker:
        return TensorBoardTracker(self.folder, **options)

    def runs(self) -> dict[str, Logged]:
        folders = {path.parent for path in self.folder.rglob("events.out.tfevents.*")}
        return {folder.name: self._run(folder) for folder in folders}

    def _run(self, folder: Path) -> Logged:
        # its own reader imports TensorFlow (seconds) unless a module of this name exists
        import tensorboard.compat

        tensorboard.compat.notf = sys.modules["tensorboard.compat.notf"] = types.ModuleType("notf")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder), {"scalars": 0, "tensors": 0})
        events.Reload()
        metrics = {
            tag: sorted((event.step, event.value) for event in events.Scalars(tag))
            for tag in events.Tags()["scalars"]
        }
        texts = {
            tag: [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]
            for tag in events.Tags()["tensors"]
            if events.SummaryMetadata(tag).plugin_data.plugin_name == "text"
        }
        rows = [line.split(" | ") for line in "".join(texts["config"]).splitlines()[2:]]
        parent = folder.parent.relative_to(self.folder).as_posix()
        return Logged(
            folder.name,
            folder.relative_to(self.folder).as_posix(),
            None if parent == "." else parent,
            texts.get("status", ["RUNNING"])[-1],
            {row[0].removeprefix("| "): row[1].removesuffix(" |") for row in rows},
            {p.name for p in folder.iterdir() if p.is_file() and "tfevents" not in p.name},
            metrics,
        )


class WandbFolder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tracker(self, **options: Any) -> WandbTracker:
        return WandbTracker("tests", folder=self.folder, **options)

    def runs(self) -> dict[str, Logged]:
        runs: dict[str, Logged] = {}
        for path in sorted(self.folder.glob("wandb/offline-run-*/*.wandb")):
            waited = time.monotonic()
            while not self._add(path, runs):  # another process writes
                assert time.monotonic() < waited + 30
                time.sleep(0.1)
        return runs

    def _add(self, path: Path, runs: dict[str, Logged]) -> bool:
        from modularml.tracking.wandb import messages_in

        messages = list(messages_in(path))
        if not any(m.WhichOneof("record_type") == "exit" for m in messages):
            return False
        about = next(m.run for m in messages if m.WhichOneof("record_type") == "run")
        configs = [about.config, *(m.run.config for m in messages), *(m.config for m in messages)]
        params = {u.key or "/".join(u.nested_key): u.value_json for c in configs for u in c.update}
        exits = [m.exit.exit_code for m in messages if m.WhichOneof("record_type") == "exit"]
        codes = {0: "completed", 1: "failed", 255: "interrupted"}
        files = {f.path for m in messages for f in m.files.files} - {"requirements.txt"}
        artifacts = {e.path for m in messages for e in m.artifact.manifest.contents}
        name = about.display_name
        own = about.run_group == f"{name}-{about.run_id}"
        parent = None if own else about.run_group
        run = runs.setdefault(name, Logged(name, about.run_id, parent, "", {}, set()))
        assert run.run_id == about.run_id
        run.status = codes[exits[-1]]
        run.params |= {key: value.strip('"') for key, value in params.items()}
        run.files |= files | artifacts
        metrics = defaultdict(list, run.metrics)
        for row in rows_in(path):
            for metric, value in row.items():
                axis = f"{metric.rpartition('/')[0]}/epoch"
                if axis in row and metric != axis:
                    metrics[metric].append((row[axis], float(value)))
        run.metrics = {name: sorted(values) for name, values in metrics.items()}
        return True


STORES = {"mlflow": MLflowFolder, "tensorboard": TensorBoardFolder, "wandb": WandbFolder}


def by_step(frame: Any, path: str) -> dict[str, list[tuple[int, float]]]:
    """Return the metrics of a phase's table as they should stand in a store."""
    rows = {f"{path}/{name}": frame[name].dropna() for name in frame.columns}
    return {name: list(zip(v.index.tolist(), v.tolist(), strict=True)) for name, v in rows.items()}


def assert_logged(got: dict[str, Any], want: dict[str, list[tuple[int, float]]]) -> None:
    """Compare metrics; each step once. TensorBoard has 32-bit numbers."""
    assert set(got) == set(want)
    for name, values in want.items():
        assert [step for step, _ in got[name]] == [step for step, _ in values], name
        np.testing.assert_allclose([v for _, v in got[name]], [v for _, v in values], rtol=1e-6)
