"""What a splitter is: one method that says which rows belong to which split."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from modularml._arguments import at_least
from modularml._typing import Array, Columns, IntArray
from modularml._warning import warn
from modularml.config import Configurable
from modularml.errors import SplitError, UnknownNameError
from modularml.io.saveable import Saveable

__all__ = [
    "BaseSplitter",
    "SplitOverlapWarning",
    "SplitRatioWarning",
    "StrataWarning",
    "check_bins",
    "key_list",
    "warn_of_overlap",
]


class SplitOverlapWarning(UserWarning):
    """Two parts of a split share rows."""


class SplitRatioWarning(UserWarning):
    """A part is far from its ratio, as a group that cannot be cut is larger than the part."""


class StrataWarning(UserWarning):
    """A stratum is too rare, or groups too large, for it to be in every part."""


class BaseSplitter(Configurable, Saveable, ABC):
    """A rule that says which rows belong to which split.

    A splitter of your own defines `assign`, and `needs` where it looks at columns. It stores its
    constructor's arguments under their own names, and gives the same answer whenever it is asked
    about the same rows, so that a split can be recorded and replayed.

    Examples
    --------
    >>> import numpy as np
    >>> class HeadSplitter(BaseSplitter):
    ...     def __init__(self, n_first):
    ...         self.n_first = n_first
    ...
    ...     def assign(self, n, *, columns):
    ...         return {"first": np.arange(self.n_first), "rest": np.arange(self.n_first, n)}
    >>> HeadSplitter(2).split(5)["rest"].tolist()
    [2, 3, 4]
    """

    artifact_kind = "sp"
    refusal = SplitError

    @property
    def needs(self) -> list[str]:
        """Selectors of the columns that `assign` wants to see, each once."""
        return []

    @abstractmethod
    def assign(self, n: int, *, columns: Mapping[str, Array]) -> dict[str, IntArray]:
        """Say which rows belong to which part.

        Parameters
        ----------
        n : int
            Number of rows.
        columns : mapping of str to ndarray, shape (n, *shape)
            At least the columns named in `needs`, by those names. They must not be changed.

        Returns
        -------
        dict of str to ndarray of int64
            Positions of each part's rows, ascending, 0-based, each below ``n``.

        Raises
        ------
        SplitError
            If these rows cannot be split like that.
        """

    def split(self, n: int, *, columns: Mapping[str, Array] | None = None) -> dict[str, IntArray]:
        """Call `assign` and make sure that what goes in and comes out is sound.

        Raises
        ------
        UnknownNameError
            If a column in `needs` is not given.
        SplitError
            If the rows cannot be split, or `assign` gave positions that are no rows.
        """
        columns = columns or {}
        for name in self.needs:
            if name not in columns:
                raise UnknownNameError("column", name, columns, f"{self!r} needs it")
            if len(columns[name]) != n:
                raise SplitError(f"column {name!r} has {len(columns[name])} rows, expected {n}")
        parts = self.assign(n, columns=columns)
        return {name: _checked(name, rows, n) for name, rows in parts.items()}


def check_bins(bins: int | None, stratify_by: Columns, error: type[Exception]) -> None:
    """Refuse fewer than two bins, and bins of no column."""
    at_least(2, error, bins=bins)
    if bins is not None and not stratify_by:
        raise error(
            f"bins={bins} cuts the columns of stratify_by into bins, and there is no stratify_by; "
            "give both, or leave bins out"
        )


def key_list(*given: Columns) -> list[str]:
    """Return column names as one list, each once.

    Parameters
    ----------
    *given : str, list of str or None
        None, one or several names each.

    Raises
    ------
    SplitError
        If a name is not a string, or the list is empty.
    """
    names: list[str] = []
    for keys in given:
        if keys is None:
            continue
        found = list(keys) if isinstance(keys, list | tuple) else [keys]
        if not found or not all(isinstance(key, str) for key in found):
            raise SplitError(f"columns are given as a name or a list of names, got {keys!r}")
        names += found
    return list(dict.fromkeys(names))


def warn_of_overlap(parts: Mapping[str, IntArray]) -> None:
    """Warn of parts that share rows, with how many each pair shares.

    Parameters
    ----------
    parts : mapping of str to ndarray of int64
        Positions of each part's rows, each once.
    """
    sizes = sum(map(len, parts.values()))
    if sizes == 0 or np.bincount(np.concatenate(list(parts.values()))).max() < 2:
        return
    shared = [
        f"{a!r} and {b!r} share {both} (of {len(parts[a])} and {len(parts[b])})"
        for a, b in itertools.combinations(parts, 2)
        if (both := len(np.intersect1d(parts[a], parts[b], assume_unique=True)))
    ]
    warn(
        f"splits overlap in rows: {'; '.join(shared)}. What is trained on one is no fair test on "
        "the other; make the conditions exclude each other if that was not meant",
        SplitOverlapWarning,
    )


def _checked(name: object, rows: object, n: int) -> IntArray:
    if not isinstance(name, str) or not name:
        raise SplitError(f"a split's name must be a non-empty string, got {name!r}")
    found = np.asarray(rows)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise SplitError(
            f"split {name!r} must be one-dimensional positions of rows, "
            f"got {found.dtype} of shape {found.shape}"
        )
    found = found.astype(np.int64, copy=False)
    if not np.all(found[1:] > found[:-1]):
        raise SplitError(f"split {name!r} must hold each position once, in ascending order")
    if len(found) and (found[0] < 0 or found[-1] >= n):
        bad = found[0] if found[0] < 0 else found[-1]
        raise SplitError(f"split {name!r} holds position {bad}, but there are {n} rows")
    return found
