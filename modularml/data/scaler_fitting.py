"""Fitting scalers on rows of columns without padding."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray
from modularml._warning import warn
from modularml.data.formats import stack, stack_columns
from modularml.data.samples import in_steps
from modularml.data.scaling import (
    COLUMNWISE,
    ScalerRecord,
    grouped,
    shown_keys,
    shown_label,
)
from modularml.errors import DataError, ScalerError, ShapeError
from modularml.io.randomness import drawn_seed
from modularml.scalers.affine import ENCODERS, SKLEARN
from modularml.scalers.flattening import Flattening, flatten
from modularml.scalers.scaler import Scaler

UNSEEN = ("error", "global")
"""What happens to rows of groups that a scaler was not fitted on."""


def fit_record(
    scaler: Scaler | Any,
    columns: Mapping[str, Array],
    *,
    domain: str,
    fit_to_split: str | None,
    fit_rows: IntArray | None,
    merged_axes: int | tuple[int, ...] | None,
    blocks: Iterable[Array] | None = None,
    targets: Mapping[str, Array] | None = None,
    masks: Mapping[str, Array] | None = None,
    categories: Sequence[str] = (),
) -> ScalerRecord:
    """Fit a clone of a scaler on rows of columns, and of `targets` by full name.

    Steps where the mask of a column, by the same key, is false are excluded. If rows are passed as
    `blocks` of stacked columns, a scaler with ``partial_fit`` is fitted block by block. Scalers
    that treat codes of `categories` as numbers cause a warning.

    Raises
    ------
    ScalerError
        If a column is not numeric, there are no rows to fit on, or padding cannot be excluded.
    ShapeError
        If the columns cannot be flattened to two dimensions.
    """
    wrapped = scaler.clone_unfitted() if isinstance(scaler, Scaler) else Scaler(scaler)
    for key, values in columns.items():
        if values.dtype.kind not in "biuf" and not wrapped.takes_categories:
            raise ScalerError(
                f"column {key!r} holds {values.dtype}, but {wrapped.scaler_name} "
                "requires numbers; choose keys= without it, or encode it (OneHotEncoder, "
                "OrdinalEncoder, TargetEncoder)"
            ).with_code("MML-301")
    where = "" if fit_to_split is None else f" in split {fit_to_split!r}"
    n_rows = len(next(iter(columns.values())) if fit_rows is None else fit_rows)
    if not n_rows:
        raise ScalerError(f"there are no rows to fit on{where}")
    if len({values.shape[1:] for values in columns.values()}) > 1:
        shapes = {key: values.shape[1:] for key, values in columns.items()}
        raise ShapeError(
            f"one {wrapped.scaler_name} cannot be fitted on columns of different shapes, got "
            f"{shapes}; call fit_transform(keys=...) once for each shape"
        )
    known = columns.items() if wrapped.scaler in SKLEARN else ()
    if empty := [key for key, values in known if _is_empty(values, fit_rows)]:
        warn(
            f"{empty} have no value in the {n_rows} rows{where} to fit on, so "
            f"{wrapped.scaler_name} makes them NaN in every row; fill them, or exclude them "
            "with keys="
        )
    with np.errstate(invalid="ignore") if empty else nullcontext():
        if targets or masks or blocks is None or not hasattr(wrapped.inner, "partial_fit"):
            flat, flattening = flatten(stack_columns(columns, fit_rows), merged_axes)
            if masks:
                shapes = {key: values.shape for key, values in columns.items()}
                holds = {k: in_steps(masks.get(k, np.array(True)), s) for k, s in shapes.items()}
                is_data = flattening.apply(stack_columns(holds, fit_rows))
                flat = _without_padding(wrapped, flat, is_data, masks)
            wrapped.fit(flat, fitted_targets(targets, fit_rows, flat) if targets else None)
            _check_scores(wrapped, targets or ())
        else:
            for block in blocks:
                flat, flattening = flatten(block, merged_axes)
                wrapped.partial_fit(flat)
    if categories and wrapped.scaler in SKLEARN:
        warn(
            f"{list(categories)} hold categories, whose codes {wrapped.scaler_name} treats as "
            "numbers; exclude them with keys=, use OneHotEncoder or TargetEncoder, or pass "
            "kind='number' if the codes are quantities"
        )
    checked = known if n_rows > 1 else ()
    constant = [key for key, values in checked if _is_constant(values, fit_rows)]
    if constant:
        warn(
            f"{constant} have the same value in all {n_rows} rows{where}, so "
            f"{wrapped.scaler_name} makes them an uninformative constant; exclude them with keys=",
        )
    return ScalerRecord(
        domain,
        tuple(columns),
        wrapped,
        flattening,
        fit_to_split,
        merged_axes,
        fit_rows,
        tuple(targets or ()),
        _outputs(wrapped, list(columns), flat, flattening),
        drawn_seed(2**31) if wrapped.is_cross_fitted else None,
    )


def _without_padding(scaler: Scaler, flat: Array, is_data: Array, masks: Iterable[str]) -> Array:
    """Return the rows to fit a scaler on, without padding."""
    complete = is_data.all(axis=1)
    if (complete | ~is_data.any(axis=1)).all() or scaler.scaler in ("Negate", "Absolute"):
        return flat[complete] if complete.any() else flat
    name, padded = scaler.scaler_name, f"columns {sorted(masks)} are padded"
    if scaler.scaler not in COLUMNWISE:
        raise ScalerError(
            f"{padded}, but {name} uses several steps at once; choose merged_axes so that each "
            "row is one step, such as merged_axes=(0, 2)"
        )
    if not is_data.any(axis=0).all():
        raise ScalerError(
            f"{padded}, and no sample that {name} is fitted on has data at position "
            f"{int(np.argmin(is_data.any(axis=0)))}; choose merged_axes=(0, 2) for one statistic "
            "of all steps, or truncate the sequences"
        )
    floating = flat if flat.dtype.kind == "f" else flat.astype(np.float64)
    return np.where(is_data, floating, np.nan).astype(floating.dtype)  # these scalers ignore NaN


def fit_by_group(
    record: ScalerRecord,
    per: Sequence[str],
    columns: Mapping[str, Array],
    unseen: str,
    fit: Callable[[IntArray], Any],
) -> ScalerRecord:
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
    name, shown = record.scaler.scaler_name, shown_keys(per)
    if name in ENCODERS or record.scaler.needs_rows or not record.scaler.learns:
        raise ScalerError(
            f"{name} cannot be fitted per {shown}: codes and units of groups would differ, or it "
            "learns nothing from other rows; omit per="
        )
    labels, codes = grouped({name: columns[name] for name in per})
    rows = np.arange(len(codes)) if record.fit_rows is None else record.fit_rows
    missing = [i for i, own in enumerate(labels) if any(v is None or v != v for v in own)]  # noqa: PLR0124
    if len(lacks := rows[np.isin(codes[rows], missing)]):
        raise DataError(f"{len(lacks)} rows have no value of {shown}, the first is row {lacks[0]}")
    groups, scalers = [], []
    for code in np.unique(codes[rows]):
        try:
            part = fit(rows[codes[rows] == code])
        except ScalerError as error:
            raise ScalerError(f"rows with {shown}={shown_label(labels[code])}: {error}") from error
        if part.outputs != record.outputs:
            raise ScalerError(
                f"{name} makes other columns of the rows with {shown}={shown_label(labels[code])} "
                "than of all rows; use settings that keep their number (keep_empty_features=True)"
            )
        groups.append(labels[code])
        scalers.append(part.scaler)
    return replace(
        record, per=tuple(per), unseen=unseen, groups=tuple(groups), group_scalers=tuple(scalers)
    )


def fitted_targets(
    targets: Mapping[str, Array], rows: IntArray | None, flat: Array | None = None
) -> Array:
    """Return rows of target columns for a scaler: ``(n,)``, or ``(n, k)`` for several.

    Raises
    ------
    ShapeError
        Unless there is one target for each row to fit on.
    ScalerError
        If a target is missing.
    """
    values = stack(targets, rows)
    values = values.reshape(len(values), -1)
    if values.dtype.kind == "f" and (missing := np.isnan(values).any(axis=1)).any():
        raise ScalerError(
            f"{int(missing.sum())} of the {len(values)} rows to fit on have no value of "
            f"{_keys(targets)}; fit on a split without them, such as fs.drop({{target: "
            "np.isnan}, reason=...)"
        )
    if flat is not None and len(flat) != len(values):
        raise ShapeError(
            f"targets= requires one row per sample, but merged_axes makes {len(flat)} rows of "
            f"{len(values)} samples"
        )
    return values[:, 0] if values.shape[1] == 1 else values


def _keys(names: Iterable[str]) -> list[str]:
    return [name.split(".")[1] for name in names]


def _check_scores(scaler: Scaler, targets: Iterable[str]) -> None:
    """Refuse a selection by scores that are all undefined, as of numbers taken for classes."""
    scores = getattr(scaler.inner, "scores_", None)
    if isinstance(scores, np.ndarray) and scores.dtype.kind == "f" and np.isnan(scores).all():
        function = getattr(getattr(scaler.inner, "score_func", None), "__name__", "its score")
        raise ScalerError(
            f"{scaler.scaler_name} has no score of any column, as {function} is undefined for "
            f"the targets {_keys(targets)}; pass another score_func, such as f_regression for "
            "numbers and f_classif for classes"
        )


def _outputs(
    scaler: Scaler, keys: Sequence[str], flat: Array, layout: Flattening
) -> tuple[tuple[int, ...], ...] | None:
    """Return the output columns of each key; None if the scaler keeps the shape.

    Raises
    ------
    ScalerError
        If this is ambiguous, because an output mixes several keys or a key has no output.
    """
    n_in, width = flat.shape[1], scaler.transform(flat[:1]).shape[1]
    if not width:
        raise ScalerError(
            f"{scaler.scaler_name} leaves no column of {list(keys)}, as all values are missing or "
            "none is selected; exclude it with keys=, or use settings that keep one "
            "(keep_empty_features=True of imputers)"
        )
    if width == n_in and not scaler.spreads:
        return None
    if layout.row_axes != (0,):
        raise ScalerError(
            f"{scaler.scaler_name} makes {width} columns of {n_in}, which requires one row per "
            f"sample; merged_axes={layout.merged_axes} makes several"
        )
    if len(keys) == 1:
        return (tuple(range(width)),)
    input_names = [f"#{i:09d}" for i in range(n_in)]
    try:
        names = scaler.wrapped.get_feature_names_out(input_names)
    except (AttributeError, TypeError, ValueError):
        names = ()
    owners = [{int(m) * len(keys) // n_in for m in re.findall(r"#(\d{9})", n)} for n in names]
    outputs = tuple(
        tuple(i for i, owner in enumerate(owners) if owner == {k}) for k in range(len(keys))
    )
    if sum(map(len, outputs)) != width or not all(outputs):
        raise ScalerError(
            f"{scaler.scaler_name} makes {width} columns of the {n_in} of {list(keys)} together, "
            "and it is ambiguous which belong to which key; stack them into one array column "
            "(stack= of a constructor), or call fit_transform for each key"
        )
    return outputs


def _is_empty(values: Array, rows: IntArray | None) -> bool:
    first = values[0] if rows is None else values[rows[0]]
    if values.dtype.kind != "f" or not np.isnan(first).all():  # fast path for most columns
        return False
    return bool(np.isnan(values if rows is None else values[rows]).all())


def _is_constant(values: Array, rows: IntArray | None) -> bool:
    probes = np.array([0, len(values) // 2, -1]) if rows is None else rows[[0, len(rows) // 2, -1]]
    first = values[probes[0]]
    if not (values[probes] == first).all():  # fast path for most columns
        return False
    return bool(((values if rows is None else values[rows]) == first).all())
