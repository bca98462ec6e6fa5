"""Conversion of column data to Arrow arrays.

A column whose samples are arrays of one shape becomes a (nested) fixed-size list, which numpy and
torch read without a copy. A missing float becomes NaN; other missing values and ragged columns are
refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modularml._optional import loaded, require
from modularml._typing import Array, Shape
from modularml.data.arrow_types import wrap
from modularml.errors import DataError

__all__ = ["ragged_error", "to_arrow"]

_TIME_UNITS = {"Y": "D", "M": "D", "W": "D", "D": "D", "h": "s", "m": "s"}
"""Time units of numpy that Arrow lacks, and the nearest finer unit that it has."""

_FLOATS_OF_TORCH = ("torch.bfloat16", "torch.float8")
"""Float types of torch that numpy lacks; float32 holds all their values."""

_NO_COLUMN = (str, bytes, Mapping, set, frozenset)
"""Collections that do not hold one value per sample in order."""


def to_arrow(values: Any, key: str, *, copy: bool = True) -> pa.Array:
    """Convert column data to one Arrow array without nulls.

    Parameters
    ----------
    values : array-like, shape (n_samples, ...)
        A list of scalars or of arrays of one shape, a numpy array, a pandas or polars series,
        a torch tensor or an Arrow array.
    key : str
        Name of the column, for messages.
    copy : bool
        Whether numpy arrays are copied. Pass False only for arrays that are never modified later.

    Raises
    ------
    DataError
        If samples differ in shape, a non-float value is missing, or no Arrow type fits. The message
        names the column and the first wrong row. Nulls in float columns become NaN.
    """
    return _check_nulls(_fixed(_read(values, key, copy), key), key)


# -- conversion by input type --------------------------------------------------------------


def _read(values: Any, key: str, copy: bool) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
    if isinstance(values, pa.Array):
        return values
    if isinstance(values, list | tuple):
        return _from_objects(values, key)
    if hasattr(values, "detach"):  # a torch tensor
        values = _dense(values.detach().cpu(), key)
    elif hasattr(values, "to_arrow") and hasattr(values, "dtype"):  # a polars series
        return _from_polars(values, key)
    elif hasattr(values, "toarray"):  # scipy's sparse matrices
        raise _sparse_error(key, "toarray")
    elif hasattr(getattr(values, "dtype", None), "na_value"):  # a pandas extension type
        return _arrow(values, key)
    if hasattr(values, "__array__"):
        array = _borrowed(values)
        if array is not None:
            return _from_ndarray(array, key, copy=False)
        array = np.asanyarray(values)
        return _from_ndarray(array, key, copy or array is not values)
    if isinstance(values, _NO_COLUMN) or not hasattr(values, "__len__"):
        raise DataError(
            f"column {key!r} must hold one value per sample in order (a list or an array), got a "
            f"{type(values).__name__}"
        )
    return _from_objects(list(values), key)


def _dense(tensor: Any, key: str) -> Any:
    """Cast 8 and 16 bit floats of torch that numpy lacks to float32."""
    if "strided" not in str(tensor.layout):
        raise _sparse_error(key, "to_dense")
    lacks = tensor.dtype.is_floating_point and str(tensor.dtype).startswith(_FLOATS_OF_TORCH)
    return tensor.float() if lacks else tensor


def _sparse_error(key: str, method: str) -> DataError:
    return DataError(f"column {key!r} is sparse, but columns are dense; convert it with {method}()")


def _from_polars(series: Any, key: str) -> pa.Array:
    kind = str(series.dtype)
    if kind == "Object":
        raise DataError(
            f"column {key!r} holds Python objects (polars dtype Object), which have no Arrow type; "
            "convert it to numbers, text or times"
        )
    if kind.endswith("Int128"):
        name = "UInt64" if series.len() and (series.max() or 0) >= 2**63 else "Int64"
        try:
            series = series.cast(getattr(require("polars"), name))
        except Exception as error:  # a class of polars, which is not imported here
            raise DataError(
                f"column {key!r} holds {kind} values that do not fit in 64 bits; convert to text"
            ) from error
    return _read(series.to_arrow(), key, copy=True)


class _SharedSeries:
    """Memory of a pandas series; pandas does not write to it while this object exists."""

    def __init__(self, series: Any) -> None:
        self._series = series.copy(deep=False)  # pandas counts references and copies on write
        self.__array_interface__ = np.asarray(self._series).__array_interface__


def _borrowed(values: Any) -> Array | None:
    """Return a pandas series without a copy if pandas copies on write (3.0 and later)."""
    pandas = loaded("pandas")
    if pandas is None or not isinstance(values, pandas.Series) or values.dtype.kind not in "biuf":
        return None
    array = np.asarray(values)
    if int(pandas.__version__.split(".")[0]) < 3 or array.flags.writeable:
        return None
    return np.asarray(_SharedSeries(values)) if array.flags.c_contiguous and len(array) else None


def _from_ndarray(values: Array, key: str, copy: bool) -> pa.Array:
    if values.ndim == 0:
        raise DataError(
            f"column {key!r} must hold one value per sample, got a single {values.item()!r}"
        )
    if values.dtype.kind == "c":
        raise DataError(
            f"column {key!r} is complex; pass its real and imaginary parts as two columns"
        )
    if values.dtype.kind == "V":
        raise DataError(
            f"column {key!r} has the fields {values.dtype}; pass one column for each field"
        )
    if isinstance(values, np.ma.MaskedArray):
        values = _unmasked(values, key)
    if values.dtype.kind == "O" and values.ndim == 1:
        return _from_objects(values.tolist(), key)
    shape = values.shape[1:]
    if 0 in shape:
        raise DataError(
            f"column {key!r} holds arrays of shape {shape}, which are empty; omit the column"
        )
    if values.dtype.kind in "OUST":
        return wrap(_arrow(values.reshape(-1).tolist(), key, math.prod(shape)), shape)
    dtype = _arrow_dtype(values.dtype)
    if copy or not values.flags.c_contiguous:
        values = np.array(values, dtype=dtype, order="C", subok=False)
    values = values.astype(dtype, copy=False)
    if dtype == "M8[D]":
        _check_dates(values, key)
    return wrap(_arrow(values.reshape(-1), key), shape)


def _arrow_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the nearest dtype that Arrow supports."""
    if dtype.kind in "mM":
        unit = _TIME_UNITS.get(np.datetime_data(dtype)[0])
        unit = "s" if dtype.kind == "m" and unit == "D" else unit
        dtype = dtype if unit is None else np.dtype(f"{dtype.kind}8[{unit}]")
    return dtype.newbyteorder("=")


def _check_dates(values: Array, key: str) -> None:
    """Refuse dates that overflow Arrow's 32 bits; Arrow would wrap them around."""
    far = np.abs(values.view(np.int64)) >= 2**31
    if far.any():
        row = int(np.argwhere(far)[0, 0])
        raise DataError(
            f"column {key!r} holds a date that is out of range in row {row}; use timestamps in "
            "seconds, or numbers"
        )


def _unmasked(values: Any, key: str) -> Array:
    masked = np.argwhere(np.ma.getmaskarray(values))
    if len(masked) and values.dtype.kind != "f":
        raise _null_error(key, int(masked[0, 0]), len(masked))
    array: Array = values.filled(np.nan) if len(masked) else values.data
    return array


def _from_objects(values: Sequence[Any], key: str) -> pa.Array:
    first = next((v for v in values if v is not None), None)
    if isinstance(first, set | frozenset):
        raise DataError(f"column {key!r} holds sets, which have no order; convert them to lists")
    if isinstance(first, list | tuple):
        try:
            return pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            pass  # e.g. rows that hold arrays of several axes
    elif first is None or isinstance(first, _NO_COLUMN) or np.ndim(first) == 0:
        return _arrow(values, key)
    try:
        stacked = _stacked(values)
    except (ValueError, TypeError):
        raise _ragged(values, key) from None
    if stacked.dtype.kind == "O" or (stacked.dtype.kind in "US" and _mixed(values)):
        return _arrow([np.asarray(v, dtype=object).ravel().tolist() for v in values], key)
    return _from_ndarray(stacked, key, copy=False)


def _stacked(values: Sequence[Any]) -> Array:
    """Stack as ``np.stack`` does, without creating a view of each sample."""
    arrays = [np.asarray(v) for v in values]
    if len({a.shape for a in arrays}) > 1:
        raise ValueError("samples differ in shape")
    return np.concatenate(arrays).reshape(len(arrays), *arrays[0].shape)


def _mixed(values: Sequence[Any]) -> bool:
    return any(getattr(v, "dtype", np.dtype(object)).kind not in "US" for v in values)


def _arrow(values: Any, key: str, per_row: int = 1) -> pa.Array:
    """Let Arrow infer the type; `per_row` values belong to one sample."""
    try:
        array = _inferred(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if isinstance(values, list | tuple):
            raise _type_error(values, key, per_row) from error
        raise DataError(
            f"column {key!r} holds {values.dtype}, for which there is no Arrow type; convert it, "
            "for example with astype"
        ) from error
    if pa.types.is_temporal(array.type) and isinstance(values, list | tuple):
        for place, value in enumerate(values):
            if _would_change(value, array.type):
                raise _mixture_error(values, key, place, per_row)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _inferred(values: Any) -> pa.Array:
    """Let Arrow infer the type; pandas' NA and NaT in a list are missing values."""
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        if isinstance(values, list | tuple) and any(_is_pandas_missing(value) for value in values):
            return pa.array(values, from_pandas=True)
        raise


def _is_pandas_missing(value: Any) -> bool:
    return type(value).__name__ in ("NAType", "NaTType")


def _would_change(value: Any, kind: pa.DataType) -> bool:
    """Check whether Arrow would change a value: a number or another kind of time."""
    if isinstance(value, int | float | np.number) and not isinstance(value, np.timedelta64):
        return True
    if pa.types.is_date(kind) and isinstance(value, datetime):
        return value.time() != time()
    zoned = getattr(kind, "tz", None) is not None
    has_zone = getattr(value, "tzinfo", None) is not None
    naive = isinstance(value, date | np.datetime64)
    return naive and not _is_pandas_missing(value) and zoned != has_zone


def _type_error(values: Sequence[Any], key: str, per_row: int) -> DataError:
    fits, fails = 0, len(values)  # lengths of prefixes that convert and do not
    while fails - fits > 1:
        middle = (fits + fails) // 2
        try:
            pa.array(values[:middle])
            fits = middle
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            fails = middle
    if isinstance(values[fits], float) and np.isnan(values[fits]):
        return _null_error(key, fits // per_row, 1)
    return _mixture_error(values, key, fits, per_row)


def _mixture_error(values: Sequence[Any], key: str, place: int, per_row: int) -> DataError:
    if isinstance(values[place], int) and not -(2**63) <= values[place] < 2**64:
        return DataError(
            f"column {key!r}: row {place // per_row} is {_preview(values[place])}, but "
            "integers have at most 64 bits; pass the column as text, or as floats if digits may be "
            "lost"
        )
    if not place:
        return DataError(
            f"column {key!r} must hold numbers, text, booleans or times: row 0 is "
            f"{_preview(values[0])}. Convert the column to one of these"
        )
    return DataError(
        f"column {key!r} mixes types or holds values without an Arrow type: "
        f"row {place // per_row} is "
        f"{_preview(values[place])}, row 0 is {_preview(values[0])}. Convert the column to one type"
    )


def _preview(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _ragged(values: Sequence[Any], key: str) -> DataError:
    shapes = [_shape_of(v) for v in values]
    row = next((i for i, shape in enumerate(shapes) if shape is None or shape != shapes[0]), 0)
    if values[row] is None:
        return _null_error(key, row, sum(v is None for v in values))
    return ragged_error(key, shapes[0], row, shapes[row])


def _shape_of(value: Any) -> Shape | None:
    try:
        return tuple(np.shape(value))
    except ValueError:
        return None


# -- normalizing Arrow arrays ------------------------------------------------------------------


def _fixed(array: pa.Array, key: str, per_row: int = 1) -> pa.Array:
    """Convert lists to fixed size, and other types to ones with a numpy equivalent.

    In a nested array, `per_row` values belong to one sample.
    """
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _from_extension(array, key)
    if pa.types.is_dictionary(kind):
        return _fixed(array.dictionary_decode(), key, per_row)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _fix_lists(array, key, per_row)
    if pa.types.is_fixed_size_list(kind):
        _check_nulls(array, key, per_row)
        return wrap(_fixed(array.flatten(), key, per_row * kind.list_size), (kind.list_size,))
    if pa.types.is_large_string(kind) or kind == pa.string_view():
        return array.cast(pa.string())
    if pa.types.is_large_binary(kind) or kind == pa.binary_view():
        return array.cast(pa.binary())
    if pa.types.is_decimal(kind):
        return _from_decimals(array, key)
    if pa.types.is_null(kind):
        return _check_nulls(array, key, per_row).cast(pa.float64())
    if pa.types.is_run_end_encoded(kind):
        return _fixed(pc.run_end_decode(array), key, per_row)
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        lists = pa.array(array.to_pylist(), pa.large_list(kind.value_type))  # casts are unsafe
        return _fixed(lists, key, per_row)
    if pa.types.is_nested(kind) or pa.types.is_interval(kind):
        raise DataError(f"column {key!r} has the Arrow type {kind}; pass one column for each field")
    return array


def _from_decimals(array: pa.Array, key: str) -> pa.Array:
    """Cast whole decimals to integers, which keeps the digits of ids, others to floats."""
    if array.type.scale > 0:
        return array.cast(pa.float64())
    try:
        return array.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise DataError(
            f"column {key!r} holds {array.type} values that do not fit in 64 bits; cast it to "
            "text, or to floats if digits may be lost"
        ) from error


def _from_extension(array: pa.Array, key: str) -> pa.Array:
    if isinstance(array.type, pa.FixedShapeTensorType):
        _check_nulls(array.storage, key)
        if array.type.permutation is not None:
            return _from_ndarray(array.to_numpy_ndarray(), key, copy=True)
        return wrap(array.storage.flatten(), tuple(array.type.shape))
    name = str(array.type.extension_name)
    if name == "arrow.uuid":
        return pa.array([None if v is None else str(v) for v in array.to_pylist()], pa.string())
    if name.startswith("pandas."):
        raise DataError(
            f"column {key!r} holds {name.removeprefix('pandas.')}s, which are not single values; "
            "convert it to numbers, text or timestamps"
        )
    return _fixed(array.storage, key)


def _fix_lists(array: pa.Array, key: str, per_row: int) -> pa.Array:
    _check_nulls(array, key, per_row)
    lengths = pc.list_value_length(array).to_numpy()
    if not len(lengths):
        return _fixed(array.flatten(), key)  # the length of samples is unknown
    different = np.flatnonzero(lengths != lengths[0])
    if len(different):
        first, other = (int(lengths[0]),), (int(lengths[different[0]]),)
        raise ragged_error(key, first, int(different[0]) // per_row, other)
    size = int(lengths[0])
    if not size:
        raise DataError(f"column {key!r} holds empty lists; omit the column")
    return wrap(_fixed(array.flatten(), key, per_row * size), (size,))


def _check_nulls(array: pa.Array, key: str, per_row: int = 1) -> pa.Array:
    """Replace nulls among floats with NaN; refuse any other null."""
    if not array.null_count:
        if not pa.types.is_fixed_size_list(array.type):
            return array
        inner, size = array.flatten(), array.type.list_size
        checked = _check_nulls(inner, key, per_row * size)
        return array if checked is inner else wrap(checked, (size,))
    if pa.types.is_floating(array.type):
        return pc.fill_null(array, float("nan"))
    row = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
    raise _null_error(key, row // per_row, array.null_count, array.type)


def _null_error(key: str, row: int, count: int, kind: pa.DataType | None = None) -> DataError:
    castable = kind is not None and (pa.types.is_integer(kind) or pa.types.is_boolean(kind))
    to_float = "or convert the column to float, where a missing value is NaN"
    remedy = to_float if castable else "because only floats can be missing (as NaN)"
    return DataError(
        f"column {key!r} has {count} missing value(s), the first in row {row}. Drop those rows "
        f"(dropna), fill them (fillna), {remedy}"
    )


def ragged_error(key: str, first: Shape | None, row: int, other: Shape | None) -> DataError:
    """Return the error for a column whose rows differ in shape."""
    where = "ragged itself" if other is None else f"of shape {other}"
    return DataError(
        f"column {key!r} is ragged: row 0 has shape {first}, row {row} is {where}. "
        "Pad or truncate the rows to one length, or use a long table with group_by="
    )
