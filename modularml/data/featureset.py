"""The FeatureSet: rows with splits, scalers and their records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from modularml._typing import Array, Columns, IntArray
from modularml.config import config_registry
from modularml.context import ExperimentContext, ExperimentNode
from modularml.data import packing, scaling, sources
from modularml.data.collection import SampleCollection
from modularml.data.columns import to_arrow, to_numpy
from modularml.data.display import describe, html, split_tree
from modularml.data.references import FeatureSetColumnReference, FeatureSetReference
from modularml.data.rows import SplitMixin, SplitRecord, check_split_name
from modularml.data.scaling import ScalerRecord
from modularml.data.schema import DOMAINS, RAW, TRANSFORMED, SampleSchema
from modularml.data.selectors import as_list
from modularml.data.view import FeatureSetView
from modularml.diagram import Diagram
from modularml.errors import ConfigError, DataError, ScalerError, ShapeError, UnknownNameError
from modularml.io.artifact import read_artifact, write_artifact
from modularml.scalers.scaler import Scaler

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FeatureSet"]


class FeatureSet(ExperimentNode, SplitMixin):
    """Samples in one Arrow table, with named splits and reversible scaling.

    Parameters
    ----------
    label : str
        Unique within the experiment.
    collection : SampleCollection
        The rows. Use `from_dict`, `from_pandas` and the like to make one.
    **kwargs
        ``node_id`` and ``register``, used when a set is rebuilt.

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

    def __init__(self, label: str, collection: SampleCollection, **kwargs: Any) -> None:
        if not isinstance(collection, SampleCollection):
            raise ConfigError(
                f"collection must be a SampleCollection, got a {type(collection).__name__}; "
                "use FeatureSet.from_dict, from_pandas, from_numpy or from_pyarrow_table"
            )
        self._collection = collection
        self._splits: dict[str, IntArray] = {}
        self._split_records: list[SplitRecord] = []
        self._scaler_records: list[ScalerRecord] = []
        super().__init__(label, **kwargs)

    # -- constructors -------------------------------------------------------------------------

    @classmethod
    def from_dict(
        cls,
        label: str,
        data: dict[str, Sequence[Any]],
        feature_keys: str | list[str],
        target_keys: str | list[str],
        tag_keys: str | list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a set from columns by name: lists, arrays or series of equal length.

        Raises
        ------
        UnknownNameError
            If a key is not in `data`; the closest are listed.
        DataError
            If columns differ in length, are ragged or have missing values.
        """
        return cls(label, sources.from_columns(data, feature_keys, target_keys, tag_keys), **kwargs)

    @classmethod
    def from_numpy(
        cls,
        label: str,
        features: Array | Mapping[str, Array],
        targets: Array | Mapping[str, Array] | None = None,
        tags: Mapping[str, Array] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a set from arrays.

        Parameters
        ----------
        label : str
        features, targets : ndarray, shape (n_samples, ...), or mapping of str to ndarray
            A bare array becomes one column, named ``features`` or ``targets`` in the singular
            (``x`` and ``y``); a mapping names its columns.
        tags : mapping of str to ndarray, optional
        """
        parts = [
            p if isinstance(p, Mapping) else {} if p is None else {name: p}
            for name, p in (("x", features), ("y", targets), ("tags", tags))
        ]
        data = {key: values for part in parts for key, values in part.items()}
        keys = [list(part) for part in parts]
        return cls(label, sources.from_columns(data, *keys), **kwargs)

    @classmethod
    def from_pandas(
        cls,
        label: str,
        df: pd.DataFrame,
        feature_cols: str | list[str],
        target_cols: str | list[str],
        group_by: str | list[str] | None = None,
        tag_cols: str | list[str] | None = None,
        sort_by: str | list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a set from a DataFrame: one row a sample, or one group of rows a sample.

        Parameters
        ----------
        label : str
        df : DataFrame
            pandas, polars, or any other eager frame that narwhals understands.
        feature_cols, target_cols : str or list of str
        group_by : str or list of str, optional
            Rows that agree in these columns become one sample, whose features and targets are
            arrays of one length. The columns themselves become tags.
        tag_cols : str or list of str, optional
        sort_by : str or list of str, optional
            Order of the rows within a group.

        Raises
        ------
        UnknownNameError
            If a column is not there; the closest are listed.
        DataError
            If a column has missing values, or groups differ in length.
        """
        return cls(
            label,
            sources.from_frame(
                df, feature_cols, target_cols, tag_cols, group_by=group_by, sort_by=sort_by
            ),
            **kwargs,
        )

    from_df = from_pandas

    @classmethod
    def from_pyarrow_table(
        cls, label: str, table: pa.Table, schema: SampleSchema | None = None, **kwargs: Any
    ) -> Self:
        """Make a set from an Arrow table whose columns are named ``domain.key.rep``.

        Other tables are taken with ``feature_cols=``, ``target_cols=`` and ``tag_cols=``.
        """
        chosen = [kwargs.pop(f"{name}_cols", None) for name in ("feature", "target", "tag")]
        if any(c is not None for c in chosen):
            return cls(label, sources.from_table(table, *chosen), **kwargs)
        return cls(label, SampleCollection(table, schema), **kwargs)

    @classmethod
    def from_csv(
        cls,
        label: str,
        path: str | Path,
        feature_cols: str | list[str],
        target_cols: str | list[str],
        tag_cols: str | list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a set from columns of a CSV file."""
        table = sources.read_csv(path)
        return cls(label, sources.from_table(table, feature_cols, target_cols, tag_cols), **kwargs)

    @classmethod
    def from_parquet(
        cls,
        label: str,
        path: str | Path,
        feature_cols: str | list[str],
        target_cols: str | list[str],
        tag_cols: str | list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a set from columns of a Parquet file, or of a folder of them."""
        wanted = as_list(feature_cols) + as_list(target_cols) + as_list(tag_cols)
        table = sources.read_parquet(path, wanted)
        return cls(label, sources.from_table(table, feature_cols, target_cols, tag_cols), **kwargs)

    # -- what is read -------------------------------------------------------------------------

    @property
    def collection(self) -> SampleCollection:
        """The table."""
        return self._collection

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
        return FeatureSetView.from_featureset(self, label=self.label)

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
        """The splits by name, with every column there is now."""
        return {name: self.get_split(name) for name in self._splits}

    @property
    def split_records(self) -> tuple[SplitRecord, ...]:
        """How the splits came to be, oldest first."""
        return tuple(self._split_records)

    def get_split(self, split_name: str) -> FeatureSetView:
        """Return a split with every column there is now.

        Raises
        ------
        UnknownNameError
            If there is no such split; the closest names are listed.
        """
        if split_name not in self._splits:
            raise UnknownNameError(f"split of {self.label!r}", split_name, self._splits)
        return FeatureSetView(self, self._splits[split_name], self.column_names, split_name)

    def __getitem__(self, split_name: str) -> FeatureSetView:
        return self.get_split(split_name)

    def add_split(self, split: FeatureSetView) -> None:
        """Keep a view of this set as a split, under its label.

        Raises
        ------
        SplitError
            If it has no label, or the name is taken.
        DataError
            If it is a view of another set.
        """
        if split.source is not self:
            raise DataError(
                f"split {split.label!r} is a view of {split.source.label!r}, not of {self.label!r}"
            )
        self._register_splits({str(split.label or ""): split}, None)

    def clear_splits(self) -> None:
        """Forget all splits and how they came to be."""
        self._splits, self._split_records = {}, []

    # -- references ---------------------------------------------------------------------------

    def reference(
        self,
        columns: list[str] | None = None,
        *,
        features: str | list[str] | None = None,
        targets: str | list[str] | None = None,
        tags: str | list[str] | None = None,
        rep: str | None = None,
    ) -> FeatureSetReference:
        """Refer to columns of this set, for wiring a graph.

        Parameters
        ----------
        columns : list of str, optional
            Selectors of any domain.
        features, targets, tags : str or list of str, optional
            Selectors within a domain. A domain that is not mentioned is included whole; an empty
            list leaves it out.
        rep : str, optional
            Where neither this nor a selector names a representation, the newest one at the time
            of use is meant.
        """
        mentioned = [n for s in as_list(columns) for n in self._referred(s, None, rep)]
        chosen = {}
        for domain, given in zip(DOMAINS, (features, targets, tags), strict=True):
            own = [name for name in mentioned if name.startswith(f"{domain}.")]
            own += [n for s in as_list(given) for n in self._referred(s, domain, rep)]
            if given is None and not own:
                own = self._whole_domain(domain, rep)
            chosen[domain] = tuple(dict.fromkeys(own))
        return FeatureSetReference(self.node_id, self.label, **chosen)

    def column_reference(
        self,
        column: str | None = None,
        *,
        feature: str | None = None,
        target: str | None = None,
        tag: str | None = None,
        rep: str | None = None,
    ) -> FeatureSetColumnReference:
        """Refer to one column of this set.

        Raises
        ------
        ConfigError
            If not exactly one of `column`, `feature`, `target` and `tag` is given.
        UnknownNameError
            If there is no such column, or it is not the only one that fits.
        """
        given = {"columns": column, "features": feature, "targets": target, "tags": tag}
        asked = {name: value for name, value in given.items() if value is not None}
        if len(asked) != 1:
            raise ConfigError("give exactly one of column, feature, target and tag")
        found = self._select(**asked, rep=rep)
        specs = [self._collection.schema[name] for name in found]
        if len({spec.key for spec in specs}) > 1:
            raise UnknownNameError("single column", next(iter(asked.values())), found)
        named = specs[0].rep if rep or _names_rep(next(iter(asked.values()))) else None
        return FeatureSetColumnReference(
            self.node_id, self.label, specs[0].domain, specs[0].key, named
        )

    # -- scaling ------------------------------------------------------------------------------

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
    ) -> None:
        """Fit a scaler on the rows of one split and transform every row.

        Writes the representation ``transformed`` of each key, on top of the one that is there.

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

        Raises
        ------
        UnknownNameError
            If the domain, a key, the split or the scaler's name is not known.
        ShapeError
            If the columns do not become two-dimensional.
        ScalerError
            If a column is no number. Nothing is changed by a call that fails.
        """
        chosen = self._domain_keys(domain, keys)
        rows = None if fit_to_split is None else self.get_split(fit_to_split).valid_indices
        columns = {key: self._newest(domain, key) for key in chosen}
        record = scaling.fit_record(
            scaler,
            columns,
            domain=domain,
            fit_to_split=fit_to_split,
            fit_rows=rows,
            merged_axes=merged_axes,
        )
        new = record.apply(columns)
        if fit_to_split is None and self._splits:
            scaling.warn_unsplit(self.label)
        self._set_transformed(domain, new)
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
            Which rows these are, for scalers whose inverse needs facts of each row.

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
        schema = self._collection.schema
        shape = schema[schema.newest(domain, keys[0])].shape
        full = (len(values) if values.ndim else -1, len(keys), *shape)
        if values.size != int(np.prod(full)):
            raise ShapeError(
                f"data for the columns {keys} of {domain} must have shape {('n', *full[1:])}, got "
                f"{values.shape}"
            )
        stacked = values.reshape(full)
        raw = self._raw_rows(domain, sample_uuids, len(values))
        found = scaling.invert(
            self._scaler_records,
            {key: stacked[:, i] for i, key in enumerate(keys)},
            domain=domain,
            raw=raw,
        )
        return np.stack([found[key] for key in keys], axis=1).reshape(values.shape)

    def transform_new(
        self, columns: Mapping[str, Array], *, domain: str = "features"
    ) -> dict[str, Array]:
        """Apply the recorded scalers of a domain to new raw columns.

        Parameters
        ----------
        columns : mapping of str to array-like, shape (n, *shape), or DataFrame
            Raw values by key, in the units of this set. Not changed.
        domain : {'features', 'targets', 'tags'}

        Returns
        -------
        dict of str to ndarray
            Every given column in its newest representation.
        """
        known = set(self._domain_keys(domain, None))
        new = {
            key: values if isinstance(values, np.ndarray) else to_numpy(to_arrow(values, key))
            for key, values in columns.items()
            if key in known
        }
        records = [r for r in self._scaler_records if r.domain == domain and set(r.keys) & set(new)]
        return {**columns, **new, **scaling.apply_records(records, new)}

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
        """Copy this set: raw columns and ids, and on request splits, scalers and their columns.

        Columns never change, so sharing their memory is safe.

        Raises
        ------
        ConfigError
            If scalers that were fitted on a split are to be restored without the splits.
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
            every = np.arange(len(self))
            collection = SampleCollection(collection.take(every, collection.names))
        new = type(self)(label or f"{self.label}_copy", collection, register=register)
        if restore_splits:
            new._splits, new._split_records = dict(self._splits), list(self._split_records)
        if restore_scalers:
            new._scaler_records = list(self._scaler_records)
        return new

    def get_config(self) -> dict[str, Any]:
        """Return the label; rows are state."""
        return {"label": self.label}

    @classmethod
    def from_config(cls, config: dict[str, Any], *, register: bool = True) -> FeatureSet:
        """Make an empty set; `set_state` fills it."""
        return cls(config["label"], SampleCollection(pa.table({})), register=register)

    def get_state(self) -> dict[str, Any]:
        """Return table, splits and records; nothing is copied, since none of them changes."""
        return {
            "collection": self._collection,
            "splits": dict(self._splits),
            "split_records": list(self._split_records),
            "scaler_records": list(self._scaler_records),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to what `get_state` returned."""
        self._collection = state["collection"]
        self._splits = dict(state["splits"])
        self._split_records = list(state["split_records"])
        self._scaler_records = list(state["scaler_records"])

    # -- files --------------------------------------------------------------------------------

    def save(self, filepath: str | Path, *, overwrite: bool = False) -> Path:
        """Write rows, splits, scalers and how they came to be to a file ``name.fs.mml``.

        Raises
        ------
        MMLExistsError
            If there is a file and `overwrite` is false.
        MMLError
            If a part cannot be stored as data, or the file not be written.
        """
        return write_artifact(
            filepath,
            "fs",
            "FeatureSet",
            self.get_config,
            lambda: packing.packed(self.get_state()),
            overwrite=overwrite,
            ids={self.node_id: self.label},
        )

    @classmethod
    def load(
        cls,
        filepath: str | Path,
        *,
        allow_packaged_code: bool = False,
        overwrite: bool = False,
        custom_objects: Mapping[str, Any] | None = None,
        allow_import: Iterable[str] = (),
        verify: bool = True,
    ) -> Self:
        """Read a set from a file; its columns stay in the file until they are used.

        Parameters
        ----------
        filepath : path-like
            With or without its suffix.
        allow_packaged_code : bool
            Whether code that the author packaged may run.
        overwrite : bool
            Whether a node with the same id or label makes room. Where it does not, the set gets
            an id of its own and stays out of the active context.
        custom_objects, allow_import
            Where classes of yours are found; see `Scaler.load`.
        verify : bool
            Whether the hash of the rows is checked. Without, a large file opens at once.

        Raises
        ------
        MMLError
            If the file is damaged, newer, or holds something else. Nothing has changed then.
        """
        contents = read_artifact(
            filepath,
            "fs",
            allow_packaged_code=allow_packaged_code,
            custom_objects=custom_objects,
            allow_import=allow_import,
            verify=verify,
        )
        ctx = ExperimentContext.get_active()
        ids = ctx.free_ids(contents.ids, overwrite=overwrite)
        with contents.building(), ctx.beside(overwrite=overwrite):
            label, state = contents.config["label"], packing.unpacked(contents.state())
            new = cls(label, state["collection"], node_id=ids.get(label))
            new.set_state(state)
        return new

    # -- how it shows itself ------------------------------------------------------------------

    def summary(self) -> pd.DataFrame:
        """Return one row a column: dtype, shape, values that are not finite, and range."""
        return describe(self)

    def visualize(
        self,
        *,
        show_features: bool = True,
        show_targets: bool = True,
        show_tags: bool | str = "root",
        show_overlaps: bool = True,
    ) -> Diagram:
        """Draw this set and its splits as a tree with counts."""
        return split_tree(
            self,
            show_features=show_features,
            show_targets=show_targets,
            show_tags=show_tags,
            show_overlaps=show_overlaps,
        )

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}: {n}" for name, n in self._split_sizes().items())
        keys = {domain: self._collection.schema.keys(domain) for domain in DOMAINS}
        shown = "; ".join(f"{d}: {', '.join(k[:8])}" for d, k in keys.items() if k)
        return (
            f"FeatureSet({self.label!r}, {self.n_samples} rows; {shown}"
            f"{'; splits ' + parts if parts else ''}; {len(self._scaler_records)} scalers)"
        )

    def _repr_html_(self) -> str:
        return html(self, f"FeatureSet {self.label}", self._split_sizes())

    # -- within -------------------------------------------------------------------------------

    def _view(
        self, rows: IntArray | None, columns: list[str] | None, label: str | None
    ) -> FeatureSetView:
        return FeatureSetView.from_featureset(self, rows=rows, columns=columns, label=label)

    def _source(self) -> FeatureSet:
        return self

    def _split_sizes(self) -> dict[str, int]:
        return {name: int((rows >= 0).sum()) for name, rows in self._splits.items()}

    def _register_splits(
        self, views: Mapping[str, FeatureSetView], record: SplitRecord | None
    ) -> None:
        for name in views:
            check_split_name(name, self._splits)
        self._splits.update({name: view.indices for name, view in views.items()})
        if record is not None:
            self._split_records.append(record)

    def _referred(self, selector: str, domain: str | None, rep: str | None) -> list[str]:
        """Return full names, or ``domain.key`` where the representation is left open."""
        found = self._select(**{domain or "columns": selector}, rep=rep)
        if rep or _names_rep(selector):
            return found
        return [name.rpartition(".")[0] for name in found]

    def _whole_domain(self, domain: str, rep: str | None) -> list[str]:
        """Name every column of a domain, of that representation where it has it."""
        schema = self._collection.schema
        return [
            f"{domain}.{key}.{rep}" if rep in schema.reps(domain, key) else f"{domain}.{key}"
            for key in schema.keys(domain)
        ]

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

    def _newest(self, domain: str, key: str) -> Array:
        return self._collection.numpy(self._collection.schema.newest(domain, key))

    def _raw_rows(
        self, domain: str, sample_uuids: Iterable[Any] | None, n: int
    ) -> dict[str, Array] | None:
        if sample_uuids is None:
            return None
        view = self.take_sample_uuids(sample_uuids)
        if len(view) != n:
            raise ShapeError(f"sample_uuids must name the {n} rows of data, got {len(view)} ids")
        return {k: view.column(f"{domain}.{k}.{RAW}") for k in self._collection.schema.keys(domain)}

    def _set_transformed(self, domain: str, columns: Mapping[str, Array]) -> None:
        named = {f"{domain}.{key}.{TRANSFORMED}": values for key, values in columns.items()}
        self._collection = self._collection.with_columns(named)

    def _replay(self, records: list[ScalerRecord]) -> None:
        """Keep only these scalers, their columns computed again from the raw ones."""
        gone = [r for r in self._scaler_records if r not in records]
        new: dict[str, Array] = {}
        for domain in {record.domain for record in gone}:
            new |= self._recomputed(domain, [r for r in records if r.domain == domain])
        old = {f"{r.domain}.{key}.{TRANSFORMED}" for r in gone for key in r.keys}
        self._collection = self._collection.without_columns(
            [name for name in self.column_names if name in old and name not in new]
        ).with_columns(new)
        self._scaler_records = records

    def _recomputed(self, domain: str, records: list[ScalerRecord]) -> dict[str, Array]:
        names = {k: f"{domain}.{k}.{RAW}" for k in self._collection.schema.keys(domain)}
        for key, name in names.items():
            if name not in self._collection.schema.columns:
                raise ScalerError(
                    f"column {key!r} of {self.label!r} has no raw values, so its scalers cannot be "
                    "taken back"
                )
        raw = {key: self._collection.numpy(name) for key, name in names.items()}
        found = scaling.apply_records(records, raw)
        return {f"{domain}.{key}.{TRANSFORMED}": values for key, values in found.items()}


def _names_rep(selector: str) -> bool:
    """Tell whether a selector names a representation."""
    dots = selector.count(".")
    return dots > 1 or (dots == 1 and selector.split(".")[0] not in DOMAINS)


config_registry.register("FeatureSet", FeatureSet, overwrite=True)
