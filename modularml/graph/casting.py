"""Input dtypes of models, and checks that the cast keeps values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modularml._typing import Array
from modularml.backends import BackendAdapter
from modularml.backends.input_shapes import InputShape
from modularml.data.schema import ColumnSpec
from modularml.errors import DataError

__all__ = ["check_cast", "column_dtypes", "may_change", "value_dtypes"]


def column_dtypes(
    adapter: BackendAdapter,
    model: Any,
    shape: InputShape | None,
    columns: Sequence[Sequence[ColumnSpec] | None],
) -> list[Any]:
    """Return the dtype in which a model reads each input of stacked columns.

    Parameters
    ----------
    adapter : BackendAdapter
        Of the model's framework.
    model : module
    shape : tuple of int, tuple or dict of such, or None
        Of one sample of each input; None if not known yet.
    columns : sequence of (sequence of ColumnSpec or None)
        Of each input; None if it is, or contains, an output of another model.
    """
    kinds = []
    for specs in columns:
        is_integer = bool(specs) and all(spec.dtype.kind in "biu" for spec in specs or ())
        kinds.append(
            (is_integer, is_integer and all(spec.kind == "category" for spec in specs or ()))
        )
    if shape is None:
        return [
            adapter.input_dtype(model, None, whole=is_integer, category=is_category)
            for is_integer, is_category in kinds
        ]
    return adapter.input_dtypes(model, shape, kinds)


def value_dtypes(
    adapter: BackendAdapter, model: Any, values: Sequence[Array], shape: InputShape, name: str
) -> list[Any]:
    """Return the dtypes in which a model reads arrays of samples, one per input.

    Raises
    ------
    DataError
        If a value changes in the cast; see `check_cast`.
    """
    dtypes = adapter.input_dtypes(model, shape, [(v.dtype.kind in "biu", False) for v in values])
    for dtype, array in zip(dtypes, values, strict=True):
        check_cast(adapter, dtype, array, name)
    return dtypes


_LARGEST = {2**24: float(np.finfo("f4").max), 2**11: float(np.finfo("f2").max)}
"""Largest number of float32 and float16, by the integers up to which they are exact."""


def may_change(adapter: BackendAdapter, dtype: Any, values: np.dtype[Any]) -> bool:
    """Return whether `check_cast` may refuse values of a numpy dtype."""
    if dtype is None or values.kind not in "iuf":
        return False
    limit = adapter.exact_integers(dtype)
    if values.kind != "f":
        return limit is not None
    return limit is None or np.finfo(values).max > _LARGEST.get(limit, np.inf)


def check_cast(adapter: BackendAdapter, dtype: Any, values: Array, name: str) -> None:
    """Refuse integers too large for a float dtype, and fractions cast to integers.

    Floats may be rounded to the precision of the model, and do not become infinite.

    Raises
    ------
    DataError
        If a value would change; the message names the column and the remedy.
    """
    if not values.size or not may_change(adapter, dtype, values.dtype):
        return
    limit = adapter.exact_integers(dtype)
    if values.dtype.kind in "iu" and limit is not None:
        if int(values.max()) > limit or int(values.min()) < -limit:
            raise DataError(
                f"column {name!r} holds integers beyond {limit:,}, which "
                f"{getattr(dtype, 'name', dtype)}, the model's input dtype, cannot represent "
                "exactly. If it is an id or a category, read it in a separate node "
                "(features=[...] of a reference) with an Embedding; if it is a quantity, scale "
                "it (fit_transform), or store it as floats"
            )
    elif limit is not None:
        beyond = (abs(values) > _LARGEST[limit]) & np.isfinite(values)
        if beyond.any():
            raise DataError(
                f"column {name!r} holds {values[beyond][0]}, which is infinite in "
                f"{getattr(dtype, 'name', dtype)}, as the model reads it; scale the column "
                "(fit_transform), or give the model weights of float64"
            )
    else:
        fractional = values != np.trunc(values)  # NaN too
        if fractional.any():
            raise DataError(
                f"column {name!r} holds {values[fractional][0]}, and the model reads it as "
                "integers (its first layer is an Embedding). Read the integer columns in a "
                "separate node with the Embedding, or slice them within the model"
            )
