"""Arrow types of columns and their numpy equivalents."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._typing import Array, Shape

__all__ = [
    "in_shape",
    "is_category",
    "is_plain",
    "leaf_type",
    "numpy_dtype",
    "sample_shape",
    "to_numpy",
    "value_bytes",
    "wrap",
]


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
