"""Conversion of columns to output formats."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.data.arrow_columns import to_arrow
from modularml.errors import DataError, ShapeError, UnknownNameError

BLOCK = 8192
"""Rows of all columns stacked at a time."""

EXACT = 2**53
"""Largest value up to which float64 holds every integer."""


class DataFormat(enum.Enum):
    """Format in which columns are returned; common spellings are accepted.

    Examples
    --------
    >>> import numpy as np
    >>> from modularml import FeatureSet
    >>> fs = FeatureSet.from_dict("rows", {"x": [1.0], "y": [2.0]}, "x", "y", register=False)
    >>> fs.get_features("dict_numpy")
    {'x': array([1.])}
    """

    PANDAS = "pandas"
    NUMPY = "numpy"
    DICT = "dict"
    DICT_NUMPY = "dict_numpy"
    DICT_LIST = "dict_list"
    DICT_TORCH = "dict_torch"
    DICT_TENSORFLOW = "dict_tensorflow"
    LIST = "list"
    TORCH = "torch"
    TENSORFLOW = "tensorflow"
    ARROW = "arrow"
    POLARS = "polars"

    @classmethod
    def from_value(cls, value: str | DataFormat) -> DataFormat:
        """Read a format from any of its spellings.

        Raises
        ------
        UnknownNameError
            If there is no such format.
        """
        if isinstance(value, cls):
            return value
        name = _SPELLINGS.get(str(value).lower(), str(value).lower())
        try:
            return cls(name)
        except ValueError:
            known = [*(fmt.value for fmt in cls), *_SPELLINGS]
            raise UnknownNameError("format", value, known) from None


_SPELLINGS = {
    "pd": "pandas",
    "df": "pandas",
    "np": "numpy",
    "tf": "tensorflow",
    "dict_tf": "dict_tensorflow",
}


def convert(
    columns: Mapping[str, Array],
    fmt: str | DataFormat,
    rows: IntArray | None = None,
    zones: Mapping[str, str] | None = None,
) -> Any:
    """Convert columns to a format.

    Parameters
    ----------
    columns : mapping of str to ndarray, shape (n, *shape)
        By the names used in the result.
    fmt : str or DataFormat
        The ``dict_*`` formats keep one entry per column. The array formats stack the columns on
        axis 1: scalar columns give ``(n, n_columns)``, columns of shape ``(k,)`` give
        ``(n, n_columns, k)``.
    rows : ndarray of int64, optional
        The rows to return, in this order; None for all.
    zones : mapping of str to str, optional
        Time zones of time columns, used in frames and tables; arrays hold times in UTC.

    Raises
    ------
    ShapeError
        If columns of different shapes would be stacked.
    """
    fmt = DataFormat.from_value(fmt)
    if fmt in ARRAY_FORMATS:
        return convert_array(stack(columns, rows), fmt)
    if rows is not None:
        columns = {name: values[rows] for name, values in columns.items()}
    if zones and fmt in (DataFormat.PANDAS, DataFormat.ARROW, DataFormat.POLARS):
        table = _arrow(columns)
        for i, name in enumerate(columns):
            if name in zones:
                kind = pa.timestamp(table[name].type.unit, zones[name])
                table = table.set_column(i, name, table[name].cast(kind))
        if fmt is DataFormat.ARROW:
            return table
        if fmt is DataFormat.POLARS:
            return require("polars").from_arrow(table)
        frame = _pandas(columns)
        return frame.assign(**{name: table[name].to_pandas() for name in zones if name in frame})
    return _FORMATTERS[fmt](columns)


def convert_array(values: Any, fmt: str | DataFormat) -> Any:
    """Convert one array to an array format (numpy, torch, tensorflow, list)."""
    fmt = DataFormat.from_value(fmt)
    if fmt in (DataFormat.TORCH, DataFormat.DICT_TORCH):
        return _torch(values)
    if fmt in (DataFormat.TENSORFLOW, DataFormat.DICT_TENSORFLOW):
        return _tensorflow(values)
    values = np.asarray(values)
    if fmt in (DataFormat.LIST, DataFormat.DICT_LIST):
        return values.tolist()
    if fmt in (DataFormat.NUMPY, DataFormat.DICT, DataFormat.DICT_NUMPY):
        return values
    return convert({f"column_{i}": values[:, i] for i in range(values.shape[1])}, fmt)


def stack(columns: Mapping[str, Array], rows: IntArray | None = None) -> Array:
    """Stack columns on axis 1.

    Parameters
    ----------
    columns : mapping of str to ndarray, shape (n, *shape)
        Not changed.
    rows : ndarray of int64, optional
        The rows to stack, in this order; None for all.

    Returns
    -------
    ndarray, shape (n, n_columns, *shape)
        A view without a copy for all rows of a single column.

    Raises
    ------
    ShapeError
        If the shapes of the columns differ; the message names each.
    """
    arrays = list(columns.values())
    if not arrays:
        raise ShapeError("no columns to stack; select at least one")
    if len({a.shape[1:] for a in arrays}) > 1:
        shapes = ", ".join(f"{name}: {a.shape[1:]}" for name, a in columns.items())
        raise ShapeError(
            f"columns of different shapes cannot be stacked into one array ({shapes}); select "
            "columns of one shape or use a dict format"
        ).with_code("MML-209")
    if len(arrays) == 1:
        return (arrays[0] if rows is None else arrays[0][rows])[:, None]
    n = len(arrays[0]) if rows is None else len(rows)
    out = np.empty((n, len(arrays), *arrays[0].shape[1:]), dtype=common_dtype(columns))
    for at in range(0, n, BLOCK):  # small enough for a block of all columns to stay in the cache
        part = slice(at, at + BLOCK) if rows is None else rows[at : at + BLOCK]
        for i, array in enumerate(arrays):
            out[at : at + BLOCK, i] = array[part]
    return out


def stack_columns(columns: Mapping[str, Array], rows: IntArray | None = None) -> Array:
    """Stack columns as `stack` does, but contiguous in memory by column.

    Operations of scalers on a column, and their results, are then contiguous.

    Returns
    -------
    ndarray, shape (n, n_columns, *shape)
    """
    arrays = list(columns.values())
    if len(arrays) == 1 or arrays[0].ndim > 1 or any(a.ndim > 1 for a in arrays):
        return stack(columns, rows)
    n = len(arrays[0]) if rows is None else len(rows)
    out = np.empty((len(arrays), n), dtype=common_dtype(columns))
    for row, array in zip(out, arrays, strict=True):
        row[:] = array if rows is None else array[rows]
    return out.T


def common_dtype(columns: Mapping[str, Array]) -> np.dtype[Any]:
    """Return the dtype that holds the values of all columns.

    Raises
    ------
    DataError
        If there is none, as for times and numbers, or it cannot hold an integer.
    """
    try:
        common = np.result_type(*columns.values())
    except TypeError:
        dtypes = ", ".join(f"{name}: {a.dtype}" for name, a in columns.items())
        raise DataError(
            f"columns of different types cannot be stacked into one array ({dtypes}); select "
            "columns of one type or use a dict format"
        ) from None
    for name, values in columns.items() if common.kind == "f" else ():
        large = values.dtype.kind in "iu" and values.dtype.itemsize == 8 and values.size
        if large and (int(values.max()) > EXACT or int(values.min()) < -EXACT):
            raise DataError(
                f"column {name!r} holds integers that {common} cannot represent, so it cannot be "
                f"stacked with {[n for n in columns if n != name]}; select it alone or use a dict "
                "format"
            )
    return common


def _pandas(columns: Mapping[str, Array]) -> Any:
    data = {name: list(a) if a.ndim > 1 else a for name, a in columns.items()}
    return require("pandas").DataFrame(data)


def _arrow(columns: Mapping[str, Array]) -> pa.Table:
    return pa.table({name: to_arrow(values, name) for name, values in columns.items()})


def _torch(values: Array) -> Any:
    return require("modularml.backends.torch").adapter.from_numpy(values)


def _tensorflow(values: Array) -> Any:
    return require("tensorflow").convert_to_tensor(np.asarray(values))


ARRAY_FORMATS = (DataFormat.NUMPY, DataFormat.LIST, DataFormat.TORCH, DataFormat.TENSORFLOW)
"""Formats without column names."""

_FORMATTERS: dict[DataFormat, Callable[[Mapping[str, Array]], Any]] = {
    DataFormat.PANDAS: _pandas,
    DataFormat.POLARS: lambda columns: require("polars").from_arrow(_arrow(columns)),
    DataFormat.ARROW: _arrow,
    DataFormat.DICT: dict,
    DataFormat.DICT_NUMPY: dict,
    DataFormat.DICT_LIST: lambda columns: {k: v.tolist() for k, v in columns.items()},
    DataFormat.DICT_TORCH: lambda columns: {k: _torch(v) for k, v in columns.items()},
    DataFormat.DICT_TENSORFLOW: lambda columns: {k: _tensorflow(v) for k, v in columns.items()},
}
