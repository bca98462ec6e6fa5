"""Conversion of FeatureSets that ModularML 1.0 saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from modularml.context import ExperimentContext
from modularml.data.featureset import FeatureSet
from modularml.data.schema import DOMAINS
from modularml.errors import DataError
from modularml.io.version_1 import read_version_1

__all__ = ["Converted", "convert"]


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
