"""Logging of runs to Weights & Biases, offline or to its server."""

from __future__ import annotations

import json
import struct
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from modularml._optional import require
from modularml.tracking.tracked_run import Point
from modularml.tracking.tracker import Tracker


class WandbTracker(Tracker):
    """Log runs to `Weights & Biases <https://wandb.ai>`_.

    The runs of folds, members and trials, and that of their cross-validation, ensemble or sweep,
    are one group, named by its label and id. Metrics are drawn over the epoch of their phase,
    ``phase/epoch``.

    Parameters
    ----------
    project : str, optional
        By default the label of the experiment.
    folder : str or Path
        Runs are written to its folder ``wandb``.
    mode : {'offline', 'online'}
        Offline, ``wandb sync`` sends the folders of runs later; a resumed run has several folders
        of one id, to be sent with ``--append``.
    name, parent, artifacts, rows, timeout, every_seconds, label, execution_order
        See `Tracker`. A `parent` is the name of a group.

    Examples
    --------
    ``Experiment("cells", callbacks=[WandbTracker("batteries")])``

    Examples
    --------
    >>> WandbTracker("cells", mode="offline").mode
    'offline'
    """

    package = "wandb"

    def __init__(
        self,
        project: str | None = None,
        *,
        folder: str | Path = ".",
        mode: Literal["offline", "online"] = "offline",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.project, self.folder, self.mode = project, folder, mode

    def open_store(self, name: str, run_id: str, experiment: str) -> WandbRun:
        """Start or resume a run; see `Tracker.open_store`."""
        wandb, folder = require("wandb"), Path(self.folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        run_id, resumed = run_id or uuid.uuid4().hex[:12], bool(run_id)
        earlier = sorted((folder / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
        if earlier and earlier[-1].parent.name.startswith(
            time.strftime("offline-run-%Y%m%d_%H%M%S")
        ):
            time.sleep(1)  # its folder is named by the second
        run = wandb.init(
            project=self.project or experiment,
            name=name,
            id=run_id,
            group=self.parent or f"{name}-{run_id}",
            dir=str(folder),
            mode=self.mode,
            resume="allow" if resumed and self.mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        return WandbRun(run, earlier)


class WandbRun:
    """A run of Weights & Biases; see `modularml.tracking.tracked_run.Store`."""

    def __init__(self, run: Any, earlier: list[Path]) -> None:
        self.run, self.run_id, self.group, self._earlier = run, run.id, run.group, earlier
        self._axes: set[str] = set()

    def logged_steps(self) -> Mapping[str, Iterable[int]]:
        """Return the epochs that earlier files, or the run on the server, hold by metric."""
        steps: dict[str, set[int]] = defaultdict(set)
        for path in self._earlier:
            for row in rows_in(path):
                for name in row:
                    if (epoch := row.get(_axis(name))) is not None:
                        steps[name].add(int(epoch))
        for name in () if self._earlier else self.run.summary.keys():
            if (last := self.run.summary.get(_axis(name))) is not None:
                steps[name].update(range(int(last) + 1))
        return steps

    def write_params(self, params: Mapping[str, Any]) -> None:
        """Write the config."""
        self.run.config.update(dict(params))

    def write_points(self, points: list[Point]) -> None:
        """Write values of metrics: one row for each epoch of a phase."""
        rows: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
        for p in points:
            rows[_axis(p.name), p.step][p.name] = p.value
        for (axis, step), row in rows.items():
            if axis not in self._axes:
                self._axes.add(axis)
                self.run.define_metric(f"{axis.rpartition('/')[0]}/*", step_metric=axis)
            self.run.log({axis: step, **row})

    def write_file(self, path: Path) -> None:
        """Write a file; experiments become artifacts."""
        wandb = require("wandb")
        if path.suffix == ".mml":
            artifact = wandb.Artifact(f"experiment-{self.run_id}", type="experiment")
            artifact.add_file(str(path))
            self.run.log_artifact(artifact)
        elif path.suffix == ".png":
            self.run.log({path.stem: wandb.Image(str(path))})
        else:
            (Path(self.run.dir) / path.name).write_bytes(path.read_bytes())
            self.run.save(str(Path(self.run.dir) / path.name), base_path=self.run.dir, policy="now")

    def close(self, status: str) -> None:
        """End the run; its exit code is 0 if it is complete."""
        self.run.finish(exit_code={"completed": 0, "interrupted": 255}.get(status, 1))


def _axis(name: str) -> str:
    """Return the name of the epoch that belongs to a metric: that of its phase."""
    return f"{name.rpartition('/')[0]}/epoch"


def rows_in(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of metrics in the file of an offline run."""
    for message in messages_in(path):
        items = message.history.item
        row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
        if row:
            yield row


def messages_in(path: Path) -> Iterator[Any]:
    """Yield the messages in the file of an offline run, up to its end or a damaged record.

    The file has 7 bytes, then blocks of 32 KiB of records: a checksum (4 bytes), a length (2), a
    kind (1: whole; 2, 3, 4: first, middle and last part) and the bytes of a message.
    """
    record = require("wandb.proto.wandb_internal_pb2").Record
    data, position, message = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        part = data[position + 7 : position + 7 + length]
        position += 7 + length
        if len(part) < length or kind not in (1, 2, 3, 4):
            return
        message += part
        if kind in (1, 4):
            yield record.FromString(message)
            message = b""
