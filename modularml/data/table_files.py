"""Files of a table: their paths, and one type for a column of all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from modularml._warning import warn
from modularml.errors import DataError, expect

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


def common_type(key: str, types: Mapping[str, pa.DataType]) -> pa.DataType:
    """Return the narrowest type that may hold the values of all files.

    Whether it holds them is only known when they are cast; see `cast_column`.

    Parameters
    ----------
    key : str
        Name of the column, for messages.
    types : mapping of str to pyarrow.DataType
        Type of the column in each file, by path.

    Raises
    ------
    DataError
        If there is none, as for numbers and text; the message names two files and their types.
    """
    first, first_type = next(iter(types.items()))
    common = stored_type(first_type)
    for path, file_type in types.items():
        kind = stored_type(file_type)
        if kind == common:
            continue
        fine = [t for t in (kind, common) if pa.types.is_timestamp(t)]
        dates = [t for t in (kind, common) if pa.types.is_date(t)]
        if dates and len(fine) + len(dates) == 2 and all(t.tz is None for t in fine):
            common = pa.timestamp("s") if not fine else fine[0]
            continue
        if {pa.string(), pa.binary()} != {kind, common}:
            try:
                schemas = [pa.schema({key: kind}), pa.schema({key: common})]
                common = pa.unify_schemas(schemas, promote_options="permissive").field(key).type
                continue
            except pa.ArrowTypeError:
                pass
        raise DataError(
            f"column {key!r} holds {stored_type(types[first])} in {first!r} and {kind} in "
            f"{path!r}, but no type holds both; {_remedy(key, {kind, common})}"
        )
    return common


def _remedy(key: str, kinds: set[pa.DataType]) -> str:
    if pa.string() in kinds:
        return (
            f"convert one of the files, or read both as text: of CSV, read={{'dtype': {{{key!r}: "
            "str}}, and numbers whose missing values have a sign, read={'na_values': [...]}"
        )
    if any(pa.types.is_timestamp(kind) for kind in kinds):
        return "give the times of both files a time zone, or those of none"
    return "convert one of the files"


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values without encodings of categories and text."""
    if pa.types.is_dictionary(kind):
        return stored_type(kind.value_type)
    if pa.types.is_large_string(kind) or kind == pa.string_view():
        return pa.string()
    if pa.types.is_large_binary(kind) or kind == pa.binary_view():
        return pa.binary()
    return kind


def cast_column(
    array: pa.Array | pa.ChunkedArray, kind: pa.DataType, key: str, path: str
) -> pa.Array | pa.ChunkedArray:
    """Cast values of one file to the common type of all files.

    Raises
    ------
    DataError
        If a value would change; the message names the file and both types.
    """
    if array.type == kind:
        return array
    try:
        return array.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"column {key!r} of {path!r} holds {array.type}; casting it to {kind}, the type of "
            f"all files, would change a value ({error}); convert the files to one type"
        ) from error
