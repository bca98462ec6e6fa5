"""Column getters shared by FeatureSets and views."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from modularml._typing import Array, Columns, IntArray, Shape
from modularml.data.collection import SampleCollection
from modularml.data.formats import DataFormat, convert, convert_array
from modularml.data.ids import id_texts
from modularml.data.samples import SampleData
from modularml.data.schema import DOMAINS, ColumnSpec, SampleSchema
from modularml.data.selectors import newest, select
from modularml.errors import UnknownNameError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class ColumnGetters:
    """Getters over a collection, some of its rows and some of its columns."""

    @property
    @abstractmethod
    def collection(self) -> SampleCollection:
        """The table to read from."""

    @property
    @abstractmethod
    def row_indices(self) -> IntArray | None:
        """Rows of the table to read; None for all, in order."""

    @property
    @abstractmethod
    def column_names(self) -> list[str]:
        """Full names of the columns to read."""

    # -- size ---------------------------------------------------------------------------------

    @property
    def n_samples(self) -> int:
        """Number of rows."""
        rows = self.row_indices
        return self.collection.n_samples if rows is None else len(rows)

    def __len__(self) -> int:
        return self.n_samples

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and of columns with all their representations."""
        return self.n_samples, len(self.column_names)

    # -- data ---------------------------------------------------------------------------------

    def column(self, name: str) -> Array:
        """Return one column by full name.

        Returns
        -------
        ndarray, shape (n_samples, *shape)
            Read-only; a view without a copy if all rows are read.
        """
        values = self.collection.numpy(name)
        rows = self.row_indices
        return values if rows is None else values[rows]

    def get_data(
        self,
        *,
        columns: Columns = None,
        features: Columns = None,
        targets: Columns = None,
        tags: Columns = None,
        rep: str | None = None,
        fmt: str | DataFormat = "dict_numpy",
        include_domain_prefix: bool = True,
        include_rep_suffix: bool = True,
    ) -> Any:
        """Return selected columns of any domain.

        Parameters
        ----------
        columns : str or list of str, optional
            Selectors: ``key``, ``key.rep``, ``domain.key.rep`` or wildcards.
        features, targets, tags : str or list of str, optional
            Selectors within a domain.
        rep : str, optional
            Representation for selectors that name none. None means the newest of each column, as
            in references; ``"raw"`` the original column; ``"*"`` every representation.
        fmt : str or DataFormat
            See `DataFormat`. Array formats stack columns on axis 1.
        include_domain_prefix, include_rep_suffix : bool
            Whether names in the result carry the domain and the representation. A suffix that
            distinguishes two columns is always included.

        Raises
        ------
        UnknownNameError
            If a selector matches no column.
        ShapeError
            If columns of different shapes are requested as one array.
        """
        selectors = {"columns": columns, "features": features, "targets": targets, "tags": tags}
        return self._get(selectors, rep, fmt, include_domain_prefix, include_rep_suffix)

    def get_features(
        self,
        fmt: str | DataFormat = "dict_numpy",
        *,
        features: Columns = None,
        rep: str | None = None,
        include_domain_prefix: bool = False,
        include_rep_suffix: bool = False,
    ) -> Any:
        """Return feature columns, the newest representation of each; see `get_data`."""
        return self._domain(
            "features", fmt, features, rep, include_domain_prefix, include_rep_suffix
        )

    def get_targets(
        self,
        fmt: str | DataFormat = "dict_numpy",
        *,
        targets: Columns = None,
        rep: str | None = None,
        include_domain_prefix: bool = False,
        include_rep_suffix: bool = False,
    ) -> Any:
        """Return target columns, the newest representation of each; see `get_data`."""
        return self._domain("targets", fmt, targets, rep, include_domain_prefix, include_rep_suffix)

    def get_tags(
        self,
        fmt: str | DataFormat = "dict_numpy",
        *,
        tags: Columns = None,
        rep: str | None = None,
        include_domain_prefix: bool = False,
        include_rep_suffix: bool = False,
    ) -> Any:
        """Return tag columns, the newest representation of each; see `get_data`."""
        return self._domain("tags", fmt, tags, rep, include_domain_prefix, include_rep_suffix)

    def get_sample_uuids(self, fmt: str | DataFormat = "numpy") -> Any:
        """Return the ids of the rows as UUID text."""
        ids = self.collection.ids
        rows = self.row_indices
        texts = id_texts(ids if rows is None else ids[rows])
        fmt = DataFormat.from_value(fmt)
        if fmt in (DataFormat.NUMPY, DataFormat.LIST):
            return convert_array(texts, fmt)
        return convert({"sample_uuids": texts}, fmt)

    def to_pandas(self) -> pd.DataFrame:
        """Return every representation of all columns as a DataFrame indexed by sample id."""
        frame: pd.DataFrame = self.get_data(rep="*", fmt="pandas")
        return frame.set_axis(self.get_sample_uuids(), axis=0).rename_axis("sample_uuids")

    def to_arrow(self) -> pa.Table:
        """Return all columns and the ids as an Arrow table."""
        return self.collection.take(self._rows(), self.column_names)

    def to_sample_data(self, fmt: str | DataFormat = "numpy") -> SampleData:
        """Return each domain stacked into one array, every column in its newest representation.

        Raises
        ------
        ShapeError
            If columns of a domain differ in shape.
        """
        stacked = {
            domain: self._domain(domain, "numpy", None, None, False, False)
            for domain in DOMAINS
            if self._specs(domain, True, True)
        }
        data = SampleData(**stacked, sample_uuids=self.get_sample_uuids())
        return data if DataFormat.from_value(fmt) is DataFormat.NUMPY else data.to(fmt)

    # -- keys, shapes, dtypes -----------------------------------------------------------------

    def get_feature_keys(
        self, include_rep_suffix: bool = True, include_domain_prefix: bool = True
    ) -> list[str]:
        """Return the names of feature columns; without the suffix, each column once."""
        return list(self._specs("features", include_domain_prefix, include_rep_suffix))

    def get_target_keys(
        self, include_rep_suffix: bool = True, include_domain_prefix: bool = True
    ) -> list[str]:
        """Return the names of target columns; without the suffix, each column once."""
        return list(self._specs("targets", include_domain_prefix, include_rep_suffix))

    def get_tag_keys(
        self, include_rep_suffix: bool = True, include_domain_prefix: bool = True
    ) -> list[str]:
        """Return the names of tag columns; without the suffix, each column once."""
        return list(self._specs("tags", include_domain_prefix, include_rep_suffix))

    def get_all_keys(
        self, include_rep_suffix: bool = True, include_domain_prefix: bool = True
    ) -> list[str]:
        """Return the names of all columns."""
        return list(self._specs(None, include_domain_prefix, include_rep_suffix))

    def get_feature_shapes(
        self, include_rep_suffix: bool = True, include_domain_prefix: bool = True
    ) -> dict[str, Shape]:
        """Return the shape of one sample of each feature column."""
        return self._spec_values("shape", "features", include_domain_prefix, include_rep_suffix)

    def get_target_shapes(
        self, include_rep_suffix: bool = True, include_domain_prefix: bool = True
    ) -> dict[str, Shape]:
        """Return the shape of one sample of each target column."""
        return self._spec_values("shape", "targets", include_domain_prefix, include_rep_suffix)

    def get_tag_shapes(
        self, include_rep_suffix: bool = True, include_domain_prefix: bool = True
    ) -> dict[str, Shape]:
        """Return the shape of one sample of each tag column."""
        return self._spec_values("shape", "tags", include_domain_prefix, include_rep_suffix)

    def get_feature_dtypes(
        self, include_rep_suffix: bool = True, include_domain_prefix: bool = True
    ) -> dict[str, np.dtype[Any]]:
        """Return the dtype of each feature column."""
        return self._spec_values("dtype", "features", include_domain_prefix, include_rep_suffix)

    def get_target_dtypes(
        self, include_rep_suffix: bool = True, include_domain_prefix: bool = True
    ) -> dict[str, np.dtype[Any]]:
        """Return the dtype of each target column."""
        return self._spec_values("dtype", "targets", include_domain_prefix, include_rep_suffix)

    def get_tag_dtypes(
        self, include_rep_suffix: bool = True, include_domain_prefix: bool = True
    ) -> dict[str, np.dtype[Any]]:
        """Return the dtype of each tag column."""
        return self._spec_values("dtype", "tags", include_domain_prefix, include_rep_suffix)

    def get_element_names(self, column: str, rep: str | None = None) -> list[str] | None:
        """Return the names of the elements of an array column; None if they have none.

        A representation that selects or creates elements names them itself.

        Raises
        ------
        UnknownNameError
            If no column, or more than one, matches.
        """
        names = self._select(column, rep=rep)
        if len(names) != 1:
            raise UnknownNameError("single column", column, names)
        elements = self.collection.schema[names[0]].elements
        return None if elements is None else list(elements)

    # -- internals ----------------------------------------------------------------------------

    def _rows(self) -> IntArray:
        rows = self.row_indices
        return np.arange(self.n_samples) if rows is None else rows

    def _select(self, columns: Columns = None, **selectors: Any) -> list[str]:
        return select(self.collection.schema, self.column_names, columns, **selectors)

    def _get(
        self, selectors: dict[str, Any], rep: str | None, fmt: Any, prefix: bool, suffix: bool
    ) -> Any:
        collection = self.collection
        schema = collection.schema
        chosen = select(schema, self.column_names, **selectors, rep=rep)
        arrays, zones = dict[str, Array](), dict[str, str]()
        for label, name in zip(_labels(schema, chosen, prefix, suffix), chosen, strict=True):
            arrays[label] = collection.numpy(name)
            if arrays[label].dtype.kind == "M" and (zone := collection.zone(name)) is not None:
                zones[label] = zone
        return convert(arrays, fmt, self.row_indices, zones)

    def _domain(
        self, domain: str, fmt: Any, wanted: Columns, rep: str | None, prefix: bool, suffix: bool
    ) -> Any:
        if wanted is None and not self._specs(domain, True, True):
            return convert({}, fmt)
        selectors = {domain: "*" if wanted is None else wanted}
        return self._get(selectors, rep, fmt, prefix, suffix)

    def _specs(self, domain: str | None, prefix: bool, suffix: bool) -> dict[str, ColumnSpec]:
        schema = self.collection.schema
        chosen = [n for n in self.column_names if domain in (None, schema[n].domain)]
        chosen = chosen if suffix else newest(schema, chosen)
        labels = _labels(schema, chosen, prefix, suffix)
        return {label: schema[name] for label, name in zip(labels, chosen, strict=True)}

    def _spec_values(self, field: str, *selection: Any) -> dict[str, Any]:
        return {name: getattr(spec, field) for name, spec in self._specs(*selection).items()}


def _labels(schema: SampleSchema, names: list[str], prefix: bool, suffix: bool) -> list[str]:
    """Shorten names, but keep a representation that distinguishes two columns."""
    specs = [schema.columns[name] for name in names]
    key_counts = Counter([spec.key for spec in specs])
    return [
        (f"{s.domain}." if prefix else "")
        + s.key
        + (f".{s.rep}" if suffix or key_counts[s.key] > 1 else "")
        for s in specs
    ]
