"""The lineage of columns through a graph, and the raw columns that they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from modularml._optional import require
from modularml._typing import Array
from modularml.data.arrow_columns import column_values, to_arrow
from modularml.data.arrow_types import to_numpy
from modularml.data.collection_building import check_lengths
from modularml.data.input_tables import as_columns
from modularml.data.lineage import (
    ColumnLineage,
    Source,
    SourceColumns,
    column_above,
    column_named,
    source_columns_of,
)
from modularml.data.references import FeatureSetReference
from modularml.data.schema import RAW, ColumnSpec
from modularml.data.selectors import as_list
from modularml.errors import DataError, GraphError, LossError, UnknownNameError
from modularml.graph.node import ComputeNode
from modularml.training import AppliedLoss, LossInput

__all__ = [
    "RawColumns",
    "column_above",
    "columns_behind",
    "is_integer",
    "lineages_of",
    "loss_inputs",
    "mask_above",
    "masks_of",
    "pick_column",
    "resolve_id",
    "source_columns_of",
    "units_of",
]


class RawColumns(Mapping[str, Array]):
    """Columns of a table by key, converted to arrays when they are read.

    Parameters
    ----------
    columns : mapping of str to array-like
        A bare array has the key ``""``.
    rows : ndarray of int, optional
        Selected rows; all by default.
    """

    def __init__(self, columns: Mapping[str, Any], rows: Array | None = None) -> None:
        self._columns, self._rows = columns, rows
        self._converted: dict[str, Array] = {}
        n = getattr(columns, "n_rows", None)  # known for frames, without reading them
        lengths: dict[str, int] = {}
        for key, values in columns.items() if n is None else ():
            if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
                raise DataError(
                    f"column {key!r} must hold one value per row, got {values!r}; pass lists, also "
                    f"for one row: {{{key!r}: [{values!r}], ...}}"
                )
            lengths[key] = len(values)
        check_lengths(lengths)
        n = next(iter(lengths.values()), 0) if n is None else n
        self.n_rows = n if rows is None else len(rows)

    @classmethod
    def of(cls, data: Any) -> RawColumns:
        """Return the columns of a frame, dict, list of records or array."""
        if isinstance(data, np.ndarray):
            return cls({"": data})
        allowed = "data must be a FeatureSet, a view, a frame, a dict or an array"
        return cls(as_columns(data, allowed))

    def taken(self, rows: Array) -> RawColumns:
        """Return selected rows, in that order."""
        return RawColumns(self._columns, rows if self._rows is None else self._rows[rows])

    def with_missing(self, key: str) -> Array:
        """Return a column of which values may be missing: as NaN in floats, else as None."""
        try:
            return self[key]
        except DataError:
            pandas = require("pandas")
            values = pandas.Series(list(self._columns[key]), dtype=object)
            missing = values.isna().to_numpy()
            if not missing.any():
                raise
            converted: Array = np.full(len(values), None, dtype=object)
            converted[~missing] = to_numpy(to_arrow(values[~missing].to_list(), key))
            return converted if self._rows is None else converted[self._rows]

    def arrow(self, key: str) -> pa.Array:
        """Return a column as an Arrow array, in which times keep their zone."""
        if key == "" or isinstance(self._columns[key], np.ndarray):
            return to_arrow(self[key], key)
        values = to_arrow(self._columns[key], key)
        return values if self._rows is None else values.take(pa.array(self._rows))

    def __getitem__(self, key: str) -> Array:
        values = self._converted.get(key)
        if values is None:
            values = self._columns[key]
            values = values if key == "" else column_values(values, key)
            values = values if self._rows is None else values[self._rows]
            self._converted[key] = values
        return values

    def __contains__(self, key: object) -> bool:
        return key in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def lineages_of(nodes: Sequence[ComputeNode]) -> dict[tuple[str, str], ColumnLineage]:
    """Return the lineage of each node's features, targets and tags.

    Parameters
    ----------
    nodes : sequence of ComputeNode
        In topological order, with all upstream nodes.
    """
    lineages: dict[tuple[str, str], ColumnLineage] = {}
    for node in nodes:
        for domain in ("features", "targets", "tags"):
            parts: list[ColumnLineage] = []
            for ref in node.upstream_refs:
                if isinstance(ref, FeatureSetReference):
                    columns = ref.columns(domain)
                    parts.append(
                        SourceColumns(Source(node.node_id, ref), columns) if columns else None
                    )
                else:
                    parts.append(lineages.get((resolve_id(ref), domain)))
            lineages[node.node_id, domain] = node.flow(domain, parts)
        names = as_list(getattr(node, "targets", None))
        if not names or not lineages[node.node_id, "features"]:
            continue
        available: list[str] = []
        for leaf in source_columns_of(lineages[node.node_id, "features"]):
            schema = leaf.source.ref.resolve().collection.schema
            targets = [column_named(name, schema, "targets") for name in names]
            if None not in targets:  # those named by the node, from one of its FeatureSets
                lineages[node.node_id, "targets"] = SourceColumns(
                    leaf.source, tuple(map(str, targets))
                )
                break
            available += [n for n, spec in schema.columns.items() if spec.domain == "targets"]
        else:
            raise UnknownNameError(f"targets of node {node.label!r}", ", ".join(names), available)
    return lineages


def units_of(lineage: ColumnLineage) -> dict[str, str]:
    """Return the unit of each column of a lineage by key, in its active context; "" if unknown."""
    units: dict[str, str] = {}
    for leaf in source_columns_of(lineage):
        schema = leaf.source.ref.resolve().collection.schema
        raw = [schema[f"{name.rpartition('.')[0]}.{RAW}"] for name in leaf.columns]
        units |= {spec.key: spec.unit or "" for spec in raw}
    return units


def resolve_id(ref: Any) -> str:
    """Return the id of the node that a reference denotes in the active context."""
    node_id: str = ref.resolve().node_id
    return node_id


def masks_of(leaf: SourceColumns) -> dict[str, str]:
    """Return the full names of the masks of padded columns, by column name."""
    schema = leaf.source.ref.resolve().collection.schema
    return {name: m for name in leaf.columns if (m := schema.mask_of(name)) is not None}


def mask_above(lineages: Mapping[Any, ColumnLineage], node: ComputeNode) -> tuple[Source, str]:
    """Return the source and full name of the one mask of a node's columns.

    Raises
    ------
    GraphError
        If no column that it reads is padded, or several are padded by different masks.
    """
    masks: dict[tuple[str, str], Source] = {}
    for leaf in source_columns_of(lineages[node.node_id, "features"]):
        for mask in masks_of(leaf).values():
            masks.setdefault((leaf.source.ref.node_label, mask), leaf.source)
    if len(masks) != 1:
        names = [mask for _, mask in masks] or "no padded column (mask= of a constructor names it)"
        raise GraphError(
            f"mask_as of node {node.label!r} needs columns with one mask, but the node reads "
            f"{names}"
        )
    ((_, mask), source) = next(iter(masks.items()))
    return source, mask


def columns_behind(ref: Any, nodes: Mapping[str, ComputeNode]) -> list[ColumnSpec] | None:
    """Return the columns that reach an input; None if an output of a node with a model does."""
    if isinstance(ref, FeatureSetReference):
        schema = ref.resolve().collection.schema
        return [schema[name] for name in ref.columns("features")]
    above, specs = nodes[resolve_id(ref)], list[ColumnSpec]()
    if hasattr(above, "model"):
        return None
    for upstream in above.upstream_refs:
        behind = columns_behind(upstream, nodes)
        if behind is None:
            return None
        specs += behind
    return specs


def is_integer(flow: ColumnLineage) -> bool:
    """Return whether all source columns have an integer or boolean dtype."""
    for leaf in source_columns_of(flow):
        schema = leaf.source.ref.resolve().collection.schema
        if any(schema[name].dtype.kind not in "biu" for name in leaf.columns):
            return False
    return True


def pick_column(
    applied: AppliedLoss, item: LossInput, lineages: Mapping[Any, ColumnLineage], node: ComputeNode
) -> ColumnLineage:
    """Return the column that a loss reads, from an upstream FeatureSet."""
    return column_above(
        lineages, node.node_id, str(item.column), f"input of loss {applied.label!r}", item.source
    )


def loss_inputs(
    applied: AppliedLoss,
    roles: Sequence[str],
    nodes: Mapping[str, ComputeNode],
    lineages: Mapping[Any, ColumnLineage],
) -> list[LossInput]:
    """Return the inputs of a loss, where ``targets.x`` may be role or column ``x``.

    Raises
    ------
    LossError
        If it is neither.
    """
    inputs = []
    for item in applied.parsed:
        in_graph = item.node is None or item.node in nodes
        unambiguous = item.domain == "outputs" or item.column is not None or item.role is None
        on = nodes.get(str(item.node), nodes.get(applied.on))
        if unambiguous or on is None or (in_graph and item.role in roles):
            inputs.append(item)
            continue
        column, source = f"{item.domain}.{item.role}", None if in_graph else item.node
        as_column = LossInput(item.node if in_graph else None, item.domain, None, column, source)
        try:
            pick_column(applied, as_column, lineages, on)
        except UnknownNameError as error:
            raise LossError(
                f"loss {applied.label!r} on node {applied.on!r} reads {column!r}, which is "
                f"neither a role of the sampler (its roles are {list(roles)}) nor a column: "
                f"{error}"
            ) from error
        inputs.append(as_column)
    return inputs
