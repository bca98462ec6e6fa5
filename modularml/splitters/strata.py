"""Strata: classes as they are, continuous columns in bins, and which parts lack one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray
from modularml._warning import warn
from modularml.splitters.base import StrataWarning
from modularml.splitters.factors import Factor, factorise

__all__ = ["binned", "stratify", "warn_of_missing"]

BINS = 10
"""Bins of a column of fractions, where nothing else is asked for."""

SHOWN = 3
"""How many strata a warning names."""


def stratify(keys: Sequence[str], columns: Mapping[str, Array], bins: int | None = None) -> Factor:
    """Give rows of one stratum the same number.

    Parameters
    ----------
    keys : sequence of str
        Columns, at least one; each combination of their values is a stratum.
    columns : mapping of str to ndarray, shape (n,)
        Not changed.
    bins : int, optional
        Columns of numbers or times that have more distinct values are cut into so many bins of
        about equally many rows. Where none are asked for, columns of fractions are cut into 10,
        and whole numbers are taken for classes.

    Raises
    ------
    SplitError
        As of `factorise`.
    """
    cut = {key: binned(columns[key], bins) for key in keys}
    found = factorise(
        keys, {key: columns[key] if own is None else own[0] for key, own in cut.items()}
    )
    shown = {k: columns[k] if own is None else np.array(own[1])[own[0]] for k, own in cut.items()}
    return replace(found, keys=shown)


def warn_of_missing(strata: Factor, cells: IntArray, parts: Sequence[str], by: Any) -> None:
    """Warn of strata that are not in every part.

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
    lacking = np.flatnonzero((cells == 0).any(axis=1))
    if not len(lacking):
        return
    told = [
        f"{strata.name(code)} ({strata.sizes[code]} rows) is missing from "
        + ", ".join(parts[part] for part in np.flatnonzero(cells[code] == 0).tolist())
        for code in lacking[:SHOWN].tolist()
    ]
    more = f"; and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
    warn(
        f"{len(lacking)} of {strata.count} strata by {by!r} are not in every part: "
        f"{'; '.join(told)}{more}. Merge rare classes, make fewer parts, or cut numbers into bins "
        "with bins=",
        StrataWarning,
    )


def binned(values: Array, bins: int | None) -> tuple[IntArray, list[str]] | None:
    """Return the bin of each row and the bins' names; None where a column is left as it is.

    See `stratify`; columns with missing values are left too.
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
