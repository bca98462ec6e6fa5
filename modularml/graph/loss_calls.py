"""Calling losses: averaged over samples, weighted, and checked beforehand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from modularml._typing import Shape
from modularml.backends import BackendAdapter
from modularml.data.lineage import ColumnLineage
from modularml.data.padding import in_steps
from modularml.errors import DataError, LossError, ShapeError
from modularml.graph.lineage import source_columns_of
from modularml.graph.node import ComputeNode
from modularml.graph.step_losses import Padding
from modularml.training import AppliedLoss
from modularml.training.applied import weigh, weigh_steps
from modularml.training.loss import LAST_AXIS_MEANS

__all__ = ["check_call", "check_values", "mean_over_samples", "misfit", "squeezed", "weighted"]


def check_call(applied: AppliedLoss, fn: Callable[..., Any]) -> None:
    """Refuse inputs that the loss cannot be called with."""
    names = applied.call_names(fn)
    try:
        signature = inspect.signature(getattr(fn, "forward", fn))
    except ValueError:  # a builtin does not tell its arguments
        return
    try:
        signature.bind(*([] if names else applied.parsed), **dict.fromkeys(names or ()))
    except TypeError as error:
        raise LossError(
            f"loss {applied.label!r} cannot be called with inputs={applied.inputs}: {error}; it "
            f"takes {list(signature.parameters)}"
        ) from error


def check_values(
    applied: AppliedLoss, flow: ColumnLineage, ends: tuple[int, int], wants: str, hint: str
) -> None:
    """Refuse targets that lie outside of what a loss means, and are not those it ignores.

    Raises
    ------
    DataError
        Column and row are named.
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
                    f"loss {applied.label!r} wants {wants}; column {name!r} of {fs.label!r} holds "
                    f"{values[at]} in row {at[0]}. {hint}"
                )


def mean_over_samples(
    applied: AppliedLoss,
    adapter: BackendAdapter,
    *,
    weighed: bool = False,
    padding: Padding | None = None,
) -> Callable[..., Any]:
    """Return a loss as a function that averages over samples, whatever form it has.

    Where it is `weighed`, the last argument of the function are the weights; before them comes,
    where there is `padding`, what each element counts. A sample is then the mean of its real steps.
    """
    loss = applied.loss
    raw = loss.resolve(adapter.backend)
    names = applied.call_names(raw)
    quick = loss.mean_form()
    plain = names is None and not weighed and padding is None
    if quick is not None and plain and not adapter.may_mask:
        return quick
    mean, whole = adapter.sample_mean, loss.over == "batch"

    def fn(*args: Any) -> Any:
        given = {} if names is None else dict(zip(names, args, strict=True))
        return adapter.loss_values(raw(*args) if names is None else raw(**given), args)

    if padding is not None:
        fn = _of_real_steps(applied, adapter, padding, raw, names)
    if loss.cls is None:
        fn = _unchanging(applied, adapter, fn)

    def averaged(*args: Any) -> Any:
        values = fn(*args)
        found = mean(values)
        shape: Sequence[Any] = getattr(values, "shape", ())
        n = args[0].shape[0]
        if len(shape) and (shape[0] != n or len(shape) > 1):
            _check_values_of_samples(applied, values, args, adapter)
        return found

    if weighed:
        return lambda *args: mean(weigh(fn(*args[:-1]), args[-1]))
    return (lambda *args: mean(fn(*args))) if whole else averaged


def _of_real_steps(
    applied: AppliedLoss,
    adapter: BackendAdapter,
    padding: Padding,
    raw: Callable[..., Any],
    names: Sequence[str] | None,
) -> Callable[..., Any]:
    """Return a loss whose values for padding are 0; its last argument is what elements count."""
    key, mask = padding.column, padding.mask
    problem = (
        f"loss {applied.label!r} reads the padded column {key!r}, whose padding must not count. "
        "Return a value for each step, or read the mask and leave out padding in the loss: "
        f"inputs=[..., {mask!r}]. It returned values"
    )
    widen = applied.loss.kind in LAST_AXIS_MEANS

    def fn(*args: Any) -> Any:
        *own, weights = args
        given = [a[..., None] for a in own] if widen else own
        values = raw(*given) if names is None else raw(**dict(zip(names, given, strict=True)))
        weights = adapter.joint_weights(weights, own)
        return weigh_steps(adapter, values, weights, padding.steps, problem)

    return fn


def _unchanging(
    applied: AppliedLoss, adapter: BackendAdapter, fn: Callable[..., Any]
) -> Callable[..., Any]:
    """Return a loss that is refused where it writes to outputs or targets."""

    def run(*args: Any) -> Any:
        before = adapter.versions(args)
        values = fn(*args)
        if before != adapter.versions(args):
            raise LossError(
                f"loss {applied.label!r} changes its inputs in place, which others read too; "
                "compute new tensors (a - b, not a -= b or a.sub_(b))"
            )
        return values

    return run


def _check_values_of_samples(
    applied: AppliedLoss, values: Any, args: Sequence[Any], adapter: BackendAdapter
) -> None:
    """Refuse values that are neither one a sample nor one an element."""
    shape, n = tuple(values.shape), args[0].shape[0]
    if shape[0] is None or n is None:  # known when it runs
        adapter.check_rows(values, args[0], _not_of_samples(applied, "another length", "the batch"))
    elif shape[0] != n:
        raise LossError(_not_of_samples(applied, f"shape {shape}", f"{n} samples"))
    elif n > 1 and shape[1] == n and all(tuple(a.shape)[1:2] != (n,) for a in args):
        raise LossError(
            f"loss {applied.label!r} returned shape {shape}, a value for each pair of the {n} "
            "samples. Values of shapes (n,) and (n, 1) broadcast so: bring them to one shape in "
            "the loss, or declare a loss over pairs: Loss(..., over='batch')"
        )


def _not_of_samples(applied: AppliedLoss, found: str, wanted: str) -> str:
    return (
        f"loss {applied.label!r} returned values of {found} for {wanted}. Return one value a "
        "sample or an element, or declare a loss over pairs or events: Loss(..., over='batch')"
    )


def weighted(fn: Callable[..., Any], weight: float) -> Callable[..., Any]:
    """Return a function whose value is multiplied."""
    return lambda *args: fn(*args) * weight


def misfit(
    applied: AppliedLoss, on: ComputeNode, out: Shape, target: Shape, wants: str
) -> ShapeError:
    """Return the error that says which shapes a loss cannot compare."""
    return ShapeError(
        f"loss {applied.label!r} wants {wants}: outputs of node {on.label!r} have shape {out}, its "
        f"targets have shape {target}. Change the node's output_shape, the targets of the "
        "reference, "
        "or, after a merge, concat_axis_targets (such as 'first')"
    )


def squeezed(shape: Shape) -> Shape:
    """Return a shape without axes of length 1."""
    return tuple(n for n in shape if n != 1)
