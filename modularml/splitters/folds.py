"""Splitters into folds, based on scikit-learn."""

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
from modularml.splitters.dealing import Factor, cross, deal, factorise, stratify, warn_about_missing
from modularml.splitters.random import RandomSplitter

MANY_GROUPS = 2000
"""Number of groups with strata that scikit-learn divides in 0.3 s, and slowly beyond."""


class FoldSplitter(BaseSplitter):
    """A splitter whose parts are the two sides of each fold.

    Its parts are named ``fold_0_train``, ``fold_0_val``, ``fold_1_train`` and so on.
    """

    @abstractmethod
    def folds(self, n: int, *, columns: Mapping[str, Array]) -> list[tuple[IntArray, IntArray]]:
        """Return the training and validation rows of each fold.

        Parameters
        ----------
        n : int
            Number of rows.
        columns : mapping of str to ndarray, shape (n,)
            At least the columns in `needs`.

        Returns
        -------
        list of (ndarray of int64, ndarray of int64)
            Ascending positions, 0-based; one pair per fold.

        Raises
        ------
        SplitError
            If the rows cannot be divided into folds.
        """

    def hold_back(
        self, rows: IntArray, share: float, *, columns: Mapping[str, Array], seed: int
    ) -> IntArray:
        """Return the training rows that a fold holds back for early stopping.

        Groups and strata of the splitter apply, if it has any.

        Parameters
        ----------
        rows : ndarray of int64
            Training rows of the fold, ascending.
        share : float
            Share of these rows, above 0 and below 1.
        columns : mapping of str to ndarray, shape (n,)
            As for `folds`.
        seed : int
        """
        names = ("group_by", "stratify_by", "bins")
        keys = {name: getattr(self, name) for name in names if hasattr(self, name)}
        splitter = RandomSplitter({"train": 1 - share, "stop": share}, seed=seed, **keys)
        selected = {name: columns[name][rows] for name in splitter.needs}
        with warnings.catch_warnings():  # rows for early stopping are not scored
            warnings.simplefilter("ignore", StrataWarning)
            return rows[splitter.split(len(rows), columns=selected)["stop"]]

    def assign(self, n: int, *, columns: Mapping[str, Array]) -> dict[str, IntArray]:
        """Return both sides of every fold by name."""
        return {
            f"fold_{fold}_{side}": rows
            for fold, pair in enumerate(self.folds(n, columns=columns))
            for side, rows in zip(("train", "val"), pair, strict=True)
        }


class ScikitSplitter(FoldSplitter):
    """Divide rows into folds with a splitter of scikit-learn; cannot be saved.

    Parameters
    ----------
    splitter : object
        A splitter of `sklearn.model_selection`, or any object with ``split(X, y, groups)``.
    group_by : str or list of str, optional
        Columns passed as ``groups``.
    stratify_by : str or list of str, optional
        Columns passed as ``y``.

    Examples
    --------
    >>> from sklearn.model_selection import KFold
    >>> folds = ScikitSplitter(KFold(3)).folds(6, columns={})
    >>> [val.tolist() for _, val in folds]
    [[0, 1], [2, 3], [4, 5]]
    """

    def __init__(
        self, splitter: Any, group_by: Columns = None, stratify_by: Columns = None
    ) -> None:
        is_object = not isinstance(splitter, str | type)
        if not (is_object and callable(getattr(splitter, "split", None))):
            raise SplitError(
                f"splitter must be an object with a method split(X, y, groups), got {splitter!r}"
            )
        key_list(group_by, stratify_by)
        self.splitter = splitter
        self.group_by = group_by
        self.stratify_by = stratify_by

    @property
    def needs(self) -> list[str]:
        """Columns to group and to stratify by."""
        return key_list(self.group_by, self.stratify_by)

    def folds(self, n: int, *, columns: Mapping[str, Array]) -> list[tuple[IntArray, IntArray]]:
        """Return the sides of each fold; SplitError if the splitter refuses these rows."""
        groups = factorise(key_list(self.group_by), columns).codes if self.group_by else None
        if not self.stratify_by:
            return run_sklearn(self.splitter, n, groups=groups)
        strata = stratify(key_list(self.stratify_by), columns)
        folds = run_sklearn(self.splitter, n, strata.codes, groups)
        _warn_about_rare(strata, folds, self.stratify_by)
        return folds


class KFoldSplitter(FoldSplitter):
    """Divide rows into folds, each of which is used for validation once.

    Parameters
    ----------
    n_folds : int
        At least 2.
    group_by : str or list of str, optional
        Rows with equal values in these columns stay in one fold.
    stratify_by : str or list of str, optional
        Folds keep the proportions of values in these columns, as far as groups allow.
    shuffle : bool
        Whether to shuffle rows (or groups) first.
    seed : int
        At least 0; used with ``shuffle``.

    Notes
    -----
    The folds are those of scikit-learn's ``KFold``, ``GroupKFold``, ``StratifiedKFold`` or
    ``StratifiedGroupKFold`` with ``random_state=seed``. More than 2,000 groups with strata, for
    which scikit-learn needs seconds to minutes, are divided into equal parts as `RandomSplitter`
    does; the seed then decides without `shuffle`, too.

    Examples
    --------
    >>> folds = KFoldSplitter(n_folds=5, seed=0).folds(10, columns={})
    >>> [len(val) for train, val in folds]
    [2, 2, 2, 2, 2]
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
        """Columns to group and to stratify by."""
        return key_list(self.group_by, self.stratify_by)

    def folds(self, n: int, *, columns: Mapping[str, Array]) -> list[tuple[IntArray, IntArray]]:
        """Return the sides of each fold; SplitError if rows, or groups, are too few."""
        groups = factorise(key_list(self.group_by), columns) if self.group_by else None
        count, unit = (
            (n, "rows") if groups is None else (groups.count, f"groups by {self.group_by!r}")
        )
        if count < self.n_folds:
            raise SplitError(
                f"{self.n_folds} folds need as many {unit}, got {count}: at most {count} folds"
            )
        strata = None
        if self.stratify_by:
            strata = stratify(key_list(self.stratify_by), columns, self.bins)
        parts: IntArray | None = None
        is_rare = strata is not None and strata.sizes.max() < self.n_folds
        if strata is not None and groups is None and is_rare:  # scikit-learn refuses these
            # rows are assigned to folds in turn, stratum by stratum
            rows = np.arange(n)
            if self.shuffle:
                rows = Generator(Philox(self.seed)).permutation(rows)
            parts = np.empty(n, dtype=np.int64)
            parts[rows[np.argsort(strata.codes[rows], kind="stable")]] = np.arange(n) % self.n_folds
        elif strata is not None and groups is not None and (is_rare or groups.count > MANY_GROUPS):
            parts = self._by_group(groups, strata)
        else:
            name = f"{'Stratified' * (strata is not None)}{'Group' * (groups is not None)}KFold"
            splitter = getattr(require("sklearn.model_selection"), name)(
                self.n_folds, shuffle=self.shuffle, random_state=self.seed if self.shuffle else None
            )
            codes = (None if factor is None else factor.codes for factor in (strata, groups))
            folds = run_sklearn(splitter, n, *codes)
            if not all(len(val) for _, val in folds):
                assert strata is not None
                assert groups is not None
                parts = self._by_group(groups, strata)
        if parts is not None:
            sides = range(self.n_folds)
            folds = [(np.flatnonzero(parts != i), np.flatnonzero(parts == i)) for i in sides]
        if strata is not None:
            _warn_about_rare(strata, folds, self.stratify_by)
        return folds

    def _by_group(self, groups: Factor, strata: Factor) -> IntArray:
        """Return the fold of each row, of equal size but for groups that are larger than that."""
        n_folds, left = self.n_folds, int(groups.sizes.sum())
        shares = np.full(n_folds, 1 / n_folds)
        for fold, size in enumerate(np.sort(groups.sizes)[:-n_folds:-1].tolist()):
            if size * (n_folds - fold) <= left:
                break
            left -= size
            shares[fold], shares[fold + 1 :] = size, left / (n_folds - fold - 1)
        rng = Generator(Philox(self.seed))
        return deal(cross(groups, strata), shares / shares.sum(), rng)[groups.codes]


class LeaveOneGroupOutSplitter(FoldSplitter):
    """Validate on each group in turn, in the sorted order of their keys.

    Parameters
    ----------
    group_by : str or list of str
        Rows with equal values in these columns are one group.

    Examples
    --------
    >>> import numpy as np
    >>> splitter = LeaveOneGroupOutSplitter("cell")
    >>> folds = splitter.folds(4, columns={"cell": np.array(["a", "a", "b", "c"])})
    >>> [val.tolist() for _, val in folds]
    [[0, 1], [2], [3]]
    """

    def __init__(self, group_by: str | list[str]) -> None:
        if not key_list(group_by):
            raise SplitError("group_by must name at least one column, got None")
        self.group_by = group_by

    @property
    def needs(self) -> list[str]:
        """Columns to group by."""
        return key_list(self.group_by)

    def folds(self, n: int, *, columns: Mapping[str, Array]) -> list[tuple[IntArray, IntArray]]:
        """Return the other rows and the own rows of each group; SplitError for one group."""
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
        with warnings.catch_warnings():  # replaced by a StrataWarning
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            folds: Iterable[tuple[Any, Any]] = list(splitter.split(np.arange(n), strata, groups))
    except (ValueError, TypeError) as error:
        hints = [
            f"pass {name}=, which it requires; "
            for name, codes, word in (
                ("stratify_by", strata, "Strat"),
                ("group_by", groups, "Group"),
            )
            if codes is None and word in type(splitter).__name__
        ]
        raise SplitError(
            f"{n} rows cannot be split by {splitter!r}: {''.join(hints)}{error}"
        ) from error
    return [(np.sort(train), np.sort(val)) for train, val in folds]


def _warn_about_rare(strata: Factor, folds: list[tuple[IntArray, IntArray]], by: Columns) -> None:
    """Warn about strata missing from the validation rows of a fold."""
    counts = [np.bincount(strata.codes[val], minlength=strata.count) for _, val in folds]
    names = [f"fold_{fold}_val" for fold in range(len(folds))]
    warn_about_missing(strata, np.stack(counts, axis=1), names, by)
