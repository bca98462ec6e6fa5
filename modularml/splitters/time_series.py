"""Folds in time: what came before trains, what came after validates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from modularml._arguments import at_least
from modularml._optional import require
from modularml._typing import Array, Columns, IntArray
from modularml.errors import SplitError
from modularml.predicates.ordering import by_meaning
from modularml.splitters.base import key_list
from modularml.splitters.factors import factorise
from modularml.splitters.folds import FoldSplitter

__all__ = ["TimeSeriesSplitter"]


class TimeSeriesSplitter(FoldSplitter):
    """Validate on each stretch of time after training on what came before it.

    Parameters
    ----------
    n_folds : int
        At least 2.
    order_by : str, optional
        Column that gives the order, such as a time. The order of rows, if None. Text is read as
        numbers or ISO 8601 dates; other text with digits, such as ``13/01/2024``, is refused.
    max_train_size : int, optional
        Rows that a fold trains on at most, the latest; all earlier ones, if None.
    test_size : int, optional
        Rows in each stretch; ``n // (n_folds + 1)``, if None.
    gap : int or str
        What is left out between the two sides: rows, or a stretch of time such as ``"7D"``, where
        `order_by` names a column of times.
    group_by : str or list of str, optional
        Columns, such as a machine: in every fold, the first rows of each group train and later
        ones validate. Sizes and gaps count within each group then.
    keep_ties : bool
        Whether rows of equal time stay on one side of each edge, which moves edges to where the
        time changes next to them, and makes gaps wider rather than narrower.

    Notes
    -----
    Where no times are equal, the folds are those of scikit-learn's ``TimeSeriesSplit`` on the
    sorted rows, of each group by itself.
    """

    def __init__(
        self,
        n_folds: int = 5,
        *,
        order_by: str | None = None,
        max_train_size: int | None = None,
        test_size: int | None = None,
        gap: int | str = 0,
        group_by: Columns = None,
        keep_ties: bool = True,
    ) -> None:
        at_least(2, SplitError, n_folds=n_folds)
        at_least(1, SplitError, max_train_size=max_train_size, test_size=test_size)
        key_list(order_by, group_by)
        if isinstance(gap, str):
            if order_by is None:
                raise SplitError(f"gap={gap!r} is a stretch of time, so order_by must name a time")
            _stretch(gap)
        else:
            at_least(0, SplitError, gap=gap)
        self.n_folds = n_folds
        self.order_by = order_by
        self.max_train_size = max_train_size
        self.test_size = test_size
        self.gap = gap
        self.group_by = group_by
        self.keep_ties = keep_ties

    @property
    def needs(self) -> list[str]:
        """The columns that give the order and the groups."""
        return key_list(self.order_by, self.group_by)

    def folds(self, n: int, *, columns: Mapping[str, Array]) -> list[tuple[IntArray, IntArray]]:
        """Return the sides of each fold.

        Raises
        ------
        SplitError
            If rows, or distinct times, of a group are too few for so many folds, a time is
            missing, or the order of text is in doubt.
        """
        times = self._times(columns)
        sides: list[tuple[list[IntArray], list[IntArray]]] = [([], []) for _ in range(self.n_folds)]
        for name, rows in self._series(np.arange(n), times, columns):
            values = None if times is None else times[rows]
            for (train, val), (low, end, start, stop) in zip(
                sides, self._cuts(len(rows), values, name), strict=True
            ):
                train.append(rows[low:end])
                val.append(rows[start:stop])
        return [(np.sort(np.concatenate(a)), np.sort(np.concatenate(b))) for a, b in sides]

    def hold_back(
        self, rows: IntArray, share: float, *, columns: Mapping[str, Array], seed: int
    ) -> IntArray:
        """Return the latest of the rows that a fold trains on, of each group."""
        times = self._times(columns)
        kept = []
        for name, own in self._series(rows, times, columns):
            edges = _edges(None if times is None or not self.keep_ties else times[own], len(own))
            if not len(edges):
                raise SplitError(f"{name} has no rows that could be held back to stop by")
            kept.append(own[_nearest(edges, round(len(own) * (1 - share))) :])
        return np.sort(np.concatenate(kept))

    def _times(self, columns: Mapping[str, Array]) -> Array | None:
        if self.order_by is None:
            return None
        values = by_meaning(self.order_by, columns[self.order_by], SplitError)
        codes = factorise([self.order_by], {self.order_by: values}).codes
        if not isinstance(self.gap, str):
            return codes
        if values.dtype.kind != "M":
            raise SplitError(
                f"gap={self.gap!r} is a stretch of time, but column {self.order_by!r} holds "
                f"{values.dtype}; give gap in rows, or make the column times"
            )
        return values

    def _series(
        self, rows: IntArray, times: Array | None, columns: Mapping[str, Array]
    ) -> list[tuple[str, IntArray]]:
        """Return the name of each group, and those of some rows that it has, in time's order."""
        if times is not None:
            rows = rows[np.argsort(times[rows], kind="stable")]
        if not self.group_by:
            return [("the data", rows)]
        groups = factorise(key_list(self.group_by), columns)
        order = np.argsort(groups.codes[rows], kind="stable")
        codes, starts = np.unique(groups.codes[rows][order], return_index=True)
        parts = np.split(rows[order], starts[1:])
        return [(groups.name(int(c)), part) for c, part in zip(codes, parts, strict=True)]

    def _cuts(self, n: int, times: Array | None, name: str) -> list[tuple[int, int, int, int]]:
        """Return where each fold's training part begins and ends, and its validation part."""
        ties = times if self.keep_ties else None
        edges = _edges(ties, n)
        most = len(edges)
        if most < self.n_folds:
            what = "rows" if ties is None else "distinct times"
            raise SplitError(
                f"{self.n_folds} folds need {self.n_folds + 1} {what}, {name} has {most + 1}: at "
                f"most {most} folds"
            )
        size = self.test_size or n // (self.n_folds + 1)
        rows_out = 0 if isinstance(self.gap, str) else self.gap
        if n - rows_out - size * self.n_folds <= 0:
            raise SplitError(
                f"{self.n_folds} stretches of {size} rows with gap={rows_out} leave none of the "
                f"{n} rows of {name} to train on; lower n_folds, test_size or gap"
            )
        places, least = [], 0
        for fold in range(self.n_folds):
            wanted = n - size * (self.n_folds - fold)
            free = edges[least : most - (self.n_folds - fold) + 1]
            place = _nearest(free, wanted)
            least = int(np.searchsorted(edges, place)) + 1
            places.append(place)
        bounds = np.concatenate([[0], edges, [n]])
        stops = [*places[1:], n]
        return [
            (*self._training(start, times, bounds, fold, name), start, stop)
            for fold, (start, stop) in enumerate(zip(places, stops, strict=True))
        ]

    def _training(
        self, start: int, times: Array | None, bounds: IntArray, fold: int, name: str
    ) -> tuple[int, int]:
        """Return where the part that trains begins and ends, for a validation from `start` on."""
        if isinstance(self.gap, str):
            assert times is not None
            end = int(np.searchsorted(times, times[start] - _stretch(self.gap), side="right"))
        else:
            end = int(bounds[bounds <= max(0, start - self.gap)][-1])
        low = 0 if self.max_train_size is None else max(0, end - self.max_train_size)
        low = int(bounds[bounds >= low][0])
        if low >= end:
            raise SplitError(
                f"fold {fold} has no rows of {name} to train on: gap={self.gap!r} and "
                f"max_train_size={self.max_train_size} leave none of the {start} rows before"
            )
        return low, end


def _edges(times: Array | None, n: int) -> IntArray:
    """Return the places between rows where a cut may be; sorted times say where they change."""
    if times is None:
        return np.arange(1, n)
    return np.flatnonzero(times[1:] != times[:-1]) + 1


def _nearest(edges: IntArray, wanted: int) -> int:
    return int(edges[np.abs(edges - wanted).argmin()])


def _stretch(gap: str) -> Any:
    try:
        found = require("pandas").Timedelta(gap)
    except ValueError as error:
        raise SplitError(
            f"gap must be rows or a stretch of time such as '7D', got {gap!r}"
        ) from error
    if not found >= require("pandas").Timedelta(0):
        raise SplitError(f"gap must not be negative, got {gap!r}")
    return found.to_timedelta64()
