"""Splits into folds, made by scikit-learn's own splitters."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.random import Generator, Philox

from modularml._arguments import at_least
from modularml._optional import require
from modularml._typing import Array, Columns, IntArray
from modularml.errors import SplitError
from modularml.splitters.base import BaseSplitter, StrataWarning, check_bins, key_list
from modularml.splitters.dealing import deal
from modularml.splitters.factors import Factor, cross, factorise
from modularml.splitters.random import RandomSplitter
from modularml.splitters.strata import stratify, warn_of_missing

__all__ = [
    "FoldSplitter",
    "KFoldSplitter",
    "LeaveOneGroupOutSplitter",
    "ScikitSplitter",
]


class FoldSplitter(BaseSplitter):
    """A splitter whose parts are the two sides of each fold.

    Its parts are named ``fold_0_train``, ``fold_0_val``, ``fold_1_train`` and so on.
    """

    @abstractmethod
    def folds(self, n: int, *, columns: Mapping[str, Array]) -> list[tuple[IntArray, IntArray]]:
        """Return each fold's rows to train on and rows to validate on.

        Parameters
        ----------
        n : int
            Number of rows.
        columns : mapping of str to ndarray, shape (n,)
            At least the columns named in `needs`.

        Returns
        -------
        list of (ndarray of int64, ndarray of int64)
            Ascending positions, 0-based; a pair a fold.

        Raises
        ------
        SplitError
            If these rows cannot be cut into such folds.
        """

    def hold_back(
        self, rows: IntArray, share: float, *, columns: Mapping[str, Array], seed: int
    ) -> IntArray:
        """Return the rows that a fold keeps out of its training rows to stop by.

        By the splitter's own groups and strata, where it has any.

        Parameters
        ----------
        rows : ndarray of int64
            What the fold trains on, ascending.
        share : float
            Of these rows; above 0 and below 1.
        columns : mapping of str to ndarray, shape (n,)
            As for `folds`.
        seed : int
        """
        names = ("group_by", "stratify_by", "bins")
        keys = {name: getattr(self, name) for name in names if hasattr(self, name)}
        cut = RandomSplitter({"train": 1 - share, "stop": share}, seed=seed, **keys)
        own = {name: columns[name][rows] for name in cut.needs}
        with warnings.catch_warnings():  # no scores are taken on rows to stop by
            warnings.simplefilter("ignore", StrataWarning)
            return rows[cut.split(len(rows), columns=own)["stop"]]

    def assign(self, n: int, *, columns: Mapping[str, Array]) -> dict[str, IntArray]:
        """Return both sides of every fold by name."""
        return {
            f"fold_{fold}_{side}": rows
            for fold, pair in enumerate(self.folds(n, columns=columns))
            for side, rows in zip(("train", "val"), pair, strict=True)
        }


class ScikitSplitter(FoldSplitter):
    """Cut rows into folds as a splitter of scikit-learn does; files cannot hold it.

    Parameters
    ----------
    splitter : object
        Of `sklearn.model_selection`, or anything with ``split(X, y, groups)``.
    group_by : str or list of str, optional
        Columns that it is given as ``groups``.
    stratify_by : str or list of str, optional
        Columns that it is given as ``y``.
    """

    def __init__(
        self, splitter: Any, group_by: Columns = None, stratify_by: Columns = None
    ) -> None:
        known = not isinstance(splitter, str | type)
        if not (known and callable(getattr(splitter, "split", None))):
            raise SplitError(
                f"splitter must be an object with a method split(X, y, groups), got {splitter!r}"
            )
        key_list(group_by, stratify_by)
        self.splitter = splitter
        self.group_by = group_by
        self.stratify_by = stratify_by

    @property
    def needs(self) -> list[str]:
        """The columns to group and to stratify by."""
        return key_list(self.group_by, self.stratify_by)

    def folds(self, n: int, *, columns: Mapping[str, Array]) -> list[tuple[IntArray, IntArray]]:
        """Return the sides of each fold; SplitError if the splitter refuses these rows."""
        groups = factorise(key_list(self.group_by), columns).codes if self.group_by else None
        if not self.stratify_by:
            return run_sklearn(self.splitter, n, groups=groups)
        strata = stratify(key_list(self.stratify_by), columns)
        found = run_sklearn(self.splitter, n, strata.codes, groups)
        _warn_of_rare(strata, found, self.stratify_by)
        return found


class KFoldSplitter(FoldSplitter):
    """Cut rows into folds, each of which is validated on once.

    Parameters
    ----------
    n_folds : int
        At least 2.
    group_by : str or list of str, optional
        Rows that agree in these columns stay in one fold.
    stratify_by : str or list of str, optional
        Folds keep the proportions of these columns, as far as groups allow.
    shuffle : bool
        Whether rows (or groups) are shuffled before they are cut.
    seed : int
        At least 0; used where ``shuffle`` is true.

    Notes
    -----
    The folds are those of scikit-learn's ``KFold``, ``GroupKFold``, ``StratifiedKFold`` or
    ``StratifiedGroupKFold`` with ``random_state=seed``.
    """

    def __init__(
        self,
        n_folds: int = 5,
        *,
        group_by: Columns = None,
        stratify_by: Columns = None,
        shuffle: bool = True,
        seed: int = 13,
        bins: int | None = None,
    ) -> None:
        at_least(2, SplitError, n_folds=n_folds)
        check_bins(bins, stratify_by, SplitError)
        at_least(0, SplitError, seed=seed)
        key_list(group_by, stratify_by)
        self.n_folds = n_folds
        self.group_by = group_by
        self.stratify_by = stratify_by
        self.shuffle = shuffle
        self.seed = seed
        self.bins = bins

    @property
    def needs(self) -> list[str]:
        """The columns to group and to stratify by."""
        return key_list(self.group_by, self.stratify_by)

    def folds(self, n: int, *, columns: Mapping[str, Array]) -> list[tuple[IntArray, IntArray]]:
        """Return the sides of each fold; SplitError if rows, or groups, are too few."""
        groups = factorise(key_list(self.group_by), columns) if self.group_by else None
        have, what = (
            (n, "rows") if groups is None else (groups.count, f"groups by {self.group_by!r}")
        )
        if have < self.n_folds:
            raise SplitError(
                f"{self.n_folds} folds need as many {what}, got {have}: at most {have} folds"
            )
        strata = None
        if self.stratify_by:
            strata = stratify(key_list(self.stratify_by), columns, self.bins)
        if strata is not None and groups is None and strata.sizes.max() < self.n_folds:
            found = self._dealt(strata.codes)  # which scikit-learn refuses
        else:
            found = self._by_sklearn(n, strata, groups)
        if strata is not None:
            _warn_of_rare(strata, found, self.stratify_by)
        return found

    def _by_sklearn(
        self, n: int, strata: Factor | None, groups: Factor | None
    ) -> list[tuple[IntArray, IntArray]]:
        """Cut as scikit-learn does; deal groups anew where it leaves a fold empty."""
        if strata is None or groups is None or strata.sizes.max() >= self.n_folds:
            name = f"{'Stratified' * (strata is not None)}{'Group' * (groups is not None)}KFold"
            splitter = getattr(require("sklearn.model_selection"), name)(
                self.n_folds, shuffle=self.shuffle, random_state=self.seed if self.shuffle else None
            )
            codes = (None if factor is None else factor.codes for factor in (strata, groups))
            found = run_sklearn(splitter, n, *codes)
            if all(len(val) for _, val in found):
                return found
        assert strata is not None
        assert groups is not None
        shares = np.full(self.n_folds, 1 / self.n_folds)
        parts = deal(cross(groups, strata), shares, Generator(Philox(self.seed)))
        return self._sides(parts[groups.codes])

    def _dealt(self, codes: IntArray) -> list[tuple[IntArray, IntArray]]:
        """Deal rows in turn, stratum by stratum."""
        rows = np.arange(len(codes))
        if self.shuffle:
            rows = Generator(Philox(self.seed)).permutation(rows)
        parts = np.empty(len(codes), dtype=np.int64)
        parts[rows[np.argsort(codes[rows], kind="stable")]] = np.arange(len(codes)) % self.n_folds
        return self._sides(parts)

    def _sides(self, parts: IntArray) -> list[tuple[IntArray, IntArray]]:
        places = range(self.n_folds)
        return [(np.flatnonzero(parts != i), np.flatnonzero(parts == i)) for i in places]


class LeaveOneGroupOutSplitter(FoldSplitter):
    """Validate on each group in turn, in the sorted order of their keys.

    Parameters
    ----------
    group_by : str or list of str
        Rows that agree in these columns are one group.
    """

    def __init__(self, group_by: str | list[str]) -> None:
        if not key_list(group_by):
            raise SplitError("group_by must name at least one column, got None")
        self.group_by = group_by

    @property
    def needs(self) -> list[str]:
        """The columns to group by."""
        return key_list(self.group_by)

    def folds(self, n: int, *, columns: Mapping[str, Array]) -> list[tuple[IntArray, IntArray]]:
        """Return, for each group, the rows of all others and its own; SplitError if it is one."""
        groups = factorise(key_list(self.group_by), columns)
        if groups.count < 2:
            raise SplitError(
                f"leaving one group out needs at least 2 groups by {self.group_by!r}, "
                f"got {groups.count}"
            )
        return run_sklearn(
            require("sklearn.model_selection").LeaveOneGroupOut(), n, groups=groups.codes
        )


def run_sklearn(
    splitter: Any,
    n: int,
    strata: IntArray | None = None,
    groups: IntArray | None = None,
) -> list[tuple[IntArray, IntArray]]:
    """Run a splitter of scikit-learn on row numbers and return ascending positions."""
    try:
        with warnings.catch_warnings():  # of strata too small to be in every fold: ours is better
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            found: Iterable[tuple[Any, Any]] = list(splitter.split(np.arange(n), strata, groups))
    except (ValueError, TypeError) as error:
        lacks = [
            f"pass {name}=, which it needs; "
            for name, given, word in (
                ("stratify_by", strata, "Strat"),
                ("group_by", groups, "Group"),
            )
            if given is None and word in type(splitter).__name__
        ]
        raise SplitError(
            f"{n} rows cannot be cut by {splitter!r}: {''.join(lacks)}{error}"
        ) from error
    return [(np.sort(train), np.sort(val)) for train, val in found]


def _warn_of_rare(strata: Factor, folds: list[tuple[IntArray, IntArray]], by: Columns) -> None:
    """Warn of strata that some fold does not validate on."""
    counts = [np.bincount(strata.codes[val], minlength=strata.count) for _, val in folds]
    names = [f"fold_{fold}_val" for fold in range(len(folds))]
    warn_of_missing(strata, np.stack(counts, axis=1), names, by)
