"""The FeatureSet: rows with splits, scalers and their records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from modularml._typing import IntArray
from modularml.config import config_registry
from modularml.context import ExperimentContext, ExperimentNode, is_run_again
from modularml.data import (
    audit_report,
    display,
    featureset_packing,
    featureset_scaling,
    featureset_yaml,
    references,
)
from modularml.data.collection import SampleCollection
from modularml.data.constructors import Constructors
from modularml.data.rows import Rows
from modularml.data.scaling import ScalerRecord
from modularml.data.schema import DOMAINS, RAW
from modularml.data.split_records import (
    DroppedRows,
    SplitRecord,
    check_split_name,
    described_drops,
)
from modularml.data.view import FeatureSetView
from modularml.errors import ConfigError, DataError, UnknownNameError, expect
from modularml.io.artifact import read_artifact


class FeatureSet(ExperimentNode, Constructors, Rows[FeatureSetView]):
    """Samples in one Arrow table, with named splits and reversible scaling.

    Parameters
    ----------
    label : str
        Unique within the experiment.
    collection : SampleCollection
        The rows. Constructors such as `from_dict` and `from_pandas` create one.
    kind : mapping of str to str, optional
        ``number``, ``category`` (integer codes, booleans or text), ``time``, ``text`` or
        ``sequence``, by key; by default derived from the dtype, with ``category`` for
        categoricals of pandas, polars and Arrow. Every constructor accepts `kind`, `unit` and
        `element_names`.
    unit : mapping of str to str, optional
        Unit of the values of a column, by key.
    element_names : mapping of str to sequence of str, optional
        Names of the elements of an array column (wavelengths, genes), by key; see
        `get_element_names`.
    **kwargs
        ``node_id`` and ``register``, used when a set is rebuilt.

    Raises
    ------
    UnknownNameError
        If a key does not exist.
    DataError
        If a kind does not match the dtype, or element names do not match the shape, of a column.

    Examples
    --------
    >>> fs = FeatureSet.from_dict(
    ...     "cells", {"voltage": [[3.1, 3.2], [3.3, 3.4]], "soh": [0.9, 0.8]}, "voltage", "soh",
    ...     register=False,
    ... )
    >>> fs.get_features(fmt="numpy").shape
    (2, 1, 2)
    """

    artifact_kind = "fs"

    reference = references.reference
    column_reference = references.column_reference
    fit_transform = featureset_scaling.fit_transform
    transform_new = featureset_scaling.transform_new
    undo_last_transform = featureset_scaling.undo_last_transform
    undo_all_transforms = featureset_scaling.undo_all_transforms
    iter_scalers_on_cols = featureset_scaling.iter_scalers_on_cols
    unscale_data_for_cols = featureset_scaling.unscale_data_for_cols
    audit = audit_report.audit
    visualize = display.visualize
    save = featureset_packing.save
    to_yaml = featureset_yaml.to_yaml

    def __init__(
        self,
        label: str,
        collection: SampleCollection,
        *,
        kind: Mapping[str, str] | None = None,
        unit: Mapping[str, str] | None = None,
        element_names: Mapping[str, Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        allowed = (
            "a SampleCollection; use a constructor such as FeatureSet.from_dict or from_pandas"
        )
        self._collection: SampleCollection = expect(
            "collection", collection, SampleCollection, allowed
        )
        if unknown := kwargs.keys() - {"node_id", "register"}:
            known = ("kind", "unit", "element_names", "register")
            raise UnknownNameError("argument of FeatureSet", min(unknown), known)
        descriptions = {"kind": kind, "unit": unit, "elements": element_names}
        if any(descriptions.values()):
            self._collection = self._collection.described(descriptions)
        self._splits: dict[str, IntArray] = {}
        self._whole: FeatureSetView | None = None
        self._views: dict[str, tuple[IntArray, FeatureSetView]] = {}
        self._split_records: list[SplitRecord] = []
        self._scaler_records: list[ScalerRecord] = []
        self._dropped: dict[str, tuple[DroppedRows, ...]] = {}  # by split; "" for this set
        self.audit_allowed: tuple[str, ...] = ()
        super().__init__(label, **kwargs)

    # -- table --------------------------------------------------------------------------------

    @property
    def collection(self) -> SampleCollection:
        """The table."""
        return self._collection

    @property
    def has_rows(self) -> bool:
        """Whether the rows are present; a file can be saved with the columns only."""
        return not self._collection.n_absent

    def attach(self, rows: FeatureSet) -> None:
        """Restore the rows that a file was saved without.

        Parameters
        ----------
        rows : FeatureSet
            A set with the same raw columns and rows. The scalers of the file are kept, and so are
            its splits; if the file has none, the splits of `rows` are used.

        Raises
        ------
        ConfigError
            If this set already has its rows.
        DataError
            If the rows differ. Nothing is changed in that case.
        """
        expect("rows", rows, FeatureSet, "a FeatureSet with the rows")
        saved, new = self._collection, rows.collection
        if self.has_rows:
            raise ConfigError(f"{self.label!r} already has its rows; there is nothing to attach")
        new.check_rows()
        if saved.fingerprint != new.fingerprint:
            raw = {n: (s.shape, s.dtype) for n, s in saved.schema.columns.items() if s.rep == RAW}
            specs = {n: (s.shape, s.dtype) for n, s in new.schema.columns.items()}
            different = [name for name, spec in raw.items() if specs.get(name) != spec]
            raise DataError(
                f"the rows of {rows.label!r} are not those that {self.label!r} was saved with: got "
                f"{len(rows)} rows instead of {saved.n_absent}; columns that differ: "
                f"{different or 'none, so the values differ, or their order'}. Pass the same table"
            )
        scaled = [n for n, s in new.schema.columns.items() if s.rep != RAW]
        table = new.without_columns(scaled)
        self._collection = featureset_scaling.scaled(table, self._scaler_records)
        if not self._splits:
            self._splits, self._split_records = dict(rows._splits), list(rows._split_records)
            self._dropped |= rows._dropped

    @property
    def scaler_records(self) -> tuple[ScalerRecord, ...]:
        """Every fitted scaler, oldest first."""
        return tuple(self._scaler_records)

    @property
    def row_indices(self) -> None:
        """All rows."""
        return

    @property
    def column_names(self) -> list[str]:
        """Full names of all columns."""
        return self._collection.names

    def to_view(self) -> FeatureSetView:
        """Return a view of all rows and columns."""
        expected = self, self.n_samples, self.column_names, self.label
        view = self._whole
        if view is None or (view.source, len(view), view.columns, view.label) != expected:
            view = self._whole = FeatureSetView.from_featureset(self, label=self.label)
        return view

    @property
    def dropped(self) -> tuple[DroppedRows, ...]:
        """Rows that were left out before this set was copied from a view, and why."""
        return self._dropped.get("", ())

    # -- splits -------------------------------------------------------------------------------

    @property
    def available_splits(self) -> list[str]:
        """Names of the splits."""
        return list(self._splits)

    @property
    def n_splits(self) -> int:
        """Number of splits."""
        return len(self._splits)

    @property
    def splits(self) -> dict[str, FeatureSetView]:
        """The splits by name, with all current columns."""
        return {name: self.get_split(name) for name in self._splits}

    @property
    def split_records(self) -> tuple[SplitRecord, ...]:
        """Records of how the splits were made, oldest first."""
        return tuple(self._split_records)

    def get_split(self, split_name: str) -> FeatureSetView:
        """Return a split with all current columns.

        Raises
        ------
        UnknownNameError
            If there is no such split; the message lists the closest names.
        """
        if expect("split_name", split_name, str, "the name of a split") not in self._splits:
            raise UnknownNameError(f"split of {self.label!r}", split_name, self._splits)
        rows, names = self._splits[split_name], self.column_names
        cached = self._views.get(split_name)
        is_own = cached is not None and cached[0] is rows and cached[1].source is self
        if cached is None or not is_own or cached[1].columns != names:
            dropped = self._dropped.get(split_name, self.dropped)
            view = FeatureSetView(self, rows, names, split_name, dropped)
            cached = self._views[split_name] = rows, view
        return cached[1]

    def __getitem__(self, split_name: str) -> FeatureSetView:
        return self.get_split(split_name)

    def add_split(self, split: FeatureSetView) -> None:
        """Register a view of this set as a split under its label.

        Raises
        ------
        SplitError
            If the view has no label or its name is taken.
        DataError
            If it is a view of a different set.
        """
        expect("split", split, FeatureSetView, "a view of this set")
        if split.source is not self:
            raise DataError(
                f"split {split.label!r} is a view of {split.source.label!r}, not of {self.label!r}"
            )
        self._register_splits({str(split.label or ""): split}, None)

    def clear_splits(self) -> None:
        """Remove all splits and their records."""
        self._splits, self._split_records = {}, []
        self._dropped = {name: parts for name, parts in self._dropped.items() if not name}

    # -- copies, config, state ----------------------------------------------------------------

    def copy(
        self,
        *,
        label: str | None = None,
        share_raw_data_buffer: bool = True,
        restore_splits: bool = False,
        restore_scalers: bool = False,
        register: bool = False,
    ) -> FeatureSet:
        """Copy raw columns and ids and, on request, splits, scalers and their columns.

        Columns never change, so sharing their memory is safe.

        Raises
        ------
        ConfigError
            If scalers fitted on a split are to be restored without the splits.
        """
        fitted_on_split = any(r.fit_to_split for r in self._scaler_records)
        if restore_scalers and fitted_on_split and not restore_splits:
            raise ConfigError(
                "restore_scalers needs restore_splits=True: a scaler was fitted on a split"
            )
        schema = self._collection.schema
        scaled = [
            n
            for n, s in schema.columns.items()
            if s.rep != RAW and len(schema.reps(s.domain, s.key)) > 1
        ]
        collection = self._collection.without_columns([] if restore_scalers else scaled)
        if not share_raw_data_buffer:
            collection = collection.part(np.arange(len(self)), collection.names)
        new = type(self)(label or f"{self.label}_copy", collection, register=register)
        new.audit_allowed = self.audit_allowed
        new._dropped = {k: v for k, v in self._dropped.items() if restore_splits or not k}
        if restore_splits:
            new._splits, new._split_records = dict(self._splits), list(self._split_records)
        if restore_scalers:
            new._scaler_records = list(self._scaler_records)
        return new

    @classmethod
    def load(
        cls,
        filepath: str | Path,
        *,
        allow_packaged_code: bool | str = False,
        overwrite: bool = False,
        custom_objects: Mapping[str, Any] | None = None,
        allow_import: Iterable[str] = (),
        verify: bool = True,
    ) -> Self:
        """Load a set from a file; columns stay in the file until they are used.

        Parameters
        ----------
        filepath : path-like
            With or without its suffix.
        allow_packaged_code : bool or str
            Whether packaged code may run; see `BaseModel.load`.
        overwrite : bool
            Whether to replace a node with the same id or label. Otherwise the set gets a new id
            and stays out of the active context.
        custom_objects, allow_import
            Sources of user-defined classes; see `Scaler.load`.
        verify : bool
            Whether to check the hash of the rows. Without it, a large file opens at once.

        Raises
        ------
        MMLError
            If the file is damaged, written by a newer version or holds something else. Nothing is
            changed in that case.
        """
        trusted = allow_packaged_code, custom_objects, allow_import
        contents = read_artifact(filepath, "fs", *trusted, verify)
        ctx = ExperimentContext.get_active()
        ids = ctx.free_ids(contents.ids, overwrite=overwrite)
        with contents.building(), ctx.beside(overwrite=overwrite):
            label, state = contents.config["label"], featureset_packing.unpacked(contents.state())
            new = cls(label, state["collection"], node_id=ids.get(label))
            new.set_state(state)
        return new

    def get_config(self) -> dict[str, Any]:
        """Return the label; rows are state."""
        return {"label": self.label}

    @classmethod
    def from_config(cls, config: dict[str, Any], *, register: bool = True) -> FeatureSet:
        """Create an empty set; `set_state` fills it."""
        return cls(config["label"], SampleCollection(pa.table({})), register=register)

    def get_state(self) -> dict[str, Any]:
        """Return table, splits and records; they are immutable and not copied."""
        return {
            "collection": self._collection,
            "splits": dict(self._splits),
            "split_records": list(self._split_records),
            "scaler_records": list(self._scaler_records),
            "audit_allowed": self.audit_allowed,
            "dropped": dict(self._dropped),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `get_state`."""
        self._collection = state["collection"]
        self._splits = dict(state["splits"])
        self._split_records = list(state["split_records"])
        self._scaler_records = list(state["scaler_records"])
        self.audit_allowed = tuple(state.get("audit_allowed", ()))
        self._dropped = dict(state.get("dropped", {}))

    # -- display ------------------------------------------------------------------------------

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}: {n}" for name, n in self._split_sizes().items())
        keys = {domain: self._collection.schema.keys(domain) for domain in DOMAINS}
        shown = "; ".join(
            f"{d}: {', '.join(k[:8])}{', ...' if len(k) > 8 else ''}" for d, k in keys.items() if k
        )
        return (
            f"FeatureSet({self.label!r}, {self.n_samples} rows; {shown}"
            f"{'; splits ' + parts if parts else ''}; {len(self._scaler_records)} scalers"
            f"{'; ' if self._dropped else ''}{described_drops(self._all_dropped())})"
        )

    def _repr_html_(self) -> str:
        return display.html(self, f"FeatureSet {self.label}", self._split_sizes())

    # -- internals ---------------------------------------------------------------------------

    def _view(
        self, rows: IntArray | None, columns: list[str] | None, label: str | None
    ) -> FeatureSetView:
        return FeatureSetView.from_featureset(self, rows=rows, columns=columns, label=label)

    def _source(self) -> FeatureSet:
        return self

    def _with_joined(self, collection: SampleCollection, dropped: DroppedRows | None) -> Self:
        """Take over columns joined to these rows, and the rows dropped by the join."""
        self._collection = collection
        if dropped is not None:
            self._dropped[""] = (*self.dropped, dropped)
        return self

    def _all_dropped(self) -> list[DroppedRows]:
        """Return the drops of this set and of its splits, each once."""
        return list({id(d): d for parts in self._dropped.values() for d in parts}.values())

    def _split_sizes(self) -> dict[str, int]:
        return {name: int((rows >= 0).sum()) for name, rows in self._splits.items()}

    def _register_splits(
        self, views: Mapping[str, FeatureSetView], record: SplitRecord | None
    ) -> None:
        rows = {name: self._splits.get(name) for name in views}
        same = all(r is not None and np.array_equal(r, views[k].indices) for k, r in rows.items())
        if same and views and is_run_again(f"equal splits of {self.label!r}, {', '.join(views)}"):
            return
        for name in views:
            check_split_name(name, self._splits)
        self._splits.update({name: view.indices for name, view in views.items()})
        self._dropped |= {name: view.dropped for name, view in views.items() if view.dropped}
        if record is not None:
            self._split_records.append(record)


config_registry.register("FeatureSet", FeatureSet, overwrite=True)
