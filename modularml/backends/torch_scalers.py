"""Fitted scalers as functions of torch tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from modularml._optional import require
from modularml._private.sklearn import standardization
from modularml._typing import Array

torch = require("torch", purpose="to train torch models")

Transform = Callable[[Any], Any]


class NotExportableError(Exception):
    """A fitted scaler cannot be written as arithmetic on tensors; says why."""


def transform_of(scaler: Any) -> Transform:
    """Return ``transform`` of a fitted scaler for tensors of shape (n, k).

    Checks of values are omitted: what ``transform`` refuses becomes NaN.

    Raises
    ------
    NotExportableError
        If it cannot be written as arithmetic on tensors.
    """
    return _way_of(scaler, back=False)


def inverse_of(scaler: Any) -> Transform:
    """Return ``inverse_transform`` of a fitted scaler for tensors; see `transform_of`."""
    return _way_of(scaler, back=True)


def _way_of(scaler: Any, back: bool) -> Transform:
    cls, known = type(scaler), _INVERTIBLE if back else sorted(_WAYS)
    if cls.__module__.split(".")[0] not in ("sklearn", "modularml") or cls.__name__ not in known:
        raise NotExportableError(f"only {', '.join(known)} can be exported here")
    return _WAYS[cls.__name__](scaler, back)


def _constant(values: Any) -> Any:
    """Return learned values as a tensor with memory of its own."""
    return None if values is None else torch.tensor(np.array(values))


def _affine(
    shift: Array | None,
    scale: Array | None,
    back: bool = False,
    clip: tuple[float, float] | None = None,
) -> Transform:
    """Return ``(x - shift) / scale`` within bounds, or ``x * scale + shift``."""
    offset, factor = _constant(shift), _constant(scale)

    def apply(x: Any) -> Any:  # in the dtype of x, as scikit-learn computes
        if back:
            x = x if factor is None else x * factor.to(x.dtype)
            return x if offset is None else x + offset.to(x.dtype)
        x = x if offset is None else x - offset.to(x.dtype)
        x = x if factor is None else x / factor.to(x.dtype)
        return x if clip is None else x.clamp(*clip)

    return apply


def _min_max(s: Any, back: bool) -> Transform:
    scaled = _affine(s.min_, s.scale_, not back)
    lower, upper = s.feature_range
    return (lambda x: scaled(x).clamp(lower, upper)) if s.clip and not back else scaled


def _normalizer(s: Any, _: bool) -> Transform:
    def apply(x: Any) -> Any:
        if s.norm == "l2":
            norms = (x * x).sum(1, keepdim=True).sqrt()
        else:
            norms = x.abs().sum(1, keepdim=True) if s.norm == "l1" else x.abs().amax(1, True)
        return x / torch.where(norms == 0, torch.ones_like(norms), norms)

    return apply


def _power(s: Any, back: bool) -> Transform:
    make = _yeo_johnson if s.method == "yeo-johnson" else _box_cox
    parts = [make(float(power), back) for power in s.lambdas_]
    shift, scale = standardization(s) if s.standardize else (None, None)
    standard = _affine(shift, scale, back)

    def by_column(x: Any) -> Any:
        return torch.stack([part(x[:, i]) for i, part in enumerate(parts)], dim=1)

    return (lambda x: by_column(standard(x))) if back else lambda x: standard(by_column(x))


_TINY = float(np.spacing(1.0))


def _yeo_johnson(power: float, back: bool) -> Transform:
    up, down = _raised(power, back), _raised(2 - power, back)
    return lambda x: torch.where(x < 0, -down((-x).clamp(min=0)), up(x.clamp(min=0)))


def _raised(power: float, back: bool) -> Transform:
    """Return ``((1 + x) ** power - 1) / power`` of values from 0, and its limit at 0."""
    if abs(power) < _TINY:
        return (lambda x: torch.exp(x) - 1) if back else torch.log1p
    if back:
        return lambda x: (x * power + 1) ** (1 / power) - 1
    return lambda x: torch.expm1(power * torch.log1p(x)) / power


def _box_cox(power: float, back: bool) -> Transform:
    if abs(power) < _TINY:
        return torch.exp if back else torch.log  # type: ignore[no-any-return]
    if back:
        return lambda x: (x * power + 1) ** (1 / power)
    return lambda x: torch.expm1(power * torch.log(x)) / power


def _per_sample_min_max(s: Any, _: bool) -> Transform:
    lower, upper = s.feature_range

    def apply(x: Any) -> Any:
        missing = torch.isnan(x)
        least = torch.where(missing, torch.full_like(x, torch.inf), x).amin(1, keepdim=True)
        greatest = torch.where(missing, torch.full_like(x, -torch.inf), x).amax(1, keepdim=True)
        span = greatest - least
        span = torch.where(span == 0, torch.ones_like(span), span)
        return (x - least) / span * (upper - lower) + lower

    return apply


def _zero_start(_: Any, __: bool) -> Transform:
    def apply(x: Any) -> Any:
        first = torch.argmax((~torch.isnan(x)).to(torch.int64), dim=1, keepdim=True)
        return x - torch.gather(x, 1, first)

    return apply


def _segmented(s: Any, back: bool) -> Transform:
    edges = [int(edge) for edge in s.boundaries]
    parts = [_way_of(segment.inner, back) for segment in s._segments]

    def apply(x: Any) -> Any:
        pairs = zip(parts, edges, edges[1:], strict=False)
        return torch.cat([part(x[:, a:b]) for part, a, b in pairs], dim=1)

    return apply


def _numbers(categories: Sequence[Array]) -> list[Any]:
    """Return categories as tensors; refuse text and missing values."""
    for values in categories:
        if values.dtype.kind not in "biuf":
            raise NotExportableError("its categories are text, and tensors hold numbers only")
        if np.isnan(values).any():
            raise NotExportableError("a missing value is among its categories")
    return [_constant(values) for values in categories]


def _has_infrequent(s: Any) -> bool:
    return s.min_frequency is not None or s.max_categories is not None


def _one_hot(s: Any, _: bool) -> Transform:
    if s.drop_idx_ is not None or _has_infrequent(s):
        raise NotExportableError("drop, min_frequency and max_categories are not supported")
    categories, unknown = _numbers(s.categories_), s.handle_unknown
    dtype = _tensor_dtype(s.dtype)

    def apply(x: Any) -> Any:
        parts = []
        for i, values in enumerate(categories):
            equal = x[:, i : i + 1] == values
            part = equal.to(dtype)
            if unknown == "error":
                part = torch.where(equal.any(1, keepdim=True), part, torch.nan)
            parts.append(part)
        return torch.cat(parts, dim=1)

    return apply


def _ordinal(s: Any, _: bool) -> Transform:
    if _has_infrequent(s):
        raise NotExportableError("min_frequency and max_categories are not supported")
    unknown = torch.nan if s.handle_unknown == "error" else float(s.unknown_value)
    return _codes(_numbers(s.categories_), unknown)


def _codes(categories: Sequence[Any], unknown: float) -> Transform:
    """Return the number of each value among its categories, as float64."""

    def apply(x: Any) -> Any:
        parts = []
        for i, values in enumerate(categories):
            equal = x[:, i : i + 1] == values
            codes = (equal * torch.arange(len(values))).sum(1).to(torch.float64)
            parts.append(torch.where(equal.any(1), codes, unknown))
        return torch.stack(parts, dim=1)

    return apply


def _tensor_dtype(dtype: Any) -> Any:
    return torch.as_tensor(np.zeros(0, dtype)).dtype


def _imputer(s: Any, _: bool) -> Transform:
    if s.add_indicator or not (isinstance(s.missing_values, float) and np.isnan(s.missing_values)):
        raise NotExportableError("only missing_values=nan without add_indicator is supported")
    if not s.keep_empty_features and np.isnan(s.statistics_).any():
        raise NotExportableError("it omits columns without values")
    filled = _constant(s.statistics_)
    return lambda x: torch.where(torch.isnan(x), filled.to(x.dtype), x)


def _pca(s: Any, _: bool) -> Transform:
    centered, axes = _affine(s.mean_, None), _constant(s.components_.T)
    after = _affine(None, np.sqrt(s.explained_variance_) if s.whiten else None)
    return lambda x: after(centered(x) @ axes.to(x.dtype))


def _selected(s: Any, _: bool) -> Transform:
    chosen = _constant(np.flatnonzero(s.get_support()))
    return lambda x: torch.index_select(x, 1, chosen)


_WAYS: dict[str, Callable[[Any, bool], Transform]] = {
    "Absolute": lambda _, __: torch.abs,
    "LabelEncoder": lambda s, _: _codes(_numbers([s.classes_]), torch.nan),
    "MaxAbsScaler": lambda s, back: _affine(
        None, s.scale_, back, (-1.0, 1.0) if getattr(s, "clip", False) else None
    ),
    "MinMaxScaler": _min_max,
    "Negate": lambda _, __: torch.neg,
    "Normalizer": _normalizer,
    "OneHotEncoder": _one_hot,
    "OrdinalEncoder": _ordinal,
    "PCA": _pca,
    "PerSampleMinMaxScaler": _per_sample_min_max,
    "PerSampleZeroStart": _zero_start,
    "PowerTransformer": _power,
    "RobustScaler": lambda s, back: _affine(
        s.center_ if s.with_centering else None, s.scale_ if s.with_scaling else None, back
    ),
    "SegmentedScaler": _segmented,
    "SelectKBest": _selected,
    "SimpleImputer": _imputer,
    "StandardScaler": lambda s, back: _affine(
        s.mean_ if s.with_mean else None, s.scale_ if s.with_std else None, back
    ),
    "VarianceThreshold": _selected,
}
"""From a fitted scaler, and whether its inverse is meant, to a function of tensors."""
_INVERTIBLE = (
    *("MaxAbsScaler", "MinMaxScaler", "Negate", "PowerTransformer", "RobustScaler"),
    *("SegmentedScaler", "StandardScaler"),
)


def stacked(columns: Sequence[Any], shape: Sequence[int] | None = None, dtype: Any = None) -> Any:
    """Return columns as one tensor, shape (n, n_columns, *shape), in their common dtype.

    Parameters
    ----------
    columns : sequence of tensor, shape (n, *shape)
    shape : sequence of int, optional
        Shape of one sample of the result instead.
    dtype : torch.dtype, optional
        Values that are no integers become the greatest one in an integer dtype, which no embedding
        has.
    """
    common = _common([column.dtype for column in columns])
    values = torch.stack([column.to(common) for column in columns], dim=1)
    if shape is not None:
        values = values.reshape(values.shape[0], *shape)
    if dtype is None or values.dtype == dtype:
        return values
    if values.is_floating_point() and not dtype.is_floating_point:
        whole = values == torch.trunc(values)
        return (
            torch.where(whole, values, torch.zeros_like(values))
            .to(dtype)
            .masked_fill(~whole, torch.iinfo(dtype).max)
        )
    return values.to(dtype)


def _common(dtypes: Iterable[Any]) -> Any:
    """Return the dtype that numpy gives columns of these types."""
    first, *others = dtypes
    for dtype in others:
        both = first, dtype
        first = torch.promote_types(*both)
        for one in both if first.is_floating_point else ():
            if not one.is_floating_point and one != torch.bool:
                least = _LEAST.get(one.itemsize, torch.float64)
                first = torch.promote_types(first, least)
    return first


_LEAST = {1: torch.float16, 2: torch.float32}
"""Float dtype that holds the integers of a size in bytes."""


def record_transform(record: Any) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
    """Return the transformation of a `ScalerRecord` as a function of tensors and masks by key.

    Raises
    ------
    NotExportableError
        If its scaler cannot be exported.
    """
    if record.per:
        raise NotExportableError("it has a scaler for each group")
    transform, keys = transform_of(record.scaler.inner), record.keys
    outputs = None if record.outputs is None else [_constant(o) for o in record.outputs]
    flatten, undo = _layout(record.flattening)
    takes_categories = record.scaler.takes_categories

    def apply(columns: dict[str, Any], masks: dict[str, Any]) -> dict[str, Any]:
        flat = flatten(stacked([columns[key] for key in keys]))
        if not flat.is_floating_point() and not takes_categories:
            flat = flat.to(torch.float64)
        flat = transform(flat)
        if outputs is not None:
            return {key: flat.index_select(1, outputs[i]) for i, key in enumerate(keys)}
        values = undo(flat)
        scaled = {key: values[:, i] for i, key in enumerate(keys)}
        for key in scaled.keys() & masks.keys():
            mask = masks[key].to(torch.bool)
            mask = mask.reshape(*mask.shape, *[1] * (scaled[key].ndim - mask.ndim))
            common = torch.promote_types(scaled[key].dtype, columns[key].dtype)
            scaled[key] = torch.where(mask, scaled[key].to(common), columns[key].to(common))
        return scaled

    return apply


def record_inverse(record: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return the inverse of a `ScalerRecord` as a function of tensors by key."""
    if record.per:
        raise NotExportableError("it has a scaler for each group")
    if record.outputs is not None:
        raise NotExportableError("its inverse changes the number of columns")
    inverse, keys = inverse_of(record.scaler.inner), record.keys
    flatten, undo = _layout(record.flattening)

    def apply(columns: dict[str, Any]) -> dict[str, Any]:
        zeros = torch.zeros_like(next(iter(columns.values())))
        flat = flatten(stacked([columns.get(key, zeros) for key in keys]))
        values = undo(inverse(flat if flat.is_floating_point() else flat.to(torch.float64)))
        return {key: values[:, i] for i, key in enumerate(keys) if key in columns}

    return apply


def unscaled(
    inverses: Sequence[Callable[[dict[str, Any]], dict[str, Any]]],
    record_keys: Sequence[Sequence[str]],
    keys: Sequence[str],
    shape: Sequence[int],
    dtypes: Sequence[np.dtype[Any]],
    squared: Sequence[bool] = (),
) -> Transform:
    """Return the inversion of a chain of records, newest first, for values of some columns.

    Several values of one column are each inverted; those that are `squared`, such as variances, by
    the square of the slope of a linear inverse.
    """
    width = len(keys) * math.prod(shape)

    def undo(part: Any) -> Any:
        columns = part.reshape(-1, len(keys), *shape)
        current = {key: columns[:, i] for i, key in enumerate(keys)}
        for inverse, own in zip(inverses, record_keys, strict=True):
            current.update(inverse({key: current[key] for key in own if key in current}))
        return torch.stack([current[key] for key in keys], dim=1).reshape(-1, width)

    raw = [_tensor_dtype(dtype) for dtype in dtypes if dtype.kind in "iuf"]

    def apply(values: Any) -> Any:
        values = values.to(_common([values.dtype, *raw]))
        parts = values.reshape(values.shape[0], -1, width)
        undone = [undo(parts[:, i]) for i in range(parts.shape[1])]
        for i in range(len(squared)):
            if squared[i]:
                ends = torch.stack([torch.zeros(width), torch.ones(width)]).to(torch.float64)
                zero, one = undo(ends)
                undone[i] = (parts[:, i] * (one - zero) ** 2).to(values.dtype)
        return torch.stack(undone, dim=1).reshape(values.shape)

    return apply


def _layout(flattening: Any) -> tuple[Transform, Transform]:
    """Return how samples are laid out in two dimensions, and put back."""
    sizes = (0, *flattening.shape)
    order = (*flattening.row_axes, *flattening.column_axes)
    columns = int(np.prod([sizes[axis] for axis in flattening.column_axes]))
    inner, back = [sizes[axis] for axis in order[1:]], [int(i) for i in np.argsort(order)]
    return (
        lambda values: values.permute(order).reshape(-1, columns),
        lambda flat: flat.reshape(-1, *inner).permute(back),
    )
