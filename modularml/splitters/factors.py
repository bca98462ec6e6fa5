"""Codes of rows by the values of key columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.errors import SplitError

__all__ = ["Factor", "cross", "factorise"]

MAX_CELLS = 50_000_000
"""Maximum number of group-by-stratum counts in memory (8 bytes each, a few times)."""


@dataclass(frozen=True)
class Factor:
    """Rows numbered by their combination of key values.

    Attributes
    ----------
    codes : ndarray of int64, shape (n_rows,)
        Numbers from 0 without gaps, in the sorted order of the keys.
    count : int
        Number of combinations.
    keys : mapping of str to ndarray, shape (n_rows,)
        The key columns.
    """

    codes: IntArray
    count: int
    keys: Mapping[str, Array]

    @cached_property
    def sizes(self) -> IntArray:
        """Number of rows of each combination."""
        return np.bincount(self.codes, minlength=self.count)

    def name(self, code: int) -> str:
        """Return a combination as text: ``cell='A', cycle=3``."""
        row = int(np.argmax(self.codes == code))
        return ", ".join(
            f"{key}={values[row : row + 1].tolist()[0]!r}" for key, values in self.keys.items()
        )


def factorise(keys: Sequence[str], columns: Mapping[str, Array]) -> Factor:
    """Assign each row a code for its values in some columns.

    Parameters
    ----------
    keys : sequence of str
        Columns, at least one.
    columns : mapping of str to ndarray, shape (n_rows,)
        Of any type; not changed.

    Returns
    -------
    Factor

    Raises
    ------
    SplitError
        If samples are arrays, or values are missing or cannot be sorted.

    Notes
    -----
    Codes follow the sorted keys, not the order of rows, so shuffled rows give the same groups
    the same numbers.
    """
    codes, count = _codes(keys[0], columns[keys[0]])
    for key in keys[1:]:
        more, n_more = _codes(key, columns[key])
        codes, count = _codes(key, codes * n_more + more)
    return Factor(codes, count, {key: columns[key] for key in keys})


def cross(groups: Factor, strata: Factor) -> IntArray:
    """Count the rows of each stratum in each group.

    Returns
    -------
    ndarray of int64, shape (n_groups, n_strata)

    Raises
    ------
    SplitError
        If there are too many cells for memory.
    """
    if groups.count * strata.count > MAX_CELLS:
        raise SplitError(
            f"{groups.count} groups times {strata.count} strata are too many to balance; "
            "stratify by something coarser, such as a label or a few bins"
        )
    cells = np.bincount(
        groups.codes * strata.count + strata.codes, minlength=groups.count * strata.count
    )
    return cells.reshape(groups.count, strata.count)


def _codes(key: str, values: Array) -> tuple[IntArray, int]:
    if values.ndim != 1:
        raise SplitError(
            f"column {key!r} holds arrays of shape {values.shape[1:]}; rows can be grouped and "
            "stratified by single values only"
        )
    try:
        codes, uniques = require("pandas").factorize(values, sort=True)
    except TypeError as error:
        raise SplitError(
            f"column {key!r} holds values that cannot be sorted ({error}); convert them to one type"
        ) from error
    if len(codes) and codes.min() < 0:
        missing = codes < 0
        raise SplitError(
            f"column {key!r} has {missing.sum()} missing values (the first at row "
            f"{missing.argmax()}), so those rows have no group or stratum; fill them, or filter "
            "them out"
        )
    return codes.astype(np.int64, copy=False), len(uniques)
