"""One fitted scaler for each group of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.errors import ConfigError, DataError, ScalerError
from modularml.scalers.affine import ENCODERS

__all__ = ["applied_by_group", "check_unseen", "fit_by_group", "groups_of"]

UNSEEN = ("error", "global")


def check_unseen(unseen: str) -> None:
    """Refuse a value of ``unseen`` other than ``error`` and ``global``."""
    if unseen not in UNSEEN:
        raise ConfigError(f"unseen must be one of {UNSEEN}, got {unseen!r}")


def fit_by_group(
    record: Any,
    per: Sequence[str],
    columns: Mapping[str, Array],
    unseen: str,
    fit: Callable[[IntArray], Any],
) -> Any:
    """Fit a scaler on the rows of each group, beside the one of a record for all rows.

    Parameters
    ----------
    record : ScalerRecord
        Fitted on all rows.
    per : sequence of str
        Full names of the columns whose values make a group.
    columns : mapping of str to ndarray, shape (n_samples,)
        These columns.
    unseen : {'error', 'global'}
    fit : callable
        Fits on rows.

    Raises
    ------
    ScalerError
        If a scaler treats groups differently, or cannot be fitted by group.
    DataError
        If a row has no group.
    """
    name, shown = record.scaler.scaler_name, _shown(per)
    if name in ENCODERS or record.needs_rows or not record.scaler.learns:
        raise ScalerError(
            f"{name} cannot be fitted per {shown}: codes and units of groups would differ, or it "
            "learns nothing from other rows; omit per="
        )
    labels, codes = _grouped({name: columns[name] for name in per})
    rows = np.arange(len(codes)) if record.fit_rows is None else record.fit_rows
    missing = [i for i, label in enumerate(labels) if any(map(_is_missing, label))]
    if len(lacks := rows[np.isin(codes[rows], missing)]):
        raise DataError(f"{len(lacks)} rows have no value of {shown}, the first is row {lacks[0]}")
    groups, scalers = [], []
    for code in np.unique(codes[rows]):
        try:
            part = fit(rows[codes[rows] == code])
        except ScalerError as error:
            raise ScalerError(f"rows with {shown}={_label(labels[code])}: {error}") from error
        if part.outputs != record.outputs:
            raise ScalerError(
                f"{name} makes other columns of the rows with {shown}={_label(labels[code])} than "
                "of all rows; use settings that keep their number (keep_empty_features=True)"
            )
        groups.append(labels[code])
        scalers.append(part.scaler)
    return replace(
        record, per=tuple(per), unseen=unseen, groups=tuple(groups), group_scalers=tuple(scalers)
    )


def applied_by_group(
    record: Any,
    values: Mapping[str, Array],
    groups: Mapping[str, Any],
    apply: Callable[[Any, IntArray], dict[str, Array]],
) -> dict[str, Array]:
    """Apply the scaler of its group to each row, and put the rows together again.

    Parameters
    ----------
    record : ScalerRecord
    values : mapping of str to ndarray, shape (n, *shape)
        Columns by key.
    groups : mapping of str to ndarray, shape (n,)
        At least the columns of `record.per` by full name.
    apply : callable
        Applies a record with a single scaler to rows.

    Raises
    ------
    ScalerError
        If a group was not seen in fitting and ``unseen`` is ``"error"``.
    DataError
        If a column of the groups is missing.
    """
    n = len(next(iter(values.values())))
    parts = [
        (rows, apply(replace(record, per=(), scaler=scaler), rows))
        for scaler, rows in _by_scaler(record, groups, n)
    ]
    out: dict[str, Array] = {}
    for key in parts[0][1]:
        pieces = [part[key] for _, part in parts]
        out[key] = np.empty((n, *pieces[0].shape[1:]), np.result_type(*pieces))
        for (rows, _), piece in zip(parts, pieces, strict=True):
            out[key][rows] = piece
    return out


def groups_of(record: Any, columns: Mapping[str, Any]) -> dict[str, Array]:
    """Return the columns of the groups; DataError if one is missing."""
    missing = [name.split(".")[1] for name in record.per if name not in columns]
    if missing:
        raise DataError(
            f"{record.scaler.scaler_name} was fitted per {_shown(record.per)}, and the data lacks "
            f"{missing}; add the column, so that each row gets the scaler of its group"
        )
    return {name: np.asarray(columns[name]) for name in record.per}


def _by_scaler(record: Any, groups: Mapping[str, Any], n: int) -> Iterator[tuple[Any, IntArray]]:
    """Yield each scaler with its rows; the global one for no rows and for unseen groups."""
    if not n:
        yield record.scaler, np.arange(0)
        return
    labels, codes = _grouped(groups_of(record, groups))
    number = {label: i for i, label in enumerate(record.groups)}
    unseen = [i for i, label in enumerate(labels) if label not in number]
    rows = np.flatnonzero(np.isin(codes, unseen))
    if len(rows):
        if record.unseen == "error":
            raise ScalerError(
                f"{len(rows)} rows have values of {_shown(record.per)} that "
                f"{record.scaler.scaler_name} was not fitted on: "
                f"{', '.join(_label(labels[i]) for i in unseen[:5])}. Fit on rows of every group, "
                "or pass unseen='global' to use the scaler of all rows for them"
            )
        yield record.scaler, rows
    for code, label in enumerate(labels):
        if label in number:
            yield record.group_scalers[number[label]], np.flatnonzero(codes == code)


def _grouped(columns: Mapping[str, Array]) -> tuple[list[tuple[Any, ...]], IntArray]:
    """Return the labels of all groups, and the number of each row's group."""
    codes = np.zeros(1, dtype=np.int64)
    for name, values in columns.items():
        if values.ndim != 1 or values.dtype.kind not in "biufOUS":
            raise DataError(
                f"per must name columns of one number or text per row, but {name.split('.')[1]!r} "
                f"holds {values.dtype} of shape {values.shape[1:]}"
            )
        factor = require("pandas").factorize(values, use_na_sentinel=False)[0]
        codes = codes * (int(factor.max(initial=0)) + 1) + factor
        codes = np.unique(codes, return_inverse=True)[1].astype(np.int64)
    first = np.unique(codes, return_index=True)[1]
    parts = [values[first].tolist() for values in columns.values()]
    return list(zip(*parts, strict=True)), codes


def _is_missing(value: Any) -> bool:
    return value is None or value != value  # noqa: PLR0124


def _shown(per: Sequence[str]) -> str:
    keys = [name.split(".")[1] for name in per]
    return repr(keys[0] if len(keys) == 1 else keys)


def _label(label: tuple[Any, ...]) -> str:
    return repr(label[0] if len(label) == 1 else label)
