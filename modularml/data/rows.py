"""Selection and splitting of rows and columns into views."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modularml._typing import Array, Columns, IntArray
from modularml._warning import warn
from modularml.data.access import SampleCollectionMixin
from modularml.data.derived_sets import DerivedSetsMixin
from modularml.data.ids import id_array, id_texts, ids_from_texts
from modularml.data.row_records import DroppedRows, SplitRecord, with_series
from modularml.data.scaling import scaled_by
from modularml.data.selectors import select_one
from modularml.errors import ConfigError, DataError, expect
from modularml.predicates.conditions import has_naive_times, matches
from modularml.splitters import BaseSplitter, ConditionSplitter, RandomSplitter

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SplitMixin", "as_slice"]

View = TypeVar("View", bound=SampleCollectionMixin)


class SplitMixin(DerivedSetsMixin, Generic[View]):
    """Row and column operations of FeatureSets and views."""

    @property
    @abstractmethod
    def label(self) -> str | None:
        """Name of this set or view."""

    @abstractmethod
    def _view(self, rows: IntArray | None, columns: list[str] | None, label: str | None) -> View:
        """Return a view of these positions; None for all."""

    @abstractmethod
    def _source(self) -> Any:
        """Return the underlying FeatureSet."""

    # -- rows ---------------------------------------------------------------------------------

    def take(self, indices: Any, label: str | None = None) -> View:
        """Return the rows at these positions, in this order.

        Parameters
        ----------
        indices : array-like of int, shape (n,)
            Positions within this set or view, 0-based; negative ones count from the end.
        label : str, optional

        Raises
        ------
        DataError
            If a position is out of range or not an integer.
        """
        return self._view(self._checked_positions(indices), None, label)

    def head(self, n: int = 5) -> pd.DataFrame:
        """Return the first rows as a DataFrame; see `to_pandas`.

        Parameters
        ----------
        n : int
            At least 0. If there are fewer rows, all are returned.
        """
        if not isinstance(n, Integral) or isinstance(n, bool) or n < 0:
            raise ConfigError(f"n must be an int of at least 0, got {n!r}")
        return self.take(np.arange(min(n, len(self)))).to_pandas()

    def filter(self, *, conditions: Mapping[str, Any], label: str | None = None) -> View:
        """Return the rows that meet all conditions.

        Parameters
        ----------
        conditions : mapping of str to condition
            Maps a column, by key or full name, to a value, a collection of values, a predicate of
            `modularml.predicates`, or a callable that takes the column's array. A key refers to
            the raw column, in its original units.
        label : str, optional

        Raises
        ------
        UnknownNameError
            If there is no such column.
        DataError
            If a condition does not return one boolean per row.
        """
        return self._view(np.flatnonzero(self._matching(conditions)), None, label)

    def _matching(self, conditions: Mapping[str, Any]) -> Array:
        """Return which rows meet all conditions."""
        keep = np.ones(self.n_samples, dtype=bool)
        expect("conditions", conditions, Mapping, "a mapping of column to condition")
        for selector, condition in conditions.items():
            name = select_one(self.collection.schema, selector)
            _check_zone(condition, self.collection.zone(name), selector)
            keep &= matches(condition, self.column(name), column=selector)
        return keep

    def _checked_positions(self, indices: Any) -> IntArray:
        """Return positions from 0; refuse those out of range."""
        rows, n = as_positions(indices), self.n_samples
        bad = (rows < -n) | (rows >= n)
        if bad.any():
            raise DataError(f"index {rows[bad][0]} is out of range for {n} rows")
        return np.where(rows < 0, rows + n, rows)

    def take_sample_uuids(self, uuids: Iterable[Any], *, label: str | None = None) -> View:
        """Return the rows with these sample ids, in this order.

        Raises
        ------
        DataError
            If an id is unknown; the message names the first.
        """
        wanted = ids_from_texts(expect("uuids", uuids, Iterable, "a list of sample ids"))
        positions = _positions_of(self._ids(), id_array(wanted))
        missing = np.flatnonzero(positions < 0)
        if len(missing):
            raise DataError(
                f"sample id {id_texts(wanted[missing[:1]])[0]} is not in {self.label!r} "
                f"({len(missing)} of {len(wanted)} are missing)"
            )
        return self._view(positions, None, label)

    def take_intersection(
        self, other: SplitMixin[Any], *, order: str = "self", label: str | None = None
    ) -> View:
        """Return the rows that are also in `other`, by sample id.

        Parameters
        ----------
        other : FeatureSet or FeatureSetView
        order : {'self', 'other'}
            Which of the two determines the order of the rows.
        label : str, optional
        """
        if order not in ("self", "other"):
            raise ConfigError(f"order must be 'self' or 'other', got {order!r}")
        if order == "other":
            positions = _positions_of(self._ids(), _ids_of(other))
            return self._view(positions[positions >= 0], None, label)
        in_other = _positions_of(_ids_of(other), self._ids()) >= 0
        return self._view(np.flatnonzero(in_other), None, label)

    def take_difference(self, other: SplitMixin[Any], *, label: str | None = None) -> View:
        """Return the rows that are not in `other`, by sample id."""
        return self._view(
            np.flatnonzero(_positions_of(_ids_of(other), self._ids()) < 0), None, label
        )

    def drop(self, rows: Any, *, reason: str, label: str | None = None) -> View:
        """Return the other rows, with a record of which were left out and why.

        `summary`, the repr, splits made of the view, sets copied from it and files show the
        reasons; those of several drops add up.

        Parameters
        ----------
        rows : mapping, view, or array-like of str, int or bool
            Conditions as for `filter`, a view whose rows are dropped, sample ids, positions within
            this set or view, or one boolean per row.
        reason : str
        label : str, optional

        Raises
        ------
        DataError
            If an id or position does not exist, or no row would remain.
        ConfigError
            If there is no reason.

        Warns
        -----
        UserWarning
            If no row is dropped.

        Examples
        --------
        >>> from modularml import FeatureSet
        >>> fs = FeatureSet.from_dict(
        ...     "cells", {"v": [3.1, 9.9, 3.3], "soh": [1, 2, 3]}, "v", "soh", register=False
        ... )
        >>> fs.drop({"v": lambda v: v > 5}, reason="sensor fault")
        FeatureSetView(None of 'cells', 2 rows, 2 columns; 1 dropped (sensor fault: 1))
        """
        out = np.zeros(self.n_samples, dtype=bool)
        out[self._positions(rows)] = True
        part = DroppedRows(reason, self.collection.ids[self._rows()[out]])
        if not out.any():
            warn(f"no row of {self.label!r} is dropped for {reason!r}")
            return self._view(None, None, label)
        if out.all():
            raise DataError(f"all {len(out)} rows of {self.label!r} would be dropped")
        view: Any = self._view(np.flatnonzero(~out), None, label)
        kept: View = replace(view, dropped=(*view.dropped, part))
        return kept

    @property
    @abstractmethod
    def dropped(self) -> tuple[DroppedRows, ...]:
        """Rows that were left out, and why."""

    def _positions(self, rows: Any) -> Any:
        """Return rows passed in any form as positions, or as one boolean per row."""
        if isinstance(rows, Mapping):
            return self._matching(rows)
        if isinstance(rows, SplitMixin):
            return _positions_of(_ids_of(rows), self._ids()) >= 0
        values = np.asarray([rows] if isinstance(rows, str) else rows)
        if values.dtype.kind in "UO" and values.size:
            view = self.take_sample_uuids(values.ravel().tolist())
            return _positions_of(self._ids(), _ids_of(view))
        if values.dtype == bool:
            if values.shape != (self.n_samples,):
                raise DataError(
                    f"rows must have one boolean for each of {self.n_samples} rows, got shape "
                    f"{values.shape}"
                )
            return values
        return self._checked_positions(values)

    # -- columns ------------------------------------------------------------------------------

    def select(
        self,
        columns: Columns = None,
        *,
        features: Columns = None,
        targets: Columns = None,
        tags: Columns = None,
        rep: str | None = None,
        label: str | None = None,
    ) -> View:
        """Return a view of some columns; see `get_data` for selectors.

        If neither `rep` nor a selector names a representation, the view has all of them.
        """
        domains = {"features": features, "targets": targets, "tags": tags}
        chosen = self._select(columns, **domains, rep=rep or "*")
        return self._view(None, chosen, label)

    # -- splits -------------------------------------------------------------------------------

    def split(
        self, splitter: BaseSplitter, *, return_views: bool = False, register: bool = True
    ) -> dict[str, View] | None:
        """Split the rows and register the parts by name.

        Parameters
        ----------
        splitter : BaseSplitter
            Any splitter; the split is recorded and can be replayed.
        return_views : bool
            Whether to return ``{name: view}``.
        register : bool
            Whether to register the parts as splits of the FeatureSet.

        Raises
        ------
        SplitError
            If a name is taken or the rows cannot be split as requested. Nothing is changed in
            that case.
        """
        expect("splitter", splitter, BaseSplitter, "a splitter such as RandomSplitter")
        source, names = self._source(), self.collection.names
        splitter = with_series(splitter, self.kept_together)
        parts = splitter.split(self.n_samples, columns=self._columns_for(splitter))
        views = {name: self._view(rows, names, name) for name, rows in parts.items()}
        if register:
            rows = self.row_indices
            origin = self.label if rows is not None and self.label in source._splits else None
            source._register_splits(views, SplitRecord(splitter, tuple(views), origin, rows))
        return views if return_views else None

    def split_random(
        self,
        ratios: Mapping[str, float],
        *,
        group_by: Columns = None,
        stratify_by: Columns = None,
        strict_stratification: bool = False,
        seed: int = 13,
        bins: int | None = None,
        return_views: bool = False,
        register: bool = True,
    ) -> dict[str, View] | None:
        """Split the rows randomly by ratio, with optional groups and strata.

        Parameters
        ----------
        ratios : mapping of str to float
            Share of the rows of each part, by name. Shares sum to 1.
        group_by : str or list of str, optional
            Rows with equal values in these columns stay in one part.
        stratify_by : str or list of str, optional
            Columns whose values have equal proportions in every part.
        strict_stratification : bool
            Whether a stratum that is too small for every part raises an error.
        seed : int
        bins : int, optional
            Number of bins for numeric columns in `stratify_by`; by default 10 for columns with
            fractions.
        return_views, register : bool
            See `split`.

        Raises
        ------
        SplitError
            If shares do not sum to 1, a part is empty or a name is taken.
        """
        splitter = RandomSplitter(
            ratios,
            group_by=group_by,
            stratify_by=stratify_by,
            strict_stratification=strict_stratification,
            seed=seed,
            bins=bins,
        )
        return self.split(splitter, return_views=return_views, register=register)

    def split_by_condition(
        self,
        conditions: Mapping[str, Mapping[str, Any]],
        *,
        return_views: bool = False,
        register: bool = True,
    ) -> dict[str, View] | None:
        """Split the rows by conditions: ``{name: {column: condition}}``; see `filter`."""
        splitter = ConditionSplitter(conditions)
        return self.split(splitter, return_views=return_views, register=register)

    @property
    def kept_together(self) -> list[str]:
        """Columns whose equal values stay in one part: the series of windows."""
        return self.collection.schema.window_keys("series")

    # -- sets ---------------------------------------------------------------------------------

    def to_featureset(self, label: str, *, register: bool = True) -> Any:
        """Copy the rows and columns into a new FeatureSet.

        Sample ids and the scalers of the copied scaled columns are kept.

        Raises
        ------
        DataError
            If a row occurs more than once.
        """
        source = self._source()
        rows = self._rows()
        collection = self.collection.part(rows, self.column_names)
        new = type(source)(label, collection, register=register)
        if self.dropped:
            new._dropped[""] = self.dropped
        new._scaler_records = [
            r
            if r.fit_rows is None
            else replace(r, fit_rows=np.flatnonzero(np.isin(rows, r.fit_rows)))
            for r in scaled_by(source.scaler_records, collection.schema)
        ]
        return new

    def get_overlap_with(self, other: SplitMixin[Any]) -> list[str]:
        """Return the sample ids, as UUID text, of the rows in both."""
        texts: list[str] = self.take_intersection(other).get_sample_uuids("list")
        return texts

    def is_disjoint_with(self, other: SplitMixin[Any]) -> bool:
        """Check that no row is in both; by index within one source, else by sample id."""
        expect("other", other, SplitMixin, "a FeatureSet or a view of one")
        if self._source() is other._source():
            return not np.isin(self._rows(), other._rows()).any()
        return bool((_positions_of(_ids_of(other), self._ids()) < 0).all())

    # -- internals ---------------------------------------------------------------------------

    def _ids(self) -> pa.Array:
        rows = self.row_indices
        ids = self.collection.ids
        return id_array(ids if rows is None else ids[rows])

    def _columns_for(self, splitter: BaseSplitter) -> dict[str, Array]:
        schema = self.collection.schema
        names = {key: select_one(schema, key) for key in splitter.needs}
        if isinstance(splitter, ConditionSplitter):
            for by_column in splitter.conditions.values():
                for key, condition in by_column.items():
                    _check_zone(condition, self.collection.zone(names[key]), key)
        return {key: self.column(name) for key, name in names.items()}


def _check_zone(condition: Any, zone: str | None, column: str) -> None:
    """Refuse times without a zone for a column that has one."""
    if zone not in (None, "UTC", "Etc/UTC", "+00:00") and has_naive_times(condition):
        raise DataError(
            f"column {column!r} has the time zone {zone}, but the condition {condition!r} has a "
            f"time without one; add it, as in pd.Timestamp('2024-01-31 12:00', tz={zone!r})"
        )


def as_positions(indices: Any) -> IntArray:
    """Return positions of rows as one array of integers.

    Raises
    ------
    DataError
        If they are not integers or not one-dimensional.
    """
    rows = np.asarray(indices)
    if rows.size and rows.dtype.kind not in "iu":
        raise DataError(f"indices must be integers, got {rows.dtype}; use filter() for conditions")
    if rows.ndim > 1:
        raise DataError(f"indices must be one-dimensional, got shape {rows.shape}")
    return rows.astype(np.int64, copy=False).reshape(-1)


def as_slice(rows: IntArray | slice) -> IntArray | slice:
    """Return consecutive rows as a slice, which is cheaper to gather."""
    if isinstance(rows, slice):
        return rows
    n, block = len(rows), 16384  # small enough to stay in the cache
    if not n or rows[-1] - rows[0] != n - 1:
        return rows
    for at in range(0, n - 1, block):
        part = rows[at : at + block + 1]
        if not (part[1:] - part[:-1] == 1).all():
            return rows
    return slice(int(rows[0]), int(rows[0]) + n)


def _ids_of(other: Any) -> pa.Array:
    return expect("other", other, SplitMixin, "a FeatureSet or a view of one")._ids()


def _positions_of(ids: pa.Array, wanted: pa.Array) -> IntArray:
    """Return the position of each id, -1 if it is absent."""
    positions: IntArray = (
        pc.fill_null(pc.index_in(wanted, value_set=ids), -1).to_numpy().astype(np.int64)
    )
    return positions
