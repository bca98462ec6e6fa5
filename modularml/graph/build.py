"""Building a graph: shapes flow from the FeatureSets to the tails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from modularml._typing import Shape
from modularml.data.execution import Flow, Leaf, Merged
from modularml.data.references import FeatureSetReference
from modularml.errors import GraphError, ShapeError
from modularml.graph.flows import flows_of, leaves, resolve_id
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode
from modularml.graph.segments import backends_of

__all__ = ["build_nodes", "columns_shape"]


def build_nodes(nodes: Sequence[ComputeNode], tails: set[str], *, force: bool = False) -> None:
    """Build nodes in order, each for the shape of what it reads.

    Parameters
    ----------
    nodes : sequence of ComputeNode
        In topological order.
    tails : set of str
        Ids of nodes that nobody reads; where their model gives no output shape, they get that of
        their targets.
    force : bool
        Whether to build again what is built.

    Raises
    ------
    ShapeError
        If a node cannot take what it reads; both nodes and both shapes are named.
    """
    shapes: dict[str, Shape] = {}
    flows, frameworks = flows_of(nodes), backends_of(nodes)
    for node in nodes:
        node.framework = frameworks.get(node.node_id)
        incoming = [_shape_of(node, ref, shapes) for ref in node.upstream_refs]
        flow = flows.get((node.node_id, "targets"))
        wanted = _target_shape(flow) if node.node_id in tails else None
        try:
            if isinstance(node, ModelNode):
                targets = _target_shape(flow, numbers=False)
                node.model.expect_targets(targets, partial(_labels, flow))
            shapes[node.node_id] = node.build_from(incoming, wanted, force=force)
        except ShapeError as error:
            given = ", ".join(
                f"{ref.node_label!r} gives {shape}"
                for ref, shape in zip(node.upstream_refs, incoming, strict=True)
            )
            raise ShapeError(
                f"node {node.label!r} does not fit what it reads ({given}): {error}"
            ) from error


def columns_shape(
    ref: FeatureSetReference, domain: str, label: str, *, numbers: bool = True
) -> Shape:
    """Return the shape of one sample of the stacked columns of a reference.

    With `numbers`, columns that hold none are refused.

    Raises
    ------
    GraphError
        If the reference has no column of this domain.
    ShapeError
        If the columns have unlike shapes.
    """
    schema = ref.resolve().collection.schema
    columns = ref.columns(domain)
    if not columns:
        raise GraphError(
            f"node {label!r} reads no {domain} of {ref.node_label!r}; name some in the reference"
        )
    shapes = {name: schema[name].shape for name in columns}
    if len(set(shapes.values())) > 1:
        shown = ", ".join(f"{name}: {shape}" for name, shape in shapes.items())
        raise ShapeError(
            f"node {label!r} reads columns of unlike shape from {ref.node_label!r} ({shown}); "
            "give each "
            "shape a node of its own and merge them"
        )
    for name in columns:
        if numbers and schema[name].dtype.kind not in "biuf":
            raise ShapeError(
                f"node {label!r} reads column {name!r} of {ref.node_label!r}, which holds "
                f"{schema[name].dtype}, not numbers"
            )
    return (len(columns), *next(iter(shapes.values())))


def _shape_of(node: ComputeNode, ref: Any, shapes: Mapping[str, Shape]) -> Shape:
    if isinstance(ref, FeatureSetReference):
        return columns_shape(ref, "features", node.label)
    return shapes[resolve_id(ref)]


def _target_shape(flow: Flow, *, numbers: bool = True) -> Shape | None:
    """Return the shape that targets have; None where there are none, or they are no numbers."""
    if isinstance(flow, Leaf):
        source = flow.source
        try:
            return columns_shape(source.ref, "targets", source.node_id, numbers=numbers)
        except ShapeError:
            return None
    if isinstance(flow, Merged):
        return _merged_shape(flow)
    return None


def _labels(flow: Flow) -> Any:
    """Return every value of the target columns, sorted."""
    found = leaves(flow)
    columns = [(leaf.source.ref.resolve().collection, n) for leaf in found for n in leaf.columns]
    return np.unique(np.concatenate([np.unique(table.numpy(name)) for table, name in columns]))


def _merged_shape(flow: Merged) -> Shape | None:
    """Return the shape of merged targets; the same targets twice are not meant as two."""
    shapes = [shape for part in flow.parts if (shape := _target_shape(part)) is not None]
    columns = {(leaf.source.ref.node_label, leaf.columns) for leaf in leaves(flow)}
    if len(shapes) < len(flow.parts) or len(columns) == 1:
        return shapes[0] if shapes else None
    try:
        return tuple(flow.merge([np.zeros((1, *shape)) for shape in shapes]).shape[1:])
    except ShapeError:
        return None
