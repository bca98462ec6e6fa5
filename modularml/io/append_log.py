"""Append-only logs: segments, each an archive that points back to the one before it."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modularml.errors import MMLError, MMLNotFoundError
from modularml.io import limits
from modularml.io.archive import Archive, archive_bytes, read_archive
from modularml.io.atomic import append_file, contents_of
from modularml.io.classes import described, names_in
from modularml.io.jsontext import dump_json, with_labels
from modularml.io.values import Packer

CONFIG, STATE = "config.json", "state.json"
_NAME = re.compile(r"history-[0-9a-f]{12}\.log\.mml")


@dataclass(frozen=True)
class Segment:
    """The position of a segment.

    Parameters
    ----------
    file : str
        Name of the log, in the folder of the checkpoint.
    at, size : int
        In bytes.
    sha256 : str
    """

    file: str
    at: int
    size: int
    sha256: str

    @classmethod
    def from_json(cls, data: Any, path: Path) -> Segment | None:
        """Parse the output of ``vars`` from an untrusted file.

        Raises
        ------
        MMLError
            If it deviates from the format.
        """
        if data is None:
            return None
        if (
            isinstance(data, dict)
            and data.keys() == {"file", "at", "size", "sha256"}
            and isinstance(data["file"], str)
            and _NAME.fullmatch(data["file"])
            and type(data["at"]) is type(data["size"]) is int
            and data["at"] >= 0
            and 0 < data["size"] <= limits.MAX_FILE
            and isinstance(data["sha256"], str)
        ):
            return cls(**data)
        raise MMLError(limits.MISFIT, path, CONFIG, "has no valid position of its history")


def new_log(folder: Path) -> str:
    """Return a name for a log, and remove logs that no checkpoint in the folder needs."""
    old = [path for path in folder.glob("history-*.log.mml") if _NAME.fullmatch(path.name)]
    if old:
        # a checkpoint that cannot be read may need any of them
        with suppress(MMLError, OSError, AttributeError, KeyError, TypeError):
            needed = set()
            for path in folder.glob("*.ckpt.mml"):
                config = read_archive(contents_of(path), path, verify=False).json(CONFIG)
                segment = Segment.from_json(config["params"].get("log"), path)
                needed.add("" if segment is None else segment.file)
            for path in old:
                if path.name not in needed:
                    path.unlink(missing_ok=True)
    return f"history-{secrets.token_hex(6)}.log.mml"


def append_segment(
    path: Path, state: Any, before: Segment | None, labels: Mapping[str, str]
) -> Segment:
    """Append a segment to a log, which is created if missing.

    Parameters
    ----------
    path : Path
    state : object
        Any value that `Packer` accepts.
    before : Segment, optional
        The previous segment.
    labels : mapping of str to str
        Labels by id of nodes that it may refer to.

    Raises
    ------
    MMLError
        If it cannot be stored as data, or not be written; the log is unchanged then.
    """
    packer = Packer(compact=True)
    packed = with_labels(packer.pack(state), labels)
    config = {"before": None if before is None else vars(before)}
    members = {CONFIG: dump_json(config), STATE: dump_json(packed), **packer.members()}
    data = archive_bytes(path, "log", members, {"classes": described(names_in(packed))})
    at = append_file(path, data)
    return Segment(path.name, at, len(data), hashlib.sha256(data).hexdigest())


def read_log(last: Segment | None, checkpoint: Path) -> list[Archive]:
    """Return the checked segments that a checkpoint refers to, oldest first.

    Raises
    ------
    MMLError
        If one is missing or was changed.
    """
    archives: list[Archive] = []
    if last is None:
        return archives
    path = checkpoint.with_name(last.file)
    try:
        data = contents_of(path, limits.MAX_LOG)
    except MMLError as error:
        raise MMLNotFoundError(
            limits.NOT_FOUND, checkpoint, "", f"{error.problem}: {_LACKS}{path.name!r}", _HINT
        ) from error
    segment: Segment | None = last
    while segment is not None:
        part = data[segment.at : segment.at + segment.size]
        if len(part) != segment.size or hashlib.sha256(part).hexdigest() != segment.sha256:
            raise MMLError(limits.DAMAGED, path, "", _DIFFERS, "Restore another copy")
        archive = read_archive(part, path, verify=False)
        config = archive.json(CONFIG)
        if archive.kind != "log" or not isinstance(config, dict) or config.keys() != {"before"}:
            raise MMLError(limits.MISFIT, path, CONFIG, "is no segment of a log")
        archives.append(archive)
        before = Segment.from_json(config["before"], path)
        if before is not None and (
            before.file != last.file or before.at + before.size > segment.at
        ):
            raise MMLError(limits.MISFIT, path, CONFIG, "does not point back")
        segment = before
    return archives[::-1]


_LACKS = "its history is in the same folder in "
_DIFFERS = "a segment that the checkpoint refers to differs from what was written"
_HINT = (
    "Copy that file along with the checkpoint; or, where both are, restore it and call "
    "save_checkpoint(), whose files are self-contained"
)


def merged_runs(segments: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Merge the parts of runs in segments; metrics must have been unpacked."""
    runs: list[dict[str, Any]] = []
    for segment in segments:
        for number, run in segment["runs"]:
            new = run
            if number < len(runs):
                new = {**run, "results": _merged(runs[number]["results"], run["results"])}
            runs[number : number + 1] = [new]
    return runs


def _merged(old: Any, new: Any) -> dict[str, Any]:
    """Merge the results of a phase or a group."""
    if "items" in new:
        items = {item["label"]: item for item in old["items"]}
        for item in new["items"]:
            known = items.get(item["label"])
            items[item["label"]] = item if known is None else _merged(known, item)
        return {"label": new["label"], "items": list(items.values())}
    steps = [] if new["steps"] and new["steps"][0][0] == 0 else old["steps"]
    metrics = {}
    for kind, own in old["metrics"].items():
        columns = new["metrics"][kind]
        metrics[kind] = {**own, **columns}
        for name in own.keys() & columns.keys():
            metrics[kind][name] = {
                axis: np.concatenate([own[name][axis], values])
                for axis, values in columns[name].items()
            }
    return {
        **new,
        "metrics": metrics,
        "callbacks": old["callbacks"][: new["since"]] + new["callbacks"],
        "steps": steps + new["steps"],
    }
