"""Losses of batches and epochs: their means, and checks of what can be averaged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modularml._typing import Array
from modularml._warning import warn
from modularml.data.execution_context import ExecutionContext, Layout
from modularml.engine.batch_feed import BatchFeed
from modularml.engine.run_state import RunnablePhase
from modularml.errors import LossError, NonFiniteLossError
from modularml.graph.input_tensors import not_finite
from modularml.io.randomness import unchanged_randomness
from modularml.results.metric_store import compact
from modularml.results.phase_results import PhaseResults
from modularml.training import Loss


def check_means(feed: BatchFeed, ctx: ExecutionContext, several: bool = True) -> bool:
    """Warn of losses averaged over batches that are not means over samples.

    A mean over the samples of a batch equals the mean of the means of its two halves. Return
    whether this batch could be checked; a batch of one sample cannot. Unless an epoch has
    `several` batches, it warns only of losses that compare each output with the targets of all
    samples.
    """
    losses = {a.label: a.loss for a in feed.losses}
    unknown = {
        label: loss
        for label, loss in losses.items()
        if loss.over is None and not (loss.is_known_mean or loss.was_tried)
    }
    n = ctx.n_samples
    if not unknown or feed.alternates or feed.groups[0].sampler.gives_weights:
        return True
    if n < 2:
        return False
    _check_pairs(feed, ctx, unknown)
    if not several:
        return True
    parts = slice(0, n), slice(0, n // 2), slice(n // 2, n)
    with unchanged_randomness():
        losses_of_parts = [_losses_of(feed, ctx, part) for part in parts]
    for position, (label, _) in enumerate(feed.layout.losses):
        if label not in unknown or feed.layout.weight_sources[position] is not None:
            continue
        unknown[label].was_tried = True
        whole, *halves = [values[position] for values in losses_of_parts]
        mean = sum(h * (p.stop - p.start) for h, p in zip(halves, parts[1:], strict=True)) / n
        if math.isclose(whole, mean, rel_tol=1e-3, abs_tol=1e-6) or unknown[label].pairs_warned:
            continue
        warn(
            f"phase {feed.phase!r}: loss {label!r} is averaged over batches but is not a mean "
            f"over samples: {whole:.4g} for a batch of {n}, {mean:.4g} for the mean of its "
            "halves; its value depends on the batch size. Declare it: Loss(..., "
            "over='batch', weight_by=...), or over='sample' if it is a mean over samples"
        )
    return True


def _check_pairs(feed: BatchFeed, ctx: ExecutionContext, losses: Mapping[str, Loss]) -> None:
    """Warn of losses that do not depend on the pairing of outputs and targets."""
    try:
        with unchanged_randomness():
            positions = feed.plan.pairs_ignored(ctx.tensors or (), ctx.outs)
    except Exception:  # noqa: BLE001 - a user-defined loss may not accept targets as outputs
        return
    for position in positions:
        label = feed.layout.losses[position][0]
        if label in losses and not losses[label].pairs_warned:
            losses[label].pairs_warned = True
            warn(
                f"phase {feed.phase!r}: loss {label!r} has the same value however targets are "
                "assigned to outputs. Shapes (n,) and (n, 1) broadcast to a value for each "
                "combination: make the shapes equal in the loss, or declare a loss that does "
                "not compare pairs: Loss(..., over='batch')"
            )


def _losses_of(feed: BatchFeed, ctx: ExecutionContext, part: slice) -> list[float]:
    """Return the losses of a part of a batch; NaN if they cannot be computed.

    Raises
    ------
    LossError
        If the part is the whole batch and a loss returns a wrong number of values.
    """
    try:
        return feed.plan.losses_of_part(ctx.tensors or (), ctx.outs, part)
    except LossError:
        if part == slice(0, ctx.n_samples):
            raise
        return [math.nan] * len(feed.layout.losses)
    except Exception:  # noqa: BLE001 - a user-defined loss may need more rows than these
        return [math.nan] * len(feed.layout.losses)


def log_losses(
    phase: RunnablePhase,
    feed: BatchFeed,
    values: list[Sequence[Any]],
    ctx: ExecutionContext,
    results: PhaseResults,
) -> Array | None:
    """Log total losses per batch and epoch; return the losses of this process."""
    layout = feed.plan.layout
    if not values or not layout.losses:
        return None
    flat = layout.adapter.floats([v for batch in values for v in batch])
    table = np.asarray(flat, dtype=np.float64).reshape(-1, len(layout.losses))
    own_losses = compact(table)
    if not phase.logs_losses:
        _warn_of_nonfinite(phase, layout, table)
        return own_losses
    table, sizes = feed.gathered(ctx.epoch_idx, table)
    finite = np.asarray(np.isfinite(table).all(axis=1))
    if not finite.all() and (phase.on_nonfinite != "skip" or not finite.any()):
        batch, loss_index = (int(i) for i in np.argwhere(~np.isfinite(table))[0])
        label, node_id = layout.losses[loss_index]
        raise NonFiniteLossError(
            phase=phase.label,
            epoch=ctx.epoch_idx,
            batch=batch,
            node=layout.labels[node_id],
            loss=label,
            value=float(table[batch, loss_index]),
            **not_finite(feed.plan, ctx, batch),
        )
    if n := int((~finite).sum()):
        warn(
            f"phase {phase.label!r}, epoch {ctx.epoch_idx}: {n} of {len(table)} batches had a loss "
            "that is not finite and were skipped",
        )
    is_only_loss = feed.processes is None and own_losses.shape[1] == 1  # share one array
    totals = own_losses[:, 0] if is_only_loss else table.sum(axis=1)
    results._metrics.log_batches("train_loss", totals, epoch=ctx.epoch_idx)
    sizes = sizes * finite[:, None]
    sums = sizes.sum(axis=0)
    table = np.where(finite[:, None], table, 0.0)
    nothing = np.full(len(sums), np.nan)
    means = np.divide((table * sizes).sum(axis=0), sums, out=nothing, where=sums > 0)
    results._metrics.log("train_loss", float(means.sum()), epoch=ctx.epoch_idx)
    return own_losses


def _warn_of_nonfinite(phase: RunnablePhase, layout: Layout, table: Array) -> None:
    """Warn of evaluation losses that are not finite, with their batch counts."""
    for (label, node_id), column in zip(layout.losses, table.T, strict=True):
        if n := int((~np.isfinite(column)).sum()):
            warn(
                f"phase {phase.label!r}: loss {label!r} on node {layout.labels[node_id]!r} is NaN "
                f"or infinite in {n} of {len(column)} batches. If a batch holds nothing to "
                "average, such as no event or pair, evaluate more rows at once (batch_size=None, "
                "or Loss(..., over='batch')); otherwise look for NaN in outputs and columns"
            )
