"""Output of the commands, and the tables that they read and write."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pyarrow import parquet

from modularml._optional import require
from modularml.errors import ConfigError, DataError
from modularml.progress import leave_stdout


def is_parquet(path: str | Path) -> bool:
    """Tell whether a path names a Parquet file."""
    return Path(path).suffix in (".parquet", ".pq")


def column_names(path: Path, kind: str, options: Mapping[str, Any] | None = None) -> list[str]:
    """Return the names of a table's columns, read from its first line or its schema."""
    try:
        if kind == "parquet":
            return [str(name) for name in parquet.read_schema(path).names]
        names = require("pandas").read_csv(path, **{**(options or {}), "nrows": 0})
        return [str(name).strip() for name in names]
    except (ValueError, OSError) as error:  # of pandas, of pyarrow, and of other text encodings
        raise unreadable(path, kind == "parquet", error) from error


def check_folder(option: str, path: str | None) -> None:
    """Refuse a file to write whose folder does not exist."""
    if path not in (None, "-") and not Path(str(path)).absolute().parent.is_dir():
        raise ConfigError(f"{option} needs a file in an existing folder, got {path!r}")


def unreadable(path: str | Path, as_parquet: bool, error: Exception) -> DataError:
    """Return the error of a table that cannot be read."""
    kind = "Parquet" if as_parquet else "CSV with a first line of column names"
    reason = str(error).partition("\n")[0].strip(" .")
    return DataError(f"{str(path)!r} cannot be read as {kind}: {reason}")


USAGE, INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Reply:
    """The result of a command.

    Parameters
    ----------
    text : str
        For a person; empty for none.
    data : object
        The same for ``--json``.
    status : int
        Exit status.
    """

    text: str = ""
    data: Any = None
    status: int = 0


def show(reply: Reply, *, as_json: bool) -> None:
    """Print a reply; a reader that has left, such as ``head``, is no error."""
    text = json.dumps(plain(reply.data), indent=2) if as_json else reply.text
    try:
        if text:
            print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        leave_stdout()


def ready_streams() -> None:
    """Let streams replace characters that they cannot encode."""
    streams: tuple[TextIO, TextIO] = sys.stdout, sys.stderr
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers that are not finite are null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    value = value.item() if hasattr(value, "item") and not hasattr(value, "columns") else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
