"""Strata of classes and of binned continuous columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray
from modularml._warning import warn
from modularml.splitters.base import StrataWarning
from modularml.splitters.factors import Factor, factorise

__all__ = ["binned", "stratify", "warn_about_missing"]

BINS = 10
"""Default number of bins of a column with fractions."""

SHOWN = 3
"""Number of strata that a warning names."""


def stratify(keys: Sequence[str], columns: Mapping[str, Array], bins: int | None = None) -> Factor:
    """Assign each row the code of its stratum.

    Parameters
    ----------
    keys : sequence of str
        Columns, at least one; each combination of their values is a stratum.
    columns : mapping of str to ndarray, shape (n,)
        Not changed.
    bins : int, optional
        Number of bins, with about equally many rows, for columns of numbers or times that have
        more distinct values. By default 10 for columns with fractions, while integers are treated
        as classes.

    Raises
    ------
    SplitError
        As for `factorise`.
    """
    bins_of = {key: binned(columns[key], bins) for key in keys}
    codes = {key: columns[key] if b is None else b[0] for key, b in bins_of.items()}
    names = {k: columns[k] if b is None else np.array(b[1])[b[0]] for k, b in bins_of.items()}
    return replace(factorise(keys, codes), keys=names)


def warn_about_missing(strata: Factor, cells: IntArray, parts: Sequence[str], by: Any) -> None:
    """Warn about strata that are not in every part.

    Parameters
    ----------
    strata : Factor
    cells : ndarray of int64, shape (n_strata, n_parts)
        Rows of each stratum in each part.
    parts : sequence of str
        Names of the parts.
    by : str or list of str
        The columns, for the message.
    """
    incomplete = np.flatnonzero((cells == 0).any(axis=1))
    if not len(incomplete):
        return
    descriptions = [
        f"{strata.name(code)} ({strata.sizes[code]} rows) is missing from "
        + ", ".join(parts[part] for part in np.flatnonzero(cells[code] == 0).tolist())
        for code in incomplete[:SHOWN].tolist()
    ]
    more = f"; and {len(incomplete) - SHOWN} more" if len(incomplete) > SHOWN else ""
    warn(
        f"{len(incomplete)} of {strata.count} strata by {by!r} are not in every part: "
        f"{'; '.join(descriptions)}{more}. Merge rare classes, use fewer parts, or cut numbers "
        "into bins with bins=",
        StrataWarning,
    )


def binned(values: Array, bins: int | None) -> tuple[IntArray, list[str]] | None:
    """Return the bin of each row and the names of the bins; None if not binned.

    See `stratify`; columns with missing values are not binned.
    """
    if values.ndim != 1 or values.dtype.kind not in ("f" if bins is None else "iufmM"):
        return None
    present = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    if len(present) < len(values) or (bins is None and (np.floor(present) == present).all()):
        return None
    distinct = np.unique(present)
    if len(distinct) <= (bins or BINS):
        return None
    at = np.arange(1, bins or BINS) * len(values) // (bins or BINS)
    edges = np.unique(np.sort(values)[at])
    edges = edges[edges > distinct[0]]
    lows = [distinct[0], *edges]
    return np.searchsorted(edges, values, side="right"), [f"from {low!s} on" for low in lows]
