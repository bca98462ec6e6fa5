"""Logging of runs to folders that TensorBoard reads."""

from __future__ import annotations

import os
import shutil
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from time import time as now
from typing import Any

from modularml._optional import require
from modularml.tracking.tracked_run import Point
from modularml.tracking.tracker import Tracker, shown


class TensorBoardTracker(Tracker):
    """Log runs to folders that `TensorBoard <https://www.tensorflow.org/tensorboard>`_ reads.

    A run is a folder, and the folders of folds, members and trials are within that of their
    cross-validation, ensemble or sweep. Parameters are in the tabs Text and HParams, curves in
    Images too; files lie in the folder. Neither TensorFlow nor PyTorch is needed.

    Parameters
    ----------
    folder : str or Path
        Its folders are the runs. A second run of the same name gets a number: ``cells_2``.
    name, parent, artifacts, rows, timeout, every_seconds, label, execution_order
        See `Tracker`. A `parent`, and an id, is the path of a run's folder below `folder`.

    Examples
    --------
    ``Experiment("cells", callbacks=[TensorBoardTracker("runs")])``, then
    ``tensorboard --logdir runs``

    Examples
    --------
    >>> TensorBoardTracker("runs").label
    'TensorBoardTracker'
    """

    package = "tensorboard"

    def __init__(
        self,
        folder: str | Path,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.folder = folder

    def open_store(self, name: str, run_id: str, experiment: str) -> TensorBoardRun:
        """Create or reopen a folder; see `Tracker.open_store`."""
        root = Path(self.folder).absolute()
        if run_id:
            (root / run_id).mkdir(parents=True, exist_ok=True)
            return TensorBoardRun(root, run_id)
        base = "/".join([*([self.parent] if self.parent else []), name.replace("/", "_")])
        (root / base).parent.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            run_id = base if number == 1 else f"{base}_{number}"
            try:
                (root / run_id).mkdir()
                break
            except FileExistsError:
                continue
        return TensorBoardRun(root, run_id)


class TensorBoardRun:
    """A folder of TensorBoard; see `modularml.tracking.tracked_run.Store`."""

    # TensorBoard's own writers and readers of event files import TensorFlow, if it is installed.

    def __init__(self, root: Path, run_id: str) -> None:
        self.run_id, self.group, self.path = run_id, run_id, root / run_id
        self._proto = require("tensorboard.compat.proto.summary_pb2")
        self._event = require("tensorboard.compat.proto.event_pb2").Event
        writer = require("tensorboard.summary.writer.record_writer").RecordWriter
        self._earlier = sorted(self.path.glob("events.out.tfevents.*"))
        place = f"{socket.gethostname()}.{os.getpid()}.{len(self._earlier)}"
        name = f"events.out.tfevents.{int(now()):010d}.{place}"
        self._file = writer((self.path / name).open("wb"))
        self._write_event(file_version="brain.Event:2")

    def logged_steps(self) -> Mapping[str, Iterable[int]]:
        """Return the steps of scalars that the folder holds."""
        steps: dict[str, set[int]] = defaultdict(set)
        for path in self._earlier:
            for record in _records(path.read_bytes()):
                event = self._event.FromString(record)
                for value in event.summary.value:
                    if value.WhichOneof("value") == "simple_value":
                        steps[value.tag].add(event.step)
        return steps

    def write_params(self, params: Mapping[str, Any]) -> None:
        """Write parameters to the tabs HParams and Text."""
        hparams = require("tensorboard.plugins.hparams.summary_v2").hparams_pb
        is_plain = {k: isinstance(v, bool | int | float) for k, v in params.items()}
        plain = {k: v if is_plain[k] else shown(v, 1000) for k, v in params.items()}
        self._write_event(summary=hparams(plain))
        rows = [f"| {k} | {shown(v, 6000)} |" for k, v in params.items()]
        self._write_text("config", "\n".join(["| setting | value |", "|---|---|", *rows]))
        self._file.flush()

    def write_points(self, points: list[Point]) -> None:
        """Write values of metrics."""
        for p in points:
            self._write(p.step, p.time, tag=p.name, simple_value=p.value)
        self._file.flush()

    def write_file(self, path: Path) -> None:
        """Copy a file to the folder; show texts and images."""
        shutil.copy(path, self.path / path.name)
        if path.suffix == ".txt":
            lines = path.read_text("utf-8").splitlines()
            self._write_text(path.stem, "\n".join(f"    {line}" for line in lines))
        elif path.suffix == ".png":
            image = self._proto.Summary.Image(encoded_image_string=path.read_bytes())
            self._write(tag=path.stem, image=image)

    def close(self, status: str) -> None:
        """Write the status and close the file."""
        self._write_text("status", status)
        self._file.close()

    def _write_text(self, tag: str, text: str) -> None:
        metadata = require("tensorboard.plugins.text.metadata").create_summary_metadata("", "")
        proto = require("tensorboard.compat.proto.tensor_pb2").TensorProto
        shape = require("tensorboard.compat.proto.tensor_shape_pb2").TensorShapeProto
        shape = shape(dim=[shape.Dim(size=1)])
        tensor = proto(dtype="DT_STRING", tensor_shape=shape, string_val=[text.encode()])
        self._write(tag=tag, tensor=tensor, metadata=metadata)

    def _write(self, step: int = 0, time: float = 0.0, **value: Any) -> None:
        summary = self._proto.Summary(value=[self._proto.Summary.Value(**value)])
        self._write_event(summary=summary, step=step, wall_time=time)

    def _write_event(self, wall_time: float = 0.0, **facts: Any) -> None:
        event = self._event(wall_time=wall_time or now(), **facts)
        self._file.write(event.SerializeToString())


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the records of an event file, up to one that is not complete.

    Each is a length (8 bytes), a checksum (4), the bytes of a message and a checksum (4).
    """
    position = 0
    while position + 12 <= len(data):
        start = position + 12
        position = start + int.from_bytes(data[position : position + 8], "little") + 4
        if position <= len(data):
            yield data[start : position - 4]
