"""Random splits by ratio, with optional groups and strata."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray

from modularml._arguments import at_least
from modularml._typing import Array, Columns, IntArray
from modularml._warning import warn
from modularml.errors import SplitError
from modularml.splitters.base import BaseSplitter, SplitRatioWarning, check_bins, key_list
from modularml.splitters.dealing import Factor, cross, deal, factorise, stratify, warn_about_missing

NOISE = 1e-9
"""Tolerance within which a share counts as a whole number: 0.1 * 30 is 3."""


def largest_remainder(n: int, ratios: NDArray[np.float64]) -> IntArray:
    """Divide a number of rows into parts by ratio, so that the parts sum to it.

    Parameters
    ----------
    n : int
        Number of rows to distribute.
    ratios : ndarray, shape (n_parts,)
        Positive, summing to 1.

    Returns
    -------
    ndarray of int64, shape (n_parts,)
        Each part gets its share rounded down; the remaining rows go, one each, to the parts with
        the largest remainders, the first ones for ties.

    Examples
    --------
    >>> import numpy as np
    >>> largest_remainder(508, np.array([0.6, 0.2, 0.2])).tolist()
    [305, 102, 101]
    """
    sizes, fractions = _floors(n * ratios)
    order = np.argsort(-np.round(fractions, 9), kind="stable")
    sizes[order[: n - sizes.sum()]] += 1
    return sizes


def apportion(
    counts: IntArray, ratios: NDArray[np.float64], *, in_every_part: bool = False
) -> IntArray:
    """Divide each stratum into parts by ratio, so that strata and parts both add up.

    Parameters
    ----------
    counts : ndarray of int64, shape (n_strata,)
        Rows of each stratum, in the order in which remaining rows are distributed.
    ratios : ndarray, shape (n_parts,)
        Positive, summing to 1.
    in_every_part : bool
        Give each part at least one row of each stratum that has enough rows, at the cost of exact
        shares.

    Returns
    -------
    ndarray of int64, shape (n_strata, n_parts)
        Each cell is its share rounded down or up; rows sum to ``counts``, columns to the largest
        remainders of the total. With ``in_every_part``, small strata may violate both rules except
        for the row sums.
    """
    cells, fractions = _floors(counts[:, None] * ratios)
    if in_every_part:
        enough = counts >= cells.shape[1]
        cells[enough] = np.maximum(cells[enough], 1)
        while (over := cells.sum(axis=1) > counts).any():
            cells[over, cells[over].argmax(axis=1)] -= 1
    floors = cells.copy()
    need = largest_remainder(int(counts.sum()), ratios) - cells.sum(axis=0)
    # give the remaining rows of each stratum to the parts that need most rows
    left = counts - cells.sum(axis=1)
    needed = need.tolist()
    parts = range(len(needed))
    for stratum in np.flatnonzero(left).tolist():
        remainders = fractions[stratum].tolist()
        ranked = sorted(parts, key=lambda p: (remainders[p] <= NOISE, -needed[p]))
        for part in ranked[: left[stratum]]:
            cells[stratum, part] += 1
            needed[part] -= 1
    need[:] = needed
    # move rows between parts, within a stratum, until every part has its total
    for _ in range(int(np.abs(need).sum())):
        over, under = int(need.argmin()), int(need.argmax())
        movable = (cells[:, over] > floors[:, over]) & (cells[:, under] == floors[:, under])
        if need[over] >= 0 or not movable.any():
            break
        best = (movable * (1 + fractions[:, under])).argmax()
        cells[best, [over, under]] += [-1, 1]
        need[[over, under]] += [1, -1]
    return cells


def _floors(shares: NDArray[np.float64]) -> tuple[IntArray, NDArray[np.float64]]:
    floors = np.floor(shares + NOISE)
    return floors.astype(np.int64), np.maximum(shares - floors, 0.0)


MAX_DEVIATION = 0.05
"""Deviation from a ratio, as a share of all rows, that causes a warning."""


class RandomSplitter(BaseSplitter):
    """Split rows randomly by ratio.

    Parameters
    ----------
    ratios : mapping of str to float
        Share of each split, each above 0, summing to 1.
    group_by : str or list of str, optional
        Rows with equal values in these columns stay together. Parts come as close to their ratio
        as the groups allow (within 0.5 % of all rows), and none is empty.
    stratify_by : str or list of str, optional
        Each combination of values in these columns is divided by the ratios. With ``group_by``,
        whole groups are assigned so that strata are as balanced as possible. A `StrataWarning`
        names strata that are missing from a part.
    strict_stratification : bool
        Whether every stratum must be in every part; otherwise an error names the stratum.
    seed : int
        At least 0. It alone determines which row, or group, is in which part.
    bins : int, optional
        Number of bins, with about equally many rows, for numeric columns in ``stratify_by`` that
        have more distinct values. By default 10 for columns with fractions, while integers are
        treated as classes.

    Raises
    ------
    SplitError
        If a ratio or the seed is invalid; in `assign` and `split`, if a part would be empty or a
        stratum violates ``strict_stratification``.

    Notes
    -----
    Sizes are rounded by largest remainder: 508 rows at .6/.2/.2 give 305/102/101. Rows are
    shuffled with Philox, a counter-based generator.

    Examples
    --------
    >>> parts = RandomSplitter({"train": 0.6, "val": 0.2, "test": 0.2}).split(508)
    >>> [len(rows) for rows in parts.values()]
    [305, 102, 101]
    """

    def __init__(
        self,
        ratios: Mapping[str, float],
        *,
        group_by: Columns = None,
        stratify_by: Columns = None,
        strict_stratification: bool = False,
        seed: int = 13,
        bins: int | None = None,
    ) -> None:
        if not isinstance(ratios, Mapping) or not ratios:
            raise SplitError(
                "ratios must map names to shares, such as {'train': 0.8, 'test': 0.2}, "
                f"got {ratios!r}"
            )
        for name, ratio in ratios.items():
            if not isinstance(name, str) or not name:
                raise SplitError(f"the name of a split must be a non-empty string, got {name!r}")
            if not isinstance(ratio, int | float | np.number) or not 0 < ratio <= 1 + 1e-6:
                raise SplitError(
                    f"the ratio of {name!r} must be above 0 and at most 1, got {ratio!r}"
                )
        total = math.fsum(ratios.values())
        if abs(total - 1) > 1e-6:
            raise SplitError(
                f"ratios must sum to 1, got {dict(ratios)!r}, which sum to {total:.6g}"
            ).with_code("MML-204")
        at_least(0, SplitError, seed=seed)
        check_bins(bins, stratify_by, SplitError)
        key_list(group_by, stratify_by)
        self.ratios = dict(ratios)
        self.group_by = group_by
        self.stratify_by = stratify_by
        self.strict_stratification = strict_stratification
        self.seed = seed
        self.bins = bins

    @property
    def needs(self) -> list[str]:
        """Columns to group and to stratify by."""
        return key_list(self.group_by, self.stratify_by)

    def assign(self, n: int, *, columns: Mapping[str, Array]) -> dict[str, IntArray]:
        """Return the rows of each part.

        Raises
        ------
        SplitError
            If a part would be empty, a key is missing in a row, or a stratum violates
            ``strict_stratification``.
        """
        shares = np.array(list(self.ratios.values()), dtype=np.float64)
        shares, rng = shares / shares.sum(), Generator(Philox(self.seed))
        strata = None
        if self.stratify_by:
            strata = stratify(key_list(self.stratify_by), columns, self.bins)
        if self.group_by:
            groups = factorise(key_list(self.group_by), columns)
            labels = self._by_group(groups, strata, shares, rng)
        else:
            labels = self._by_row(n, strata, shares, rng)
        return {name: np.flatnonzero(labels == part) for part, name in enumerate(self.ratios)}

    def _by_row(
        self, n: int, strata: Factor | None, shares: NDArray[np.float64], rng: Generator
    ) -> Array:
        if strata is None:
            cells = largest_remainder(n, shares)[None]
        else:
            turn = rng.permutation(strata.count)  # order in which remaining rows are distributed
            cells = np.empty((strata.count, len(shares)), dtype=np.int64)
            cells[turn] = apportion(
                strata.sizes[turn], shares, in_every_part=self.strict_stratification
            )
        sizes = cells.sum(axis=0)
        for (name, ratio), size in zip(self.ratios.items(), sizes.tolist(), strict=True):
            if size == 0:
                raise SplitError(
                    f"split {name!r} would be empty: ratio {ratio} of {n} rows is less "
                    "than one row; use a larger ratio or more rows"
                ).with_code("MML-205")
        if strata is None:
            order = rng.permutation(n)
        else:
            if self.strict_stratification:
                self._require_strata(strata, cells, "rows")
                self._warn_of_ratios(sizes, "small strata are in every part")
            warn_about_missing(strata, cells, list(self.ratios), self.stratify_by)
            order = rng.permutation(n)
            codes = strata.codes.astype(
                np.min_scalar_type(strata.count), copy=False
            )  # sorts faster
            order = order[np.argsort(codes[order], kind="stable")]
        # parts (of each stratum) are filled in this order
        parts = np.arange(len(shares), dtype=np.min_scalar_type(len(shares)))
        labels = np.empty(n, dtype=parts.dtype)
        labels[order] = np.repeat(np.tile(parts, len(cells)), cells.ravel())
        return labels

    def _by_group(
        self, groups: Factor, strata: Factor | None, shares: NDArray[np.float64], rng: Generator
    ) -> Array:
        if groups.count < len(shares):
            raise SplitError(
                f"split {min(self.ratios, key=self.ratios.__getitem__)!r} would be empty: there "
                f"are {groups.count} groups by {self.group_by!r} for {len(shares)} splits"
            ).with_code("MML-205")
        counts = groups.sizes[:, None] if strata is None else cross(groups, strata)
        labels = deal(counts, shares, rng)
        cells = np.stack(
            [counts[labels == part].sum(axis=0) for part in range(len(shares))], axis=1
        )
        if strata is not None and self.strict_stratification:
            self._require_strata(strata, cells, "whole groups")
        if strata is not None:
            warn_about_missing(strata, cells, list(self.ratios), self.stratify_by)
        biggest = np.array([groups.sizes[labels == part].max() for part in range(len(shares))])
        if (biggest > (shares + MAX_DEVIATION) * groups.sizes.sum()).any():
            self._warn_of_ratios(cells.sum(axis=0), f"the largest group has {biggest.max()}")
        return labels.astype(np.min_scalar_type(len(shares)))[groups.codes]

    def _require_strata(self, strata: Factor, cells: IntArray, what: str) -> None:
        empty = np.argwhere(cells == 0)
        if len(empty):
            stratum, part = empty[0].tolist()
            raise SplitError(
                f"stratum {strata.name(stratum)} ({strata.sizes[stratum]} of {len(strata.codes)} "
                f"rows) is too small to be in every split: {list(self.ratios)[part]!r} would get "
                f"none of its {what}. Merge it with another stratum, drop its rows, or pass "
                "strict_stratification=False"
            )

    def _warn_of_ratios(self, sizes: IntArray, why: str) -> None:
        n = sizes.sum()
        far = [
            f"{name!r} has {size} of {n} rows ({size / n:.1%}, not {ratio:.1%})"
            for (name, ratio), size in zip(self.ratios.items(), sizes.tolist(), strict=True)
            if abs(size / n - ratio) > MAX_DEVIATION
        ]
        if far:
            warn(
                f"splits are far from their ratios: {', '.join(far)}, because {why}",
                SplitRatioWarning,
            )
