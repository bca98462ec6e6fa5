"""Folds in time: training on earlier rows, validation on later ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from modularml._arguments import at_least
from modularml._optional import require
from modularml._typing import Array, Columns, IntArray
from modularml.errors import SplitError
from modularml.predicates.value_order import by_meaning
from modularml.splitters.base import key_list
from modularml.splitters.dealing import factorise
from modularml.splitters.folds import FoldSplitter


class TimeSeriesSplitter(FoldSplitter):
    """Validate on consecutive stretches of time, training on earlier rows.

    Parameters
    ----------
    n_folds : int
        At least 2.
    order_by : str, optional
        Column that defines the order, such as a time; None means the order of rows. Text is read
        as numbers or ISO 8601 dates; other text with digits, such as ``13/01/2024``, is refused.
    max_train_size : int, optional
        Maximum number of training rows of a fold, the latest ones; None means all earlier rows.
    test_size : int, optional
        Rows in each stretch; None means ``n // (n_folds + 1)``.
    gap : int or str
        Rows omitted between the two sides: their number, or a duration such as ``"7D"`` if
        `order_by` is a column of times.
    group_by : str or list of str, optional
        Columns, such as a machine: in every fold, the first rows of each group train and later
        ones validate. Sizes and gaps then apply within each group.
    keep_ties : bool
        Whether rows of equal time stay on one side of each boundary. This moves boundaries to the
        nearest change of the time and makes gaps wider rather than narrower.

    Notes
    -----
    Without equal times, the folds are those of scikit-learn's ``TimeSeriesSplit`` on the sorted
    rows of each group.

    Examples
    --------
    >>> folds = TimeSeriesSplitter(n_folds=3, gap=1).folds(8, columns={})
    >>> [(train.tolist(), val.tolist()) for train, val in folds]
    [([0], [2, 3]), ([0, 1, 2], [4, 5]), ([0, 1, 2, 3, 4], [6, 7])]
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
                raise SplitError(
                    f"gap={gap!r} is a duration, so order_by must name a column of times"
                )
            _duration(gap)
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
        """Columns that define the order and the groups."""
        return key_list(self.order_by, self.group_by)

    def folds(self, n: int, *, columns: Mapping[str, Array]) -> list[tuple[IntArray, IntArray]]:
        """Return the sides of each fold.

        Raises
        ------
        SplitError
            If a group has too few rows, or distinct times, for the folds, a time is missing, or
            the order of text is ambiguous.
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
        """Return the latest training rows of each group."""
        times = self._times(columns)
        held_back = []
        for name, series in self._series(rows, times, columns):
            ties = None if times is None or not self.keep_ties else times[series]
            edges = _edges(ties, len(series))
            if not len(edges):
                raise SplitError(f"{name} has no rows that could be held back for early stopping")
            held_back.append(series[_nearest(edges, round(len(series) * (1 - share))) :])
        return np.sort(np.concatenate(held_back))

    def _times(self, columns: Mapping[str, Array]) -> Array | None:
        if self.order_by is None:
            return None
        values = by_meaning(self.order_by, columns[self.order_by], SplitError)
        codes = factorise([self.order_by], {self.order_by: values}).codes
        if not isinstance(self.gap, str):
            return codes
        if values.dtype.kind != "M":
            raise SplitError(
                f"gap={self.gap!r} is a duration, but column {self.order_by!r} holds "
                f"{values.dtype}; pass gap as a number of rows, or convert the column to times"
            )
        return values

    def _series(
        self, rows: IntArray, times: Array | None, columns: Mapping[str, Array]
    ) -> list[tuple[str, IntArray]]:
        """Return the name of each group and its rows in the order of time."""
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
        """Return start and end of the training and validation parts of each fold."""
        ties = times if self.keep_ties else None
        edges = _edges(ties, n)
        most = len(edges)
        if most < self.n_folds:
            unit = "rows" if ties is None else "distinct times"
            raise SplitError(
                f"{self.n_folds} folds need {self.n_folds + 1} {unit}, {name} has {most + 1}: at "
                f"most {most} folds"
            )
        size = self.test_size or n // (self.n_folds + 1)
        gap = 0 if isinstance(self.gap, str) else self.gap
        if n - gap - size * self.n_folds <= 0:
            raise SplitError(
                f"{self.n_folds} stretches of {size} rows with gap={gap} leave none of the "
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
        """Return start and end of the training part for a validation part at `start`."""
        if isinstance(self.gap, str):
            assert times is not None
            end = int(np.searchsorted(times, times[start] - _duration(self.gap), side="right"))
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
    """Return the possible boundaries between rows; where sorted times change."""
    if times is None:
        return np.arange(1, n)
    return np.flatnonzero(times[1:] != times[:-1]) + 1


def _nearest(edges: IntArray, wanted: int) -> int:
    return int(edges[np.abs(edges - wanted).argmin()])


def _duration(gap: str) -> Any:
    try:
        duration = require("pandas").Timedelta(gap)
    except ValueError as error:
        raise SplitError(
            f"gap must be a number of rows or a duration such as '7D', got {gap!r}"
        ) from error
    if not duration >= require("pandas").Timedelta(0):
        raise SplitError(f"gap must not be negative, got {gap!r}")
    return duration.to_timedelta64()
