"""Fitted scalers on columns: apply, undo and invert, as records that can be replayed."""

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
                    f"{key!r}, {given.shape[1:]}, whose padding would be lost; "
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


def _names(spec: ColumnSpec) -> Iterable[str]:
    """Return a name for each number of a sample."""
    if spec.elements is not None or not spec.shape:
        return spec.elements or [spec.key]
    return [f"{spec.key}_{i}" for i in range(math.prod(spec.shape))]


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
    masks: Mapping[str, Array] | None = None,
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
    masks : mapping of str to ndarray of bool, optional
        Where padded columns, by key, hold data; elsewhere values stay as they are.

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
    for key in found.keys() & (masks or {}).keys():
        given = columns[key]
        found[key] = np.where(in_steps(masks[key], given.shape), found[key], given)  # type: ignore[index]
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
