"""Tables that commands read and write: CSV and Parquet, files and streams."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow import parquet

from modularml._optional import require
from modularml.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check_folder", "column_names", "is_parquet", "read_table", "write_table"]


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
        raise _unreadable(path, kind == "parquet", error) from error


def read_table(path: str, text: list[str], times: list[str]) -> pd.DataFrame:
    """Read a table to predict; ``-`` is CSV from stdin.

    Parameters
    ----------
    path : str
    text, times : list of str
        Columns that are text, so that ``007`` stays as it is, and columns of times.
    """
    pandas = require("pandas")
    if path != "-" and not Path(path).is_file():
        raise DataError(f"there is no file {path!r}; check the path")
    try:
        if path != "-" and is_parquet(path):
            frame: pd.DataFrame = pandas.read_parquet(path)
            return frame
        source: Any = sys.stdin if path == "-" else path
        frame = pandas.read_csv(source, dtype=dict.fromkeys(text, str))
        frame.columns = [str(name).strip() for name in frame.columns]
        for name in times:
            if name in frame:
                frame[name] = pandas.to_datetime(frame[name], format="ISO8601")
    except (ValueError, OSError) as error:
        raise _unreadable(path, path != "-" and is_parquet(path), error) from error
    return frame


def write_table(frame: pd.DataFrame, path: str | None) -> None:
    """Write a table to a file by its suffix; to stdout as CSV for ``-`` or None."""
    if path in (None, "-"):
        frame.to_csv(sys.stdout, index=False)
    elif is_parquet(str(path)):
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)


def check_folder(option: str, path: str | None) -> None:
    """Refuse a file to write whose folder does not exist."""
    if path not in (None, "-") and not Path(str(path)).absolute().parent.is_dir():
        raise ConfigError(f"{option} needs a file in an existing folder, got {path!r}")


def _unreadable(path: str | Path, as_parquet: bool, error: Exception) -> DataError:
    kind = "Parquet" if as_parquet else "CSV with a first line of column names"
    reason = str(error).partition("\n")[0].strip(" .")
    return DataError(f"{str(path)!r} cannot be read as {kind}: {reason}")
