"""Columns: anything that holds one value a sample, to Arrow and back to numpy.

A column whose samples are arrays of one shape is a (nested) fixed-size list, so numpy and
torch read it without a copy. A missing float is NaN; other missing values and ragged columns are
refused where they come in.
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
"""numpy's units of time that Arrow lacks, and the nearest finer one that it has."""

_FLOATS_OF_TORCH = ("torch.bfloat16", "torch.float8")
"""torch's floats that numpy lacks; float32 holds each of their values."""

_NO_COLUMN = (str, bytes, Mapping, set, frozenset)
"""Collections that are not one value a sample, in order."""


def to_arrow(values: Any, key: str, *, copy: bool = True) -> pa.Array:
    """Turn column data into one Arrow array without nulls.

    Parameters
    ----------
    values : array-like, shape (n_samples, ...)
        A list of scalars or of arrays of one shape, a numpy array, a pandas or polars series,
        a torch tensor or an Arrow array.
    key : str
        Name of the column, for messages.
    copy : bool
        Whether numpy arrays are copied. Only for arrays that nobody writes to later it may be
        left out.

    Raises
    ------
    DataError
        If samples differ in shape, a value that is no float is missing, or no Arrow type fits. The
        message names the column and the first row that is wrong. Nulls in float columns become NaN.
    """
    return _check_nulls(_fixed(_read(values, key, copy), key), key)


# -- reading what the user has --------------------------------------------------------------------


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
        found = _borrowed(values)
        if found is not None:
            return _from_ndarray(found, key, copy=False)
        found = np.asanyarray(values)
        return _from_ndarray(found, key, copy or found is not values)
    if isinstance(values, _NO_COLUMN) or not hasattr(values, "__len__"):
        raise DataError(
            f"column {key!r} must hold one value a sample, in order (a list or an array), got a "
            f"{type(values).__name__}"
        )
    return _from_objects(list(values), key)


def _dense(tensor: Any, key: str) -> Any:
    """Return a torch tensor that numpy can read: 8 and 16 bit floats it lacks become float32."""
    if "strided" not in str(tensor.layout):
        raise _sparse_error(key, "to_dense")
    lacks = tensor.dtype.is_floating_point and str(tensor.dtype).startswith(_FLOATS_OF_TORCH)
    return tensor.float() if lacks else tensor


def _sparse_error(key: str, method: str) -> DataError:
    return DataError(
        f"column {key!r} is sparse, and columns are dense; give it as {method}() returns it"
    )


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
        except Exception as error:  # polars' own, which needs polars to be named
            raise DataError(
                f"column {key!r} holds {kind} values that 64 bits cannot; write them as text"
            ) from error
    return _read(series.to_arrow(), key, copy=True)


class _Loan:
    """Memory of a pandas series, which pandas does not write to as long as this lives."""

    def __init__(self, series: Any) -> None:
        self._series = series.copy(deep=False)  # pandas counts it, and copies before it writes
        self.__array_interface__ = np.asarray(self._series).__array_interface__


def _borrowed(values: Any) -> Array | None:
    """Return a pandas series without a copy, where pandas copies on write (from version 3 on)."""
    pandas = loaded("pandas")
    if pandas is None or not isinstance(values, pandas.Series) or values.dtype.kind not in "biuf":
        return None
    found = np.asarray(values)
    if int(pandas.__version__.split(".")[0]) < 3 or found.flags.writeable:
        return None
    return np.asarray(_Loan(values)) if found.flags.c_contiguous and len(found) else None


def _from_ndarray(values: Array, key: str, copy: bool) -> pa.Array:
    if values.ndim == 0:
        raise DataError(
            f"column {key!r} must hold one value a sample, got a single {values.item()!r}"
        )
    if values.dtype.kind == "c":
        raise DataError(
            f"column {key!r} is complex; give its real and imaginary parts as two columns"
        )
    if values.dtype.kind == "V":
        raise DataError(f"column {key!r} has the fields {values.dtype}; give one column for each")
    if isinstance(values, np.ma.MaskedArray):
        values = _unmasked(values, key)
    if values.dtype.kind == "O" and values.ndim == 1:
        return _from_objects(values.tolist(), key)
    shape = values.shape[1:]
    if 0 in shape:
        raise DataError(
            f"column {key!r} holds arrays of shape {shape}, which are empty; leave the column out"
        )
    if values.dtype.kind in "OUST":
        return wrap(_arrow(values.reshape(-1).tolist(), key, math.prod(shape)), shape)
    dtype = _known_dtype(values.dtype)
    if copy or not values.flags.c_contiguous:
        values = np.array(values, dtype=dtype, order="C", subok=False)
    values = values.astype(dtype, copy=False)
    if dtype == "M8[D]":
        _check_dates(values, key)
    return wrap(_arrow(values.reshape(-1), key), shape)


def _known_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype nearest to this one that Arrow has."""
    if dtype.kind in "mM":
        unit = _TIME_UNITS.get(np.datetime_data(dtype)[0])
        unit = "s" if dtype.kind == "m" and unit == "D" else unit
        dtype = dtype if unit is None else np.dtype(f"{dtype.kind}8[{unit}]")
    return dtype.newbyteorder("=")


def _check_dates(values: Array, key: str) -> None:
    """Refuse days that Arrow's 32 bits do not hold; it would wrap them around."""
    far = np.abs(values.view(np.int64)) >= 2**31
    if far.any():
        row = int(np.argwhere(far)[0, 0])
        raise DataError(
            f"column {key!r} holds a date that is out of range in row {row}; use timestamps in "
            "seconds, or numbers"
        )


def _unmasked(values: Any, key: str) -> Array:
    gone = np.argwhere(np.ma.getmaskarray(values))
    if len(gone) and values.dtype.kind != "f":
        raise _null_error(key, int(gone[0, 0]), len(gone))
    found: Array = values.filled(np.nan) if len(gone) else values.data
    return found


def _from_objects(values: Sequence[Any], key: str) -> pa.Array:
    first = next((v for v in values if v is not None), None)
    if isinstance(first, set | frozenset):
        raise DataError(f"column {key!r} holds sets, which have no order; convert them to lists")
    if isinstance(first, list | tuple):
        try:
            return pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            pass  # rows that hold arrays of two and more axes, say
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
    """Stack as ``np.stack`` does, without making a view of each sample."""
    arrays = [np.asarray(v) for v in values]
    if len({a.shape for a in arrays}) > 1:
        raise ValueError("samples differ in shape")
    return np.concatenate(arrays).reshape(len(arrays), *arrays[0].shape)


def _mixed(values: Sequence[Any]) -> bool:
    return any(getattr(v, "dtype", np.dtype(object)).kind not in "US" for v in values)


def _arrow(values: Any, key: str, per_row: int = 1) -> pa.Array:
    """Let Arrow choose a type; `per_row` values belong to one sample."""
    try:
        array = _guessed(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if isinstance(values, list | tuple):
            raise _odd_error(values, key, per_row) from error
        raise DataError(
            f"column {key!r} holds {values.dtype}, for which there is no Arrow type; convert it, "
            "with astype say"
        ) from error
    if pa.types.is_temporal(array.type) and isinstance(values, list | tuple):
        for place, value in enumerate(values):
            if _changes(value, array.type):
                raise _mixture_error(values, key, place, per_row)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _guessed(values: Any) -> pa.Array:
    """Let Arrow choose a type; NA and NaT of pandas in a list are missing values."""
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        if isinstance(values, list | tuple) and any(_is_of_pandas(value) for value in values):
            return pa.array(values, from_pandas=True)
        raise


def _is_of_pandas(value: Any) -> bool:
    return type(value).__name__ in ("NAType", "NaTType")


def _changes(value: Any, kind: pa.DataType) -> bool:
    """Tell whether Arrow makes another time of a value: of numbers, or of unlike times."""
    if isinstance(value, int | float | np.number) and not isinstance(value, np.timedelta64):
        return True
    if pa.types.is_date(kind) and isinstance(value, datetime):
        return value.time() != time()
    zoned = getattr(kind, "tz", None) is not None
    has_zone = getattr(value, "tzinfo", None) is not None
    naive = isinstance(value, date | np.datetime64)
    return naive and not _is_of_pandas(value) and zoned != has_zone


def _odd_error(values: Sequence[Any], key: str, per_row: int) -> DataError:
    fits, fails = 0, len(values)  # so many first values are fine, so many are not
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
            f"column {key!r}: row {place // per_row} is {_peek(values[place])}, and integers have "
            "64 bits at most; give the column as text, or as floats where digits may be lost"
        )
    if not place:
        return DataError(
            f"column {key!r} holds values that are no numbers, text, flags or times: row 0 is "
            f"{_peek(values[0])}. Convert the column to one of these"
        )
    return DataError(
        f"column {key!r} mixes types or holds what Arrow cannot: row {place // per_row} is "
        f"{_peek(values[place])}, row 0 is {_peek(values[0])}. Convert the column to one type"
    )


def _peek(value: Any) -> str:
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


# -- bringing Arrow arrays into the form they are kept in --------------------------------------


def _fixed(array: pa.Array, key: str, per_row: int = 1) -> pa.Array:
    """Bring lists to fixed size, and every other type to one that has a numpy twin.

    In an array inside of another, `per_row` values belong to one sample.
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
        raise DataError(f"column {key!r} has the Arrow type {kind}; give one column for each field")
    return array


def _from_decimals(array: pa.Array, key: str) -> pa.Array:
    """Return whole decimals as integers, so that ids keep their digits, and others as floats."""
    if array.type.scale > 0:
        return array.cast(pa.float64())
    try:
        return array.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise DataError(
            f"column {key!r} holds {array.type} values that 64 bits cannot; cast it to text, or to "
            "floats where digits may be lost"
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
            f"column {key!r} holds {name.removeprefix('pandas.')}s, which are no single values; "
            "convert it to numbers, text or timestamps"
        )
    return _fixed(array.storage, key)


def _fix_lists(array: pa.Array, key: str, per_row: int) -> pa.Array:
    _check_nulls(array, key, per_row)
    lengths = pc.list_value_length(array).to_numpy()
    if not len(lengths):
        return _fixed(array.flatten(), key)  # how long samples would be is not known
    odd = np.flatnonzero(lengths != lengths[0])
    if len(odd):
        first, other = (int(lengths[0]),), (int(lengths[odd[0]]),)
        raise ragged_error(key, first, int(odd[0]) // per_row, other)
    size = int(lengths[0])
    if not size:
        raise DataError(f"column {key!r} holds empty lists; leave the column out")
    return wrap(_fixed(array.flatten(), key, per_row * size), (size,))


def _check_nulls(array: pa.Array, key: str, per_row: int = 1) -> pa.Array:
    """Return the column with NaN for nulls among floats; refuse every other null."""
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
    number = kind is not None and (pa.types.is_integer(kind) or pa.types.is_boolean(kind))
    to_float = "or convert the column to float, where a missing value is NaN"
    remedy = to_float if number else "as only floats can be missing, as NaN"
    return DataError(
        f"column {key!r} has {count} missing value(s), the first in row {row}. Drop those rows "
        f"(dropna), fill them (fillna), {remedy}"
    )


def ragged_error(key: str, first: Shape | None, row: int, odd: Shape | None) -> DataError:
    """Return the error for a column whose rows differ in shape."""
    where = "within itself" if odd is None else f"of shape {odd}"
    return DataError(
        f"column {key!r} is ragged: row 0 has shape {first}, row {row} is {where}. "
        "Pad or cut the rows to one length, or build the set from a long table with group_by="
    )
