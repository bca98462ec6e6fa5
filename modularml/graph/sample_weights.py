"""Sample weights of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modularml._typing import Array
from modularml.data.class_weights import ClassWeights
from modularml.data.execution import WeightSource
from modularml.data.lineage import ColumnLineage, Source, SourceColumns
from modularml.errors import ConfigError, DataError
from modularml.graph.lineage import pick_column, source_columns_of
from modularml.graph.node import ComputeNode
from modularml.training import AppliedLoss, LossInput

__all__ = ["mean_one", "weight_source_of"]


def weight_source_of(
    applied: AppliedLoss | None,
    reads: Sequence[tuple[ComputeNode, str]],
    lineages: Mapping[tuple[str, str], ColumnLineage],
    weighted: Mapping[Source, int],
    classes: ClassWeights | None = None,
) -> WeightSource | None:
    """Return the source of a loss's sample weights; None if unweighted.

    `reads` lists the nodes and roles that the loss reads, its own node first. Rows of `weighted`
    sources have weights, which sources with equal numbers share; without a loss only these count.
    `classes` are its class weights, where they apply.

    Raises
    ------
    DataError
        If the weight column does not hold numbers of at least 0.
    """
    rows: dict[tuple[int, str], Source] = {}
    for node, role in reads:
        for leaf in source_columns_of(lineages[node.node_id, "features"]):
            if leaf.source in weighted:
                rows.setdefault((weighted[leaf.source], role), leaf.source)
    weights = tuple((source, role) for (_, role), source in rows.items())
    node, role = reads[0]
    if applied is None or applied.sample_weight is None:
        if not weights and classes is None:
            return None
        first = weights[0] if classes is None else (classes.source, classes.role)
        return WeightSource(*first, weights, classes=classes)
    leaf = _column(applied, "sample_weight", applied.sample_weight, lineages, node)
    return WeightSource(leaf.source, role, weights, leaf.columns[0], classes)


def class_weights_of(
    applied: AppliedLoss, flows: Sequence[tuple[ColumnLineage, str]]
) -> ClassWeights | None:
    """Return the class weights of a loss, whose classes are its only target.

    `flows` lists the lineages of the columns that the loss reads, with their roles.

    Raises
    ------
    ConfigError
        If it does not read exactly one column.
    """
    if applied.class_weight is None:
        return None
    columns = [(f, r) for f, r in flows if isinstance(f, SourceColumns) and len(f.columns) == 1]
    if len(flows) != 1 or not columns:
        raise ConfigError(
            f"class_weight of loss {applied.label!r} needs one column of class labels, but the "
            f"loss reads {[list(getattr(f, 'columns', ['merged columns'])) for f, _ in flows]}; "
            "name one in inputs=, such as ['outputs', 'targets.label'], or pass sample_weight="
        )
    (leaf, role), given = columns[0], applied.class_weight
    weights = given if isinstance(given, str) else tuple(given.items())
    return ClassWeights(applied.label, leaf.source, role, leaf.columns[0], weights)


def batch_weight_source(
    applied: AppliedLoss,
    reads: Sequence[tuple[ComputeNode, str]],
    lineages: Mapping[tuple[str, str], ColumnLineage],
) -> WeightSource | None:
    """Return the column whose sum weights a batch of a batch loss; None without one."""
    if applied.loss.weight_by is None:
        return None
    node, role = reads[0]
    leaf = _column(applied, "weight_by", applied.loss.weight_by, lineages, node)
    return WeightSource(leaf.source, role, (), leaf.columns[0])


def mean_one(values: Array, bounds: Sequence[int] | Array) -> Array:
    """Return weights scaled to mean 1 in each batch; all-zero batches stay 0."""
    starts = np.asarray(bounds[:-1])
    sizes, sums = np.diff(bounds), np.add.reduceat(values, starts)
    factors = np.divide(sizes, sums, out=np.zeros(len(sums)), where=sums > 0)
    scaled: Array = values * np.repeat(factors, sizes)
    return scaled


def _column(
    applied: AppliedLoss,
    argument: str,
    item: Any,
    lineages: Mapping[Any, ColumnLineage],
    node: ComputeNode,
) -> SourceColumns:
    loss_input = (
        LossInput(None, "tags", None, item) if isinstance(item, str) else LossInput.parse(item)
    )
    leaf: Any = pick_column(applied, loss_input, lineages, node)
    fs = leaf.source.ref.resolve()
    values = fs.collection.numpy(leaf.columns[0])
    numbers = values.ndim == 1 and values.dtype.kind in "biuf"
    if not numbers or not (np.isfinite(values) & (values >= 0)).all():
        raise DataError(
            f"{argument} of loss {applied.label!r}: column {leaf.columns[0]!r} of {fs.label!r} "
            "must hold one non-negative number per sample"
        )
    return leaf  # type: ignore[no-any-return]
