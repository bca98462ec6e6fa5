"""Files of ModularML 1.0: their table and JSON, never their pickles."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from modularml.errors import MMLError
from modularml.io import limits
from modularml.io.flatbuffers import check_uncompressed
from modularml.io.jsontext import load_json
from modularml.io.names import check_members, find_file

__all__ = ["Version1", "read_version_1"]

TABLE = "sample_collection.arrow"
MAX_PLAIN = 2**28
"""Bytes up to which a member may be of any size; larger ones must not inflate by `MAX_RATIO`."""
MAX_RATIO = 100
_HOLDERS = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".h5", ".keras")


@dataclass
class Version1:
    """What a file of ModularML 1.0 holds that can be read without running it.

    Parameters
    ----------
    path : Path
    table : Table
        The rows, with columns ``domain.key.rep``.
    configs : mapping of str to object
        JSON by member.
    left_out : mapping of str to str
        Members that were not read, and why.
    """

    path: Path
    table: pa.Table
    configs: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def read_version_1(filepath: str | Path) -> Version1:
    """Read the rows and the JSON of a FeatureSet that ModularML 1.0 saved.

    Raises
    ------
    MMLError
        If there is no such file, it is no such zip file, a member is damaged or too large, or it
        has no table of rows.
    """
    path = find_file(filepath, None)
    try:
        with path.open("rb") as content:
            is_zip = content.read(4) == b"PK\3\4"
        if not is_zip:
            hint = "Pass a .fs.mml file of ModularML 1.0"
            raise MMLError(limits.FOREIGN, path, "", "this is no .mml file", hint)
        with zipfile.ZipFile(path) as file:
            return _read(file, path)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError) as error:
        problem = f"no zip file that can be read: {error}"[:200]
        raise MMLError(limits.DAMAGED, path, "", problem, "Restore another copy") from None


def _read(file: zipfile.ZipFile, path: Path) -> Version1:
    members = {info.filename: info for info in file.infolist() if not info.is_dir()}
    if len(file.infolist()) > limits.MAX_MEMBERS:
        raise MMLError(limits.TOO_LARGE, path, "", f"{len(file.infolist())} members")
    check_members([i.filename for i in file.infolist() if not i.is_dir()], path)
    if "manifest.json" in members:
        hint = "It is no file of ModularML 1.0; use FeatureSet.load"
        raise MMLError(limits.OTHER_KIND, path, "", "this library wrote it", hint)
    tables = [name for name in members if name.endswith(".arrow")]
    chosen = TABLE if TABLE in tables or len(tables) != 1 else tables[0]
    if chosen not in members:
        problem = f"no table {TABLE!r} in it, but {sorted(members)[:8]}"
        raise MMLError(limits.OTHER_KIND, path, "", problem, _NO_ROWS)
    read = Version1(path, _table(_bytes(file, members[chosen], path), path, chosen))
    for name, info in members.items():
        if name.endswith(".json"):
            try:
                read.configs[name] = load_json(_bytes(file, info, path), path, name)
            except MMLError as error:
                read.left_out[name] = error.problem
        elif name != chosen:
            is_pickle = name.endswith(_HOLDERS)
            read.left_out[name] = "a pickle, which is never opened" if is_pickle else "unknown"
    return read


_NO_ROWS = (
    "Only FeatureSets of ModularML 1.0 can be read; settings, weights and results are pickles, "
    "which could run any code. Make the graph anew, and load weights that 1.0 exports as arrays "
    "with node.load_weights"
)


def _bytes(file: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    """Return the bytes of a member, whose size and checksum are held against its header."""
    is_plain = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if info.flag_bits & 1 or not is_plain:
        raise MMLError(limits.FOREIGN, path, info.filename, "is encrypted, or of another packing")
    large = info.file_size > max(MAX_PLAIN, MAX_RATIO * info.compress_size)
    if large or info.file_size > limits.MAX_FILE:
        problem = f"{info.file_size} bytes, of {info.compress_size} in the file"
        raise MMLError(limits.TOO_LARGE, path, info.filename, problem, "Unpack it by hand")
    return file.read(info)


def _table(data: bytes, path: Path, member: str) -> pa.Table:
    """Return a table in one piece, with structs as columns ``outer.inner``."""
    try:
        check_uncompressed(memoryview(data))
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        table.validate(full=True)
        for _ in range(limits.MAX_NESTING):
            if not any(pa.types.is_struct(f.type) for f in table.schema):
                break
            table = table.flatten()
        return table.combine_chunks().replace_schema_metadata(None)
    except (pa.ArrowException, ValueError, TypeError, OSError, OverflowError) as error:
        raise MMLError(limits.DAMAGED, path, member, f"no table: {error}"[:200]) from None
