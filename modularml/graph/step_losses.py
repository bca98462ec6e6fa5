"""Losses of padded sequences: which of what a loss reads is padded, and by which mask."""

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
    """Return the padded columns that a loss reads; None where there are none, or it reads the mask.

    Parameters
    ----------
    applied : AppliedLoss
    reads : sequence of (ColumnLineage, str)
        Columns that it reads, and their roles.

    Raises
    ------
    LossError
        If padding cannot be left out: columns are merged or have unlike masks, or the loss is over
        the batch.
    """
    known = {name for flow, _ in reads for leaf in source_columns_of(flow) for name in leaf.columns}
    found: dict[tuple[str, str, str], Padding] = {}
    for flow, role in reads:
        for leaf in source_columns_of(flow):
            label, masks = leaf.source.ref.node_label, masks_of(leaf)
            schema = leaf.source.ref.resolve().collection.schema
            if not masks or known >= set(masks.values()):
                continue
            name, mask = next(iter(masks.items()))
            key, of = name.split(".")[1], mask.split(".")[1]
            remedy = f"give the loss the mask as one of its inputs: inputs=[..., {of!r}]"
            start = f"loss {applied.label!r} reads the padded column {key!r}"
            if applied.loss.over == "batch":
                raise LossError(f"{start}, and is over the batch; {remedy}")
            if leaf is not flow:
                raise LossError(
                    f"{start}, which a node above merges with others; merge targets by 'first' "
                    "(target_strategy, concat_axis_targets), name the column in inputs, or "
                    f"{remedy}"
                )
            steps = (len(leaf.columns), *schema[mask].shape)
            found.setdefault((label, role, mask), Padding(leaf, role, steps, key, of))
            if len(found) > 1 or len(set(masks.values())) > 1:
                raise LossError(f"{start} and others that another mask belongs to; {remedy}")
    return next(iter(found.values()), None)


def check_unpadded(label: str, flow: ColumnLineage) -> None:
    """Refuse padded targets of an estimator, which would learn padding too.

    Raises
    ------
    DataError
        The columns are named.
    """
    for leaf in source_columns_of(flow):
        if masks := masks_of(leaf):
            raise DataError(
                f"node {label!r} would learn the padding of targets {list(masks)}; choose others "
                "(ModelNode(targets=), targets= of the reference), such as one number a "
                "sample"
            )
