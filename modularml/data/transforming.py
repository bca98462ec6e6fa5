"""Scaling columns of a FeatureSet, with a record of every step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from modularml._typing import Array, Columns, IntArray
from modularml.data import scaling
from modularml.data.arrow_types import in_shape, to_numpy
from modularml.data.collection import SampleCollection
from modularml.data.columns import to_arrow
from modularml.data.frames import as_columns
from modularml.data.rows import SplitMixin
from modularml.data.scaler_fitting import fit_record, fitted_targets
from modularml.data.scaling import ScalerRecord
from modularml.data.schema import DOMAINS, RAW, TRANSFORMED, ColumnSpec
from modularml.data.selectors import as_list
from modularml.data.sources import check_lengths
from modularml.data.view import FeatureSetView
from modularml.errors import DataError, ScalerError, ShapeError, UnknownNameError
from modularml.scalers.scaler import Scaler

__all__ = ["TransformingMixin"]


class TransformingMixin(SplitMixin[FeatureSetView]):
    """Fit, apply, undo and invert scalers."""

    _collection: SampleCollection
    _scaler_records: list[ScalerRecord]
    _splits: dict[str, IntArray]

    @abstractmethod
    def get_split(self, split_name: str) -> FeatureSetView:
        """Return a split by name."""

    @property
    def scaler_records(self) -> tuple[ScalerRecord, ...]:
        """Every fitted scaler, oldest first."""
        return tuple(self._scaler_records)

    def fit_transform(
        self,
        scaler: Scaler | Any,
        *,
        domain: str,
        keys: str | list[str] | None = None,
        fit_to_split: str | None = None,
        merged_axes: int | tuple[int] | None = None,
        targets: str | list[str] | None = None,
    ) -> None:
        """Fit a scaler, encoder or selector on the rows of one split and transform every row.

        Writes the representation ``transformed`` of each key, on top of the one that is there. It
        has another shape where the number of columns changes: ``(k,)`` a sample, for `PCA` or
        `OneHotEncoder` of text, say.

        Parameters
        ----------
        scaler : str, class, instance or Scaler
            A registered name, or anything with ``fit`` and ``transform``. It is cloned.
        domain : {'features', 'targets', 'tags'}
        keys : str or list of str, optional
            Columns that are scaled together; all of the domain where none are given.
        fit_to_split : str, optional
            Split whose rows are fitted on. None means every row, which leaks: it is warned of.
        merged_axes : int or tuple of int, optional
            Axes of the stacked columns ``(n, n_columns, *shape)`` that become one: ``(1, 2)``
            scales each element, ``(0, 2)`` each column, ``(0, 1, 2)`` everything alike.
        targets : str or list of str, optional
            Target columns that are looked at (`SelectKBest`, `TargetEncoder`), in the newest
            representation where none is named. A `TargetEncoder` gives the rows that it is fitted
            on what it learned from other folds of them.

        Raises
        ------
        UnknownNameError
            If the domain, a key, the split or the scaler's name is not known.
        ShapeError
            If the columns do not become two-dimensional.
        ScalerError
            If a column is of a type that the scaler does not take, targets are needed and not
            given, or several keys become columns that cannot be distinguished. A call that fails
            changes nothing.
        """
        self._collection.check_rows()
        looked_at = [] if targets is None else self._select(targets=targets)
        chosen = self._domain_keys(domain, keys)
        rows = None if fit_to_split is None else self.get_split(fit_to_split).valid_indices
        schema = self._collection.schema
        names = {key: schema.newest(domain, key) for key in chosen}
        record = fit_record(
            scaler,
            {key: self._collection.numpy(name) for key, name in names.items()},
            domain=domain,
            fit_to_split=fit_to_split,
            fit_rows=rows,
            merged_axes=merged_axes,
            blocks=self._collection.blocks(list(names.values()), rows),
            targets={name: self._collection.numpy(name) for name in looked_at},
            masks={k: m for k, n in names.items() if (m := self._collection.mask(n)) is not None},
            categories=[k for k, n in names.items() if _is_raw_category(schema[n])],
        )
        new = _with_transformed(self._collection, record, names)
        if fit_to_split is None and self._splits:
            scaling.warn_unsplit(str(self.label))
        self._collection = new
        self._scaler_records.append(record)

    def undo_last_transform(self, domain: str, keys: str | list[str] | None = None) -> None:
        """Take back the newest scaler on exactly these keys, bit for bit.

        What remains is computed again from the raw columns, never by an inverse.

        Raises
        ------
        ScalerError
            If no scaler was applied to these keys, or a newer one depends on it.
        """
        chosen = self._domain_keys(domain, keys)
        place = scaling.last_undoable(self._scaler_records, domain, chosen)
        self._replay(self._scaler_records[:place] + self._scaler_records[place + 1 :])

    def undo_all_transforms(
        self, domain: str | None = None, keys: str | list[str] | None = None
    ) -> None:
        """Take back every scaler on these keys, newest first.

        Raises
        ------
        ScalerError
            If a scaler covers other keys too; nothing is changed then.
        """
        if domain is not None and domain not in DOMAINS:
            raise UnknownNameError("domain", domain, DOMAINS)
        wanted = None if keys is None else self._keys_of(domain, keys)
        kept = []
        for record in self._scaler_records:
            if domain not in (None, record.domain):
                kept.append(record)
                continue
            others = set() if wanted is None else set(record.keys) - wanted
            if len(others) == len(record.keys):
                kept.append(record)
            elif others:
                raise ScalerError(
                    f"{record.scaler.scaler_name} was fitted on {list(record.keys)} together; "
                    f"undo all of them, not {sorted(set(record.keys) - others)} alone"
                )
        self._replay(kept)

    def iter_scalers_on_cols(self, *, domain: str, columns: str | list[str]) -> Iterable[Scaler]:
        """Return the fitted scalers on these columns, newest first."""
        keys = self._domain_keys(domain, columns)
        return [record.scaler for record in scaling.chain(self._scaler_records, domain, keys)]

    def unscale_data_for_cols(
        self,
        *,
        data: Array,
        domain: str,
        columns: str | list[str],
        sample_uuids: Iterable[Any] | None = None,
    ) -> Array:
        """Bring scaled values back to the units of the raw columns.

        Parameters
        ----------
        data : ndarray, shape (n,), (n, n_columns) or (n, n_columns, *shape)
            Predictions of scaled targets, say. Not changed.
        domain : {'features', 'targets', 'tags'}
        columns : str or list of str
            Keys that `data` holds, in its order.
        sample_uuids : iterable of str, shape (n,), optional
            Which rows these are, for scalers whose inverse needs facts of each row. Padding of
            their columns stays at its value; where no rows are named, all steps are taken for data.

        Returns
        -------
        ndarray
            Of the shape of `data`.

        Raises
        ------
        ShapeError
            If `data` does not hold these columns.
        ScalerError
            If a scaler cannot be inverted for these columns or rows.
        """
        keys = self._domain_keys(domain, columns)
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
        masks: dict[str, Array] = {}
        if rows is not None:
            raw = {k: rows.column(f"{domain}.{k}.{RAW}") for k in schema.keys(domain)}
            of = {k: schema.mask_of(schema.newest(domain, k)) for k in keys}
            masks = {k: rows.column(name) for k, name in of.items() if name is not None}
        found = scaling.invert(
            self._scaler_records,
            {key: stacked[:, i] for i, key in enumerate(keys)},
            domain=domain,
            raw=raw,
            masks=masks,
        )
        stacked = np.stack([found[key] for key in keys], axis=1)
        return stacked.reshape(values.shape) if stacked.size == values.size else stacked

    def transform_new(self, data: Any, *, domain: str | None = None) -> dict[str, Any]:
        """Apply the recorded scalers to new raw rows.

        Parameters
        ----------
        data : mapping of str to array-like, shape (n, *shape), or frame
            Raw values by key, in the units of this set. Not changed.
        domain : {'features', 'targets', 'tags'}, optional
            Scale columns of this domain alone.

        Returns
        -------
        dict of str to ndarray
            Every given column in its newest representation; columns that this set has not are
            returned as they came.

        Raises
        ------
        DataError
            If a column is missing that was scaled together with one that is given, or columns
            differ in length.
        """
        found = dict(as_columns(data))
        for each in DOMAINS if domain is None else (domain,):
            known = self._domain_keys(each, None) if domain else self._collection.schema.keys(each)
            schema = self._collection.schema
            new = {
                k: in_shape(to_numpy(to_arrow(found[k], k)), schema[f"{each}.{k}.{RAW}"].shape)
                for k in known
                if k in found
            }
            check_lengths({k: len(v) for k, v in new.items()})
            own = [r for r in self._scaler_records if r.domain == each and set(r.keys) & set(new)]
            masks = {
                k: _mask_of(found, k, schema.masks[k])
                for k in new.keys() & schema.masks.keys()
                if any(k in r.keys for r in own)
            }
            found |= {**new, **scaling.apply_records(own, new, masks)}
        return found

    # -- within -------------------------------------------------------------------------------

    def _domain_keys(self, domain: str, keys: Columns) -> list[str]:
        if domain not in DOMAINS:
            raise UnknownNameError("domain", domain, DOMAINS)
        known = dict.fromkeys(self._collection.schema.keys(domain))
        chosen = list(known) if keys is None else as_list(keys)
        for key in chosen:
            if key not in known:
                raise UnknownNameError(f"column of {domain}", key, known)
        if not chosen:
            raise DataError(f"{self.label!r} has no {domain}")
        return chosen

    def _keys_of(self, domain: str | None, keys: Columns) -> set[str]:
        schema = self._collection.schema
        chosen = as_list(keys)
        return {
            k for key in chosen for k in self._domain_keys(domain or schema.domain_of(key), key)
        }

    def _replay(self, records: list[ScalerRecord]) -> None:
        """Keep only these scalers, their columns computed again from the raw ones."""
        self._collection.check_rows()
        gone = [r for r in self._scaler_records if r not in records]
        self._check_raw([*gone, *records])
        old, kept = _written(gone), _written(records)
        collection = self._collection.without_columns(
            [name for name in self._collection.names if name in old - kept]
        )
        lost = {n for r in records for n in r.targets} - set(collection.names)
        if lost:
            raise ScalerError(f"a scaler looked at {sorted(lost)}; undo that one first")
        touched = {(r.domain, key) for r in gone for key in r.keys}
        due: list[ScalerRecord] = []
        for record in records * len(records):  # those that share keys, directly or through others
            own = {(record.domain, key) for key in record.keys}
            if own & touched and record not in due:
                due, touched = [*due, record], touched | own
        due = [record for record in records if record in due]
        self._collection, self._scaler_records = self._scaled(collection, due), records

    @staticmethod
    def _scaled(collection: SampleCollection, records: list[ScalerRecord]) -> SampleCollection:
        """Return a collection with what these scalers make of its raw columns."""
        written: set[str] = set()
        for record in records:
            new = {key: f"{record.domain}.{key}.{TRANSFORMED}" for key in record.keys}
            raw = {key: f"{record.domain}.{key}.{RAW}" for key in record.keys}
            names = {key: new[key] if new[key] in written else raw[key] for key in record.keys}
            collection = _with_transformed(collection, record, names)
            written |= set(new.values())
        return collection

    def _check_raw(self, records: Iterable[ScalerRecord]) -> None:
        for record in records:
            for key in record.keys:
                if RAW not in self._collection.schema.reps(record.domain, key):
                    raise ScalerError(
                        f"column {key!r} of {self.label!r} has no raw values, so its scalers "
                        "cannot be taken back"
                    )


def _mask_of(columns: Mapping[str, Any], key: str, mask: str) -> Array:
    if mask not in columns:
        raise DataError(
            f"column {key!r} is padded, and its mask {mask!r} is not among the data; give it, "
            "true where there is data"
        )
    return to_numpy(to_arrow(columns[mask], mask)).astype(bool)


def _is_raw_category(spec: ColumnSpec) -> bool:
    """Tell whether a column holds codes that came so; what an `OrdinalEncoder` made is meant."""
    return spec.kind == "category" and spec.rep == RAW


def _written(records: Iterable[ScalerRecord]) -> set[str]:
    return {f"{r.domain}.{key}.{TRANSFORMED}" for r in records for key in r.keys}


def _with_transformed(
    collection: SampleCollection, record: ScalerRecord, names: Mapping[str, str]
) -> SampleCollection:
    """Return a table with what a scaler makes of columns, given as key to full name."""
    own: dict[str, Array] = {}
    rows = np.arange(collection.n_samples) if record.fit_rows is None else record.fit_rows
    if record.scaler.is_cross_fitted:
        columns = {key: collection.numpy(name)[rows] for key, name in names.items()}
        targets = {name: collection.numpy(name) for name in record.targets}
        own = record.cross_fit(columns, fitted_targets(targets, rows))

    masks = {key: m for key, name in names.items() if (m := collection.schema.mask_of(name))}

    def compute(columns: dict[str, Array], at: int) -> dict[str, Array]:
        new = record.apply(
            {key: columns[name] for key, name in names.items()},
            {key: columns[name] for key, name in masks.items()},
        )
        for key, values in own.items():
            here = (rows >= at) & (rows < at + len(new[key]))
            new[key][rows[here] - at] = values[here]
        return {f"{record.domain}.{key}.{TRANSFORMED}": values for key, values in new.items()}

    new = collection.with_computed([*names.values(), *masks.values()], compute)
    facts = record.describe({key: collection.schema[name] for key, name in names.items()})
    return new.described({f"{record.domain}.{k}.{TRANSFORMED}": v for k, v in facts.items()})
