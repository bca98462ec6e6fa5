"""Fitting, applying, undoing and inverting scalers of a FeatureSet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from modularml._typing import Array, Columns
from modularml._warning import warn
from modularml.context import is_run_again
from modularml.data import scaling
from modularml.data.arrow_columns import column_values, to_arrow
from modularml.data.arrow_types import in_shape, to_numpy
from modularml.data.collection import SampleCollection
from modularml.data.collection_building import check_lengths
from modularml.data.input_tables import as_columns
from modularml.data.scaler_fitting import UNSEEN, fit_by_group, fit_record, fitted_targets
from modularml.data.scaling import ScalerRecord
from modularml.data.schema import DOMAINS, RAW, TRANSFORMED
from modularml.data.selectors import as_list, select_one
from modularml.errors import ConfigError, DataError, ScalerError, ShapeError, UnknownNameError
from modularml.scalers.scaler import Scaler


def fit_transform(
    self: Any,
    scaler: Scaler | Any,
    *,
    domain: str,
    keys: str | list[str] | None = None,
    fit_to_split: str | None = None,
    merged_axes: int | tuple[int, ...] | None = None,
    targets: str | list[str] | None = None,
    per: str | list[str] | None = None,
    unseen: str = "error",
) -> None:
    """Fit a scaler, encoder or selector on the rows of one split and transform every row.

    Writes the representation ``transformed`` of each key, computed from its newest one. Its
    shape differs if the number of columns changes: ``(k,)`` per sample, for example for `PCA`
    or for `OneHotEncoder` of text.

    Parameters
    ----------
    scaler : str, class, instance or Scaler
        A registered name, or anything with ``fit`` and ``transform``. It is cloned.
    domain : {'features', 'targets', 'tags'}
    keys : str or list of str, optional
        Columns to scale together; by default all of the domain.
    fit_to_split : str, optional
        Split to fit on. None means every row, which leaks and warns if there are splits.
    merged_axes : int or tuple of int, optional
        Axes of the stacked columns ``(n, n_columns, *shape)`` to merge: ``(1, 2)`` scales each
        element, ``(0, 2)`` each column, ``(0, 1, 2)`` everything together.
    targets : str or list of str, optional
        Target columns passed to ``fit`` (`SelectKBest`, `TargetEncoder`), by default in the
        newest representation. A `TargetEncoder` encodes the rows it is fitted on with
        statistics of other folds.
    per : str or list of str, optional
        Columns such as a cell: the rows of each of their values are scaled by a scaler of
        their own, also when new rows are predicted and when targets are unscaled.
    unseen : {'error', 'global'}
        Whether rows of a group without rows to fit on are refused, or scaled by the scaler
        of all rows.

    Raises
    ------
    UnknownNameError
        If the domain, a key, the split or the name of the scaler is unknown.
    ShapeError
        If the columns cannot be flattened to two dimensions.
    ScalerError
        If the scaler does not accept the type of a column, required targets are missing, or
        the outputs of several keys cannot be separated. A call that fails changes nothing.
    """
    table: SampleCollection = self._collection
    table.check_rows()
    target_names = [] if targets is None else self._select(targets=targets)
    chosen = _domain_keys(self, domain, keys)
    rows = None if fit_to_split is None else self.get_split(fit_to_split).valid_indices
    schema = table.schema
    names = {key: schema.newest(domain, key) for key in chosen}
    if unseen not in UNSEEN:
        raise ConfigError(f"unseen must be one of {UNSEEN}, got {unseen!r}")
    specs = {key: schema[name] for key, name in names.items()}
    fit = partial(
        fit_record,
        scaler,
        {key: table.numpy(name) for key, name in names.items()},
        domain=domain,
        fit_to_split=fit_to_split,
        merged_axes=merged_axes,
        targets={name: table.numpy(name) for name in target_names},
        masks={k: m for k, n in names.items() if (m := table.mask(n)) is not None},
        categories=[k for k, s in specs.items() if s.kind == "category" and s.rep == RAW],
    )
    record = fit(fit_rows=rows, blocks=table.blocks(list(names.values()), rows))
    if per is not None:
        columns = [select_one(schema, key) for key in as_list(per)]
        groups = {name: table.numpy(name) for name in columns}
        record = fit_by_group(record, columns, groups, unseen, lambda rows: fit(fit_rows=rows))
    old = next((r for r in self._scaler_records[::-1] if {*r.keys} & {*chosen}), None)
    if old is not None and repr(old) == repr(record):  # a cell of IPython may be run again
        every = np.arange(len(self))
        fitted = [every if r.fit_rows is None else r.fit_rows for r in (old, record)]
        shown = f"the scaler of {', '.join(record.keys)} in {self.label!r}, fitted on the same rows"
        if np.array_equal(fitted[0], fitted[1]) and is_run_again(shown):
            return
    new = _with_transformed(table, record, names)
    if fit_to_split is None and self._splits:
        warn(
            f"a scaler is fitted on every row of {self.label!r} although it has splits, so test "
            "rows influence the training data; pass fit_to_split='train'",
            scaling.LeakWarning,
        )
    self._collection = new
    self._scaler_records.append(record)


def undo_last_transform(self: Any, domain: str, keys: str | list[str] | None = None) -> None:
    """Undo the newest scaler on exactly these keys, bit for bit.

    Remaining scalers are applied to the raw columns again; no inverse is used.

    Raises
    ------
    ScalerError
        If no scaler was applied to these keys, or a newer one depends on it.
    """
    chosen = _domain_keys(self, domain, keys)
    last = scaling.last_undoable(self._scaler_records, domain, chosen)
    _replay(self, self._scaler_records[:last] + self._scaler_records[last + 1 :])


def undo_all_transforms(
    self: Any, domain: str | None = None, keys: str | list[str] | None = None
) -> None:
    """Undo every scaler on these keys, newest first.

    Raises
    ------
    ScalerError
        If a scaler covers other keys too; nothing is changed in that case.
    """
    if domain is not None and domain not in DOMAINS:
        raise UnknownNameError("domain", domain, DOMAINS)
    domain_of = self._collection.schema.domain_of
    wanted = (
        None
        if keys is None
        else {k for key in as_list(keys) for k in _domain_keys(self, domain or domain_of(key), key)}
    )
    remaining = []
    for record in self._scaler_records:
        if domain not in (None, record.domain):
            remaining.append(record)
            continue
        others = set() if wanted is None else set(record.keys) - wanted
        if len(others) == len(record.keys):
            remaining.append(record)
        elif others:
            raise ScalerError(
                f"{record.scaler.scaler_name} was fitted on {list(record.keys)} together; "
                f"undo all of them, not {sorted(set(record.keys) - others)} alone"
            )
    _replay(self, remaining)


def iter_scalers_on_cols(self: Any, *, domain: str, columns: str | list[str]) -> Iterable[Scaler]:
    """Return the fitted scalers on these columns, newest first."""
    keys = _domain_keys(self, domain, columns)
    return [record.scaler for record in scaling.chain(self._scaler_records, domain, keys)]


def unscale_data_for_cols(
    self: Any,
    *,
    data: Array,
    domain: str,
    columns: str | list[str],
    sample_uuids: Iterable[Any] | None = None,
    groups: Mapping[str, Array] | None = None,
) -> Array:
    """Convert scaled values back to the units of the raw columns.

    Parameters
    ----------
    data : ndarray, shape (n,), (n, n_columns) or (n, n_columns, *shape)
        For example predictions of scaled targets. Not changed.
    domain : {'features', 'targets', 'tags'}
    columns : str or list of str
        Keys of the columns of `data`, in order.
    sample_uuids : iterable of str, shape (n,), optional
        Ids of the rows, for scalers whose inverse needs values of each row. With ids, padding
        keeps its value; without them, all steps are treated as data.
    groups : mapping of str to ndarray, shape (n,), optional
        Columns by key that say which group a row is of, for scalers fitted per group and rows
        without ids.

    Returns
    -------
    ndarray
        Same shape as `data`.

    Raises
    ------
    ShapeError
        If the shape of `data` does not match these columns.
    ScalerError
        If a scaler cannot be inverted for these columns or rows.
    """
    keys = _domain_keys(self, domain, columns)
    values = np.asarray(data)
    if values.dtype.kind not in "biuf":
        raise DataError(f"data must be numbers, got {values.dtype}")
    schema = self._collection.schema
    shape = schema[schema.newest(domain, keys[0])].shape
    full = (len(values) if values.ndim else -1, len(keys), *shape)
    if values.size != int(np.prod(full)):
        raise ShapeError(
            f"data for the columns {keys} of {domain} must have shape {('n', *full[1:])}, got "
            f"{values.shape}"
        )
    stacked = values.reshape(full)
    rows = None if sample_uuids is None else self.take_sample_uuids(sample_uuids)
    if rows is not None and len(rows) != len(values):
        raise ShapeError(
            f"sample_uuids must name the {len(values)} rows of data, got {len(rows)} ids"
        )
    raw: dict[str, Array] | None = None
    masks, known = dict[str, Array](), dict[str, Array]()
    if rows is not None:
        raw = {k: rows.column(f"{domain}.{k}.{RAW}") for k in schema.keys(domain)}
        mask_names = {k: schema.mask_of(schema.newest(domain, k)) for k in keys}
        masks = {k: rows.column(name) for k, name in mask_names.items() if name is not None}
        per = {n for r in self._scaler_records if r.domain == domain for n in r.per}
        known = {name: rows.column(name) for name in per if name in schema.columns}
    passed = {select_one(schema, k): np.asarray(v) for k, v in (groups or {}).items()}
    unscaled = scaling.invert(
        self._scaler_records,
        {key: stacked[:, i] for i, key in enumerate(keys)},
        domain=domain,
        raw=raw,
        masks=masks,
        groups={**known, **passed},
    )
    stacked = np.stack([unscaled[key] for key in keys], axis=1)
    return stacked.reshape(values.shape) if stacked.size == values.size else stacked


def transform_new(self: Any, data: Any, *, domain: str | None = None) -> dict[str, Any]:
    """Apply the recorded scalers to new raw rows.

    Parameters
    ----------
    data : mapping of str to array-like, shape (n, *shape), or frame
        Raw values by key, in the units of this set. Not changed.
    domain : {'features', 'targets', 'tags'}, optional
        Domain to scale; None means all.

    Returns
    -------
    dict of str to ndarray
        Every column of `data` in its newest representation; unknown columns are returned
        unchanged.

    Raises
    ------
    DataError
        If `data` lacks a column that was scaled together with one that it has, or columns
        differ in length.
    """
    columns = dict(as_columns(data))
    schema = self._collection.schema
    domains = DOMAINS if domain is None else (domain,)
    for each in domains:
        for k in _domain_keys(self, each, None) if domain else schema.keys(each):
            if k in columns:
                shape = schema[f"{each}.{k}.{RAW}"].shape
                columns[k] = in_shape(column_values(columns[k], k), shape)
    return newest_of(self, columns, domains)


def newest_of(
    fs: Any, columns: Mapping[str, Any], domains: Iterable[str] = DOMAINS
) -> dict[str, Any]:
    """Apply the scalers of a FeatureSet to raw arrays in the shapes of its columns, by key."""
    columns, schema = dict(columns), fs._collection.schema
    for each in domains:
        known = dict.fromkeys(schema.keys(each))
        new = {k: values for k, values in columns.items() if k in known}
        if not new:
            continue
        check_lengths({k: len(v) for k, v in new.items()})
        records = [r for r in fs._scaler_records if r.domain == each and set(r.keys) & new.keys()]
        groups, masks = dict[str, Array](), dict[str, Array]()
        for record in records:
            for name in record.per:
                if (key := name.split(".")[1]) in columns:
                    groups[name] = to_numpy(to_arrow(columns[key], key))
            for key in new.keys() & schema.masks.keys() & set(record.keys):
                mask = schema.masks[key]
                if mask not in columns:
                    raise DataError(
                        f"column {key!r} is padded, but its mask {mask!r} is missing in the data; "
                        "add it, true for data"
                    )
                masks[key] = to_numpy(to_arrow(columns[mask], mask)).astype(bool)
        columns |= scaling.apply_records(records, {**groups, **new}, masks)
    return columns


def _domain_keys(fs: Any, domain: str, keys: Columns) -> list[str]:
    if domain not in DOMAINS:
        raise UnknownNameError("domain", domain, DOMAINS)
    known = dict.fromkeys(fs._collection.schema.keys(domain))
    chosen = list(known) if keys is None else as_list(keys)
    for key in chosen:
        if key not in known:
            raise UnknownNameError(f"column of {domain}", key, known)
    if not chosen:
        raise DataError(f"{fs.label!r} has no {domain}")
    return chosen


def _replay(fs: Any, records: list[ScalerRecord]) -> None:
    """Keep only these scalers of a set and recompute their columns from the raw ones."""
    table: SampleCollection = fs._collection
    table.check_rows()
    removed = [r for r in fs._scaler_records if r not in records]
    for record in (*removed, *records):
        for key in record.keys:
            if RAW not in table.schema.reps(record.domain, key):
                raise ScalerError(
                    f"column {key!r} of {fs.label!r} has no raw values, so its scalers cannot be "
                    "undone"
                )
    kept = {f"{r.domain}.{key}.{TRANSFORMED}" for r in records for key in r.keys}
    touched = {(r.domain, key) for r in removed for key in r.keys}
    table = table.without_columns(
        [name for d, key in touched if (name := f"{d}.{key}.{TRANSFORMED}") not in kept]
    )
    if missing := {n for r in records for n in r.targets} - set(table.names):
        raise ScalerError(f"a scaler was fitted with {sorted(missing)}; undo that scaler first")
    affected: list[ScalerRecord] = []
    for record in records * len(records):  # those that share keys, directly or through others
        columns = {(record.domain, key) for key in record.keys}
        if columns & touched and record not in affected:
            affected, touched = [*affected, record], touched | columns
    fs._collection = scaled(table, [record for record in records if record in affected])
    fs._scaler_records = records


def scaled(collection: SampleCollection, records: Iterable[ScalerRecord]) -> SampleCollection:
    """Return a collection with these scalers applied to its raw columns."""
    written: set[str] = set()
    for record in records:
        new = {key: f"{record.domain}.{key}.{TRANSFORMED}" for key in record.keys}
        raw = {key: f"{record.domain}.{key}.{RAW}" for key in record.keys}
        names = {key: new[key] if new[key] in written else raw[key] for key in record.keys}
        collection = _with_transformed(collection, record, names)
        written |= set(new.values())
    return collection


def _with_transformed(
    collection: SampleCollection, record: ScalerRecord, names: Mapping[str, str]
) -> SampleCollection:
    """Return a collection with the columns of `names` (full name by key) scaled."""
    cross_fitted: dict[str, Array] = {}
    rows = np.arange(collection.n_samples) if record.fit_rows is None else record.fit_rows
    if record.scaler.is_cross_fitted:
        columns = {key: collection.numpy(name)[rows] for key, name in names.items()}
        targets = {name: collection.numpy(name) for name in record.targets}
        cross_fitted = record.cross_fit(columns, fitted_targets(targets, rows))

    masks = {key: m for key, name in names.items() if (m := collection.schema.mask_of(name))}

    def compute(columns: dict[str, Array], at: int) -> dict[str, Array]:
        new = record.apply(
            {**{n: columns[n] for n in record.per}, **{k: columns[n] for k, n in names.items()}},
            {key: columns[name] for key, name in masks.items()},
        )
        for key, values in cross_fitted.items():
            here = (rows >= at) & (rows < at + len(new[key]))
            new[key][rows[here] - at] = values[here]
        return {f"{record.domain}.{key}.{TRANSFORMED}": values for key, values in new.items()}

    read = dict.fromkeys([*names.values(), *masks.values(), *record.per])
    new = collection.with_computed(list(read), compute)
    descriptions = record.describe({key: collection.schema[name] for key, name in names.items()})
    return new.with_descriptions(
        {f"{record.domain}.{k}.{TRANSFORMED}": v for k, v in descriptions.items()}
    )
