"""Selection and splitting of rows and columns into views."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from modularml._typing import Array, Columns, IntArray
from modularml._warning import warn
from modularml.data import display, featureset_join, table_join, windowing
from modularml.data.access import ColumnGetters
from modularml.data.ids import as_positions, id_array, id_texts, ids_from_texts, positions_of
from modularml.data.scaling import scaled_by
from modularml.data.selectors import select_one
from modularml.data.split_records import DroppedRows, SplitRecord, with_series
from modularml.errors import ConfigError, DataError, expect
from modularml.predicates.conditions import has_naive_times, matches
from modularml.splitters import BaseSplitter, ConditionSplitter, RandomSplitter

if TYPE_CHECKING:
    import pandas as pd

View = TypeVar("View", bound="Rows[Any]")


class Rows(ColumnGetters, Generic[View]):
    """Rows of a table: what FeatureSets and views of them have in common."""

    windows = windowing.windows
    join = featureset_join.join
    split_like = table_join.split_like
    summary = display.summary

    @property
    @abstractmethod
    def label(self) -> str | None:
        """Name of this set or view."""

    @abstractmethod
    def _view(self, rows: IntArray | None, columns: list[str] | None, label: str | None) -> View:
        """Return a view of these positions; None for all."""

    @abstractmethod
    def to_view(self) -> View:
        """Return a view of the rows."""

    @property
    @abstractmethod
    def dropped(self) -> tuple[DroppedRows, ...]:
        """Rows that were left out, and why."""

    @abstractmethod
    def _source(self) -> Any:
        """Return the underlying FeatureSet."""

    @property
    def _name(self) -> str:
        """Label, or that of the underlying FeatureSet."""
        return str(self.label or self._source().label)

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
        positions = positions_of(id_array(wanted), self._ids())
        missing = np.flatnonzero(positions < 0)
        if len(missing):
            raise DataError(
                f"sample id {id_texts(wanted[missing[:1]])[0]} is not in {self.label!r} "
                f"({len(missing)} of {len(wanted)} are missing)"
            )
        return self._view(positions, None, label)

    def take_intersection(
        self, other: Rows[Any], *, order: str = "self", label: str | None = None
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
        places = self._places_in(other)
        if order == "self":
            return self._view(np.flatnonzero(places >= 0), None, label)
        positions = other._places_in(self)
        return self._view(positions[positions >= 0], None, label)

    def take_difference(self, other: Rows[Any], *, label: str | None = None) -> View:
        """Return the rows that are not in `other`, by sample id."""
        return self._view(np.flatnonzero(self._places_in(other) < 0), None, label)

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
        if isinstance(rows, Mapping):
            out |= self._matching(rows)
        elif isinstance(rows, Rows):
            out |= self._places_in(rows) >= 0
        else:
            values = np.asarray([rows] if isinstance(rows, str) else rows)
            if values.dtype.kind in "UO" and values.size:
                out |= self._places_in(self.take_sample_uuids(values.ravel().tolist())) >= 0
            elif values.dtype != bool:
                out[self._checked_positions(values)] = True
            elif values.shape == out.shape:
                out |= values
            else:
                raise DataError(
                    f"rows must have one boolean for each of {self.n_samples} rows, got shape "
                    f"{values.shape}"
                )
        part = DroppedRows(reason, self.collection.ids[self._rows()[out]])
        if not out.any():
            warn(f"no row of {self.label!r} is dropped for {reason!r}")
            return self._view(None, None, label)
        if out.all():
            raise DataError(f"all {len(out)} rows of {self.label!r} would be dropped")
        view: Any = self._view(np.flatnonzero(~out), None, label)
        kept: View = replace(view, dropped=(*view.dropped, part))
        return kept

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
        schema = self.collection.schema
        needed = {key: select_one(schema, key) for key in splitter.needs}
        if isinstance(splitter, ConditionSplitter):
            for by_column in splitter.conditions.values():
                for key, condition in by_column.items():
                    _check_zone(condition, self.collection.zone(needed[key]), key)
        columns = {key: self.column(name) for key, name in needed.items()}
        parts = splitter.split(self.n_samples, columns=columns)
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

    def get_overlap_with(self, other: Rows[Any]) -> list[str]:
        """Return the sample ids, as UUID text, of the rows in both."""
        texts: list[str] = self.take_intersection(other).get_sample_uuids("list")
        return texts

    def is_disjoint_with(self, other: Rows[Any]) -> bool:
        """Check that no row is in both; by index within one source, else by sample id."""
        expect("other", other, Rows, "a FeatureSet or a view of one")
        if self._source() is other._source():
            return not np.isin(self._rows(), other._rows()).any()
        return bool((self._places_in(other) < 0).all())

    # -- internals ---------------------------------------------------------------------------

    def _ids(self) -> pa.Array:
        rows = self.row_indices
        ids = self.collection.ids
        return id_array(ids if rows is None else ids[rows])

    def _places_in(self, other: Rows[Any]) -> IntArray:
        """Return the position of each row in `other`, by sample id; -1 if it is absent."""
        expect("other", other, Rows, "a FeatureSet or a view of one")
        return positions_of(self._ids(), other._ids())


def _check_zone(condition: Any, zone: str | None, column: str) -> None:
    """Refuse times without a zone for a column that has one."""
    if zone not in (None, "UTC", "Etc/UTC", "+00:00") and has_naive_times(condition):
        raise DataError(
            f"column {column!r} has the time zone {zone}, but the condition {condition!r} has a "
            f"time without one; add it, as in pd.Timestamp('2024-01-31 12:00', tz={zone!r})"
        )
