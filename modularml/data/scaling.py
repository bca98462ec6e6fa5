"""Records of fitted scalers: applying, undoing and inverting them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.data.formats import stack_columns
from modularml.data.samples import in_steps
from modularml.data.schema import TRANSFORMED, ColumnSpec, SampleSchema
from modularml.errors import DataError, ScalerError, ShapeError
from modularml.scalers.flattening import Flattening
from modularml.scalers.scaler import Scaler

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
        if self.per:
            own = {key: columns[key] for key in self.keys if key in columns}

            def transform(record: ScalerRecord, rows: IntArray) -> dict[str, Array]:
                part = {key: values[rows] for key, values in own.items()}
                return record._apply(record.scaler.transform, part)

            scaled = applied_by_group(self, own, columns, transform)
        else:
            scaled = self._apply(self.scaler.transform, columns)
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
        flat = flat if is_built_in else flat.copy()
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

    def describe(self, specs: Mapping[str, ColumnSpec]) -> dict[str, dict[str, Any]]:
        """Return kind and element names of the transformed columns by key."""
        codes = self.scaler.scaler_name in ("LabelEncoder", "OrdinalEncoder")
        kind = "category" if codes else None
        if self.outputs is None:
            return {k: {"kind": kind, "elements": specs[k].elements} for k in self.keys}
        input_names = list[str]()
        for key, spec in specs.items():
            n = math.prod(spec.shape)
            plain = [f"{key}_{i}" for i in range(n)] if spec.shape else [key]
            input_names += plain if spec.elements is None else spec.elements
        try:
            names = [str(n) for n in self.scaler.wrapped.get_feature_names_out(input_names)]
        except (AttributeError, TypeError, ValueError):
            return {key: {} for key in self.keys}
        parts = zip(self.keys, self.outputs, strict=True)
        return {key: {"elements": [names[i] for i in places]} for key, places in parts}


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
        if len(available) < len(record.keys) and record.scaler.scaler not in COLUMNWISE:
            raise ScalerError(
                f"{record.scaler.scaler_name} was fitted on {list(record.keys)} together and "
                f"cannot be inverted for {list(available)} alone; pass all of its columns"
            )
        known = {**(groups or {}), **(raw or {})}
        facts = None
        if record.scaler.needs_rows:
            if not raw:
                raise ScalerError(
                    f"the inverse of {record.scaler.scaler_name} needs values of each row, but the "
                    "rows are unknown; pass sample_uuids="
                )
            before = domain_records[: domain_records.index(record)]
            all_columns = {**known, **apply_records(before, known)}
            stacked = stack_columns({key: all_columns[key] for key in record.keys})
            facts = record.scaler.row_facts(record.flattening.apply(stacked))
        unscaled.update(record.invert(available, facts, known))
    for key in unscaled.keys() & (masks or {}).keys():
        old = columns[key]
        is_data = in_steps(masks[key], old.shape)  # type: ignore[index]
        unscaled[key] = np.where(is_data, unscaled[key], old)
    return unscaled


def scaled_by(records: Iterable[ScalerRecord], schema: SampleSchema) -> list[ScalerRecord]:
    """Return the records that scaled a column of a schema."""
    return [
        r
        for r in records
        if any(f"{r.domain}.{key}.{TRANSFORMED}" in schema.columns for key in r.keys)
    ]


def applied_by_group(
    record: ScalerRecord,
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
    scalers: list[tuple[Scaler, IntArray]] = []
    if n:
        if lacks := [name.split(".")[1] for name in record.per if name not in groups]:
            raise DataError(
                f"{record.scaler.scaler_name} was fitted per {shown_keys(record.per)}, and the "
                f"data lacks {lacks}; add the column, so that each row gets the scaler of its group"
            )
        labels, codes = grouped({name: np.asarray(groups[name]) for name in record.per})
        number = {label: i for i, label in enumerate(record.groups)}
        unseen = [i for i, label in enumerate(labels) if label not in number]
        rows = np.flatnonzero(np.isin(codes, unseen))
        if len(rows) and record.unseen == "error":
            raise ScalerError(
                f"{len(rows)} rows have values of {shown_keys(record.per)} that "
                f"{record.scaler.scaler_name} was not fitted on: "
                f"{', '.join(shown_label(labels[i]) for i in unseen[:5])}. Fit on rows of every "
                "group, or pass unseen='global' to use the scaler of all rows for them"
            )
        scalers = [
            (record.group_scalers[number[label]], np.flatnonzero(codes == code))
            for code, label in enumerate(labels)
            if label in number
        ]
    if not n or len(rows):
        scalers.append((record.scaler, rows if n else np.arange(0)))
    parts = [(rows, apply(replace(record, per=(), scaler=s), rows)) for s, rows in scalers]
    out: dict[str, Array] = {}
    for key in parts[0][1]:
        pieces = [part[key] for _, part in parts]
        out[key] = np.empty((n, *pieces[0].shape[1:]), np.result_type(*pieces))
        for (rows, _), piece in zip(parts, pieces, strict=True):
            out[key][rows] = piece
    return out


def grouped(columns: Mapping[str, Array]) -> tuple[list[tuple[Any, ...]], IntArray]:
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


def shown_keys(per: Sequence[str]) -> str:
    """Return columns of groups as text."""
    keys = [name.split(".")[1] for name in per]
    return repr(keys[0] if len(keys) == 1 else keys)


def shown_label(label: tuple[Any, ...]) -> str:
    """Return the values that make a group as text."""
    return repr(label[0] if len(label) == 1 else label)
