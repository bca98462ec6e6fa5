"""Columns: anything that holds one value a sample, to Arrow and back to numpy.

A column whose samples are arrays of one shape is a (nested) fixed-size list, so numpy and
torch read it without a copy. Nulls and ragged columns are refused where they come in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modularml._typing import Array, Shape
from modularml.errors import DataError

__all__ = ["leaf_type", "numpy_dtype", "sample_shape", "to_arrow", "to_numpy"]


def to_arrow(values: Any, key: str) -> pa.Array:
    """Turn column data into one Arrow array without nulls.

    Parameters
    ----------
    values : array-like, shape (n_samples, ...)
        A list of scalars or of arrays of one shape, a numpy array, a pandas or polars series,
        a torch tensor or an Arrow array. It is copied where it could be written to later.
    key : str
        Name of the column, for messages.

    Raises
    ------
    DataError
        If samples differ in shape, a value is missing, or no Arrow type fits. The message names
        the column and the first row that is wrong. NaN in float columns is data and is kept.
    """
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks != 1 else values.chunk(0)
    if isinstance(values, pa.Array):
        return _check_nulls(_fixed(values, key), key)
    if isinstance(values, np.ndarray):
        return _check_nulls(_from_ndarray(values, key), key)
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind in "biufmM":  # a pandas series, say
        return _from_ndarray(np.asarray(values), key)
    if hasattr(values, "to_arrow"):  # a polars series
        return to_arrow(values.to_arrow(), key)
    if hasattr(values, "detach"):  # a torch tensor
        return _from_ndarray(np.asarray(values.detach().cpu()), key)
    if dtype is not None and not isinstance(dtype, np.dtype):  # a pandas extension type
        return to_arrow(_arrow(values, key), key)
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise DataError(
            f"column {key!r} must hold one value a sample, got a {type(values).__name__}"
        )
    return _check_nulls(_from_objects(list(values), key), key)


def to_numpy(array: pa.Array) -> Array:
    """Read an Arrow column as a read-only numpy array, without a copy where it holds numbers.

    Returns
    -------
    ndarray, shape (n_samples, ...)
        Text becomes an object array and booleans are unpacked; both are copies.
    """
    n, shape = len(array), sample_shape(array.type)
    for _ in shape:
        array = array.flatten()
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    plain = pa.types.is_primitive(array.type) and not pa.types.is_boolean(array.type)
    out = array.to_numpy(zero_copy_only=plain and len(array) > 0)
    out = out.reshape(n, *shape)
    out.flags.writeable = False
    return out


def sample_shape(arrow_type: pa.DataType) -> Shape:
    """Return the shape of one sample: ``()`` for scalars."""
    shape = []
    while pa.types.is_fixed_size_list(arrow_type):
        shape.append(arrow_type.list_size)
        arrow_type = arrow_type.value_type
    return tuple(shape)


def leaf_type(arrow_type: pa.DataType) -> pa.DataType:
    """Return the type of one element of one sample."""
    while pa.types.is_fixed_size_list(arrow_type):
        arrow_type = arrow_type.value_type
    return arrow_type


def numpy_dtype(arrow_type: pa.DataType) -> np.dtype[Any]:
    """Return the dtype that `to_numpy` gives; object for text."""
    leaf = leaf_type(arrow_type)
    if pa.types.is_date32(leaf):
        return np.dtype("datetime64[D]")
    if pa.types.is_timestamp(leaf):
        return np.dtype(f"datetime64[{leaf.unit}]")
    if pa.types.is_duration(leaf):
        return np.dtype(f"timedelta64[{leaf.unit}]")
    return np.dtype(leaf.to_pandas_dtype())


def from_flat(flat: pa.Array, shape: Shape) -> pa.Array:
    """Wrap a flat Arrow array in fixed-size lists: one sample for each ``prod(shape)`` values."""
    for size in reversed(shape):
        if size == 0:
            raise DataError("arrays of length 0 cannot be samples; leave the column out")
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat


def _from_ndarray(values: Array, key: str) -> pa.Array:
    if values.ndim == 0:
        raise DataError(
            f"column {key!r} must hold one value a sample, got a single {values.item()!r}"
        )
    if values.dtype.kind == "c":
        raise DataError(
            f"column {key!r} is complex; give its real and imaginary parts as two columns"
        )
    if values.dtype.kind in "OUSTV":
        if values.ndim > 1 and values.dtype.kind == "O":
            return _from_objects(list(values), key)
        return _from_objects(values.tolist(), key)
    if values.dtype.byteorder == ">":
        values = values.astype(values.dtype.newbyteorder("="))
    flat = np.array(values, order="C", copy=True).reshape(-1)
    if values.ndim > 1 and values.size == 0:
        return pa.array([], type=_list_type(pa.from_numpy_dtype(values.dtype), values.shape[1:]))
    return from_flat(_arrow(flat, key), values.shape[1:])


def _list_type(leaf: pa.DataType, shape: Shape) -> pa.DataType:
    for size in reversed(shape):
        leaf = pa.list_(leaf, size)
    return leaf


def _from_objects(values: list[Any], key: str) -> pa.Array:
    first = next((v for v in values if v is not None), None)
    if first is None or isinstance(first, str | bytes) or np.ndim(first) == 0:
        return _fixed(_arrow(values, key), key)
    try:
        stacked = np.stack(values)
    except (ValueError, TypeError):
        raise _ragged(values, key) from None
    if stacked.dtype.kind == "O":
        raise _ragged(values, key)
    return from_flat(_arrow(stacked.reshape(-1), key), stacked.shape[1:])


def _ragged(values: Sequence[Any], key: str) -> DataError:
    shapes = [_shape_of(v) for v in values]
    row = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), 0)
    if values[row] is None:
        return _null_error(key, row, 1)
    return DataError(
        f"column {key!r} is ragged: row 0 has shape {shapes[0]}, row {row} has shape {shapes[row]}. "
        "Pad or cut the rows to one length, or build the set from a long table with group_by="
    )


def _shape_of(value: Any) -> Shape | None:
    try:
        return np.shape(value)
    except ValueError:
        return None


def _arrow(values: Any, key: str) -> pa.Array:
    try:
        array = pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        row = _first_odd(values)
        raise DataError(
            f"column {key!r} mixes types or holds what Arrow cannot: row {row} is "
            f"{_peek(values, row)} after {_peek(values, 0)}. Convert the column to one type"
        ) from error
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _first_odd(values: Any) -> int:
    kinds = [type(v) for v in values]
    return next((i for i, kind in enumerate(kinds) if kind is not kinds[0]), 0)


def _peek(values: Any, row: int) -> str:
    value = list(values)[row]
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _fixed(array: pa.Array, key: str) -> pa.Array:
    """Bring lists to fixed size, and every other type to one that has a numpy twin."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        shape = tuple(getattr(kind, "shape", ()))
        return from_flat(array.storage.flatten(), shape) if shape else _fixed(array.storage, key)
    if pa.types.is_dictionary(kind):
        return _fixed(array.dictionary_decode(), key)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _fix_lists(array, key)
    if pa.types.is_fixed_size_list(kind):
        _check_nulls(array, key)
        return from_flat(_fixed(array.flatten(), key), (kind.list_size,))
    if pa.types.is_large_string(kind) or kind == pa.string_view():
        return array.cast(pa.string())
    if pa.types.is_decimal(kind):
        return array.cast(pa.float64())
    if pa.types.is_null(kind) and len(array):
        raise _null_error(key, 0, len(array))
    if pa.types.is_nested(kind):
        raise DataError(f"column {key!r} has the Arrow type {kind}; give one column for each field")
    return array


def _fix_lists(array: pa.Array, key: str) -> pa.Array:
    _check_nulls(array, key)
    lengths = pc.list_value_length(array).to_numpy()
    odd = np.flatnonzero(lengths != lengths[:1])
    if len(odd):
        raise DataError(
            f"column {key!r} is ragged: row 0 has length {lengths[0]}, row {odd[0]} has length "
            f"{lengths[odd[0]]}. Pad or cut the rows to one length, or use group_by="
        )
    flat = _fixed(array.flatten(), key)
    return from_flat(_check_nulls(flat, key), (int(lengths[0]),)) if len(array) else array


def _check_nulls(array: pa.Array, key: str) -> pa.Array:
    inner = array
    width = 1
    while True:
        if inner.null_count:
            row = int(np.flatnonzero(inner.is_null().to_numpy(zero_copy_only=False))[0])
            raise _null_error(key, row // width, inner.null_count)
        if not pa.types.is_fixed_size_list(inner.type):
            return array
        width *= inner.type.list_size
        inner = inner.flatten()


def _null_error(key: str, row: int, count: int) -> DataError:
    return DataError(
        f"column {key!r} has {count} missing value(s), the first in row {row}. Drop those rows "
        "(dropna), or fill them (fillna; NaN is accepted in float columns)"
    )
