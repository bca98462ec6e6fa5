"""Building of graphs: shape inference from the FeatureSets to the tails."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from modularml._typing import Array, Shape
from modularml._warning import warn
from modularml.backends import Backend, adapter_for
from modularml.data.lineage import ColumnLineage, MergedColumns, SourceColumns
from modularml.data.references import FeatureSetReference
from modularml.errors import GraphError, NotFittedError, ShapeError
from modularml.graph.lineage import lineages_of, mask_above, masks_of, resolve_id, source_columns_of
from modularml.graph.merge import side_by_side
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode
from modularml.graph.node_graph import id_among
from modularml.graph.topology import backends_of
from modularml.models.base import Place


def build_nodes(nodes: Sequence[ComputeNode], tails: set[str], *, force: bool = False) -> bool:
    """Build nodes in order, each for the shapes of its inputs.

    A model that reads from an estimator whose outputs have no shape before it is fitted is left
    unbuilt.

    Parameters
    ----------
    nodes : sequence of ComputeNode
        In topological order.
    tails : set of str
        Ids of nodes that no other node reads; if their model sets no output shape, they get that of
        their targets.
    force : bool
        Whether to rebuild nodes that are built.

    Returns
    -------
    bool
        Whether all shapes are known, that is, every node is built.

    Raises
    ------
    ShapeError
        If a node does not accept its inputs; the message names both nodes and both shapes.
    """
    shapes: dict[str, Shape | None] = {}
    lineages, frameworks = lineages_of(nodes), backends_of(nodes)
    for node in nodes:
        node.framework = frameworks.get(node.node_id)
        incoming = [_shape_of(node, ref, shapes) for ref in node.upstream_refs]
        flow = lineages.get((node.node_id, "targets"))
        target_shape = _target_shape(flow) if node.node_id in tails else None
        try:
            if isinstance(node, ModelNode):
                targets = _target_shape(flow, numbers=False)
                node.model.expect_targets(targets, partial(_labels, flow))
                node.model.expect_place(_place(node, incoming[0], flow, tails))
                node.model.expect_categories(partial(_categories, node, incoming))
                node.model.mask = _mask(node, lineages)
            shapes[node.node_id] = node.build_from(incoming, target_shape, force=force)
        except ShapeError as error:
            input_shapes = ", ".join(
                f"{ref.node_label!r} gives {shape}"
                for ref, shape in zip(node.upstream_refs, incoming, strict=True)
            )
            raise ShapeError(
                f"node {node.label!r} does not fit what it reads ({input_shapes}): {error}"
            ).with_code("MML-402") from error
    return None not in shapes.values()


def ready(
    nodes: Sequence[ComputeNode],
    among: Mapping[str, ComputeNode],
    needed: Iterable[ComputeNode],
    fits: Sequence[ComputeNode],
) -> list[ComputeNode]:
    """Return nodes without those that wait for an estimator fitted in this step.

    Raises
    ------
    NotFittedError
        If a node that is needed cannot be built before an upstream estimator is fitted.
    """
    waiting: dict[str, ComputeNode] = {}
    for node in nodes:
        upstream = {id_among(among, node, ref) for ref in node.node_refs}
        unbuilt = isinstance(node, ModelNode) and not node.is_built
        if unbuilt or not upstream.isdisjoint(waiting):
            waiting[node.node_id] = node
    if waiting and (not fits or any(n.node_id in waiting for n in needed)):
        node = next(iter(waiting.values()))
        raise NotFittedError(
            f"node {node.label!r} cannot be built before {node.upstream_refs[0].node_label!r}, "
            "which it reads from, is fitted, as only the fit determines its output shape; "
            "run a FitPhase on that node first"
        )
    return [n for n in nodes if n.node_id not in waiting]


def columns_shape(
    ref: FeatureSetReference,
    domain: str,
    label: str,
    *,
    numbers: bool = True,
    flat: bool = False,
    columns: Sequence[str] | None = None,
) -> Shape:
    """Return the shape of one sample of stacked columns of a reference.

    With `columns`, only these are stacked. With `numbers`, columns that are not numeric are
    refused. With `flat`, columns of different shapes are concatenated into one row.

    Raises
    ------
    GraphError
        If the reference has no column of this domain.
    ShapeError
        If the shapes of the columns differ.
    """
    schema = ref.resolve().collection.schema
    columns = ref.columns(domain) if columns is None else columns
    if not columns:
        raise GraphError(
            f"node {label!r} reads no {domain} of {ref.node_label!r}; name some in the reference"
        )
    shapes = {name: schema[name].shape for name in columns}
    if flat and len(set(shapes.values())) > 1:
        return (sum(map(math.prod, shapes.values())),)
    if len(set(shapes.values())) > 1:
        shown = ", ".join(f"{name}: {shape}" for name, shape in shapes.items())
        raise ShapeError(
            f"node {label!r} reads columns of different shapes from {ref.node_label!r} ({shown}); "
            "put a FlattenNode before it, which concatenates them, or give a model of "
            "several inputs a reference for each: ModelNode(label, model, [fs.reference(features="
            f"{columns[0].split('.')[1]!r}), ...])"
        ).with_code("MML-403")
    for name in columns:
        if numbers and schema[name].dtype.kind not in "biuf":
            raise ShapeError(
                f"node {label!r} reads column {name!r} of {ref.node_label!r}, which holds "
                f"{schema[name].dtype}, not numbers; encode it with fs.fit_transform(OrdinalEncoder"
                "(), domain='features', keys=...), or OneHotEncoder"
            ).with_code("MML-302")
    return (len(columns), *next(iter(shapes.values())))


def input_shapes(node: ComputeNode, nodes: Mapping[str, ComputeNode]) -> list[Shape | None]:
    """Return the shape of one sample of each input as it comes; None if not known yet."""
    above = {name: output_shape(nodes[name]) for name in map(resolve_id, node.node_refs)}
    return [_shape_of(node, ref, above) for ref in node.upstream_refs]


def output_shape(node: ComputeNode) -> Shape | None:
    """Return the shape of a node's output; None before it is built."""
    return node.output_shape if not isinstance(node, ModelNode) or node.is_built else None


def _shape_of(node: ComputeNode, ref: Any, shapes: Mapping[str, Shape | None]) -> Shape | None:
    if isinstance(ref, FeatureSetReference):
        takes_text = node.framework is Backend.SCIKIT
        return columns_shape(
            ref, "features", node.label, numbers=not takes_text, flat=node.reads_flat
        )
    return shapes[resolve_id(ref)]


def _mask(node: ModelNode, lineages: Mapping[Any, ColumnLineage]) -> tuple[str, Shape] | None:
    """Return the argument that receives the mask of a node's input, and the mask's shape."""
    if node.mask_as is None:
        columns = source_columns_of(lineages.get((node.node_id, "features")))
        masks = sorted({mask for leaf in columns for mask in masks_of(leaf).values()})
        if node.model.takes_mask and masks and not node.is_built:
            warn(
                f"node {node.label!r} reads columns with the mask {masks[0].split('.')[1]!r}, and "
                f"its {node.model.shown_name} takes padding for data; pass mask_as='mask' to "
                "ModelNode"
            )
        return None
    source, mask = mask_above(lineages, node)
    return node.mask_as, source.ref.resolve().collection.schema[mask].shape


def _place(node: ModelNode, shape: Shape | None, targets: ColumnLineage, tails: set[str]) -> Place:
    ref, feeds = node.upstream_refs[0], node.node_id not in tails
    keys = tuple(name.split(".")[1] for leaf in source_columns_of(targets) for name in leaf.columns)
    if not isinstance(ref, FeatureSetReference):
        return Place(feeds, follows=True, shape=shape, targets=keys)
    table, columns = ref.resolve().collection, ref.columns("features")
    rows = np.arange(min(2, table.n_samples))
    # a name for each value of a row: the column's key, indexed within arrays
    full_keys, names = [column.split(".", 1)[1] for column in columns], list[str]()
    short_keys = [key.split(".")[0] for key in full_keys]
    is_unique = len(set(short_keys)) == len(short_keys)
    for column, name in zip(columns, short_keys if is_unique else full_keys, strict=True):
        spec = table.schema[column]
        indexed = spec.elements or [f"{name}_{i}" for i in range(math.prod(spec.shape))]
        names += [name] if spec.shape == () else indexed
    return Place(
        feeds,
        columns=tuple(names),
        targets=keys,
        rows=lambda: side_by_side(
            adapter_for(Backend.SCIKIT), [table.gather((name,), rows) for name in columns]
        ),
    )


def _categories(node: ModelNode, shapes: Sequence[Shape | None]) -> list[Array | None]:
    """Return the ids of each value that a node reads; None for values that are no category."""
    found: list[Array | None] = []
    for ref, shape in zip(node.upstream_refs, shapes, strict=True):
        if not isinstance(ref, FeatureSetReference):
            found += [None] * math.prod(shape or ())
            continue
        fs = ref.resolve()
        for name in ref.columns("features"):
            spec = fs.collection.schema[name]
            if spec.kind == "category" and spec.shape:
                raise ShapeError(
                    f"node {node.label!r} reads the categories {spec.key!r} of shape "
                    f"{spec.shape}; embeddings need one category in a column. Make a column of "
                    "each, or pass categories= to the model"
                )
            if spec.kind != "category":
                found += [None] * math.prod(spec.shape)
                continue
            ids = np.unique(fs.collection.numpy(spec.name))
            for record in fs.scaler_records:  # without the id of an encoder for unknown values
                if record.domain == spec.domain and spec.key in record.keys:
                    unknown = getattr(record.scaler.inner, "unknown_value", None)
                    ids = ids if unknown is None else ids[ids != unknown]
            found.append(ids)
    return found


def _target_shape(flow: ColumnLineage, *, numbers: bool = True) -> Shape | None:
    """Return the shape of targets; None without targets, or if they are not numeric."""
    if isinstance(flow, SourceColumns):
        source = flow.source
        try:
            return columns_shape(
                source.ref, "targets", source.node_id, numbers=numbers, columns=flow.columns
            )
        except ShapeError:
            return None
    if not isinstance(flow, MergedColumns):
        return None
    shapes = [shape for part in flow.parts if (shape := _target_shape(part)) is not None]
    columns = {(leaf.source.ref.node_label, leaf.columns) for leaf in source_columns_of(flow)}
    if len(shapes) < len(flow.parts) or len(columns) == 1:  # identical targets count once
        return shapes[0] if shapes else None
    try:
        return tuple(flow.merge([np.zeros((1, *shape)) for shape in shapes]).shape[1:])
    except ShapeError:
        return None


def _labels(flow: ColumnLineage) -> Any:
    """Return every value of the target columns, sorted; None if rows are missing."""
    sources = source_columns_of(flow)
    columns = [(leaf.source.ref.resolve().collection, n) for leaf in sources for n in leaf.columns]
    if any(table.n_absent for table, _ in columns):
        return None
    return np.unique(np.concatenate([np.unique(table.numpy(name)) for table, name in columns]))
