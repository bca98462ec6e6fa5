"""Conversion of FeatureSets that ModularML 1.0 saved."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from modularml.context import ExperimentContext
from modularml.data.featureset import FeatureSet
from modularml.data.schema import DOMAINS
from modularml.errors import DataError, MMLError
from modularml.io import limits
from modularml.io.jsontext import load_json
from modularml.io.names import check_members, find_file
from modularml.io.tensors import check_uncompressed

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


class Converted(NamedTuple):
    """What `convert` wrote.

    Parameters
    ----------
    path : Path
        The new file.
    kept : list of str
        Columns and splits in it.
    left_out : dict of str to str
        Columns, splits and members of the old file that are not in it, and why.
    """

    path: Path
    kept: list[str]
    left_out: dict[str, str]


def convert(
    filepath: str | Path, out: str | Path | None = None, *, overwrite: bool = False
) -> Converted:
    """Write the rows, ids and splits of a FeatureSet that ModularML 1.0 saved to a new file.

    Pickles in the file are never opened. Scalers are in them, so scaled columns are left out; fit
    the scalers again on the same split.

    Parameters
    ----------
    filepath : path-like
        A ``.fs.mml`` file of ModularML 1.0.
    out : path-like, optional
        By default beside it, with ``_converted`` added to its name.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    MMLError
        If the file cannot be read or holds no rows, or the new one cannot be written.
    DataError
        If the table is no FeatureSet.
    """
    old = read_version_1(filepath)
    reasons = {name: _left_out(name) for name in old.table.column_names}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    if not reasons.keys() - left_out.keys() - {"sample_uuids"}:
        raise DataError(
            f"the table of {str(old.path)!r} has no column named domain.key.raw, but "
            f"{list(reasons)[:8]}; FeatureSet.from_pyarrow_table takes other names"
        )
    stem = old.path.name.removesuffix(".mml").removesuffix(".fs")
    config = old.configs.get("config.json")
    label = config.get("label") if isinstance(config, dict) else None
    with ExperimentContext().activate():
        table = old.table.drop_columns(list(left_out))
        fs = FeatureSet.from_pyarrow_table(label if isinstance(label, str) else stem, table)
        splits = list(_splits(old.configs))
        for where, name, rows in splits:
            problem = _split_problem(name, rows, fs)
            if problem:
                left_out[f"{where}: split {name!r}"] = problem
            else:
                fs.add_split(fs.to_view().take(rows, label=name))
        path = fs.save(out or old.path.with_name(f"{stem}_converted"), overwrite=overwrite)
    read = {where for where, _, _ in splits}
    settings = {name: "settings of 1.0" for name in old.configs if name not in read}
    kept = [*table.column_names, *(f"split {name!r}" for name in fs.available_splits)]
    return Converted(path, kept, {**left_out, **settings, **old.left_out})


def _left_out(column: str) -> str:
    """Return why a column of 1.0 is not taken; empty if it is."""
    parts = column.split(".")
    if column == "sample_uuids" or (len(parts) == 3 and parts[0] in DOMAINS and parts[2] == "raw"):
        return ""
    if len(parts) == 3 and parts[0] in DOMAINS:
        return "its scaler is in a pickle; fit it again with fit_transform"
    return "no column of a FeatureSet"


def _splits(configs: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield the views that configs describe: where, label and row numbers."""
    for member, tree in configs.items():
        below: list[tuple[str, Any]] = [(Path(member).stem, tree)]
        while below:
            key, item = below.pop(0)
            if isinstance(item, dict) and "indices" in item:
                label = item.get("label")
                yield member, label if isinstance(label, str) else key, item["indices"]
            elif isinstance(item, dict):
                below += item.items()
            elif isinstance(item, list):
                below += [(key, part) for part in item if isinstance(part, dict)]


def _split_problem(name: str, rows: Any, fs: FeatureSet) -> str:
    """Return why a split cannot be taken; empty if it can."""
    if not isinstance(rows, list) or not rows or not all(type(row) is int for row in rows):
        return "its rows are not listed by number"
    if min(rows) < 0 or max(rows) >= len(fs) or len(set(rows)) < len(rows):
        return f"its row numbers repeat, or are not below {len(fs)}"
    if not name or name in fs.available_splits:
        return "its name is empty, or taken by another"
    return ""
