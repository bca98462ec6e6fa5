"""Finding the files of a path, folder, pattern or list of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from modularml._warning import warn
from modularml.errors import DataError, expect

__all__ = [
    "FilePaths",
    "check_file_names",
    "file_stem",
    "files_of",
    "natural",
    "readable",
    "taken_error",
]

FilePaths = str | Path | Sequence[str | Path]

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Suffixes of compressed files, after that of their format."""


def files_of(paths: FilePaths, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files, without duplicates, each folder or pattern in natural order.

    Parameters
    ----------
    paths : path-like or sequence of path-like
        A file, a folder, a pattern such as ``"runs/*.csv"``, or a list of them.
    suffixes : tuple of str
        Suffixes of the files to read from a folder, in upper or lower case.

    Raises
    ------
    DataError
        If a path does not exist, or a folder or pattern matches no file.
    """
    expect("paths", paths, (str, Path, list, tuple), "a path, a folder, a pattern or a list")
    files: list[Path] = []
    for item in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(expect("path", item, (str, Path), "the path of a file")).expanduser()
        if path.is_dir():
            inner = (
                p for p in path.rglob("*") if p.name.lower().endswith(suffixes) and p.is_file()
            )
            visible = [
                p for p in inner if not p.relative_to(path).as_posix().startswith((".", "_"))
            ]
            files += _sorted(
                visible,
                f"the folder {str(path)!r} holds no file that ends in {', '.join(suffixes)}",
            )
        elif path.exists():
            files.append(path)
        elif any(wildcard in str(path) for wildcard in "*?["):
            matching = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
            files += _sorted(
                [match for match in matching if match.is_file()], f"no file matches {str(path)!r}"
            )
        else:
            raise DataError(f"file {str(path)!r} does not exist")
    if not files:
        raise DataError("paths is empty; pass at least one file")
    return list(dict.fromkeys(files))


def file_stem(path: Path) -> str:
    """Return the name of a file without its suffixes: ``run_0.5C`` of ``run_0.5C.csv.gz``."""
    name = path.name
    for suffix in COMPRESSED:
        if name.lower().endswith(suffix) and Path(name.lower()).stem.count("."):
            name = name[: -len(suffix)]
    return Path(name).stem


def natural(text: object) -> list[Any]:
    """Return a key that sorts ``v2`` before ``v10``."""
    parts = re.split(r"(\d+)", str(text))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def check_file_names(paths: Iterable[object], file_as: str | None) -> None:
    """Warn of files in several folders that have one name, which is to be their tag.

    Folders named ``key=value`` give a column that tells the files apart.
    """
    seen = dict[str, str]()
    for path in map(str, paths if file_as else ()):
        name = file_stem(Path(path))
        if "=" not in str(Path(path).parent) and seen.setdefault(name, path) != path:
            warn(
                f"file_as={file_as!r} gives rows of {seen[name]!r} and {path!r} the same tag "
                f"{name!r}; rename the files to distinguish them"
            )
            return


def taken_error(path: object, file_as: str) -> DataError:
    """Return the error for a name of `file_as` that a column of the file has."""
    return DataError(
        f"file_as={file_as!r} is to hold the names of files, and {str(path)!r} has a column of "
        "this name; choose another for file_as, or rename the column"
    )


@contextmanager
def readable(path: Any, kind: str) -> Iterator[None]:
    """Convert errors of the reading library to DataErrors that name the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{str(path)!r} cannot be read as {kind}: {error}") from error


def _sorted(paths: list[Path], message: str) -> list[Path]:
    if not paths:
        raise DataError(message)
    return sorted(paths, key=natural)
