"""Splits defined by conditions on columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray
from modularml.errors import SplitError, expect
from modularml.predicates import matches
from modularml.splitters.base import BaseSplitter, warn_about_overlap


class ConditionSplitter(BaseSplitter):
    """Assign to each split the rows that meet its conditions.

    Parameters
    ----------
    conditions : dict of str to dict, optional
        ``{split: {column: condition}}``. A condition is a value (equality), a collection
        (membership), a predicate of `modularml.predicates`, or a callable that takes the column's
        array and returns one boolean per row. Conditions on several columns must all hold.
    **splits : dict
        The same, with the name of the split as keyword.

    Notes
    -----
    A row that meets no conditions belongs to no split. Splits may overlap, which causes a
    `SplitOverlapWarning`. A Python lambda cannot be stored: use ``Lambda("lambda x: ...")`` of
    `modularml.predicates` instead.

    Examples
    --------
    >>> import numpy as np
    >>> splitter = ConditionSplitter(train={"cell": ["A", "B"]}, test={"cell": "C"})
    >>> parts = splitter.split(4, columns={"cell": np.array(["A", "C", "B", "D"])})
    >>> parts["train"].tolist(), parts["test"].tolist()
    ([0, 2], [1])
    """

    def __init__(
        self, conditions: Mapping[str, Mapping[str, Any]] | None = None, **splits: Mapping[str, Any]
    ) -> None:
        expect("conditions", conditions or {}, Mapping, "{split: {column: condition}}")
        self.conditions = {**(conditions or {}), **splits}
        if not self.conditions:
            raise SplitError("conditions must name at least one split, got none")
        for name, by_column in self.conditions.items():
            if not isinstance(name, str) or not isinstance(by_column, Mapping) or not by_column:
                raise SplitError(
                    "conditions must be {split: {column: condition}} with at least one column per "
                    f"split, got {by_column!r} for {name!r}"
                )

    @property
    def needs(self) -> list[str]:
        """Every column that has a condition."""
        return list(dict.fromkeys(key for part in self.conditions.values() for key in part))

    def assign(self, n: int, *, columns: Mapping[str, Array]) -> dict[str, IntArray]:
        """Return the rows of each split; warn about rows in several.

        Raises
        ------
        SplitError
            If no row meets the conditions of a split.
        DataError
            If a condition does not fit its column.
        """
        parts = {}
        for name, by_column in self.conditions.items():
            mask = np.ones(n, dtype=bool)
            for key, condition in by_column.items():
                mask &= matches(condition, columns[key], column=key)
            if not mask.any():
                raise SplitError(
                    f"split {name!r} would be empty: none of {n} rows meets {by_column!r}"
                ).with_code("MML-205")
            parts[name] = np.flatnonzero(mask)
        warn_about_overlap(parts)
        return parts
