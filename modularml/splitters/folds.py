"""Splits into folds, made by scikit-learn's own splitters."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from modularml._arguments import at_least
from modularml._optional import require
from modularml._typing import Array, Columns, IntArray
from modularml.errors import SplitError
from modularml.splitters.base import BaseSplitter, key_list
from modularml.splitters.factors import factorise

__all__ = [
    "FoldSplitter",
    "KFoldSplitter",
    "LeaveOneGroupOutSplitter",
    "ScikitSplitter",
    "TimeSeriesSplitter",
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
        strata, groups = (
            None if keys is None else factorise(key_list(keys), columns).codes
            for keys in (self.stratify_by, self.group_by)
        )
        return _run(self.splitter, n, strata=strata, groups=groups)


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
    ) -> None:
        at_least(2, SplitError, n_folds=n_folds)
        at_least(0, SplitError, seed=seed)
        key_list(group_by, stratify_by)
        self.n_folds = n_folds
        self.group_by = group_by
        self.stratify_by = stratify_by
        self.shuffle = shuffle
        self.seed = seed

    @property
    def needs(self) -> list[str]:
        """The columns to group and to stratify by."""
        return key_list(self.group_by, self.stratify_by)

    def folds(self, n: int, *, columns: Mapping[str, Array]) -> list[tuple[IntArray, IntArray]]:
        """Return the sides of each fold; SplitError if rows, or groups, are too few."""
        name = f"{'Stratified' * bool(self.stratify_by)}{'Group' * bool(self.group_by)}KFold"
        groups = factorise(key_list(self.group_by), columns) if self.group_by else None
        have, what = (
            (n, "rows") if groups is None else (groups.count, f"groups by {self.group_by!r}")
        )
        if have < self.n_folds:
            raise SplitError(f"{self.n_folds} folds need as many {what}, got {have}")
        splitter = getattr(require("sklearn.model_selection"), name)(
            self.n_folds, shuffle=self.shuffle, random_state=self.seed if self.shuffle else None
        )
        return ScikitSplitter(splitter, self.group_by, self.stratify_by).folds(n, columns=columns)


class TimeSeriesSplitter(FoldSplitter):
    """Validate on each stretch of time after training on what came before it.

    Parameters
    ----------
    n_folds : int
        At least 2.
    order_by : str, optional
        Column that gives the order, such as a time. The order of rows, if None.
    max_train_size : int, optional
        Rows that a fold trains on at most, the latest; all earlier ones, if None.
    test_size : int, optional
        Rows in each stretch; ``n // (n_folds + 1)``, if None.
    gap : int
        Rows left out between the two sides.

    Notes
    -----
    The folds are those of scikit-learn's ``TimeSeriesSplit`` on the sorted rows. Rows of equal
    time keep their order; they may fall on both sides of an edge.
    """

    def __init__(
        self,
        n_folds: int = 5,
        *,
        order_by: str | None = None,
        max_train_size: int | None = None,
        test_size: int | None = None,
        gap: int = 0,
    ) -> None:
        at_least(2, SplitError, n_folds=n_folds)
        at_least(0, SplitError, gap=gap)
        at_least(1, SplitError, max_train_size=max_train_size, test_size=test_size)
        self.n_folds = n_folds
        self.order_by = order_by
        self.max_train_size = max_train_size
        self.test_size = test_size
        self.gap = gap

    @property
    def needs(self) -> list[str]:
        """The column that gives the order."""
        return key_list(self.order_by)

    def folds(self, n: int, *, columns: Mapping[str, Array]) -> list[tuple[IntArray, IntArray]]:
        """Return the sides of each fold; SplitError if rows are too few, or a time is missing."""
        splitter = require("sklearn.model_selection").TimeSeriesSplit(
            self.n_folds, max_train_size=self.max_train_size, test_size=self.test_size, gap=self.gap
        )
        folds = _run(splitter, n)
        if self.order_by is None:
            return folds
        order = np.argsort(factorise([self.order_by], columns).codes, kind="stable")
        return [(np.sort(order[train]), np.sort(order[val])) for train, val in folds]


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
        return _run(require("sklearn.model_selection").LeaveOneGroupOut(), n, groups=groups.codes)


def _run(
    splitter: Any, n: int, strata: IntArray | None = None, groups: IntArray | None = None
) -> list[tuple[IntArray, IntArray]]:
    """Run a splitter of scikit-learn on row numbers and return ascending positions."""
    try:
        with warnings.catch_warnings():  # of strata too small to be in every fold
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            found: Iterable[tuple[Any, Any]] = list(splitter.split(np.arange(n), strata, groups))
    except ValueError as error:
        raise SplitError(f"{n} rows cannot be cut by {splitter!r}: {error}") from error
    return [(np.sort(train), np.sort(val)) for train, val in found]
