"""Records of fitted scalers: applying, undoing and inverting them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray
from modularml._warning import warn
from modularml.data.formats import common_dtype, stack
from modularml.data.group_scaling import applied_by_group
from modularml.data.padding import in_steps
from modularml.data.schema import TRANSFORMED, ColumnSpec, SampleSchema
from modularml.errors import DataError, ScalerError, ShapeError
from modularml.scalers.flattening import Flattening
from modularml.scalers.scaler import Scaler

__all__ = [
    "LeakWarning",
    "ScalerRecord",
    "apply_records",
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
"""Scalers that treat each column independently, so one can be inverted alone."""


class LeakWarning(UserWarning):
    """Rows outside the training split influence what the model sees."""


@dataclass(frozen=True, eq=False)
class ScalerRecord:
    """A record of a fitted scaler, its columns and the rows it was fitted on.

    Parameters
    ----------
    domain : str
    keys : tuple of str
        In stacking order.
    scaler : Scaler
        Fitted; never changed afterwards.
    flattening : Flattening
        How the stacked columns were flattened to two dimensions.
    fit_to_split : str or None
        None if it was fitted on every row.
    merged_axes : int, tuple of int or None
        As passed by the caller.
    fit_rows : ndarray of int64, shape (n_fit,), or None
        The rows it was fitted on.
    targets : tuple of str
        Full names of the target columns used in fitting.
    outputs : tuple of tuple of int, or None
        Output columns of each key; None if it keeps the shape.
    seed : int or None
        Seed that assigns rows to the folds of `cross_fit`.
    per : tuple of str
        Full names of the columns whose values make a group with a scaler of its own.
    unseen : {'error', 'global'}
        Whether `scaler`, which is fitted on all rows, is used for other groups.
    groups : tuple of tuple
        Values of `per` of each group.
    group_scalers : tuple of Scaler
        Fitted scaler of each group.
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
    per: tuple[str, ...] = ()
    unseen: str = "error"
    groups: tuple[tuple[Any, ...], ...] = field(default=(), repr=False)
    group_scalers: tuple[Scaler, ...] = field(default=(), repr=False)

    def apply(
        self, columns: Mapping[str, Array], masks: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Transform the record's columns: arrays of shape ``(n, *shape)`` by key.

        A column keeps its value where the mask of the same key is false. Columns of `per` are
        expected by full name.
        """
        scaled = self._transform(columns)
        for key in scaled.keys() & (masks or {}).keys():
            old, new = columns[key], scaled[key]
            if new.shape != old.shape:
                raise ScalerError(
                    f"{self.scaler.scaler_name} changes the shape of {key!r} from {old.shape[1:]} "
                    f"to {new.shape[1:]}, which would lose its padding; "
                    "use it on columns without a mask"
                )
            scaled[key] = np.where(in_steps(masks[key], old.shape), new, old)  # type: ignore[index]
        return scaled

    def _transform(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        if not self.per:
            return self._apply(self.scaler.transform, columns)
        own = {key: columns[key] for key in self.keys if key in columns}

        def apply(record: ScalerRecord, rows: IntArray) -> dict[str, Array]:
            return record._transform({key: values[rows] for key, values in own.items()})

        return applied_by_group(self, own, columns, apply)

    def cross_fit(self, columns: Mapping[str, Array], targets: Array) -> dict[str, Array]:
        """Transform the rows used in fitting, as `Scaler.cross_fit` does."""
        return self._apply(partial(self.scaler.cross_fit, targets=targets, seed=self.seed), columns)

    def _apply(
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
        is_built_in = isinstance(self.scaler.scaler, str)  # others may keep a reference
        return self._unstack(flat if is_built_in else flat.copy())

    def invert(
        self,
        columns: Mapping[str, Array],
        facts: Array | None,
        groups: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Invert the scaler; missing columns are filled if they do not affect the result.

        `groups` has the columns of `per` by full name.
        """
        if self.per:

            def undo(record: ScalerRecord, rows: IntArray) -> dict[str, Array]:
                return record.invert({key: v[rows] for key, v in columns.items()}, None)

            return applied_by_group(self, columns, groups or {}, undo)
        values = next(iter(columns.values()))
        if self.outputs is None:
            filled = {key: columns.get(key, np.zeros_like(values)) for key in self.keys}
            flat = self.flattening.apply(stack_columns(filled))
        else:
            flat = np.empty((len(values), sum(map(len, self.outputs))), values.dtype)
            for key, places in zip(self.keys, self.outputs, strict=True):
                flat[:, places] = columns[key].reshape(len(values), len(places))
        if facts is None:
            unscaled = self.scaler.inverse_transform(flat)
        else:
            unscaled = self.scaler.inverse_with(flat, facts)
        stacked = self.flattening.undo(unscaled)
        return {key: stacked[:, i] for i, key in enumerate(self.keys) if key in columns}

    def row_facts(self, columns: Mapping[str, Array]) -> Array:
        """Return the values per row that the inverse needs, from unscaled columns."""
        stacked = stack_columns({key: columns[key] for key in self.keys})
        return self.scaler.row_facts(self.flattening.apply(stacked))

    def describe(self, specs: Mapping[str, ColumnSpec]) -> dict[str, dict[str, Any]]:
        """Return kind and element names of the transformed columns by key."""
        codes = self.scaler.scaler_name in ("LabelEncoder", "OrdinalEncoder")
        kind = "category" if codes else None
        if self.outputs is None:
            return {k: {"kind": kind, "elements": specs[k].elements} for k in self.keys}
        input_names = [name for key in self.keys for name in _element_names(specs[key])]
        try:
            names = [str(n) for n in self.scaler.wrapped.get_feature_names_out(input_names)]
        except (AttributeError, TypeError, ValueError):
            return {key: {} for key in self.keys}
        parts = zip(self.keys, self.outputs, strict=True)
        return {key: {"elements": [names[i] for i in places]} for key, places in parts}

    @property
    def needs_rows(self) -> bool:
        """Whether the inverse needs values of each row."""
        return self.scaler.needs_rows

    @property
    def by_column(self) -> bool:
        """Whether a column can be inverted alone."""
        return self.scaler.scaler in COLUMNWISE

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
                f"{self.scaler.scaler_name} returned shape {flat.shape}, which does not match the "
                f"columns {list(self.keys)}; it must return as many columns as in fitting"
            ) from error
        return {key: stacked[:, i] for i, key in enumerate(self.keys)}


def _element_names(spec: ColumnSpec) -> Iterable[str]:
    """Return a name for each element of a sample."""
    if spec.elements is not None or not spec.shape:
        return spec.elements or [spec.key]
    return [f"{spec.key}_{i}" for i in range(math.prod(spec.shape))]


def stack_columns(columns: Mapping[str, Array], rows: IntArray | None = None) -> Array:
    """Stack columns as `stack` does, but contiguous in memory by column.

    Operations of scalers on a column, and their results, are then contiguous.

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
        Records of one domain.
    columns : mapping of str to ndarray, shape (n, *shape)
        Raw columns by key, and columns of groups by full name; not changed.
    masks : mapping of str to ndarray of bool, optional
        True for data and false for padding, by key of the column.

    Returns
    -------
    dict of str to ndarray
        Only the columns changed by a record.
    """
    current, changed = dict(columns), dict[str, Array]()
    for record in records:
        new = record.apply(current, masks)
        current.update(new)
        changed.update(new)
    return changed


def last_undoable(records: Sequence[ScalerRecord], domain: str, keys: Sequence[str]) -> int:
    """Return the position of the newest record on exactly these keys.

    Raises
    ------
    ScalerError
        If there is none, or a newer record depends on it.
    """
    wanted = set(keys)
    for position in reversed(range(len(records))):
        record = records[position]
        if record.domain != domain or not wanted & set(record.keys):
            continue
        if set(record.keys) == wanted:
            return position
        raise ScalerError(
            f"the newest scaler on {sorted(wanted & set(record.keys))} is "
            f"{record.scaler.scaler_name} over {list(record.keys)}; undo it first, with keys="
            f"{list(record.keys)}"
        )
    raise ScalerError(
        f"no scaler was applied to {list(keys)} of {domain}; there is nothing to undo"
    )


def chain(records: Sequence[ScalerRecord], domain: str, keys: Sequence[str]) -> list[ScalerRecord]:
    """Return the records that change these keys, newest first."""
    return [r for r in reversed(records) if r.domain == domain and set(keys) & set(r.keys)]


def invert(
    records: Sequence[ScalerRecord],
    columns: Mapping[str, Array],
    *,
    domain: str,
    raw: Mapping[str, Array] | None = None,
    masks: Mapping[str, Array] | None = None,
    groups: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Invert all scalers of columns, newest first.

    Parameters
    ----------
    records : sequence of ScalerRecord
        The history, oldest first.
    columns : mapping of str to ndarray, shape (n, *shape)
        Scaled values by key.
    domain : str
    raw : mapping of str to ndarray, optional
        Raw columns of the same rows, for scalers whose inverse needs values of each row.
    masks : mapping of str to ndarray of bool, optional
        True for data and false for padding, by key; values of padding are not changed.
    groups : mapping of str to ndarray, optional
        Columns of groups of the same rows by full name, for scalers fitted per group.

    Raises
    ------
    DataError
        If the groups of the rows are unknown.
    ScalerError
        If a scaler has no inverse, needs rows that are unknown, or mixes these columns with
        others. A wrong value is never returned.
    """
    unscaled = dict(columns)
    domain_records = [r for r in records if r.domain == domain]
    for record in chain(domain_records, domain, list(columns)):
        available = {key: unscaled[key] for key in record.keys if key in unscaled}
        if len(available) < len(record.keys) and not record.by_column:
            raise ScalerError(
                f"{record.scaler.scaler_name} was fitted on {list(record.keys)} together and "
                f"cannot be inverted for {list(available)} alone; pass all of its columns"
            )
        known = {**(groups or {}), **(raw or {})}
        facts = _row_facts(domain_records, record, known if raw else None)
        unscaled.update(record.invert(available, facts, known))
    for key in unscaled.keys() & (masks or {}).keys():
        old = columns[key]
        is_data = in_steps(masks[key], old.shape)  # type: ignore[index]
        unscaled[key] = np.where(is_data, unscaled[key], old)
    return unscaled


def _row_facts(
    records: Sequence[ScalerRecord], record: ScalerRecord, raw: Mapping[str, Array] | None
) -> Array | None:
    if not record.needs_rows:
        return None
    if raw is None:
        raise ScalerError(
            f"the inverse of {record.scaler.scaler_name} needs values of each row, but the "
            "rows are unknown; pass sample_uuids="
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
    """Warn that a scaler is fitted on every row although splits exist."""
    warn(
        f"a scaler is fitted on every row of {label!r} although it has splits, so test rows "
        "influence the training data; pass fit_to_split='train'",
        LeakWarning,
    )
