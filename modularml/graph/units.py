"""Outputs in the units of the targets they stand for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from modularml._typing import Array
from modularml.data.execution import ExecutionContext, Flow, Leaf
from modularml.errors import ScalerError
from modularml.graph.flows import leaves
from modularml.graph.labels import is_encoded
from modularml.graph.node import ComputeNode

__all__ = ["output_flow", "scaled_target", "to_own_units"]


def output_flow(node: ComputeNode, flows: Mapping[tuple[str, str], Flow]) -> Flow:
    """Return the targets whose units a node's outputs have.

    None where outputs have another size, or are those of a transformer, clusterer or classifier,
    and where targets are numbers of classes.
    """
    flow, sizes = flows.get((node.node_id, "targets")), []
    if any(map(is_encoded, leaves(flow))):
        return None
    for leaf in leaves(flow):
        schema = leaf.source.ref.resolve().collection.schema
        sizes.append(len(leaf.columns) * math.prod(schema[leaf.columns[0]].shape))
    fits = math.prod(node.output_shape or ()) in {*sizes, sum(sizes)}
    is_target = getattr(getattr(node, "model", None), "predicts_targets", True)
    return flow if fits and is_target else None


def scaled_target(flow: Flow) -> Leaf | None:
    """Return the target columns that a node's output stands for, where a scaler changed them.

    Raises
    ------
    ScalerError
        If scaled targets are merged with others.
    """
    names = [name for leaf in leaves(flow) for name in leaf.columns]
    if not any(name.endswith(".transformed") for name in names):
        return None
    if not isinstance(flow, Leaf):
        raise ScalerError(
            f"scaled targets {names} are merged, and cannot be unscaled together; merge them by "
            "'first', or pass unscale=False"
        )
    return flow


def to_own_units(
    ctx: ExecutionContext, node_id: str, domain: str, values: Array, role: str = "default"
) -> Array:
    """Undo the scaling of a node's targets, or of outputs where they stand for targets.

    Raises
    ------
    ScalerError
        If scaled targets are merged with others, or a scaler cannot be inverted.
    """
    layout = ctx.layout
    if layout is None:
        return values
    targets = layout.flows.get((node_id, "targets"))
    leaf = scaled_target(layout.flows.get((node_id, domain), targets))
    if leaf is None:
        return values
    fs = layout.views[leaf.source].source  # whatever context is active by now
    ids = ctx.sample_uuids(node_id, role) if needs_rows(leaf, fs) else None
    return invert_leaf(leaf, values, ids, fs)


def invert_leaf(leaf: Leaf, values: Array, sample_uuids: Any = None, fs: Any = None) -> Array:
    """Undo the scaling of some target columns, of the set that the leaf names by default."""
    fs = fs or leaf.source.ref.resolve()
    keys = [name.split(".")[1] for name in leaf.columns]
    return fs.unscale_data_for_cols(  # type: ignore[no-any-return]
        data=values, domain="targets", columns=keys, sample_uuids=sample_uuids
    )


def needs_rows(leaf: Leaf, fs: Any = None) -> bool:
    """Tell whether a scaler on these columns needs facts of each row to be inverted."""
    fs = fs or leaf.source.ref.resolve()
    keys = {name.split(".")[1] for name in leaf.columns}
    return any(r.needs_rows for r in fs.scaler_records if set(r.keys) & keys)
