"""Arrow types of columns, and the conversion of arrays to types that numpy has."""

from __future__ import annotations

from decimal import Decimal
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modularml._typing import Array, Shape
from modularml.errors import DataError

_ARROW = (pa.Array, pa.ChunkedArray, pa.Field)


def to_numpy(array: pa.Array) -> Array:
    """Read an Arrow column as a read-only numpy array; numbers are not copied.

    Returns
    -------
    ndarray, shape (n_samples, ...)
        Text becomes an object array and booleans are unpacked; both are copies.
    """
    n, shape = len(array), sample_shape(array.type)
    for _ in shape:
        array = array.flatten()
    out: Array = array.to_numpy(zero_copy_only=is_plain(array.type) and len(array) > 0)
    out.flags.writeable = False
    return out.reshape(n, *shape)


def in_shape(values: Array, shape: Shape) -> Array:
    """Reshape rows to the sample shape of a column, ``(n,)`` to ``(n, 1)`` or back."""
    both_scalar = values.shape[1:] in ((), (1,)) and shape in ((), (1,))
    return values.reshape(len(values), *shape) if both_scalar else values


def sample_shape(arrow_type: pa.DataType) -> Shape:
    """Return the shape of one sample: ``()`` for scalars."""
    shape = []
    while pa.types.is_fixed_size_list(arrow_type):
        shape.append(arrow_type.list_size)
        arrow_type = arrow_type.value_type
    return tuple(shape)


def value_bytes(array: pa.Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the bytes in memory of a column of numbers or times."""
    for _ in sample_shape(array.type):
        array = array.flatten()
    width = array.type.bit_width // 8
    content = np.frombuffer(array.buffers()[1] or b"", dtype=np.uint8)
    return content[array.offset * width : (array.offset + len(array)) * width]


def leaf_type(arrow_type: pa.DataType) -> pa.DataType:
    """Return the type of one element of one sample."""
    while pa.types.is_fixed_size_list(arrow_type):
        arrow_type = arrow_type.value_type
    return arrow_type


@cache
def numpy_dtype(arrow_type: pa.DataType) -> np.dtype[Any]:
    """Return the dtype that `to_numpy` returns; object for text."""
    dtype: np.dtype[Any] = to_numpy(pa.array([], type=leaf_type(arrow_type))).dtype
    return dtype


def is_plain(kind: pa.DataType) -> bool:
    """Check whether numpy represents the type with the same bytes."""
    types = pa.types
    is_time = types.is_timestamp(kind) or types.is_duration(kind)
    return bool(types.is_integer(kind) or types.is_floating(kind) or is_time)


def is_category(values: Any) -> bool:
    """Check whether a column is a categorical of pandas, polars or Arrow."""
    kind = str(getattr(values, "type" if isinstance(values, _ARROW) else "dtype", ""))
    return kind == "category" or kind.startswith(("Categorical", "Enum", "dictionary<"))


def wrap(flat: pa.Array, shape: Shape) -> pa.Array:
    """Wrap a flat Arrow array in fixed-size lists of ``prod(shape)`` values per sample."""
    for size in reversed(shape):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat


def fixed(array: pa.Array, key: str, per_row: int = 1) -> pa.Array:
    """Convert lists to fixed size, and other types to ones with a numpy equivalent.

    In a nested array, `per_row` values belong to one sample.
    """
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _from_extension(array, key)
    if pa.types.is_dictionary(kind):
        return fixed(array.dictionary_decode(), key, per_row)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _fix_lists(array, key, per_row)
    if pa.types.is_fixed_size_list(kind):
        check_nulls(array, key, per_row)
        return wrap(fixed(array.flatten(), key, per_row * kind.list_size), (kind.list_size,))
    if pa.types.is_null(kind):
        return check_nulls(array, key, per_row).cast(pa.float64())
    if pa.types.is_run_end_encoded(kind):
        return fixed(pc.run_end_decode(array), key, per_row)
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        lists = pa.array(array.to_pylist(), pa.large_list(kind.value_type))  # casts are unsafe
        return fixed(lists, key, per_row)
    if pa.types.is_nested(kind) or pa.types.is_interval(kind):
        raise DataError(f"column {key!r} has the Arrow type {kind}; pass one column for each field")
    return _plain(array, key)


def _plain(array: pa.Array, key: str) -> pa.Array:
    """Return values that are not nested in a type with a numpy equivalent."""
    kind = array.type
    if pa.types.is_large_string(kind) or kind == pa.string_view():
        return array.cast(pa.string())
    if pa.types.is_large_binary(kind) or kind == pa.binary_view():
        return array.cast(pa.binary())
    if pa.types.is_decimal(kind):
        return _from_decimals(array, key)
    if kind == pa.time64("ns"):
        try:
            return array.cast(pa.time64("us"))
        except pa.ArrowInvalid as error:
            raise DataError(
                f"column {key!r} holds times of day with nanoseconds, and Python's have "
                "microseconds; convert them to numbers"
            ) from error
    return array


def _from_decimals(array: pa.Array, key: str) -> pa.Array:
    """Return whole decimals as integers, so that ids keep their digits, and others as floats."""
    precision, scale = array.type.precision, array.type.scale
    try:  # text is read to the nearest float, a cast is not
        kind, source = (
            (pa.int64(), array) if scale <= 0 else (pa.float64(), array.cast(pa.string()))
        )
        found = source.cast(kind)
    except pa.ArrowInvalid:
        found = None
    if found is not None and scale > 0 and precision > 15:  # 15 digits can always be had back
        large = pc.greater_equal(pc.abs(found), 10.0 ** (15 - scale))
        pairs = zip(array.filter(large).to_pylist(), found.filter(large).to_pylist(), strict=True)
        if not all(n is None or Decimal(repr(n)) == decimal for decimal, n in pairs):
            found = None
    if found is None:
        raise DataError(
            f"column {key!r} holds {array.type} values that do not fit in 64 bits; cast it to "
            "text, or to floats if digits may be lost"
        )
    return found


def _from_extension(array: pa.Array, key: str) -> pa.Array:
    if isinstance(array.type, pa.FixedShapeTensorType):
        check_nulls(array.storage, key)
        if array.type.permutation is not None:
            values = np.ascontiguousarray(array.to_numpy_ndarray())
            return wrap(pa.array(values.reshape(-1)), values.shape[1:])
        return wrap(array.storage.flatten(), tuple(array.type.shape))
    name = str(array.type.extension_name)
    if name == "arrow.uuid":
        return pa.array([None if v is None else str(v) for v in array.to_pylist()], pa.string())
    if name.startswith("pandas."):
        raise DataError(
            f"column {key!r} holds {name.removeprefix('pandas.')}s, which are not single values; "
            "convert it to numbers, text or timestamps"
        )
    return fixed(array.storage, key)


def _fix_lists(array: pa.Array, key: str, per_row: int) -> pa.Array:
    check_nulls(array, key, per_row)
    lengths = pc.list_value_length(array).to_numpy()
    if not len(lengths):
        return fixed(array.flatten(), key)  # the length of samples is unknown
    different = np.flatnonzero(lengths != lengths[0])
    if len(different):
        first, other = (int(lengths[0]),), (int(lengths[different[0]]),)
        raise ragged_error(key, first, int(different[0]) // per_row, other)
    size = int(lengths[0])
    if not size:
        raise DataError(f"column {key!r} holds empty lists; omit the column")
    return wrap(fixed(array.flatten(), key, per_row * size), (size,))


def check_nulls(array: pa.Array, key: str, per_row: int = 1) -> pa.Array:
    """Replace nulls among floats with NaN; refuse any other null."""
    if not array.null_count:
        if not pa.types.is_fixed_size_list(array.type):
            return array
        inner, size = array.flatten(), array.type.list_size
        checked = check_nulls(inner, key, per_row * size)
        return array if checked is inner else wrap(checked, (size,))
    if pa.types.is_floating(array.type):
        return pc.fill_null(array, float("nan"))
    row = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
    raise null_error(key, row // per_row, array.null_count, array.type)


def null_error(key: str, row: int, count: int, kind: pa.DataType | None = None) -> DataError:
    """Return the error for a column of which values are missing."""
    castable = kind is not None and (pa.types.is_integer(kind) or pa.types.is_boolean(kind))
    to_float = "or convert the column to float, where a missing value is NaN"
    remedy = to_float if castable else "because only floats can be missing (as NaN)"
    return DataError(
        f"column {key!r} has {count} missing value(s), the first in row {row}. Drop those rows "
        f"(dropna), fill them (fillna), {remedy}"
    ).with_code("MML-206")


def ragged_error(key: str, first: Shape | None, row: int, other: Shape | None) -> DataError:
    """Return the error for a column whose rows differ in shape."""
    where = "ragged itself" if other is None else f"of shape {other}"
    return DataError(
        f"column {key!r} is ragged: row 0 has shape {first}, row {row} is {where}. "
        "Pad or truncate the rows to one length, or use a long table with group_by="
    ).with_code("MML-207")
