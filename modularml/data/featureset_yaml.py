"""FeatureSets described as data: the files they are read from, splits and scalers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modularml._optional import require
from modularml.config import decode, encode
from modularml.data.table_files import FilePaths
from modularml.errors import ConfigError, ModularMLError
from modularml.io.atomic import write_file
from modularml.io.randomness import unchanged_randomness
from modularml.scalers.scaler import Scaler

SOURCES = {
    "csv": "from_csv",
    "parquet": "from_parquet",
    "file": "load",
    "windows": "windows",
    "join": "join",
}
"""Where rows come from, and the method of a FeatureSet that gets them."""

DOMAIN_KEYS = {"features": "feature_keys", "targets": "target_keys", "tags": "tag_keys"}
DESCRIPTIONS = ("kind", "unit", "element_names")

ReadFrom = Mapping[str, Any]
"""The source of a set and the arguments that differ from their defaults."""


def read_rows(
    label: str, section: Mapping[str, Any], sets: Mapping[str, Any], folder: Path, cls: Any
) -> Any:
    """Return the FeatureSet of a section, without its splits and scalers.

    Parameters
    ----------
    label : str
    section : mapping
        Decoded arguments; one key is of `SOURCES`.
    sets : mapping of str to FeatureSet
        Sets that windows and joins are made of.
    folder : Path
        Relative paths start here.
    cls : type
        FeatureSet.
    """
    kind = next(name for name in SOURCES if name in section)
    source = section[kind]
    if kind == "file":
        fs = cls.load(_at(folder, source))
        fs.label = label
        return fs
    if kind in ("windows", "join"):
        arguments = {k: v for k, v in source.items() if k != "of"}
        if "other" in arguments:
            arguments["other"] = sets[arguments["other"]]
        return getattr(sets[source["of"]], SOURCES[kind])(label=label, **arguments)
    apart = (kind, "splits", "scalers", "allow")  # read by others
    arguments = {DOMAIN_KEYS.get(k, k): v for k, v in section.items() if k not in apart}
    return getattr(cls, SOURCES[kind])(label, moved(source, lambda p: _at(folder, p)), **arguments)


def apply_split(fs: Any, entry: Any) -> None:
    """Split a set, or one of its splits: a splitter, or a dict of ``of`` and ``splitter``."""
    if isinstance(entry, Mapping):
        fs.get_split(entry["of"]).split(entry["splitter"])
    else:
        fs.split(entry)


def fit_scaler(fs: Any, entry: Mapping[str, Any]) -> None:
    """Fit a scaler with arguments of `FeatureSet.fit_transform`."""
    axes = entry.get("merged_axes")
    axes = tuple(axes) if isinstance(axes, list) else axes
    fs.fit_transform(**{**entry, "merged_axes": axes})


def section_of(fs: Any, folder: Path | None = None) -> dict[str, Any]:
    """Describe a set as plain data, with paths relative to a folder.

    Raises
    ------
    ConfigError
        If the set was not read from files, or its splits and columns do not follow from them.
    """
    if fs.read_from is None:
        raise ConfigError(
            f"{fs.label!r} was not read from CSV or Parquet files, so a plan cannot name any; pass "
            f"rows='{fs.label}.fs.mml', which saves the rows to this file and names it"
        )
    start = Path() if folder is None else folder
    here: dict[str, Any] = {
        k: moved(v, lambda p: relative(p, start)) if k in SOURCES else encode(v)
        for k, v in fs.read_from.items()
    }
    unnamed = set(fs.available_splits) - {n for r in fs.split_records for n in r.names}
    views = [r.names for r in fs.split_records if r.rows is not None and r.source is None]
    if unnamed or views:
        raise ConfigError(
            f"the splits {sorted(unnamed) or list(views[0])} of {fs.label!r} are rows chosen in "
            f"Python, which a plan cannot name; pass rows='{fs.label}.fs.mml' to save them"
        )
    here["splits"] = [
        encode(r.splitter) if r.source is None else {"of": r.source, "splitter": encode(r.splitter)}
        for r in fs.split_records
    ]
    here["scalers"] = [_scaler_entry(record) for record in fs.scaler_records]
    here["allow"] = list(fs.audit_allowed)
    here = {name: value for name, value in here.items() if value not in ([], None)}
    try:
        with warnings.catch_warnings(action="ignore"), unchanged_randomness():
            different = _difference(fs, decode(dict(here)), start)
    except ModularMLError as error:
        different = str(error)
    if different:
        raise ConfigError(
            f"a plan would not give the same {fs.label!r}: {different}. Pass "
            f"rows='{fs.label}.fs.mml' to save it as it is"
        )
    return here


def to_yaml(
    self: Any,
    filepath: str | Path | None = None,
    *,
    rows: str | Path | None = None,
    overwrite: bool = False,
) -> str:
    """Return this set's part of a plan file, and optionally write it to a file.

    It names the files that the rows were read from, their columns, the splits and the scalers;
    ``modularml run`` reads it. The set is built from it once, to be sure that it is the same.

    Parameters
    ----------
    filepath : path-like, optional
        File to write. Paths within it are relative to its folder, otherwise to the current one.
    rows : path-like, optional
        Save rows, splits and scalers to this ``.fs.mml`` file and name it instead, for rows
        that were not read from CSV or Parquet files.
    overwrite : bool
        Whether existing files may be replaced.

    Raises
    ------
    ConfigError
        If files do not give this set: rows, splits or random scalers from elsewhere.
    MMLExistsError
        If a file exists and `overwrite` is false.
    """
    folder = None if filepath is None else Path(filepath).absolute().parent
    if rows is None:
        section = section_of(self, folder)
    else:
        saved = self.save(rows, overwrite=overwrite)
        section = {"file": relative(saved, folder or Path())}
    yamltext = require("modularml.io.yamltext")
    text: str = yamltext.dump_yaml({"data": {self.label: section}})
    if filepath is not None:
        data, verify = [text.encode()], yamltext.read_yaml
        write_file(Path(filepath), data, overwrite=overwrite, verify=verify)
    return text


def _difference(fs: Any, section: Mapping[str, Any], folder: Path) -> str:
    """Build the set from its section, and say how it differs; an empty text if it does not."""
    built = read_rows(fs.label, {**section, "register": False}, {}, folder, type(fs))
    for entry in section.get("splits", ()):
        apply_split(built, entry)
    for entry in section.get("scalers", ()):
        fit_scaler(built, entry)
    mine, theirs, splits = fs.collection, built.collection, fs.available_splits
    if mine.fingerprint != theirs.fingerprint:
        return "the files hold other rows now"
    if splits != built.available_splits or not all(
        np.array_equal(fs[name].indices, built[name].indices) for name in splits
    ):
        return "its splits come out differently, as they were made of scaled columns or other rows"
    same = set(mine.names) == set(theirs.names) and all(
        mine.array(n).type == theirs.array(n).type
        and np.array_equal(
            mine.numpy(n), theirs.numpy(n), equal_nan=mine.numpy(n).dtype.kind in "fc"
        )
        for n in mine.names
    )
    fitted_again = "its scalers learn something else, as they draw random numbers or fit other rows"
    return "" if same else fitted_again


def _scaler_entry(record: Any) -> dict[str, Any]:
    scaler: Scaler = record.scaler
    plain = isinstance(scaler.scaler, str) and not scaler.scaler_kwargs
    entry: dict[str, Any] = {
        "scaler": scaler.scaler if plain else encode(scaler.clone_unfitted()),
        "domain": record.domain,
        "keys": list(record.keys),
        "fit_to_split": record.fit_to_split,
        "merged_axes": list(record.merged_axes)
        if isinstance(record.merged_axes, tuple)
        else record.merged_axes,
        "targets": list(record.targets) or None,
        "per": list(record.per) or None,
    }
    if record.per:
        entry["unseen"] = record.unseen
    return {name: value for name, value in entry.items() if value is not None}


def moved(paths: FilePaths, move: Callable[[Any], str]) -> Any:
    """Return one path or a list of them, each changed by a function."""
    return [move(p) for p in paths] if isinstance(paths, list | tuple) else move(paths)


def _at(folder: Path, path: Any) -> str:
    return str(folder / Path(path))


def relative(path: Any, folder: Path) -> str:
    """Return a path relative to a folder, with slashes."""
    return Path(os.path.relpath(path, folder)).as_posix()
