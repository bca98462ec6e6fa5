"""Where the features, targets and tags of each node come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modularml.data.lineage import (
    ColumnLineage,
    Source,
    SourceColumns,
    column_above,
    column_named,
    source_columns_of,
)
from modularml.data.references import FeatureSetReference
from modularml.data.selectors import as_list
from modularml.errors import GraphError, LossError, UnknownNameError
from modularml.graph.node import ComputeNode
from modularml.training import AppliedLoss, LossInput

__all__ = [
    "column_above",
    "is_integer",
    "lineages_of",
    "loss_inputs",
    "mask_above",
    "masks_of",
    "pick_column",
    "resolve_id",
    "source_columns_of",
]


def lineages_of(nodes: Sequence[ComputeNode]) -> dict[tuple[str, str], ColumnLineage]:
    """Say where each node's features, targets and tags come from.

    Parameters
    ----------
    nodes : sequence of ComputeNode
        In topological order, with all upstream nodes.
    """
    lineages: dict[tuple[str, str], ColumnLineage] = {}
    for node in nodes:
        for domain in ("features", "targets", "tags"):
            parts = [_lineage_in(node, ref, domain, lineages) for ref in node.upstream_refs]
            lineages[node.node_id, domain] = node.flow(domain, parts)
        if (named := as_list(getattr(node, "targets", None))) and lineages[
            node.node_id, "features"
        ]:
            lineages[node.node_id, "targets"] = _named_targets(node, named, lineages)
    return lineages


def _named_targets(
    node: ComputeNode, named: Sequence[str], lineages: Mapping[Any, ColumnLineage]
) -> ColumnLineage:
    """Return the target columns that a node names, of one FeatureSet that it reads."""
    known: list[str] = []
    for leaf in source_columns_of(lineages[node.node_id, "features"]):
        schema = leaf.source.ref.resolve().collection.schema
        found = [column_named(name, schema, "targets") for name in named]
        if None not in found:
            return SourceColumns(leaf.source, tuple(map(str, found)))
        known += [name for name, spec in schema.columns.items() if spec.domain == "targets"]
    raise UnknownNameError(f"targets of node {node.label!r}", ", ".join(named), known)


def _lineage_in(
    node: ComputeNode, ref: Any, domain: str, lineages: Mapping[Any, ColumnLineage]
) -> ColumnLineage:
    if not isinstance(ref, FeatureSetReference):
        return lineages.get((resolve_id(ref), domain))
    columns = ref.columns(domain)
    return SourceColumns(Source(node.node_id, ref), columns) if columns else None


def resolve_id(ref: Any) -> str:
    """Return the id of the node that a reference means in the active context."""
    found: str = ref.resolve().node_id
    return found


def masks_of(leaf: SourceColumns) -> dict[str, str]:
    """Return the full names of the masks of padded columns, by their own."""
    schema = leaf.source.ref.resolve().collection.schema
    return {name: m for name in leaf.columns if (m := schema.mask_of(name)) is not None}


def mask_above(lineages: Mapping[Any, ColumnLineage], node: ComputeNode) -> tuple[Source, str]:
    """Return the only mask of the columns that a node reads: its source and full name.

    Raises
    ------
    GraphError
        If no column that it reads is padded, or several are by unlike masks.
    """
    found: dict[tuple[str, str], Source] = {}
    for leaf in source_columns_of(lineages[node.node_id, "features"]):
        for mask in masks_of(leaf).values():
            found.setdefault((leaf.source.ref.node_label, mask), leaf.source)
    if len(found) != 1:
        known = [mask for _, mask in found] or "no padded column (mask= of a constructor names it)"
        raise GraphError(
            f"mask_as of node {node.label!r} needs columns of one mask, and it reads {known}"
        )
    ((_, mask), source) = next(iter(found.items()))
    return source, mask


def is_integer(flow: ColumnLineage) -> bool:
    """Tell whether all columns behind hold whole numbers by dtype."""
    for leaf in source_columns_of(flow):
        schema = leaf.source.ref.resolve().collection.schema
        if any(schema[name].dtype.kind not in "biu" for name in leaf.columns):
            return False
    return True


def pick_column(
    applied: AppliedLoss, item: LossInput, lineages: Mapping[Any, ColumnLineage], node: ComputeNode
) -> ColumnLineage:
    """Find an upstream FeatureSet that has the column a loss asks for."""
    return column_above(
        lineages, node.node_id, str(item.column), f"input of loss {applied.label!r}", item.source
    )


def loss_inputs(
    applied: AppliedLoss,
    roles: Sequence[str],
    nodes: Mapping[str, ComputeNode],
    lineages: Mapping[Any, ColumnLineage],
) -> list[LossInput]:
    """Return what a loss reads, where ``targets.x`` may be the role or the column ``x``.

    Raises
    ------
    LossError
        If it is neither.
    """
    found = []
    for item in applied.parsed:
        here = item.node is None or item.node in nodes
        plain = item.domain == "outputs" or item.column is not None or item.role is None
        on = nodes.get(str(item.node), nodes.get(applied.on))
        if plain or on is None or (here and item.role in roles):
            found.append(item)
            continue
        column, source = f"{item.domain}.{item.role}", None if here else item.node
        asked = LossInput(item.node if here else None, item.domain, None, column, source)
        try:
            pick_column(applied, asked, lineages, on)
        except UnknownNameError as error:
            raise LossError(
                f"loss {applied.label!r} on node {applied.on!r} asks for {column!r}: the sampler "
                f"does not give the role {item.role!r} (its roles are {list(roles)}), and there is "
                f"no such column: {error}"
            ) from error
        found.append(asked)
    return found
