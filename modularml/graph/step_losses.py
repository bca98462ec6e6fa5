"""Losses of padded sequences: padded inputs and their masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from modularml._typing import Shape
from modularml.data.lineage import ColumnLineage, SourceColumns
from modularml.errors import DataError, LossError
from modularml.graph.lineage import masks_of, source_columns_of
from modularml.training import AppliedLoss

__all__ = ["Padding", "check_unpadded", "padding_of"]


class Padding(NamedTuple):
    """Padded columns that a loss reads.

    Parameters
    ----------
    leaf : SourceColumns
    role : str
    steps : tuple of int
        Shape of the steps of a sample, columns first.
    column, mask : str
        Keys of a padded column and of its mask.
    """

    leaf: SourceColumns
    role: str
    steps: Shape
    column: str
    mask: str


def padding_of(applied: AppliedLoss, reads: Sequence[tuple[ColumnLineage, str]]) -> Padding | None:
    """Return the padded columns of a loss; None without any, or if it reads the mask.

    Parameters
    ----------
    applied : AppliedLoss
    reads : sequence of (ColumnLineage, str)
        Columns that it reads, and their roles.

    Raises
    ------
    LossError
        If padding cannot be skipped: columns are merged or have different masks, or the loss is
        over the batch.
    """
    columns = {
        name for flow, _ in reads for leaf in source_columns_of(flow) for name in leaf.columns
    }
    paddings: dict[tuple[str, str, str], Padding] = {}
    for flow, role in reads:
        for leaf in source_columns_of(flow):
            label, masks = leaf.source.ref.node_label, masks_of(leaf)
            schema = leaf.source.ref.resolve().collection.schema
            if not masks or columns >= set(masks.values()):
                continue
            name, mask = next(iter(masks.items()))
            key, mask_key = name.split(".")[1], mask.split(".")[1]
            remedy = f"add the mask to the inputs of the loss: inputs=[..., {mask_key!r}]"
            start = f"loss {applied.label!r} reads the padded column {key!r}"
            if applied.loss.over == "batch":
                raise LossError(f"{start}, and is over the batch; {remedy}")
            if leaf is not flow:
                raise LossError(
                    f"{start}, which an upstream node merges with others; merge targets with "
                    "'first' (target_strategy, concat_axis_targets), name the column in inputs, "
                    f"or {remedy}"
                )
            steps = (len(leaf.columns), *schema[mask].shape)
            paddings.setdefault((label, role, mask), Padding(leaf, role, steps, key, mask_key))
            if len(paddings) > 1 or len(set(masks.values())) > 1:
                raise LossError(f"{start} and others with another mask; {remedy}")
    return next(iter(paddings.values()), None)


def check_unpadded(label: str, flow: ColumnLineage) -> None:
    """Refuse padded targets of an estimator, which would also learn the padding.

    Raises
    ------
    DataError
        The message names the columns.
    """
    for leaf in source_columns_of(flow):
        if masks := masks_of(leaf):
            raise DataError(
                f"node {label!r} would learn the padding of the targets {list(masks)}; choose "
                "others (ModelNode(targets=), targets= of the reference), such as one number per "
                "sample"
            )
