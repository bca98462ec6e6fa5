"""Column lineage: which columns the features, targets and tags of a node come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from modularml.data.references import FeatureSetReference
from modularml.data.schema import SampleSchema
from modularml.errors import UnknownNameError


@dataclass(frozen=True)
class Source:
    """Columns of a FeatureSet on an edge into a head node."""

    node_id: str
    ref: FeatureSetReference


@dataclass(frozen=True)
class SourceColumns:
    """Values of a domain read directly from columns.

    `labels` says what each block of outputs predicts of them, such as mean and variance.
    """

    source: Source
    columns: tuple[str, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class MergedColumns:
    """Values of a domain that a merge node combines from several parts."""

    parts: tuple[ColumnLineage, ...]
    merge: Callable[[Sequence[Any]], Any]


ColumnLineage: TypeAlias = SourceColumns | MergedColumns | None
"""Lineage of a node's features, targets or tags; None if it has none."""


def source_columns_of(lineage: ColumnLineage) -> list[SourceColumns]:
    """Return the source columns of a lineage."""
    if lineage is None:
        return []
    if isinstance(lineage, SourceColumns):
        return [lineage]
    return [columns for part in lineage.parts for columns in source_columns_of(part)]


def column_above(
    lineages: Mapping[Any, ColumnLineage], node_id: str, column: str, kind: str, source: Any = None
) -> SourceColumns:
    """Return a column of a FeatureSet that feeds a node; of `source` only if given.

    Raises
    ------
    UnknownNameError
        If there is none; `kind` describes the column in the message.
    """
    known: list[str] = ["outputs", "targets", "features", "tags"]
    for columns in source_columns_of(lineages.get((node_id, "features"))):
        if source not in (None, columns.source.ref.node_label):
            continue
        schema = columns.source.ref.resolve().collection.schema
        name = column_named(column, schema)
        if name is not None:
            return SourceColumns(columns.source, (name,))
        known += list(schema.columns)
    raise UnknownNameError(kind, column, known)


def column_named(text: str, schema: SampleSchema, domain: str | None = None) -> str | None:
    """Find a column by ``domain.key.rep``, ``domain.key``, ``key.rep`` or ``key``."""
    columns = {n: c for n, c in schema.columns.items() if domain in (None, c.domain)}
    for name, spec in columns.items():
        if text in (name, f"{spec.key}.{spec.rep}"):
            return name
    for spec in columns.values():
        if text in (spec.key, f"{spec.domain}.{spec.key}"):
            return schema.newest(spec.domain, spec.key)
    return None
