"""In which dtype columns reach a model, and whether it holds their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modularml._typing import Array, Shape
from modularml.backends import BackendAdapter
from modularml.data.schema import ColumnSpec
from modularml.errors import DataError

__all__ = ["check_cast", "column_dtype", "value_dtype"]


def column_dtype(
    adapter: BackendAdapter, model: Any, shape: Shape | None, columns: Sequence[ColumnSpec] | None
) -> Any:
    """Return the dtype in which a model reads columns that are stacked into one input.

    Parameters
    ----------
    adapter : BackendAdapter
        Of the model's framework.
    model : module
    shape : tuple of int or None
        Of one sample of the input; None where it is not known yet.
    columns : sequence of ColumnSpec or None
        None where the input is, or holds, an output of another model.
    """
    specs = columns or []
    whole = bool(specs) and all(spec.dtype.kind in "biu" for spec in specs)
    category = whole and all(spec.kind == "category" for spec in specs)
    return adapter.input_dtype(model, shape, whole=whole, category=category)


def value_dtype(adapter: BackendAdapter, model: Any, values: Array, name: str = "data") -> Any:
    """Return the dtype in which a model reads an array of samples, shape (n, *shape).

    Raises
    ------
    DataError
        If the values change in it; see `check_cast`.
    """
    whole = values.dtype.kind in "biu"
    dtype = adapter.input_dtype(model, values.shape[1:], whole=whole)
    check_cast(adapter, dtype, values, name)
    return dtype


def check_cast(adapter: BackendAdapter, dtype: Any, values: Array, name: str) -> None:
    """Refuse integers that a float dtype does not hold, and fractions for an integer dtype.

    Floats may be rounded to the precision of the model.

    Raises
    ------
    DataError
        If a value would change; it is named with the remedy.
    """
    if dtype is None or not values.size:
        return
    limit = adapter.exact_integers(dtype)
    if values.dtype.kind in "iu" and limit is not None:
        if int(values.max()) > limit or int(values.min()) < -limit:
            raise DataError(
                f"column {name!r} holds integers beyond {limit:,}, which "
                f"{getattr(dtype, 'name', dtype)}, as the model reads it, does not tell apart. If "
                "it is an id or a category, let a node of its own read it (features=[...] of a "
                "reference) and look it up in an Embedding; if it is a quantity, scale it "
                "(fit_transform), or give it as floats"
            )
    elif values.dtype.kind == "f" and limit is None:
        odd = values != np.trunc(values)  # NaN too
        if odd.any():
            raise DataError(
                f"column {name!r} holds {values[odd][0]}, and the model reads it as integers "
                "(its first layer is an Embedding). Let the Embedding read the integer columns "
                "alone, in a node of their own, or slice them within the model"
            )
