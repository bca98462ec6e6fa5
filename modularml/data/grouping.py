"""Rows of a long table to samples: one for each group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.errors import DataError
from modularml.predicates.ordering import by_meaning
from modularml.splitters.factors import factorise

__all__ = ["MASK", "Grouping"]

MASK = "mask"
"""Key of the column that is true where a padded sample holds data."""


@dataclass(frozen=True)
class Grouping:
    """Rows of a long table by group, all groups brought to one length.

    Parameters
    ----------
    arrays : mapping of str to ndarray, shape (n, ...)
        Columns of the long table.
    names : list of str
        Columns that make the groups.
    rows : ndarray of int64, shape (n_groups, length)
        Where a group is shorter, its first row fills it up.
    mask : ndarray of bool, shape (n_groups, length)
        False where a group is filled up.
    pad : object
        What a group is filled up with; by column, where it is a mapping.
    """

    arrays: Mapping[str, Array]
    names: list[str]
    rows: IntArray
    mask: Array
    pad: Any = None

    @classmethod
    def of(
        cls, arrays: Mapping[str, Array], names: list[str], order: list[str], pad: Any
    ) -> Grouping:
        """Sort rows by group, and within a group by the columns of `order`.

        Raises
        ------
        DataError
            If groups differ in length and there is no `pad`, or the order of text is in doubt.
        """
        factor = factorise(names, arrays)
        counts = factor.sizes
        small = factor.codes.astype(np.min_scalar_type(factor.count), copy=False)  # sorts faster
        if order:
            keys = [by_meaning(name, arrays[name], DataError) for name in reversed(order)]
            named = zip(keys, reversed(order), strict=True)
            rows = np.lexsort([*(_sortable(values, name) for values, name in named), small])
        else:
            rows = np.argsort(small, kind="stable")
        places = np.arange(counts.max(initial=1))
        mask = places < counts[:, None]
        if mask.all():
            return cls(arrays, names, rows.reshape(mask.shape), mask, pad)
        starts = (np.cumsum(counts) - counts)[:, None]
        found = cls(arrays, names, rows[starts + np.where(mask, places, 0)], mask, pad)
        if pad is None:
            other = int((counts != counts[0]).argmax())
            raise DataError(
                f"groups differ in length: {found.group(0)} has {counts[0]} rows, "
                f"{found.group(other)} has {counts[other]}. Cut them to one length, or fill them "
                "up and get a mask with pad=0.0, say"
            )
        return found

    def rows_of(self, name: str) -> Array:
        """Return the values of each group: ndarray, shape (n_groups, length, *shape)."""
        values = self.arrays[name][self.rows]
        if not self.mask.all():
            values[~self.mask] = self._filling(name, values.dtype)
        return values

    def is_constant(self, name: str) -> bool:
        """Tell whether a column holds one value within each group."""
        return self.arrays[name].ndim == 1 and not self._varies(name).any()

    def constant(self, name: str) -> Array:
        """Return the one value of each group: ndarray, shape (n_groups,)."""
        varies = self._varies(name)
        if varies.any():
            raise DataError(
                f"column {name!r} changes within the group {self.group(varies.argmax())}; make it "
                "a feature that is an array, or group by it too"
            )
        return self.arrays[name][self.rows[:, 0]]

    def _varies(self, name: str) -> Array:
        codes = _rank(self.arrays[name], name)[self.rows]
        return np.asarray((codes != codes[:, :1]).any(axis=1))

    def group(self, number: Any) -> str:
        """Write a group's keys for people."""
        row = self.rows[number, 0]
        keys = ((name, self.arrays[name][row : row + 1].tolist()[0]) for name in self.names)
        return ", ".join(f"{name}={value!r}" for name, value in keys)

    def _filling(self, name: str, dtype: np.dtype[Any]) -> Any:
        value = self.pad.get(name) if isinstance(self.pad, Mapping) else self.pad
        kinds = {"b": "b", "i": "biu", "u": "biu", "f": "biuf", "O": "US"}.get(dtype.kind, "")
        given = np.asarray(value)
        fits = given.ndim == 0 and given.dtype.kind in kinds
        if not fits or (dtype.kind in "iu" and given.astype(dtype) != given):
            shown = "text" if dtype.kind == "O" else dtype
            raise DataError(
                f"pad={value!r} does not fit column {name!r}, which holds {shown}; give one value "
                "for each column, such as pad={'v': 0.0, 'mode': ''}, or convert the column"
            )
        return value


def _sortable(values: Array, name: str) -> Array:
    return values if values.ndim == 1 and values.dtype.kind != "O" else _rank(values, name)


def _rank(values: Array, name: str) -> IntArray:
    """Return the place of each value in sorted order, equal ones alike; -1 for missing ones."""
    if values.ndim > 1:
        raise DataError(
            f"column {name!r} holds arrays; rows are grouped and sorted by single values"
        )
    codes: IntArray = require("pandas").factorize(values, sort=True)[0]
    return codes
