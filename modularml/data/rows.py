"""Choosing rows and columns: every operation gives a view, and a view of a view is a view."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modularml._typing import Array, Columns, IntArray
from modularml.data.access import SampleCollectionMixin
from modularml.data.ids import id_array, id_texts, ids_from_texts
from modularml.data.scaling import scaled_by
from modularml.data.selectors import select_one
from modularml.errors import ConfigError, DataError, SplitError, expect
from modularml.predicates.conditions import has_naive_times, matches
from modularml.splitters import BaseSplitter, ConditionSplitter, RandomSplitter

__all__ = ["SplitMixin", "SplitRecord", "in_a_row"]

View = TypeVar("View", bound=SampleCollectionMixin)


@dataclass(frozen=True)
class SplitRecord:
    """How splits came to be: which splitter, on which rows, and which names it gave.

    Parameters
    ----------
    splitter : BaseSplitter
    names : tuple of str
    source : str or None
        Name of the split that was split, None for all rows or an unnamed view.
    rows : ndarray of int64, shape (n,), or None
        Rows that came in; None for all.
    """

    splitter: BaseSplitter
    names: tuple[str, ...]
    source: str | None = None
    rows: IntArray | None = field(default=None, repr=False, compare=False)


class SplitMixin(SampleCollectionMixin, Generic[View]):
    """Row and column operations of FeatureSets and views."""

    @property
    @abstractmethod
    def label(self) -> str | None:
        """Name of this set or view."""

    @abstractmethod
    def _view(self, rows: IntArray | None, columns: list[str] | None, label: str | None) -> View:
        """Return a view of these positions of mine (None: all of them)."""

    @abstractmethod
    def _source(self) -> Any:
        """Return the FeatureSet behind."""

    # -- rows ---------------------------------------------------------------------------------

    def take(self, indices: Any, label: str | None = None) -> View:
        """Return the rows at these positions, in the order given.

        Parameters
        ----------
        indices : array-like of int, shape (n,)
            Positions within this set or view, 0-based; negative ones count from the end.
        label : str, optional

        Raises
        ------
        DataError
            If a position is out of range or no integer.
        """
        rows = as_positions(indices)
        n = self.n_samples
        bad = (rows < -n) | (rows >= n)
        if bad.any():
            raise DataError(f"index {rows[bad][0]} is out of range for {n} rows")
        return self._view(np.where(rows < 0, rows + n, rows), None, label)

    def filter(self, *, conditions: Mapping[str, Any], label: str | None = None) -> View:
        """Return the rows that meet all conditions.

        Parameters
        ----------
        conditions : mapping of str to condition
            A column, by key or full name, to a value, to a collection of values, to a predicate
            of `modularml.predicates`, or to a callable that takes the column's array. A key
            means the raw column, in the user's own units.
        label : str, optional

        Raises
        ------
        UnknownNameError
            If there is no such column.
        DataError
            If a condition does not give one truth value a row.
        """
        keep = np.ones(self.n_samples, dtype=bool)
        expect("conditions", conditions, Mapping, "a mapping of column to condition")
        for selector, condition in conditions.items():
            name = select_one(self.collection.schema, selector)
            _check_zone(condition, self.collection.zone(name), selector)
            keep &= matches(condition, self.column(name), column=selector)
        return self._view(np.flatnonzero(keep), None, label)

    def take_sample_uuids(self, uuids: Iterable[Any], *, label: str | None = None) -> View:
        """Return the rows with these sample ids, in the order asked.

        Raises
        ------
        DataError
            If an id is not here; the first one is named.
        """
        wanted = ids_from_texts(expect("uuids", uuids, Iterable, "a list of sample ids"))
        found = _places(self._ids(), id_array(wanted))
        lacking = np.flatnonzero(found < 0)
        if len(lacking):
            raise DataError(
                f"sample id {id_texts(wanted[lacking[:1]])[0]} is not in {self.label!r} "
                f"({len(lacking)} of {len(wanted)} are not)"
            )
        return self._view(found, None, label)

    def take_intersection(
        self, other: SplitMixin[Any], *, order: str = "self", label: str | None = None
    ) -> View:
        """Return the rows that `other` has as well, by sample id.

        Parameters
        ----------
        other : FeatureSet or FeatureSetView
        order : {'self', 'other'}
            Whose order the rows come in.
        label : str, optional
        """
        if order not in ("self", "other"):
            raise ConfigError(f"order must be 'self' or 'other', got {order!r}")
        if order == "other":
            places = _places(self._ids(), _ids_of(other))
            return self._view(places[places >= 0], None, label)
        return self._view(np.flatnonzero(_places(_ids_of(other), self._ids()) >= 0), None, label)

    def take_difference(self, other: SplitMixin[Any], *, label: str | None = None) -> View:
        """Return the rows that `other` has not, by sample id."""
        return self._view(np.flatnonzero(_places(_ids_of(other), self._ids()) < 0), None, label)

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

        Where neither `rep` nor a selector names a representation, the view has them all.
        """
        domains = {"features": features, "targets": targets, "tags": tags}
        chosen = self._select(columns, **domains, rep=rep or "*")
        return self._view(None, chosen, label)

    # -- splits -------------------------------------------------------------------------------

    def split(
        self, splitter: BaseSplitter, *, return_views: bool = False, register: bool = True
    ) -> dict[str, View] | None:
        """Split the rows and keep the parts by name.

        Parameters
        ----------
        splitter : BaseSplitter
            Any splitter; what it did is recorded and can be replayed.
        return_views : bool
            Whether to return ``{name: view}``.
        register : bool
            Whether the FeatureSet keeps the parts as splits.

        Raises
        ------
        SplitError
            If a name is taken, or the rows cannot be split as asked. Nothing is changed then.
        """
        expect("splitter", splitter, BaseSplitter, "a splitter such as RandomSplitter")
        source, every = self._source(), self.collection.names
        parts = splitter.split(self.n_samples, columns=self._columns_for(splitter))
        views = {name: self._view(rows, every, name) for name, rows in parts.items()}
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
        """Split the rows at random, by ratio; groups stay whole, strata keep their proportions.

        Parameters
        ----------
        ratios : mapping of str to float
            Name of each part to its share of the rows. Shares sum to 1.
        group_by : str or list of str, optional
            Columns whose equal rows stay in one part.
        stratify_by : str or list of str, optional
            Columns whose values come in equal proportion in every part.
        strict_stratification : bool
            Whether a stratum too small to be in every part is an error.
        seed : int
        bins : int, optional
            Bins for columns of numbers in `stratify_by`; columns of fractions are cut into 10
            where none are asked for.
        return_views, register : bool
            See `split`.

        Raises
        ------
        SplitError
            If shares do not sum to 1, a part stays empty or a name is taken.
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

    # -- sets ---------------------------------------------------------------------------------

    def to_featureset(self, label: str, *, register: bool = True) -> Any:
        """Copy the rows and columns into a FeatureSet of their own.

        Sample ids stay, and so do the scalers of the scaled columns that are taken.

        Raises
        ------
        DataError
            If a row is here more than once.
        """
        source = self._source()
        collection = self.collection.part(self._rows(), self.column_names)
        new = type(source)(label, collection, register=register)
        taken = self._rows()
        new._scaler_records = [
            r
            if r.fit_rows is None
            else replace(r, fit_rows=np.flatnonzero(np.isin(taken, r.fit_rows)))
            for r in scaled_by(source.scaler_records, collection.schema)
        ]
        return new

    def get_overlap_with(self, other: SplitMixin[Any]) -> list[str]:
        """Return the sample ids, as UUID text, of the rows that both have."""
        texts: list[str] = self.take_intersection(other).get_sample_uuids("list")
        return texts

    def is_disjoint_with(self, other: SplitMixin[Any]) -> bool:
        """Tell whether no row is in both; by index within one source, else by sample id."""
        expect("other", other, SplitMixin, "a FeatureSet or a view of one")
        if self._source() is other._source():
            return not np.isin(self._rows(), other._rows()).any()
        return bool((_places(_ids_of(other), self._ids()) < 0).all())

    # -- within -------------------------------------------------------------------------------

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
    """Refuse times without a zone beside a column that has one; nobody knows which they mean."""
    if zone not in (None, "UTC", "Etc/UTC", "+00:00") and has_naive_times(condition):
        raise DataError(
            f"column {column!r} has the time zone {zone}, and the condition {condition!r} names a "
            f"time without one; give it, as in pd.Timestamp('2024-01-31 12:00', tz={zone!r})"
        )


def check_split_name(name: str, taken: Iterable[str]) -> None:
    """Refuse a split name that is taken or empty."""
    if not isinstance(name, str) or not name:
        raise SplitError(f"split name must be a string that is not empty, got {name!r}")
    if name in taken:
        raise SplitError(
            f"split name {name!r} is taken; choose another, or call clear_splits() first"
        )


def as_positions(indices: Any) -> IntArray:
    """Return positions of rows as one array of integers.

    Raises
    ------
    DataError
        If they are no integers, or not one-dimensional.
    """
    rows = np.asarray(indices)
    if rows.size and rows.dtype.kind not in "iu":
        raise DataError(f"indices must be integers, got {rows.dtype}; use filter() for conditions")
    if rows.ndim > 1:
        raise DataError(f"indices must be one-dimensional, got shape {rows.shape}")
    return rows.astype(np.int64, copy=False).reshape(-1)


def in_a_row(rows: IntArray | slice) -> IntArray | slice:
    """Return rows that follow one another as a slice, which costs less to gather."""
    if isinstance(rows, slice):
        return rows
    n, at_once = len(rows), 16384  # a piece at a time stays in the cache
    if not n or rows[-1] - rows[0] != n - 1:
        return rows
    for at in range(0, n - 1, at_once):
        part = rows[at : at + at_once + 1]
        if not (part[1:] - part[:-1] == 1).all():
            return rows
    return slice(int(rows[0]), int(rows[0]) + n)


def _ids_of(other: Any) -> pa.Array:
    return expect("other", other, SplitMixin, "a FeatureSet or a view of one")._ids()


def _places(among: pa.Array, wanted: pa.Array) -> IntArray:
    """Return where each wanted id stands, -1 where it does not."""
    found: IntArray = (
        pc.fill_null(pc.index_in(wanted, value_set=among), -1).to_numpy().astype(np.int64)
    )
    return found
