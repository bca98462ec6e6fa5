"""Outputs in the units of the targets they stand for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from modularml._typing import Array, Shape
from modularml.data.execution import ExecutionContext
from modularml.data.lineage import ColumnLineage, SourceColumns
from modularml.data.schema import RAW, TRANSFORMED
from modularml.errors import ScalerError, UnknownNameError
from modularml.graph.labels import is_encoded
from modularml.graph.lineage import lineages_of, loss_inputs, pick_column, source_columns_of
from modularml.graph.node import ComputeNode
from modularml.graph.segments import backends_of
from modularml.training import AppliedLoss
from modularml.training.loss import CLASS_INDEX, CLASS_SET, MARGINS, SHARES

__all__ = ["check_clear", "pairings", "scaled_target", "to_own_units", "unit_flows"]


Pairing: TypeAlias = tuple[tuple[str, ...], bool]
"""Columns that a loss pairs with a node's outputs, and whether these are scores of classes."""


def pairings(
    nodes: Sequence[ComputeNode], losses: Iterable[AppliedLoss], roles: Sequence[str]
) -> dict[str, Pairing | None]:
    """Return by id what losses pair with the outputs of nodes; None where they disagree."""
    lineages, found = lineages_of(nodes), dict[str, Pairing | None]()
    frameworks = backends_of(nodes)
    by_name = {name: n for n in nodes for name in (n.label, n.node_id)}
    for applied in losses:
        read = loss_inputs(applied, roles, by_name, lineages)
        outputs = [i for i in read if i.domain == "outputs" and i.column is None]
        others = [i for i in read if i not in outputs and i.domain != "tags"]
        if len(outputs) != 1 or len(others) != 1 or applied.on not in by_name:
            continue
        on = by_name[applied.on]
        node, asked = by_name.get(outputs[0].node or "", on), by_name.get(others[0].node or "", on)
        flow = lineages[asked.node_id, others[0].domain]
        if others[0].column is not None:
            try:
                flow = pick_column(applied, others[0], lineages, asked)
            except UnknownNameError:  # a scaler may make it yet
                continue
        columns = tuple(
            c.rpartition(".")[0] for leaf in source_columns_of(flow) for c in leaf.columns
        )
        applied.loss.resolve(frameworks[on.node_id])
        scores = CLASS_INDEX | SHARES | CLASS_SET | MARGINS
        pairing = columns, applied.loss.kind in scores
        known = found.setdefault(node.node_id, pairing)
        found[node.node_id] = pairing if known == pairing else None
    return found


def unit_flows(
    node: ComputeNode, lineages: Mapping[tuple[str, str], ColumnLineage]
) -> dict[tuple[str, str], ColumnLineage]:
    """Return what a node's outputs stand for.

    ``outputs`` are the target columns whose units they have, ``truth`` those that they are compared
    with, and ``unclear`` scaled ones where nothing says whether outputs have their units.
    """
    here, own = node.node_id, lineages.get((node.node_id, "targets"))
    model, known = getattr(node, "model", None), getattr(node, "paired", None)
    found = own if known is None else _columns_of(known[0], own, node, lineages)
    names = [column for leaf in source_columns_of(found) for column in leaf.columns]
    compared = found is not own and all(name.startswith("targets.") for name in names)
    truth = {(here, "truth"): found} if compared else {}
    scores = not getattr(model, "predicts_targets", True) or (known is not None and known[1])
    scores = scores or any(map(is_encoded, source_columns_of(found)))
    if scores or not names or (known is None and _is_read(node)):
        return {**truth, (here, "outputs"): None}
    sizes = [len(leaf.columns) * math.prod(_shape(leaf)) for leaf in source_columns_of(found)]
    width, one = math.prod(node.output_shape or ()), len(set(names)) == 1
    fits = width in {*sizes, sum(sizes)}
    each = one and getattr(node, "targets", None) is not None and width % sizes[0] == 0
    if each or (fits and (one or known is not None or hasattr(model, "fit"))):
        return {**truth, (here, "outputs"): found}
    if any(name.endswith(f".{TRANSFORMED}") for name in names):
        truth[here, "unclear"] = found
    return {**truth, (here, "outputs"): None}


def _is_read(node: ComputeNode) -> bool:
    """Tell whether another node of the context reads this one."""
    nodes = node.context.available_computenodes.values()
    return any(ref.node_label == node.label for other in nodes for ref in other.node_refs)


def _shape(leaf: SourceColumns) -> Shape:
    return leaf.source.ref.resolve().collection.schema[leaf.columns[0]].shape  # type: ignore[no-any-return]


def _columns_of(
    names: Sequence[str],
    own: ColumnLineage,
    node: ComputeNode,
    lineages: Mapping[tuple[str, str], ColumnLineage],
) -> ColumnLineage:
    """Return columns named ``domain.key``, in the representation that the node's inputs have."""
    if tuple(
        c.rpartition(".")[0] for leaf in source_columns_of(own) for c in leaf.columns
    ) == tuple(names):
        return own
    for leaf in source_columns_of(lineages[node.node_id, "features"]):
        schema = leaf.source.ref.resolve().collection.schema
        if all(schema.reps(*name.split(".")) for name in names):
            return SourceColumns(
                leaf.source, tuple(schema.newest(*name.split(".")) for name in names)
            )
    return own


def scaled_target(flow: ColumnLineage) -> SourceColumns | None:
    """Return the target columns that a node's output stands for, where a scaler changed them.

    Raises
    ------
    ScalerError
        If scaled targets are merged with others.
    """
    names = [name for leaf in source_columns_of(flow) for name in leaf.columns]
    if not any(name.endswith(".transformed") for name in names):
        return None
    if not isinstance(flow, SourceColumns):
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
    targets = ctx.compared_with(node_id)
    if domain == "targets":
        leaf = scaled_target(targets)
    else:
        check_clear(layout.lineages, node_id, layout.labels[node_id])
        leaf = scaled_target(layout.lineages.get((node_id, domain), targets))
    if leaf is None:
        return values
    if domain == "targets" and leaf.source in layout.views:  # no inverse is as exact
        raw = tuple(f"{name.rpartition('.')[0]}.{RAW}" for name in leaf.columns)
        if (kept := ctx.column_values(SourceColumns(leaf.source, raw), role)) is not None:
            return kept
    fs = layout.views[leaf.source].source  # whatever context is active by now
    ids = ctx.sample_uuids(node_id, role) if needs_rows(leaf, fs) else None
    found = invert_leaf(leaf, values, ids, fs)
    holds = ctx.held(leaf, role) if domain == "targets" else None
    return found if holds is None else np.where(holds, found, values)


def check_clear(
    lineages: Mapping[tuple[str, str], ColumnLineage], node_id: str, label: str
) -> None:
    """Refuse to unscale outputs where nothing says whether they have the units of targets."""
    for leaf in source_columns_of(lineages.get((node_id, "unclear"))):
        keys = [name.split(".")[1] for name in leaf.columns]
        raise ScalerError(
            f"it is not clear whether outputs of node {label!r} have the units of the scaled "
            f"targets {keys}: name what they predict, ModelNode({label!r}, ..., "
            f"targets={keys[0]!r}) (several outputs of one target, such as quantiles, are each "
            "unscaled then), or pass unscale=False"
        )


def invert_leaf(
    leaf: SourceColumns, values: Array, sample_uuids: Any = None, fs: Any = None
) -> Array:
    """Undo the scaling of some columns, of the set that the leaf names by default.

    Several values of one column, such as quantiles, are each unscaled. They have at least the
    precision of the raw column: float32 does not hold a date in seconds.
    """
    fs = fs or leaf.source.ref.resolve()
    domain = leaf.columns[0].split(".")[0]
    keys = [name.split(".")[1] for name in leaf.columns]
    width = len(keys) * math.prod(fs.collection.schema[leaf.columns[0]].shape)
    kinds = [fs.collection.schema[f"{domain}.{key}.{RAW}"].dtype for key in keys]
    values = values.astype(np.result_type(values, *(k for k in kinds if k.kind in "iuf")))
    undo = partial(fs.unscale_data_for_cols, domain=domain, columns=keys, sample_uuids=sample_uuids)
    if values[:1].size in (0, width):
        return undo(data=values)  # type: ignore[no-any-return]
    parts = values.reshape(len(values), -1, width)
    found = [undo(data=parts[:, i]) for i in range(parts.shape[1])]
    return np.stack(found, axis=1).reshape(values.shape)


def needs_rows(leaf: SourceColumns, fs: Any = None) -> bool:
    """Tell whether a scaler on these columns needs facts of each row to be inverted."""
    fs = fs or leaf.source.ref.resolve()
    keys, domain = {name.split(".")[1] for name in leaf.columns}, leaf.columns[0].split(".")[0]
    return any(r.needs_rows for r in fs.scaler_records if r.domain == domain and set(r.keys) & keys)
