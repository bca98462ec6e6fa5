"""Columns of tables passed to a graph, converted when they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._optional import require
from modularml._typing import Array
from modularml.data.arrow_types import to_numpy
from modularml.data.columns import column_values, to_arrow
from modularml.data.frames import as_columns
from modularml.data.sources import check_lengths
from modularml.errors import DataError

__all__ = ["RawColumns"]


class RawColumns(Mapping[str, Array]):
    """Columns of a table by key, converted to arrays when they are read.

    Parameters
    ----------
    columns : mapping of str to array-like
        A bare array has the key ``""``.
    rows : ndarray of int, optional
        Selected rows; all by default.
    """

    def __init__(self, columns: Mapping[str, Any], rows: Array | None = None) -> None:
        self._columns, self._rows = columns, rows
        self._converted: dict[str, Array] = {}
        n = getattr(columns, "n_rows", None)  # known for frames, without reading them
        lengths = {} if n is not None else {key: _length(columns[key], key) for key in columns}
        check_lengths(lengths)
        n = next(iter(lengths.values()), 0) if n is None else n
        self.n_rows = n if rows is None else len(rows)

    @classmethod
    def of(cls, data: Any) -> RawColumns:
        """Return the columns of a frame, dict, list of records or array."""
        if isinstance(data, np.ndarray):
            return cls({"": data})
        allowed = "data must be a FeatureSet, a view, a frame, a dict or an array"
        return cls(as_columns(data, allowed))

    def taken(self, rows: Array) -> RawColumns:
        """Return selected rows, in that order."""
        return RawColumns(self._columns, rows if self._rows is None else self._rows[rows])

    def with_missing(self, key: str) -> Array:
        """Return a column of which values may be missing: as NaN in floats, else as None."""
        try:
            return self[key]
        except DataError:
            pandas = require("pandas")
            values = pandas.Series(list(self._columns[key]), dtype=object)
            missing = values.isna().to_numpy()
            if not missing.any():
                raise
            converted: Array = np.full(len(values), None, dtype=object)
            converted[~missing] = to_numpy(to_arrow(values[~missing].to_list(), key))
            return converted if self._rows is None else converted[self._rows]

    def arrow(self, key: str) -> pa.Array:
        """Return a column as an Arrow array, in which times keep their zone."""
        if key == "" or isinstance(self._columns[key], np.ndarray):
            return to_arrow(self[key], key)
        values = to_arrow(self._columns[key], key)
        return values if self._rows is None else values.take(pa.array(self._rows))

    def __getitem__(self, key: str) -> Array:
        values = self._converted.get(key)
        if values is None:
            values = self._columns[key]
            values = values if key == "" else column_values(values, key)
            values = values if self._rows is None else values[self._rows]
            self._converted[key] = values
        return values

    def __contains__(self, key: object) -> bool:
        return key in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def _length(values: Any, key: str) -> int:
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise DataError(
            f"column {key!r} must hold one value per row, got {values!r}; pass lists, also for one "
            f"row: {{{key!r}: [{values!r}], ...}}"
        )
    return len(values)
