"""Base class of splitters."""

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
from modularml.io.artifact import Saveable


class SplitOverlapWarning(UserWarning):
    """Two parts of a split share rows."""


class SplitRatioWarning(UserWarning):
    """A part is far from its ratio because a group is larger than the part."""


class StrataWarning(UserWarning):
    """A stratum is missing from a part because it is rare or groups are large."""


class BaseSplitter(Configurable, Saveable, ABC):
    """Assign rows to splits.

    A custom splitter defines `assign`, and `needs` if it uses columns. It must store the arguments
    of its constructor under their own names, and return the same splits for the same rows, so that
    a split can be recorded and replayed.

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
        """Selectors of the columns that `assign` uses, without duplicates."""
        return []

    @abstractmethod
    def assign(self, n: int, *, columns: Mapping[str, Array]) -> dict[str, IntArray]:
        """Return the rows of each part.

        Parameters
        ----------
        n : int
            Number of rows.
        columns : mapping of str to ndarray, shape (n, *shape)
            At least the columns in `needs`, by those names. They must not be changed.

        Returns
        -------
        dict of str to ndarray of int64
            Positions of each part's rows, ascending, 0-based, each below ``n``.

        Raises
        ------
        SplitError
            If the rows cannot be split.
        """

    def split(self, n: int, *, columns: Mapping[str, Array] | None = None) -> dict[str, IntArray]:
        """Call `assign` and validate its input and output.

        Raises
        ------
        UnknownNameError
            If a column in `needs` is missing.
        SplitError
            If the rows cannot be split, or `assign` returned invalid positions.
        """
        columns = columns or {}
        for name in self.needs:
            if name not in columns:
                raise UnknownNameError("column", name, columns, f"it is required by {self!r}")
            if len(columns[name]) != n:
                raise SplitError(f"column {name!r} has {len(columns[name])} rows, expected {n}")
        parts = {}
        for name, rows in self.assign(n, columns=columns).items():
            if not isinstance(name, str) or not name:
                raise SplitError(f"the name of a split must be a non-empty string, got {name!r}")
            positions = np.asarray(rows)
            if positions.ndim != 1 or positions.dtype.kind not in "iu":
                raise SplitError(
                    f"split {name!r} must be a one-dimensional array of row positions, "
                    f"got {positions.dtype} of shape {positions.shape}"
                )
            positions = parts[name] = positions.astype(np.int64, copy=False)
            if not np.all(positions[1:] > positions[:-1]):
                raise SplitError(f"split {name!r} must hold each position once, in ascending order")
            if len(positions) and (positions[0] < 0 or positions[-1] >= n):
                bad = positions[0] if positions[0] < 0 else positions[-1]
                raise SplitError(f"split {name!r} holds position {bad}, but there are {n} rows")
        return parts


def check_bins(bins: int | None, stratify_by: Columns, error: type[Exception]) -> None:
    """Refuse fewer than two bins, and bins without `stratify_by`."""
    at_least(2, error, bins=bins)
    if bins is not None and not stratify_by:
        raise error(
            f"bins={bins} applies to the columns of stratify_by, but stratify_by is missing; "
            "pass both, or omit bins"
        )


def key_list(*columns: Columns) -> list[str]:
    """Return column names as one list without duplicates.

    Parameters
    ----------
    *columns : str, list of str or None
        None, one or several names each.

    Raises
    ------
    SplitError
        If a name is not a string, or the list is empty.
    """
    names: list[str] = []
    for keys in columns:
        if keys is None:
            continue
        listed = list(keys) if isinstance(keys, list | tuple) else [keys]
        if not listed or not all(isinstance(key, str) for key in listed):
            raise SplitError(f"columns must be a name or a list of names, got {keys!r}")
        names += listed
    return list(dict.fromkeys(names))


def warn_about_overlap(parts: Mapping[str, IntArray]) -> None:
    """Warn about parts that share rows, with the number of shared rows.

    Parameters
    ----------
    parts : mapping of str to ndarray of int64
        Positions of the rows of each part, without duplicates.
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
        f"splits overlap in rows: {'; '.join(shared)}. A model trained on one cannot be tested on "
        "the other; make the conditions mutually exclusive unless the overlap is intended",
        SplitOverlapWarning,
    )
