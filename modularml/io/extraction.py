"""Extraction of arrays, tables and texts for other programs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from modularml.errors import MMLError
from modularml.io import limits
from modularml.io.archive import open_archive
from modularml.io.names import find_file, folder_at, member_stem
from modularml.io.tensors import load_table, load_tensors

__all__ = ["extract"]


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
    for member, data in archive.payloads.items():
        target = out / member
        target.parent.mkdir(parents=True, exist_ok=True)
        if member.endswith(".safetensors"):
            arrays = load_tensors(data, archive.path, member)
            written += _arrays(arrays, target.with_suffix(""))
        elif member.endswith(".arrow"):
            target = target.with_suffix(".parquet")
            pq.write_table(load_table(data, archive.path, member), target)
            written.append(target)
        else:
            target.write_bytes(data)
            written.append(target)
    return written


def _arrays(arrays: dict[str, np.ndarray], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    paths = []
    for name, array in arrays.items():
        parts = [member_stem(part, set()) for part in name.split(".")]
        stem = ".".join(parts)
        while stem.casefold() in taken:
            stem += "_"
        taken.add(stem.casefold())
        paths.append(folder / f"{stem}.npy")
        np.save(paths[-1], array, allow_pickle=False)
    return paths
