"""Parts of a file, and differences between two files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml.errors import MMLError, MMLKindError
from modularml.io import limits
from modularml.io.archive import Archive, open_archive
from modularml.io.jsontext import mapped
from modularml.io.names import find_file, folder_at, member_stem
from modularml.io.tensors import load_members, load_table, load_tensors


def extract(path: str | Path, folder: str | Path) -> list[Path]:
    """Write the contents of a file to a new folder, without building objects.

    Parameters
    ----------
    path : path-like
    folder : path-like
        Created; each array becomes an ``.npy`` file in a folder named after its member, each table
        a Parquet file, and configs, states and packaged code stay text.

    Returns
    -------
    list of Path
        Paths of the files, in the order of the members.

    Raises
    ------
    MMLError
        If the file is damaged, newer or not an artifact, or the folder exists and is not empty.

    Examples
    --------
    >>> import tempfile
    >>> from modularml import FeatureSet
    >>> fs = FeatureSet.from_dict("rows", {"x": [1.0], "y": [2.0]}, "x", "y", register=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = extract(fs.save(f"{folder}/rows"), f"{folder}/out")
    >>> len(paths) > 0
    True
    """
    archive, out = open_archive(find_file(path, None)), Path(folder)
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        hint = "Choose a folder that does not exist"
        raise MMLError(limits.EXISTS, out, "", "the folder already exists", hint)
    folder_at(out)
    written: list[Path] = []
    parquet = require("pyarrow.parquet")
    for member, data in archive.payloads.items():
        target = out / member
        target.parent.mkdir(parents=True, exist_ok=True)
        if member.endswith(".safetensors"):
            target.with_suffix("").mkdir(parents=True, exist_ok=True)
            taken: set[str] = set()
            for name, array in load_tensors(data, archive.path, member).items():
                stem = ".".join(member_stem(part, set()) for part in name.split("."))
                while stem.casefold() in taken:
                    stem += "_"
                taken.add(stem.casefold())
                written.append(target.with_suffix("") / f"{stem}.npy")
                np.save(written[-1], array, allow_pickle=False)
        elif member.endswith(".arrow"):
            target = target.with_suffix(".parquet")
            parquet.write_table(load_table(data, archive.path, member), target)
            written.append(target)
        else:
            target.write_bytes(data)
            written.append(target)
    return written


def diff(a: str | Path, b: str | Path) -> dict[str, list[str]]:
    """List the differences between two files of one kind, without building objects.

    Returns
    -------
    dict of str to list of str
        ``config``, ``data`` (rows, splits, scalers), ``weights`` (with optimizers), ``results``
        and ``other``: one line per difference. All are empty for files of equal content.

    Raises
    ------
    MMLKindError
        If they hold objects of different kinds.
    MMLError
        If one is damaged, newer or not an artifact.

    Examples
    --------
    >>> import tempfile
    >>> from modularml import SimpleSampler
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a = SimpleSampler(batch_size=16).save(f"{folder}/a")
    ...     b = SimpleSampler(batch_size=32).save(f"{folder}/b")
    ...     found = diff(a, b)
    >>> any("batch_size" in line for lines in found.values() for line in lines)
    True
    """
    first, second = (open_archive(find_file(path, None)) for path in (a, b))
    if first.kind != second.kind:
        kinds = limits.KINDS[second.kind], limits.KINDS[first.kind]
        problem = f"is of kind {kinds[0]}, {first.path.name} of kind {kinds[1]}"
        raise MMLKindError(limits.OTHER_KIND, second.path, "", problem)
    lines_by_group: dict[str, list[str]] = {"config": [], "data": [], "weights": [], "results": []}
    lines_by_group["other"] = []
    lines_by_group["config"] = list(
        _trees(first.json("config.json"), second.json("config.json"), ())
    )
    default_group = {"fs": "data", "md": "weights", "op": "weights"}.get(first.kind, "other")
    for line in _trees(_state(first), _state(second), ()):
        lines_by_group[_GROUPS.get(line.partition(":")[0].partition(".")[0], default_group)].append(
            line
        )
    return lines_by_group


_GROUPS = {
    "featuresets": "data",
    "fingerprints": "data",
    "model_graph": "weights",
    "nodes": "weights",
    "optimizer": "weights",
    "history": "results",
}
"""Groups of differences by the first key of the state."""


def _state(archive: Archive) -> Any:
    """Return the state with its arrays and table columns filled in."""
    arrays, tables = load_members(archive.payloads, archive.path)

    def placed(tree: dict[str, Any]) -> Any:
        if "$tensor" in tree:
            return arrays.get((str(tree.get("in")), tree["$tensor"]), tree)
        if (table := tables.get(tree.get("$table", ""))) is None:
            return tree
        return {c: table[c].to_numpy(zero_copy_only=False) for c in table.column_names}

    return mapped(archive.json("state.json"), placed)


def _trees(a: Any, b: Any, path: tuple[str, ...]) -> Iterator[str]:
    """Yield a line for each difference of two trees."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            inner = (*path, key) if key not in ("params", "$tuple", "$type") else path
            yield from _trees(a.get(key, _ABSENT), b.get(key, _ABSENT), inner)
    elif isinstance(a, list) and isinstance(b, list):
        for i, (item, other) in enumerate(zip_longest(a, b, fillvalue=_ABSENT)):
            # return the label of an item of a list, or its index
            params = item.get("params", item) if isinstance(item, dict) else {}
            label = params.get("label") if isinstance(params, dict) else None
            yield from _trees(item, other, (*path, str(label if isinstance(label, str) else i)))
    elif isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if difference := _compared(a, b):
            yield f"{'.'.join(path)}: {difference}"
    elif type(a) is not type(b) or isinstance(a, np.ndarray) or a != b:
        yield f"{'.'.join(path)}: {_shown(a)} -> {_shown(b)}"


_ABSENT = object()


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, list):
        return f"{len(value)} items"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, dict):
        label = value.get("label")
        return repr(label) if label else str(value.get("$type", f"{len(value)} entries"))
    return f"{value!r:.60}"


def _compared(a: Array, b: Array) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype} {list(a.shape)} -> {b.dtype} {list(b.shape)}"
    if a.dtype.hasobject:
        other = sum(not _equal(x, y) for x, y in zip(a, b, strict=True))
        return f"{other} of {len(a)} rows differ" if other else ""
    same = (a == b) | ((a != a) & (b != b))  # noqa: PLR0124 - NaN equals NaN here
    if same.all():
        return ""
    if a.dtype.kind not in "fiu":
        return f"{int((~same).sum())} of {a.size} values differ"
    gap = np.abs(a.astype(np.float64) - b.astype(np.float64))[~same]
    return f"{len(gap)} of {a.size} values differ, by {np.nanmax(gap):.3g} at most"


def _equal(a: Any, b: Any) -> bool:
    """Return whether two samples are equal, with NaN equal to NaN."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.hasobject and b.dtype.hasobject and a.ndim and a.shape == b.shape:
        return all(map(_equal, a, b))
    floats = a.dtype.kind in "fcmM" and b.dtype.kind in "fcmM"
    return bool(np.array_equal(a, b, equal_nan=floats))
