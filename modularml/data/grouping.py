"""Grouping the rows of a long table into samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.errors import DataError
from modularml.predicates.compare import by_meaning
from modularml.splitters.factors import factorise

__all__ = ["MASK", "Grouping", "fill_value", "ordered_rows"]

MASK = "mask"
"""Key of the column that is true for data and false for padding."""


@dataclass(frozen=True)
class Grouping:
    """Rows of a long table by group, with all groups padded to one length.

    Parameters
    ----------
    arrays : mapping of str to ndarray, shape (n, ...)
        Columns of the long table.
    names : list of str
        Columns that define the groups.
    rows : ndarray of int64, shape (n_groups, length)
        Shorter groups are padded with the number of their first row.
    mask : ndarray of bool, shape (n_groups, length)
        False for padding.
    pad : object
        Fill value for padding; a mapping gives one for each column.
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
            If groups differ in length without `pad`, or text has no clear order.
        """
        rows, counts = ordered_rows(arrays, names, order)
        places = np.arange(counts.max(initial=1))
        mask = places < counts[:, None]
        if mask.all():
            return cls(arrays, names, rows.reshape(mask.shape), mask, pad)
        starts = (np.cumsum(counts) - counts)[:, None]
        grouping = cls(arrays, names, rows[starts + np.where(mask, places, 0)], mask, pad)
        if pad is None:
            other = int((counts != counts[0]).argmax())
            raise DataError(
                f"groups differ in length: {grouping.group(0)} has {counts[0]} rows, "
                f"{grouping.group(other)} has {counts[other]}. Truncate them to one length, or "
                "pass pad= (such as pad=0.0) to pad them and add a mask"
            )
        return grouping

    def rows_of(self, name: str) -> Array:
        """Return the values of each group, shape (n_groups, length, *shape)."""
        values = self.arrays[name][self.rows]
        if not self.mask.all():
            values[~self.mask] = fill_value(self.pad, name, values.dtype)
        return values

    def is_constant(self, name: str) -> bool:
        """Check whether a column holds one value within each group."""
        return self.arrays[name].ndim == 1 and not self._varies(name).any()

    def constant(self, name: str) -> Array:
        """Return the single value of each group, shape (n_groups,)."""
        varies = self._varies(name)
        if varies.any():
            raise DataError(
                f"column {name!r} changes within the group {self.group(varies.argmax())}; make it "
                "an array feature, or group by it too"
            )
        return self.arrays[name][self.rows[:, 0]]

    def _varies(self, name: str) -> Array:
        codes = _rank(self.arrays[name], name)[self.rows]
        return np.asarray((codes != codes[:, :1]).any(axis=1))

    def group(self, number: Any) -> str:
        """Return the keys of a group as text for messages."""
        row = self.rows[number, 0]
        keys = ((name, self.arrays[name][row : row + 1].tolist()[0]) for name in self.names)
        return ", ".join(f"{name}={value!r}" for name, value in keys)


def ordered_rows(
    arrays: Mapping[str, Array], names: list[str], order: list[str]
) -> tuple[IntArray, IntArray]:
    """Return rows sorted by group, and by `order` within a group, and the sizes of the groups.

    Raises
    ------
    DataError
        If text has no clear order.
    """
    factor = factorise(names, arrays)
    small = factor.codes.astype(np.min_scalar_type(factor.count), copy=False)  # sorts faster
    if not order:
        return np.argsort(small, kind="stable"), factor.sizes
    keys = [by_meaning(name, arrays[name], DataError) for name in reversed(order)]
    sort_keys = [
        k if k.ndim == 1 and k.dtype.kind != "O" else _rank(k, name)
        for k, name in zip(keys, reversed(order), strict=True)
    ]
    return np.lexsort([*sort_keys, small]), factor.sizes


def fill_value(pad: Any, name: str, dtype: np.dtype[Any]) -> Any:
    """Return the fill value of a column for padding.

    Raises
    ------
    DataError
        If it is not a value of the column's type.
    """
    if isinstance(pad, Mapping) and name not in pad:
        raise DataError(f"pad has no value for column {name!r}, only for {list(pad)}; add one")
    value = pad[name] if isinstance(pad, Mapping) else pad
    kinds = {"b": "b", "i": "biu", "u": "biu", "f": "biuf", "O": "US"}.get(dtype.kind, "")
    fill = np.asarray(value)
    fits = fill.ndim == 0 and fill.dtype.kind in kinds
    if not fits or (dtype.kind in "iu" and fill.astype(dtype) != fill):
        shown = "text" if dtype.kind == "O" else dtype
        raise DataError(
            f"pad={value!r} does not fit column {name!r}, which holds {shown}; pass one value "
            "for each column, such as pad={'v': 0.0, 'mode': ''}, or convert the column"
        )
    return value


def _rank(values: Array, name: str) -> IntArray:
    """Return the rank of each value; equal values share one, missing values are -1."""
    if values.ndim > 1:
        raise DataError(
            f"column {name!r} holds arrays; rows are grouped and sorted by single values"
        )
    codes: IntArray = require("pandas").factorize(values, sort=True)[0]
    return codes
