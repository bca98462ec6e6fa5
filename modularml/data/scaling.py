"""Scalers on columns: fit, apply, undo and invert, as records that can be replayed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray
from modularml._warning import warn
from modularml.data.formats import common_dtype, stack
from modularml.data.schema import TRANSFORMED, ColumnSpec, SampleSchema
from modularml.errors import DataError, ScalerError, ShapeError
from modularml.scalers.flattening import Flattening, flatten
from modularml.scalers.registry import SKLEARN
from modularml.scalers.scaler import Scaler

__all__ = [
    "LeakWarning",
    "ScalerRecord",
    "apply_records",
    "fit_record",
    "invert",
    "last_undoable",
    "scaled_by",
]

COLUMNWISE = frozenset(
    {
        "StandardScaler",
        "MinMaxScaler",
        "MaxAbsScaler",
        "RobustScaler",
        "QuantileTransformer",
        "PowerTransformer",
        "Negate",
        "Absolute",
    }
)
"""Scalers whose columns do not know of each other: one column can be inverted alone."""


class LeakWarning(UserWarning):
    """Rows outside the training part shape what the model sees."""


@dataclass(frozen=True, eq=False)
class ScalerRecord:
    """One fitted scaler: which columns it changed and what it was fitted on.

    Parameters
    ----------
    domain : str
    keys : tuple of str
        In the order they were stacked.
    scaler : Scaler
        Fitted; never changed afterwards.
    flattening : Flattening
        How the stacked columns became two-dimensional.
    fit_to_split : str or None
        None where it was fitted on every row.
    merged_axes : int, tuple of int or None
        As the caller gave it.
    fit_rows : ndarray of int64, shape (n_fit,), or None
        The rows it was fitted on.
    targets : tuple of str
        Full names of the target columns that it looked at.
    outputs : tuple of tuple of int, or None
        Which columns of its output belong to each key; None where it keeps their shape.
    seed : int or None
        What deals rows to the folds of `cross_fit`.
    """

    domain: str
    keys: tuple[str, ...]
    scaler: Scaler
    flattening: Flattening
    fit_to_split: str | None = None
    merged_axes: int | tuple[int, ...] | None = None
    fit_rows: IntArray | None = field(default=None, repr=False, compare=False)
    targets: tuple[str, ...] = ()
    outputs: tuple[tuple[int, ...], ...] | None = None
    seed: int | None = None

    def apply(
        self, columns: Mapping[str, Array], masks: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Transform the record's columns: arrays of shape ``(n, *shape)`` by key.

        Where a mask by the same key is false, a column keeps its value.
        """
        found = self._through(self.scaler.transform, columns)
        for key in found.keys() & (masks or {}).keys():
            given, new = columns[key], found[key]
            if new.shape != given.shape:
                raise ScalerError(
                    f"{self.scaler.scaler_name} makes columns of shape {new.shape[1:]} of "
                    f"{key!r}, {given.shape[1:]}, whose padding could not be told any more; "
                    "use it on columns without a mask"
                )
            found[key] = np.where(in_steps(masks[key], given.shape), new, given)  # type: ignore[index]
        return found

    def cross_fit(self, columns: Mapping[str, Array], targets: Array) -> dict[str, Array]:
        """Transform the rows that it was fitted on, as `Scaler.cross_fit` does."""
        return self._through(
            partial(self.scaler.cross_fit, targets=targets, seed=self.seed), columns
        )

    def _through(
        self, transform: Callable[[Array], Array], columns: Mapping[str, Array]
    ) -> dict[str, Array]:
        missing = [key for key in self.keys if key not in columns]
        if missing:
            raise DataError(
                f"the scaler {self.scaler.scaler_name!r} was fitted on {list(self.keys)} together; "
                f"{missing} is missing from the data"
            )
        stacked = stack_columns({key: columns[key] for key in self.keys})
        try:
            flat = transform(self.flattening.apply(stacked))
        except ScalerError as error:
            raise ScalerError(f"{list(self.keys)}: {error}") from error
        if self.scaler.scaler_name == "OrdinalEncoder" and flat.dtype.kind == "f":
            codes = flat.astype(np.int64) if np.isfinite(flat).all() else flat
            flat = codes if np.array_equal(codes, flat) else flat
        return self._unstack(flat if self._is_known else flat.copy())

    def invert(self, columns: Mapping[str, Array], facts: Array | None) -> dict[str, Array]:
        """Take this scaler off columns; those that are missing are filled where that is safe."""
        some = next(iter(columns.values()))
        if self.outputs is None:
            filled = {key: columns.get(key, np.zeros_like(some)) for key in self.keys}
            flat = self.flattening.apply(stack_columns(filled))
        else:
            flat = np.empty((len(some), sum(map(len, self.outputs))), some.dtype)
            for key, places in zip(self.keys, self.outputs, strict=True):
                flat[:, places] = columns[key].reshape(len(some), len(places))
        if facts is None:
            back = self.scaler.inverse_transform(flat)
        else:
            back = self.scaler.inverse_with(flat, facts)
        stacked = self.flattening.undo(back)
        return {key: stacked[:, i] for i, key in enumerate(self.keys) if key in columns}

    def row_facts(self, columns: Mapping[str, Array]) -> Array:
        """Return what the inverse must know of each row, from the columns before scaling."""
        stacked = stack_columns({key: columns[key] for key in self.keys})
        return self.scaler.row_facts(self.flattening.apply(stacked))

    def describe(self, specs: Mapping[str, ColumnSpec]) -> dict[str, dict[str, Any]]:
        """Return kind and element names of what it makes of columns, by key."""
        codes = self.scaler.scaler_name in ("LabelEncoder", "OrdinalEncoder")
        kind = "category" if codes else None
        if self.outputs is None:
            return {k: {"kind": kind, "elements": specs[k].elements} for k in self.keys}
        given = [name for key in self.keys for name in _names(specs[key])]
        try:
            names = [str(n) for n in self.scaler.wrapped.get_feature_names_out(given)]
        except (AttributeError, TypeError, ValueError):
            return {key: {} for key in self.keys}
        parts = zip(self.keys, self.outputs, strict=True)
        return {key: {"elements": [names[i] for i in places]} for key, places in parts}

    @property
    def needs_rows(self) -> bool:
        """Whether the inverse takes facts of each row."""
        return self.scaler.needs_rows

    @property
    def by_column(self) -> bool:
        """Whether a column can be inverted without the others."""
        return self.scaler.scaler in COLUMNWISE

    @property
    def _is_known(self) -> bool:
        """Whether nobody else holds on to what the scaler returns."""
        return isinstance(self.scaler.scaler, str)

    def _unstack(self, flat: Array) -> dict[str, Array]:
        if self.outputs is not None:
            return {
                key: np.ascontiguousarray(flat[:, places])
                for key, places in zip(self.keys, self.outputs, strict=True)
            }
        try:
            stacked = self.flattening.undo(flat)
        except (ShapeError, ValueError) as error:
            raise ScalerError(
                f"{self.scaler.scaler_name} gave shape {flat.shape}, which does not fit the "
                f"columns {list(self.keys)}; it must give the number of columns that it gave at fit"
            ) from error
        return {key: stacked[:, i] for i, key in enumerate(self.keys)}


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
) -> ScalerRecord:
    """Fit a clone of a scaler on some rows of some columns, and of `targets` by full name.

    Steps of a column where its mask, by the same key, is false do not count. Where these rows are
    given as `blocks` of stacked columns, a scaler that can learn bit by bit does.

    Raises
    ------
    ScalerError
        If a column is no number, no row is left to fit on, or padding cannot be left out.
    ShapeError
        If the columns do not become two-dimensional.
    """
    wrapped = scaler.clone_unfitted() if isinstance(scaler, Scaler) else Scaler(scaler)
    for key, values in columns.items():
        if values.dtype.kind not in "biuf" and not wrapped.takes_categories:
            raise ScalerError(
                f"column {key!r} holds {values.dtype}, not numbers, which {wrapped.scaler_name} "
                "takes; choose keys= without it, or encode it (OneHotEncoder, OrdinalEncoder, "
                "TargetEncoder)"
            )
    where = "" if fit_to_split is None else f" in split {fit_to_split!r}"
    n_rows = len(next(iter(columns.values())) if fit_rows is None else fit_rows)
    if not n_rows:
        raise ScalerError(f"there are no rows to fit on{where}")
    known = columns.items() if wrapped.scaler in SKLEARN else ()
    if empty := [key for key, values in known if _is_empty(values, fit_rows)]:
        warn(
            f"{empty} hold no value in the {n_rows} rows{where} to fit on, so "
            f"{wrapped.scaler_name} makes them NaN in every row; fill them, or leave them out "
            "with keys="
        )
    with np.errstate(invalid="ignore") if empty else nullcontext():
        if targets or masks or blocks is None or not hasattr(wrapped.wrapped, "partial_fit"):
            flat, flattening = flatten(stack_columns(columns, fit_rows), merged_axes)
            if masks:
                shapes = {key: values.shape for key, values in columns.items()}
                holds = {k: in_steps(masks.get(k, np.array(True)), s) for k, s in shapes.items()}
                held = flattening.apply(stack_columns(holds, fit_rows))
                flat = _held(wrapped, flat, held, masks)
            wrapped.fit(flat, fitted_targets(targets, fit_rows, flat) if targets else None)
        else:
            for block in blocks:
                flat, flattening = flatten(block, merged_axes)
                wrapped.partial_fit(flat)
    asked = known if n_rows > 1 else ()
    constant = [key for key, values in asked if _is_constant(values, fit_rows)]
    if constant:
        warn(
            f"{constant} hold one value in all {n_rows} rows{where}, which {wrapped.scaler_name} "
            "makes a constant that tells a model nothing; leave them out with keys=",
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
        int(np.random.randint(2**31)) if wrapped.is_cross_fitted else None,  # noqa: NPY002
    )


def in_steps(mask: Array, shape: tuple[int, ...]) -> Array:
    """Return a mask of the first axes of samples as one of every element, shape (n, *shape)."""
    return np.broadcast_to(mask[(..., *[None] * (len(shape) - mask.ndim))], shape)


def _held(scaler: Scaler, flat: Array, holds: Array, masks: Iterable[str]) -> Array:
    """Return the rows that a scaler is fitted on, without padding."""
    whole = holds.all(axis=1)
    if (whole | ~holds.any(axis=1)).all() or scaler.scaler in ("Negate", "Absolute"):
        return flat[whole] if whole.any() else flat
    name, padded = scaler.scaler_name, f"columns {sorted(masks)} are padded"
    if scaler.scaler not in COLUMNWISE:
        raise ScalerError(
            f"{padded}, and {name} reads several steps at once; choose merged_axes so that each "
            "row is one step, such as merged_axes=(0, 2)"
        )
    if not holds.any(axis=0).all():
        raise ScalerError(
            f"{padded}, and no sample that {name} is fitted on holds data at position "
            f"{int(np.argmin(holds.any(axis=0)))}; choose merged_axes=(0, 2) for one statistic of "
            "all steps, or cut the sequences"
        )
    floating = flat if flat.dtype.kind == "f" else flat.astype(np.float64)
    return np.where(holds, floating, np.nan).astype(floating.dtype)  # these scalers ignore NaN


def fitted_targets(
    targets: Mapping[str, Array], rows: IntArray | None, flat: Array | None = None
) -> Array:
    """Return rows of target columns as a scaler takes them: ``(n,)``, or ``(n, k)`` for several.

    Raises
    ------
    ShapeError
        If there is not one target for each row that is fitted on.
    """
    found = stack(targets, rows).reshape(len(next(iter(targets.values()))[rows]), -1)
    if flat is not None and len(flat) != len(found):
        raise ShapeError(
            f"targets= needs each sample to be one row, and merged_axes makes {len(flat)} rows of "
            f"{len(found)} samples"
        )
    return found[:, 0] if found.shape[1] == 1 else found


def _names(spec: ColumnSpec) -> Iterable[str]:
    """Return a name for each number of a sample."""
    if spec.elements is not None or not spec.shape:
        return spec.elements or [spec.key]
    return [f"{spec.key}_{i}" for i in range(math.prod(spec.shape))]


def _outputs(
    scaler: Scaler, keys: Sequence[str], flat: Array, layout: Flattening
) -> tuple[tuple[int, ...], ...] | None:
    """Return which output columns belong to each key; None where the scaler keeps their shape.

    Raises
    ------
    ScalerError
        If that cannot be told: it mixes the columns of several keys, or leaves out a key.
    """
    n_in, width = flat.shape[1], scaler.transform(flat[:1]).shape[1]
    if width == n_in and not scaler.spreads:
        return None
    if layout.row_axes != (0,):
        raise ScalerError(
            f"{scaler.scaler_name} makes {width} columns of {n_in}, which needs each sample to be "
            f"one row; merged_axes={layout.merged_axes} makes several"
        )
    if len(keys) == 1:
        return (tuple(range(width)),)
    marks = [f"#{i:09d}" for i in range(n_in)]
    try:
        names = scaler.wrapped.get_feature_names_out(marks)
    except (AttributeError, TypeError, ValueError):
        names = ()
    owners = [{int(m) * len(keys) // n_in for m in re.findall(r"#(\d{9})", n)} for n in names]
    found = tuple(tuple(i for i, own in enumerate(owners) if own == {k}) for k in range(len(keys)))
    if sum(map(len, found)) != width or not all(found):
        raise ScalerError(
            f"{scaler.scaler_name} makes {width} columns of the {n_in} of {list(keys)} together, "
            "and it cannot be told which belong to which key; make them one array column (stack= "
            "of a constructor), or call fit_transform for each key"
        )
    return found


def _is_empty(values: Array, rows: IntArray | None) -> bool:
    first = values[0] if rows is None else values[rows[0]]
    if (
        values.dtype.kind != "f" or not np.isnan(first).all()
    ):  # so it is nearly always known at once
        return False
    return bool(np.isnan(values if rows is None else values[rows]).all())


def _is_constant(values: Array, rows: IntArray | None) -> bool:
    few = np.array([0, len(values) // 2, -1]) if rows is None else rows[[0, len(rows) // 2, -1]]
    first = values[few[0]]
    if not (values[few] == first).all():  # so it is nearly always known at once
        return False
    return bool(((values if rows is None else values[rows]) == first).all())


def stack_columns(columns: Mapping[str, Array], rows: IntArray | None = None) -> Array:
    """Stack columns as `stack` does, but one behind the other in memory.

    What scalers do to a column, and what becomes of a column afterwards, is then contiguous.

    Returns
    -------
    ndarray, shape (n, n_columns, *shape)
    """
    arrays = list(columns.values())
    if len(arrays) == 1 or arrays[0].ndim > 1 or any(a.ndim > 1 for a in arrays):
        return stack(columns, rows)
    n = len(arrays[0]) if rows is None else len(rows)
    out = np.empty((len(arrays), n), dtype=common_dtype(columns))
    for row, array in zip(out, arrays, strict=True):
        row[:] = array if rows is None else array[rows]
    return out.T


def apply_records(
    records: Iterable[ScalerRecord],
    columns: Mapping[str, Array],
    masks: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Apply a chain of records to raw columns, oldest first.

    Parameters
    ----------
    records : iterable of ScalerRecord
        Of one domain.
    columns : mapping of str to ndarray, shape (n, *shape)
        Raw columns by key; not changed.
    masks : mapping of str to ndarray of bool, optional
        Where padded columns, by key, hold data.

    Returns
    -------
    dict of str to ndarray
        Only the columns that some record changed.
    """
    now, changed = dict(columns), dict[str, Array]()
    for record in records:
        new = record.apply(now, masks)
        now.update(new)
        changed.update(new)
    return changed


def last_undoable(records: Sequence[ScalerRecord], domain: str, keys: Sequence[str]) -> int:
    """Return the place of the newest record on exactly these keys.

    Raises
    ------
    ScalerError
        If there is none, or a newer record depends on it.
    """
    wanted = set(keys)
    for place in reversed(range(len(records))):
        record = records[place]
        if record.domain != domain or not wanted & set(record.keys):
            continue
        if set(record.keys) == wanted:
            return place
        raise ScalerError(
            f"the newest scaler on {sorted(wanted & set(record.keys))} is "
            f"{record.scaler.scaler_name} over {list(record.keys)}; undo that one first, with keys="
            f"{list(record.keys)}"
        )
    raise ScalerError(
        f"no scaler was applied to {list(keys)} of {domain}; there is nothing to undo"
    )


def chain(records: Sequence[ScalerRecord], domain: str, keys: Sequence[str]) -> list[ScalerRecord]:
    """Return the records that touch these keys, newest first."""
    return [r for r in reversed(records) if r.domain == domain and set(keys) & set(r.keys)]


def invert(
    records: Sequence[ScalerRecord],
    columns: Mapping[str, Array],
    *,
    domain: str,
    raw: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Take all scalers off columns, newest first.

    Parameters
    ----------
    records : sequence of ScalerRecord
        The history, oldest first.
    columns : mapping of str to ndarray, shape (n, *shape)
        Scaled values by key.
    domain : str
    raw : mapping of str to ndarray, optional
        The raw columns of the same rows, for scalers whose inverse needs facts of each row.

    Raises
    ------
    ScalerError
        If a scaler has no inverse, needs rows that are not known, or mixes these columns with
        others. A wrong number is never returned.
    """
    found = dict(columns)
    of_domain = [r for r in records if r.domain == domain]
    for record in chain(of_domain, domain, list(columns)):
        mine = {key: found[key] for key in record.keys if key in found}
        if len(mine) < len(record.keys) and not record.by_column:
            raise ScalerError(
                f"{record.scaler.scaler_name} was fitted on {list(record.keys)} together and "
                f"cannot be inverted for {list(mine)} alone; give all of its columns"
            )
        facts = _facts(of_domain, record, raw) if record.needs_rows else None
        found.update(record.invert(mine, facts))
    return found


def _facts(
    records: Sequence[ScalerRecord], record: ScalerRecord, raw: Mapping[str, Array] | None
) -> Array:
    if raw is None:
        raise ScalerError(
            f"the inverse of {record.scaler.scaler_name} needs facts of each row, and it is not "
            "known which rows these are; pass sample_uuids="
        )
    before = records[: records.index(record)]
    return record.row_facts({**raw, **apply_records(before, raw)})


def scaled_by(records: Iterable[ScalerRecord], schema: SampleSchema) -> list[ScalerRecord]:
    """Return the records that scaled a column of a schema."""
    return [
        r
        for r in records
        if any(f"{r.domain}.{key}.{TRANSFORMED}" in schema.columns for key in r.keys)
    ]


def warn_unsplit(label: str) -> None:
    """Warn that a scaler sees every row although splits exist."""
    warn(
        f"a scaler is fitted on every row of {label!r} although it has splits, so test rows shape "
        "the training data; pass fit_to_split='train'",
        LeakWarning,
    )
