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

from modularml._optional import loaded, require
from modularml._typing import Array, Shape
from modularml.data.arrow_types import check_nulls, fixed, null_error, ragged_error, to_numpy, wrap
from modularml.errors import DataError

__all__ = ["column_values", "ragged_error", "to_arrow"]

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
    return check_nulls(fixed(_read(values, key, copy), key), key)


def column_values(values: Any, key: str) -> Array:
    """Return column data as a read-only array, as `to_numpy` of `to_arrow` does.

    Vectors of numbers, of which Arrow would hold the same bytes, are neither copied nor converted,
    and lists of Python's floats or integers are read by numpy.
    """
    if type(values) is list and values and (kind := set(map(type, values))) in ({float}, {int}):
        try:
            numbers = np.array(values)
        except OverflowError:  # is refused below
            numbers = np.empty(0, dtype=object)
        exact = np.float64 if kind == {float} else np.int64
        values = numbers if numbers.dtype == exact else values
    if type(values) is np.ndarray and values.ndim == 1 and values.dtype in _AS_THEY_ARE:
        view = values.view()
        view.flags.writeable = False
        return view
    return to_numpy(to_arrow(values, key))


_AS_THEY_ARE = frozenset(
    map(np.dtype, ("f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"))
)

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
    if "Int128" in kind and not kind.endswith("Int128"):
        raise DataError(
            f"column {key!r} holds {kind}, for which there is no Arrow type; cast its values to "
            "Int64, or write them as text"
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
        masked = np.argwhere(np.ma.getmaskarray(values))
        if len(masked) and values.dtype.kind != "f":
            raise null_error(key, int(masked[0, 0]), len(masked))
        values = values.filled(np.nan) if len(masked) else values.data
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
    if dtype == "M8[D]" and (far := np.abs(values.view(np.int64)) >= 2**31).any():
        raise DataError(  # Arrow has 32 bits for dates and would wrap them around
            f"column {key!r} holds a date that is out of range in row "
            f"{int(np.argwhere(far)[0, 0])}; use timestamps in seconds, or numbers"
        )
    return wrap(_arrow(values.reshape(-1), key), shape)


def _arrow_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the nearest dtype that Arrow supports."""
    if dtype.kind in "mM":
        unit = _TIME_UNITS.get(np.datetime_data(dtype)[0])
        unit = "s" if dtype.kind == "m" and unit == "D" else unit
        dtype = dtype if unit is None else np.dtype(f"{dtype.kind}8[{unit}]")
    return dtype.newbyteorder("=")


def _from_objects(values: Sequence[Any], key: str) -> pa.Array:
    first = next((v for v in values if v is not None), None)
    if isinstance(first, set | frozenset):
        raise DataError(f"column {key!r} holds sets, which have no order; convert them to lists")
    if isinstance(first, list | tuple):
        try:
            return pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            pass  # e.g. rows that hold arrays of several axes
    elif hasattr(first, "detach"):  # torch tensors
        values = [_dense(v.detach().cpu(), key) if hasattr(v, "detach") else v for v in values]
    elif not isinstance(first, np.ndarray) and (
        first is None or isinstance(first, _NO_COLUMN) or np.ndim(first) == 0
    ):
        return _arrow(values, key)
    pandas = loaded("pandas")
    if pandas is not None and isinstance(first, pandas.Series):
        odd = [i for i, v in enumerate(values) if v is not None and not v.index.equals(first.index)]
        if odd:
            raise DataError(
                f"column {key!r} holds Series, and that of row {odd[0]} has another index than the "
                "first; reindex them, or give arrays (to_numpy())"
            )
    try:
        stacked = _stacked(values)
    except TypeError:
        raise DataError(
            f"column {key!r} holds arrays of types that none holds all of, such as "
            f"{np.asarray(values[0]).dtype}; convert them to one type"
        ) from None
    except ValueError:
        raise _ragged(values, key) from None
    _check_integers(values, stacked, key)
    is_mixed = stacked.dtype.kind in "US" and any(
        getattr(v, "dtype", np.dtype(object)).kind not in "US" for v in values
    )
    if stacked.dtype.kind == "O" or is_mixed:
        return _arrow([np.asarray(v, dtype=object).ravel().tolist() for v in values], key)
    return _from_ndarray(stacked, key, copy=False)


def _stacked(values: Sequence[Any]) -> Array:
    """Stack as ``np.stack`` does, without creating a view of each sample."""
    arrays = [np.asarray(v) for v in values]
    if len({a.shape for a in arrays}) > 1:
        raise ValueError("samples differ in shape")
    return np.concatenate([a.reshape(-1) for a in arrays]).reshape(len(arrays), *arrays[0].shape)


def _check_integers(values: Sequence[Any], stacked: Array, key: str) -> None:
    """Refuse integers that change where they stand beside floats in arrays of one column."""
    if stacked.dtype.kind != "f":
        return
    large = (np.abs(stacked) >= 2.0**53).reshape(len(stacked), -1).any(axis=1)
    for row in np.flatnonzero(large).tolist():
        given = np.asarray(values[row], dtype=object).ravel().tolist()
        for before, after in zip(given, stacked[row].ravel().tolist(), strict=True):
            if isinstance(before, int) and before != after:
                raise DataError(
                    f"column {key!r} holds the integer {before} in row {row} beside floats, which "
                    "do not hold it; give one column for integers, or convert all to floats "
                    "where digits may be lost"
                )


def _arrow(values: Any, key: str, per_row: int = 1) -> pa.Array:
    """Let Arrow infer the type; `per_row` values belong to one sample."""
    try:
        array = _inferred(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if isinstance(values, list | tuple):
            fits, fails = 0, len(values)  # lengths of prefixes that convert and do not
            while fails - fits > 1:
                middle = (fits + fails) // 2
                try:
                    pa.array(values[:middle])
                    fits = middle
                except (pa.ArrowException, TypeError, ValueError, OverflowError):
                    fails = middle
            if isinstance(values[fits], float) and np.isnan(values[fits]):
                raise null_error(key, fits // per_row, 1) from error
            raise _mixture_error(values, key, fits, per_row) from error
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
        found = pa.array(values)
        kind = found.type
        if (pa.types.is_timestamp(kind) or pa.types.is_duration(kind)) and kind.unit == "us":
            fine = isinstance(values, list | tuple) and any(
                getattr(v, "nanosecond", 0) or getattr(v, "nanoseconds", 0) for v in values
            )
            if fine:  # of Timestamp and Timedelta of pandas, which Arrow would leave out
                zone = {"tz": kind.tz} if pa.types.is_timestamp(kind) else {}
                make = pa.timestamp if pa.types.is_timestamp(kind) else pa.duration
                return pa.array(values, make("ns", **zone))
        return found
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        unsigned = isinstance(error, OverflowError) and isinstance(values, list | tuple)
        if unsigned and all(type(v) is int and 0 <= v < 2**64 for v in values):
            return pa.array(values, pa.uint64())
        if isinstance(values, list | tuple) and any(_is_pandas_missing(value) for value in values):
            return pa.array(values, from_pandas=True)
        raise


def _is_pandas_missing(value: Any) -> bool:
    return type(value).__name__ in ("NAType", "NaTType")


def _would_change(value: Any, kind: pa.DataType) -> bool:
    """Check whether Arrow would change a value: a number or another kind of time."""
    if isinstance(value, int | float | np.number) and not isinstance(value, np.timedelta64):
        return True
    if isinstance(value, time):  # Arrow has no zones for times of day
        return value.tzinfo is not None
    if pa.types.is_date(kind) and isinstance(value, datetime):
        return value.time() != time()
    zoned = getattr(kind, "tz", None) is not None
    has_zone = getattr(value, "tzinfo", None) is not None
    naive = isinstance(value, date | np.datetime64)
    return naive and not _is_pandas_missing(value) and zoned != has_zone


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
    shapes: list[Shape | None] = []
    for value in values:
        try:
            shapes.append(tuple(np.shape(value)))
        except ValueError:
            shapes.append(None)
    row = next((i for i, shape in enumerate(shapes) if shape is None or shape != shapes[0]), 0)
    if values[row] is None:
        return null_error(key, row, sum(v is None for v in values))
    return ragged_error(key, shapes[0], row, shapes[row])
