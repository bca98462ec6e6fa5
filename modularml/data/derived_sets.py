"""New FeatureSets from the rows of others: windows and joins."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from modularml._typing import Columns
from modularml.data.access import SampleCollectionMixin
from modularml.data.joining import link_by, table_of
from modularml.data.merging import JoinKey, merged
from modularml.data.windowing import windows_of
from modularml.errors import ConfigError, DataError

__all__ = ["DerivedSetsMixin"]


class DerivedSetsMixin(SampleCollectionMixin):
    """Methods of FeatureSets and views that create a new FeatureSet."""

    @property
    @abstractmethod
    def label(self) -> str | None:
        """Name of this set or view."""

    @property
    def _name(self) -> str:
        """Label, or that of the underlying FeatureSet."""
        return str(self.label or self._source().label)

    @abstractmethod
    def to_view(self) -> Any:
        """Return a view of the rows."""

    @abstractmethod
    def _source(self) -> Any:
        """Return the underlying FeatureSet."""

    def windows(
        self,
        columns: Columns,
        *,
        length: int,
        step: int | None = None,
        series: Columns = None,
        order: str | None = None,
        pad: Any = None,
        target: str = "series",
        keep_together: bool = True,
        label: str | None = None,
        register: bool = True,
    ) -> Any:
        """Cut windows from series into a new FeatureSet, one window per sample.

        Parameters
        ----------
        columns : str or list of str
            Array columns with one series per sample, or columns with one step per row if `series`
            or `order` is given. Their raw values are cut.
        length : int
            Steps of a window.
        step : int, optional
            Steps between the starts of two windows; by default `length`, so that windows do not
            overlap. Steps after the last whole window of a series are left out.
        series : str or list of str, optional
            Columns whose equal values make one series of rows. They become tags.
        order : str, optional
            Column that orders the rows of a series; by default their order in the table.
        pad : scalar or mapping of str to scalar, optional
            Fill value for a series shorter than `length`, which becomes one padded window with a
            mask; a mapping gives one for each column. None refuses such series.
        target : {'series', 'last', 'window'}
            What becomes of targets with one value per step: they are refused unless constant
            within a series, or have the value of the window's last step, or become windows too.
            Targets of whole series are carried unchanged.
        keep_together : bool
            Whether splits and folds without `group_by` keep the windows of one series together.
        label : str, optional
            Label of the new set, by default that of this set with ``_windows``.
        register : bool
            Whether the new set joins the active experiment.

        Returns
        -------
        FeatureSet
            Windows of shape ``(length, *shape)``. Tags have the value of the series or of the last
            step. The tags ``window_source`` (id of the sample, or of the first row),
            ``window_start`` and ``window_stop`` (steps within the series, 0-based, the second
            exclusive) say where each window was cut.

        Raises
        ------
        ConfigError
            If `length`, `step` or `target` is invalid.
        DataError
            If a series is shorter than `length` without `pad`, columns differ in their steps, or a
            column is scaled.

        Examples
        --------
        >>> from modularml import FeatureSet
        >>> fs = FeatureSet.from_dict(
        ...     "runs", {"v": [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], "y": [0, 1]}, "v", "y",
        ...     register=False,
        ... )
        >>> fs.windows("v", length=3, step=2, register=False).get_features()["v"].tolist()
        [[1, 2, 3], [3, 4, 5], [6, 7, 8], [8, 9, 10]]
        """
        collection = windows_of(
            self.collection,
            self._rows(),
            self.column_names,
            columns,
            length=length,
            step=step,
            series=series,
            order=order,
            pad=pad,
            target=target,
            keep_together=keep_together,
        )
        source, name = self._source(), label or f"{self._name}_windows"
        return type(source)(name, collection, register=register)

    def split_like(self, other: Any, on: str | Mapping[str, str]) -> None:
        """Split the rows as the rows of another set that have the same key.

        Machine facts get the splits of the windows of these machines, so that scalers of both
        learn from the same machines. Rows whose key is in no split of `other` are in none.

        Parameters
        ----------
        other : FeatureSet
            Its splits are taken over by name.
        on : str or dict of str to str
            Column whose values are equal in both; a dict maps the column of this set to that of
            `other`.

        Raises
        ------
        ConfigError
            If `on` is not one column, or `other` has no splits.
        DataError
            If no row has a key of a split.

        Examples
        --------
        >>> from modularml import FeatureSet
        >>> rows = FeatureSet.from_dict(
        ...     "rows", {"v": [1, 2, 3], "m": ["a", "b", "b"]}, "v", [], "m", register=False
        ... )
        >>> facts = FeatureSet.from_dict(
        ...     "facts", {"m": ["b", "a"], "age": [7, 9]}, "age", [], "m", register=False
        ... )
        >>> rows.split_by_condition({"train": {"m": "b"}, "test": {"m": "a"}})
        >>> facts.split_like(rows, on="m")
        >>> facts["train"].get_features()["age"].tolist()
        [7]
        """
        pairs = {on: on} if isinstance(on, str) else dict(on)
        if len(pairs) != 1:
            raise ConfigError(f"on must be one column that both sets have, got {on!r}")
        splits = getattr(other, "splits", None)
        if not splits:
            raise ConfigError(
                f"other must be a FeatureSet with splits, got {other!r}; split it first"
            )
        ((own, theirs),) = pairs.items()
        tables = [table_of(self.to_view()), table_of(other.to_view())]
        matches = link_by(tables, (0, 1), (own, theirs))
        conditions = {}
        for name, part in splits.items():
            keys = matches.keys[1].take(pa.array(part.valid_indices))
            conditions[name] = {own: pc.unique(keys.drop_null()).to_pylist()}
        if (matches.find(0) < 0).all():
            raise DataError(f"no row of {self._name!r} has a value of {on!r} in {other.label!r}")
        rows: Any = self
        rows.split_by_condition(conditions)

    def join(
        self,
        other: Any,
        on: JoinKey = None,
        *,
        asof: JoinKey = None,
        tolerance: Any = None,
        columns: Columns = None,
        rename: Mapping[str, str] | None = None,
        missing: str = "drop",
        label: str | None = None,
        register: bool = True,
    ) -> Any:
        """Add the columns of another set to these rows, in a new FeatureSet.

        Rows keep their order, ids and scalers, and each has at most one match. Splits are not
        copied, so join before splitting.

        Parameters
        ----------
        other : FeatureSet or FeatureSetView
        on : str, list of str, or dict, optional
            Columns whose values are equal in both; a dict maps the column of this set to that of
            `other`. Without `asof`, values must not repeat in `other`.
        asof : str or dict, optional
            Column of times or numbers: the match is the last row of `other` (with equal values of
            `on`, if given) whose value is not greater. Rows need not be sorted; of equal values in
            `other`, the last row counts.
        tolerance : number or str, optional
            Greatest distance in `asof`, inclusive: a number, or a duration such as ``"7D"``.
        columns : str or list of str, optional
            Columns of `other` to add, by default all but those of `on`; their domain, kind, unit,
            element names and masks are kept.
        rename : dict, optional
            New keys of columns of `other`.
        missing : {'drop', 'nan', 'error'}
            Rows without a match are dropped with a warning and a recorded reason (see `drop`),
            have NaN in float columns, or are refused.
        label : str, optional
            Label of the new set, by default both labels joined by ``_``.
        register : bool
            Whether the new set joins the active experiment.

        Returns
        -------
        FeatureSet

        Raises
        ------
        ConfigError
            If an argument is invalid.
        DataError
            If no row has a match, values of `on` repeat in `other`, they cannot be compared, both
            sets have a column of one name, or a column of `other` is scaled.

        Examples
        --------
        >>> from modularml import FeatureSet
        >>> rows = FeatureSet.from_dict(
        ...     "rows", {"v": [1.0, 2.0], "m": ["b", "a"]}, "v", [], "m", register=False
        ... )
        >>> facts = FeatureSet.from_dict(
        ...     "facts", {"m": ["a", "b"], "age": [7, 9]}, "age", [], "m", register=False
        ... )
        >>> rows.join(facts, "m", register=False).get_features()["age"].tolist()
        [9, 7]
        """
        if not isinstance(other, DerivedSetsMixin):
            raise ConfigError(
                f"other must be a FeatureSet or a view of one, got {type(other).__name__}"
            )
        left, right = self.to_view(), other.to_view()
        collection, rows, dropped = merged(
            left,
            right,
            on=on,
            asof=asof,
            tolerance=tolerance,
            columns=columns,
            rename=rename,
            missing=missing,
        )
        name = label or f"{self._name}_{other._name}"
        made = left.take(rows).to_featureset(name, register=register)
        return made._with_joined(collection, dropped)
