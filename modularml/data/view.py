"""Views: rows and columns of a FeatureSet without a copy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from modularml._typing import IntArray
from modularml.context import ExperimentContext, ExperimentNode
from modularml.data.collection import SampleCollection
from modularml.data.display import html
from modularml.data.ids import as_positions, as_slice
from modularml.data.rows import Rows
from modularml.data.selectors import as_list
from modularml.data.split_records import DroppedRows, described_drops
from modularml.errors import DataError, expect


@dataclass(frozen=True, eq=False, repr=False)
class FeatureSetView(Rows["FeatureSetView"]):
    """Immutable projection of a FeatureSet onto rows and columns.

    Parameters
    ----------
    source : FeatureSet
        Set that holds the rows.
    indices : ndarray of int64, shape (n,)
        Rows of the source, 0-based; -1 is padding.
    columns : list of str
        Full names.
    label : str, optional
    dropped : tuple of DroppedRows
        Rows that were left out, and why; see `drop`.

    Raises
    ------
    DataError
        If an index is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from modularml import FeatureSet
    >>> rows = {"x": np.arange(10.0), "y": np.arange(10.0)}
    >>> fs = FeatureSet.from_dict("rows", rows, "x", "y", register=False)
    >>> view = fs.filter(conditions={"x": lambda x: x > 6})
    >>> view.n_samples, view.get_features("numpy").ravel().tolist()
    (3, [7.0, 8.0, 9.0])
    """

    source: Any
    indices: IntArray
    columns: list[str]
    label: str | None = None
    dropped: tuple[DroppedRows, ...] = ()

    def __post_init__(self) -> None:
        expect("source", self.source, ExperimentNode, "a FeatureSet")
        self.source.collection.check_rows()
        rows = as_positions(self.indices)
        if rows.size and (rows.min() < -1 or rows.max() >= self.source.n_samples):
            raise DataError(
                f"row indices must lie between 0 and {self.source.n_samples - 1} "
                f"(-1 for padding), got {rows.min()} to {rows.max()}"
            )
        if rows.flags.writeable:
            rows = rows.copy() if np.may_share_memory(rows, self.indices) else rows
            rows.flags.writeable = False
        object.__setattr__(self, "indices", rows)
        object.__setattr__(self, "columns", as_list(self.columns))
        for name in self.columns:
            self.source.collection.schema[name]

    @classmethod
    def from_featureset(
        cls,
        fs: Any,
        *,
        rows: IntArray | None = None,
        columns: list[str] | None = None,
        label: str | None = None,
    ) -> FeatureSetView:
        """Return a view of a FeatureSet, by default of all rows and columns."""
        rows = np.arange(fs.n_samples) if rows is None else rows
        names = fs.collection.names if columns is None else columns
        return cls(fs, rows, names, label, fs.dropped)

    @property
    def collection(self) -> SampleCollection:
        """The source's table."""
        table: SampleCollection = self.source.collection
        return table

    @property
    def row_indices(self) -> IntArray:
        """Rows of the source without padding."""
        return self.valid_indices

    @property
    def column_names(self) -> list[str]:
        """Full names of the columns."""
        return self.columns

    @cached_property
    def valid_indices(self) -> IntArray:
        """Indices that are not padding."""
        return self.indices[self.indices >= 0] if (self.indices < 0).any() else self.indices

    @cached_property
    def span(self) -> IntArray | slice:
        """Valid indices, as a slice if they are consecutive."""
        return as_slice(self.valid_indices)

    def expand_columns(self, label: str | None = None) -> FeatureSetView:
        """Return the same rows with every column of the source."""
        label = label or f"{self.label}_expanded"
        return FeatureSetView(self.source, self.indices, self.collection.names, label, self.dropped)

    def get_config(self) -> dict[str, Any]:
        """Return label of the source, indices, columns and label."""
        return {
            "source": self.source.label,
            "indices": self.indices.tolist(),
            "columns": list(self.columns),
            "label": self.label,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FeatureSetView:
        """Create a view from its config; the source is looked up by label."""
        ctx = ExperimentContext.get_active()
        source: Any = ctx.get_node(label=config["source"], enforce_type="FeatureSet")
        return cls(source, np.array(config["indices"]), config["columns"], config["label"])

    def to_view(self) -> FeatureSetView:
        """Return this view."""
        return self

    def __repr__(self) -> str:
        return (
            f"FeatureSetView({self.label!r} of {self.source.label!r}, {self.n_samples} rows, "
            f"{len(self.columns)} columns{'; ' if self.dropped else ''}"
            f"{described_drops(self.dropped)})"
        )

    def _repr_html_(self) -> str:
        return html(self, f"FeatureSetView {self.label or ''} of {self.source.label}")

    def _view(
        self, rows: IntArray | None, columns: list[str] | None, label: str | None
    ) -> FeatureSetView:
        chosen = self.indices if rows is None else self.valid_indices[rows]
        names = self.columns if columns is None else columns
        return FeatureSetView(self.source, chosen, names, label or self.label, self.dropped)

    def _source(self) -> Any:
        return self.source
