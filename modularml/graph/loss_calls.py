"""Calls of losses: averaging over samples, weighting, and checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from modularml._typing import Shape
from modularml.backends import BackendAdapter
from modularml.data.lineage import ColumnLineage, SourceColumns
from modularml.data.samples import in_steps
from modularml.errors import DataError, LossError, ShapeError
from modularml.graph.lineage import masks_of, source_columns_of
from modularml.graph.node import ComputeNode
from modularml.training import AppliedLoss
from modularml.training.applied import weigh, weigh_steps
from modularml.training.loss_kinds import LAST_AXIS_MEANS


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


def check_call(applied: AppliedLoss, fn: Callable[..., Any]) -> None:
    """Refuse inputs that do not match the signature of the loss."""
    names = applied.call_names(fn)
    try:
        signature = inspect.signature(getattr(fn, "forward", fn))
    except ValueError:  # a builtin has no signature
        return
    try:
        signature.bind(*([] if names else applied.parsed), **dict.fromkeys(names or ()))
    except TypeError as error:
        raise LossError(
            f"loss {applied.label!r} cannot be called with inputs={applied.inputs}: {error}; it "
            f"takes {list(signature.parameters)}"
        ) from error


def check_numbers(applied: AppliedLoss, flow: ColumnLineage | None) -> None:
    """Refuse targets that are text, times or other objects."""
    for leaf in () if flow is None else source_columns_of(flow):
        fs = leaf.source.ref.resolve()
        for name in leaf.columns:
            dtype = fs.collection.schema[name].dtype
            if dtype.kind not in "biuf":
                domain, key, _ = name.split(".")
                raise DataError(
                    f"loss {applied.label!r} reads column {name!r} of {fs.label!r}, which holds "
                    f"{dtype}, not numbers; encode it with fs.fit_transform('LabelEncoder', "
                    f"domain={domain!r}, keys={key!r})"
                ).with_code("MML-302")


def check_values(
    applied: AppliedLoss, flow: ColumnLineage, ends: tuple[int, int], wants: str, hint: str
) -> None:
    """Refuse targets outside a loss's valid range, except its ignore_index.

    Raises
    ------
    DataError
        The message names column and row.
    """
    ignored = (applied.loss.loss_kwargs or {}).get("ignore_index", -100)
    for leaf in source_columns_of(flow):
        fs = leaf.source.ref.resolve()
        for name in leaf.columns:
            values = fs.collection.numpy(name)
            wrong = ((values < ends[0]) | (values > ends[1])) & (values != ignored)
            if (mask := fs.collection.mask(name)) is not None:
                wrong &= in_steps(mask, values.shape)
            if wrong.any():
                at = tuple(np.argwhere(wrong)[0].tolist())
                raise DataError(
                    f"loss {applied.label!r} needs {wants}; column {name!r} of {fs.label!r} holds "
                    f"{values[at]} in row {at[0]}. {hint}"
                )


def mean_over_samples(
    applied: AppliedLoss,
    adapter: BackendAdapter,
    *,
    weighed: bool = False,
    padding: Padding | None = None,
) -> Callable[..., Any]:
    """Return a loss as a function that averages over samples.

    If `weighed`, the last argument of the function is the sample weights. With `padding`, the
    argument before them is the weight of each element, and a sample's loss is the mean over its
    unpadded steps.
    """
    loss = applied.loss
    raw = loss.resolve(adapter.backend)
    names = applied.call_names(raw)
    mean_loss = loss.mean_form()
    simple = names is None and not weighed and padding is None
    if mean_loss is not None and simple and not adapter.may_mask:
        return mean_loss
    mean, over_batch = adapter.sample_mean, loss.over == "batch"

    def fn(*args: Any) -> Any:
        kwargs = {} if names is None else dict(zip(names, args, strict=True))
        return adapter.loss_values(raw(*args) if names is None else raw(**kwargs), args)

    if padding is not None:
        fn = _of_real_steps(applied, adapter, padding, raw, names)
    if loss.cls is None:
        fn = _unchanging(applied, adapter, fn)

    def averaged(*args: Any) -> Any:
        values = fn(*args)
        average = mean(values)
        shape: Sequence[Any] = getattr(values, "shape", ())
        n = args[0].shape[0]
        if len(shape) and (shape[0] != n or len(shape) > 1):
            _check_values_of_samples(applied, values, args, adapter)
        return average

    if weighed:
        return lambda *args: mean(weigh(fn(*args[:-1]), args[-1]))
    return (lambda *args: mean(fn(*args))) if over_batch else averaged


def _of_real_steps(
    applied: AppliedLoss,
    adapter: BackendAdapter,
    padding: Padding,
    raw: Callable[..., Any],
    names: Sequence[str] | None,
) -> Callable[..., Any]:
    """Return a loss that is 0 for padding; its last argument is element weights."""
    key, mask = padding.column, padding.mask
    problem = (
        f"loss {applied.label!r} reads the padded column {key!r}, whose padding must not count. "
        "Return one value per step, or read the mask and exclude padding in the loss: "
        f"inputs=[..., {mask!r}]. It returned values"
    )
    widen = applied.loss.kind in LAST_AXIS_MEANS

    def fn(*args: Any) -> Any:
        *values_read, weights = args
        inputs = [a[..., None] for a in values_read] if widen else values_read
        values = raw(*inputs) if names is None else raw(**dict(zip(names, inputs, strict=True)))
        weights = adapter.joint_weights(weights, values_read)
        return weigh_steps(adapter, values, weights, padding.steps, problem)

    return fn


def _unchanging(
    applied: AppliedLoss, adapter: BackendAdapter, fn: Callable[..., Any]
) -> Callable[..., Any]:
    """Return a loss that raises if it changes outputs or targets in place."""

    def run(*args: Any) -> Any:
        before = adapter.versions(args)
        values = fn(*args)
        if before != adapter.versions(args):
            raise LossError(
                f"loss {applied.label!r} changes its inputs in place, which other losses and "
                "metrics read; compute new tensors (a - b, not a -= b or a.sub_(b))"
            )
        return values

    return run


def _check_values_of_samples(
    applied: AppliedLoss, values: Any, args: Sequence[Any], adapter: BackendAdapter
) -> None:
    """Refuse values that are neither per sample nor per element."""
    shape, n = tuple(values.shape), args[0].shape[0]
    if shape[0] is None or n is None:  # checked when it runs
        adapter.check_rows(values, args[0], _not_of_samples(applied, "another length", "the batch"))
    elif shape[0] != n:
        raise LossError(_not_of_samples(applied, f"shape {shape}", f"{n} samples"))
    elif n > 1 and shape[1] == n and all(tuple(a.shape)[1:2] != (n,) for a in args):
        raise LossError(
            f"loss {applied.label!r} returned shape {shape}, one value per pair of the {n} "
            "samples. Shapes (n,) and (n, 1) broadcast to this: use one shape in the loss, or "
            "declare a loss over pairs: Loss(..., over='batch')"
        )


def _not_of_samples(applied: AppliedLoss, actual: str, expected: str) -> str:
    return (
        f"loss {applied.label!r} returned values of {actual} for {expected}. Return one value per "
        "sample or element, or declare a loss over pairs or events: Loss(..., over='batch')"
    )


def misfit(
    applied: AppliedLoss, on: ComputeNode, out: Shape, target: Shape, wants: str
) -> ShapeError:
    """Return the error that outputs and targets of a loss differ in shape."""
    return ShapeError(
        f"loss {applied.label!r} needs {wants}: outputs of node {on.label!r} have shape {out}, its "
        f"targets have shape {target}. Change the node's output_shape, the targets of the "
        "reference, "
        "or, after a merge, concat_axis_targets (such as 'first')"
    ).with_code("MML-404")


def squeezed(shape: Shape) -> Shape:
    """Return a shape without axes of length 1."""
    return tuple(n for n in shape if n != 1)
