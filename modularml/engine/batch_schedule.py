"""Schedules of the batches of several samplers, steps that alternate, and their rows."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from modularml._registry import member
from modularml._typing import Array, IntArray
from modularml.backends import StepOptions
from modularml.backends.base import NotFiniteError
from modularml.backends.tensor_operations import Processes
from modularml.data.lineage import Source
from modularml.engine.binding import Bound
from modularml.errors import ConfigError
from modularml.graph.lineage import source_columns_of
from modularml.graph.model_graph import ModelGraph
from modularml.graph.step_plan import StepPlan
from modularml.samplers import EpochBatches
from modularml.training import AppliedLoss


class BatchSchedulingPolicy(enum.Enum):
    """Which batches of several samplers make one step.

    With ``S1 = [b1, b2, b3]`` and ``S2 = [c1, c2]``: ``zip_strict`` gives ``(b1, c1), (b2, c2)``
    and ``zip_cycle`` gives ``(b1, c1), (b2, c2), (b3, c1)``; ``alternate_strict`` gives
    ``b1, c1, b2, c2`` and ``alternate_cycle`` ``b1, c1, b2, c2, b3, c1``.

    Examples
    --------
    >>> BatchSchedulingPolicy("zip_cycle").name
    'ZIP_CYCLE'
    """

    ZIP_STRICT = "zip_strict"
    ZIP_CYCLE = "zip_cycle"
    ALTERNATE_STRICT = "alternate_strict"
    ALTERNATE_CYCLE = "alternate_cycle"

    @classmethod
    def from_value(cls, value: str | BatchSchedulingPolicy) -> BatchSchedulingPolicy:
        """Return the policy of this name; UnknownNameError if there is none."""
        return member(cls, value, "batch schedule")

    @property
    def alternates(self) -> bool:
        """Whether each step uses one sampler; rows of the others are padding."""
        return self in (self.ALTERNATE_STRICT, self.ALTERNATE_CYCLE)

    @property
    def cycles(self) -> bool:
        """Whether shorter samplers start over instead of ending the epoch."""
        return self in (self.ZIP_CYCLE, self.ALTERNATE_CYCLE)


def schedule(epochs: Sequence[EpochBatches], policy: BatchSchedulingPolicy) -> list[EpochBatches]:
    """Give all samplers the same number of batches.

    Parameters
    ----------
    epochs : sequence of EpochBatches
        One per sampler.
    policy : BatchSchedulingPolicy

    Returns
    -------
    list of EpochBatches
        Step ``i`` uses batch ``i`` of each.
    """
    if len(epochs) == 1:
        return list(epochs)
    counts = [e.n_batches for e in epochs]
    n = max(counts) if policy.cycles else min(counts)
    matched = [e if e.n_batches == n else e.taken(np.arange(n) % e.n_batches) for e in epochs]
    if not policy.alternates:
        return matched
    sizes = np.stack([np.diff(e.bounds) for e in matched], axis=1).reshape(-1)
    return [_interleaved(e, i, sizes) for i, e in enumerate(matched)]


def check_limit(limit: float | None) -> None:
    """Refuse anything but a number of batches of at least 1, or a share of them."""
    if limit is None or (isinstance(limit, Integral) and limit >= 1) or 0 < limit < 1:
        return
    raise ConfigError(
        "limit_batches must be a number of batches of at least 1, or a share of them between 0 and "
        f"1, got {limit!r}"
    )


def check_over_batch(
    phase: str, losses: Sequence[AppliedLoss], options: StepOptions, processes: Any
) -> None:
    """Refuse to split the batch of a loss that is computed over the whole batch."""
    batch_losses = [a.label for a in losses if a.loss.over == "batch"]
    if batch_losses and (options.accumulate > 1 or processes is not None):
        raise ConfigError(
            f"phase {phase!r}: losses {batch_losses} are computed over the batch, and "
            "gradients of several batches do not add up to that of one; leave accumulate=1 "
            "and data_parallel=False, and use a larger batch_size"
        )


def limited(n_batches: int, limit: float | None) -> int:
    """Return the number of batches of an epoch that run, at least 1."""
    if limit is None:
        return n_batches
    return min(n_batches, int(limit) if limit >= 1 else max(1, int(n_batches * limit)))


def share(
    epochs: Sequence[EpochBatches], totals: Array, processes: Processes
) -> tuple[list[EpochBatches], list[tuple[float, float]]]:
    """Distribute the batches of an epoch over processes, round robin.

    Parameters
    ----------
    epochs : sequence of EpochBatches
        One per sampler, with equal numbers of batches; the same in all processes.
    totals : ndarray of float64, shape (n_batches,)
        The number of rows in each batch, or the sum of their weights.
    processes : Processes

    Returns
    -------
    epochs : list of EpochBatches
        The batches of this process. If none is left for its last step, it gets the first batch
        again.
    counts : list of (float, float)
        For each step, the total of this process's batch (zero for a repeated one) and the mean
        total over all processes.
    """
    n, size = len(totals), processes.size
    steps = -(-n // size)
    indices = np.arange(steps) * size + processes.rank
    padded = np.concatenate([totals, np.zeros(steps * size - n)])
    counts = list(
        zip(padded[indices].tolist(), padded.reshape(steps, size).mean(1).tolist(), strict=True)
    )
    return [e.taken(np.where(indices < n, indices, 0)) for e in epochs], counts


def _interleaved(epoch: EpochBatches, first: int, sizes: IntArray) -> EpochBatches:
    """Place batches at their steps, with padding (-1, weight 0) in between.

    Parameters
    ----------
    epoch : EpochBatches
    first : int
        First step that uses one of its batches.
    sizes : ndarray of int64, shape (n_steps,)
        Number of rows in each step.
    """
    n_samplers = len(sizes) // epoch.n_batches
    is_own = np.repeat(np.arange(len(sizes)) % n_samplers == first, sizes)

    def spread(values: Array, empty: float) -> Array:
        filled = np.full(len(is_own), empty, dtype=values.dtype)
        filled[is_own] = values
        return filled

    ones = {role: np.ones(len(rows)) for role, rows in epoch.rows.items()}
    return EpochBatches(
        {role: spread(rows, -1) for role, rows in epoch.rows.items()},
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        {role: spread(w, 0.0) for role, w in {**ones, **(epoch.weights or {})}.items()},
    )


class AlternatingBatches:
    """One plan per sampler; its results are padded to those of the full plan.

    An inactive branch gives outputs and losses of zero; its weights do not move.

    Parameters
    ----------
    full_plan : StepPlan
        The plan of all nodes and losses.
    make_plan : callable
        Returns the plan and the step for given losses and ``active_nodes``.
    losses : sequence of AppliedLoss
    groups : mapping of Source to int
        Index of the sampler that draws the rows of each source.
    graph : ModelGraph

    Raises
    ------
    ConfigError
        If a loss reads rows of several samplers, or a sampler has no loss.
    """

    def __init__(
        self,
        full_plan: StepPlan,
        make_plan: Callable[..., Any],
        losses: Sequence[AppliedLoss],
        groups: Mapping[Source, int],
        graph: ModelGraph,
    ) -> None:
        self.layout, self._graph = full_plan.layout, graph
        nodes_of_group: list[list[str]] = [[] for _ in set(groups.values())]
        for node_id in self.layout.labels:
            groups_read = {
                groups[leaf.source]
                for leaf in source_columns_of(self.layout.lineages[node_id, "features"])
            }
            if len(groups_read) == 1:
                nodes_of_group[groups_read.pop()].append(node_id)
        self.plans: list[StepPlan] = []
        self._parts: list[tuple[Any, list[int], dict[int, int]]] = []
        node_names = {*self.layout.labels, *self.layout.labels.values()}
        losses = [a for a in losses if a.on in node_names]
        remaining = list(range(len(losses)))
        for ids in nodes_of_group:
            names = {*ids, *(self.layout.labels[i] for i in ids)}
            read = {i: {item.node or losses[i].on for item in losses[i].parsed} for i in remaining}
            selected = [i for i in remaining if read[i] <= names]
            remaining = [i for i in remaining if i not in selected]
            if not selected:
                raise ConfigError(f"samplers alternate, but no loss is on {sorted(names)}")
            group_plan, step = make_plan([losses[i] for i in selected], active_nodes=ids)
            positions = {out: i for i, out in enumerate(group_plan.layout.outputs)}
            output_positions = {
                i: positions[o] for i, o in enumerate(self.layout.outputs) if o in positions
            }
            self.plans.append(group_plan)
            others = map(self.layout.losses.index, group_plan.layout.losses[len(selected) :])
            self._parts.append((step, [*selected, *others], output_positions))
        if remaining:
            labels = [losses[i].label for i in remaining]
            raise ConfigError(
                f"losses {labels} read rows of several samplers, which alternating never brings "
                "together; use batch_schedule='zip_strict' or 'zip_cycle'"
            )

    def step(self, batch: tuple[int, Sequence[Any]]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Run the step of one sampler, given its index and its tensors."""
        group, tensors = batch
        run, loss_positions, output_positions = self._parts[group]
        try:
            losses, outputs = run(tensors)
        except NotFiniteError as error:
            raise NotFiniteError(loss_positions[error.place], error.value, error.of) from None
        all_losses = [losses[0] * 0.0] * len(self.layout.losses)
        for position, value in zip(loss_positions, losses, strict=True):
            all_losses[position] = value
        n = len(tensors[0])
        all_outputs = [
            outputs[output_positions[i]]
            if i in output_positions
            else adapter.zeros((n, *(self._graph.get_node(node_id).output_shape or ())), None)
            for i, ((node_id, _), adapter) in enumerate(
                zip(self.layout.outputs, self.layout.adapters, strict=True)
            )
        ]
        return all_losses, all_outputs


class BatchRows:
    """Row numbers of the batches of an epoch, computed on demand."""

    __slots__ = ("_batch", "_weights", "epoch", "feed")

    def __init__(self, feed: Any, epoch: int) -> None:
        self.feed, self.epoch = feed, epoch
        self._batch, self._weights = -1, dict[Any, Mapping[str, Array]]()

    def __call__(self, source: Source, batch: int) -> Mapping[str, IntArray]:
        """Return the row numbers of a batch by role; -1 for padding."""
        bound, epoch_batches = self._batches_of(source)
        rows = bound.view.valid_indices
        positions = {role: epoch_batches.batch(batch, role) for role in epoch_batches.rows}
        if epoch_batches.weights is None:
            return {role: np.asarray(rows[indices]) for role, indices in positions.items()}
        return {
            role: np.where(indices < 0, -1, rows[indices]) for role, indices in positions.items()
        }

    @property
    def batches_key(self) -> tuple[int, int]:
        """Key of the batches; equal keys of two objects mean equal rows."""
        return id(self.feed), self.epoch

    def joined(self, source: Source, first: int, n: int) -> tuple[dict[str, IntArray], IntArray]:
        """Return the row numbers of successive batches by role, concatenated, and their bounds."""
        bound, epoch_batches = self._batches_of(source)
        rows, bounds = bound.view.valid_indices, epoch_batches.bounds[first : first + n + 1]
        values = {}
        for role, positions in epoch_batches.rows.items():
            taken = positions[bounds[0] : bounds[-1]]
            values[role] = np.asarray(rows[taken])
            if epoch_batches.weights is not None:
                values[role] = np.where(taken < 0, -1, values[role])
        return values, bounds.astype(np.int64) - bounds[0]

    def weights(self, source: Source, batch: int) -> Mapping[str, Array]:
        """Return the weights of a batch by role; inputs of one stream share them."""
        bound, epoch_batches = self._batches_of(source)
        if epoch_batches.weights is None:
            return {}
        if batch != self._batch:
            self._batch, self._weights = batch, {}
        key = (bound.group, bound.stream)
        if key not in self._weights:
            batch_rows = slice(epoch_batches.bounds[batch], epoch_batches.bounds[batch + 1])
            self._weights[key] = {role: w[batch_rows] for role, w in epoch_batches.weights.items()}
        return self._weights[key]

    def _batches_of(self, source: Source) -> tuple[Bound, EpochBatches]:
        batches = self.feed._batches(self.epoch)
        return self.feed.bound[source], self.feed._batches_of(source, batches)
