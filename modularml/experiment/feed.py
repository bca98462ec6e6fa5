"""Epochs of steps: batches of every sampler, gathered and put side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from modularml._typing import IntArray
from modularml.data.execution import ExecutionContext, Source
from modularml.errors import ConfigError, DataError
from modularml.experiment.binding import Bound
from modularml.experiment.schedule import BatchSchedulingPolicy, schedule
from modularml.graph.flows import leaves
from modularml.graph.inputs import column_tensor, frozen_outputs, pieces
from modularml.graph.model_graph import ModelGraph
from modularml.graph.plan import InputSlot, StepPlan
from modularml.samplers import EpochBatches
from modularml.training import AppliedLoss

__all__ = ["Feed"]


class Feed:
    """Makes the steps of a phase, their tensors filled in.

    Parameters
    ----------
    phase : str
        Label.
    graph : ModelGraph
    bound : sequence of Bound
    losses : sequence of AppliedLoss
    active_nodes : list or None
    training : bool
    policy : BatchSchedulingPolicy
    device : str or None
    """

    def __init__(
        self,
        phase: str,
        graph: ModelGraph,
        bound: Sequence[Bound],
        losses: Sequence[AppliedLoss],
        active_nodes: Sequence[Any] | None,
        *,
        training: bool,
        policy: BatchSchedulingPolicy,
        device: Any = None,
    ) -> None:
        self.phase, self.policy, self.device = phase, policy, device
        self.bound = {b.source: b for b in bound}
        self.groups = [
            next(b for b in bound if b.group == g) for g in range(1 + max(b.group for b in bound))
        ]
        together = {b.source: b.group for b in bound} if training else None
        self._plan = partial(
            graph.plan, losses, training=training, active_nodes=active_nodes, roles=_roles(bound)
        )
        self._plan_with_static = partial(self._plan, together=together)
        self._asked: StepPlan | None = None
        self._epochs: dict[int, list[EpochBatches]] = {}
        self.reuses_memory = self.keeps_epochs = False
        self.watch: Callable[[Sequence[Bound]], Iterable[Bound]] = iter
        self._current = 0
        self._room: dict[InputSlot, list[Any]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take up what was frozen, unfrozen or otherwise changed since the last epoch."""
        plan, step = self._plan_with_static()
        if plan is self._asked:
            return
        self._asked = self.plan = plan
        self.step = step
        columns = [self._column(slot) for slot in plan.slots]
        if any(column is None for column in columns):  # the frozen part is not repeatable
            self.plan, self.step = self._plan()
            columns = [self._column(slot) for slot in self.plan.slots]
        self._columns, self._room = columns, {}
        self.layout = replace(self.plan.layout, views={s: b.view for s, b in self.bound.items()})

    def epoch(self, epoch: int) -> tuple[int, Iterator[ExecutionContext]]:
        """Return the number of batches of an epoch, and its steps."""
        batches = self._batches(epoch)
        self._current = epoch
        return batches[0].n_batches, self._steps(epoch, batches)

    def __iter__(self) -> Iterator[ExecutionContext]:
        """Return the steps of the epoch that was asked for last."""
        return self._steps(self._current, self._batches(self._current))

    def sizes(self, epoch: int, node_id: str) -> list[int]:
        """Return the rows of a node in each batch of an epoch."""
        group = min(self._groups_of(node_id))
        return self._batches(epoch)[group].sizes

    def _steps(self, epoch: int, batches: list[EpochBatches]) -> Iterator[ExecutionContext]:
        rows = _Rows(self, epoch)
        layout, bundle, phase = self.layout, (self.plan, self.step), self.phase
        streams = [
            self._stream(slot, column, batches)
            for slot, column in zip(self.plan.slots, self._columns, strict=True)
        ]
        for i, tensors in enumerate(zip(*streams, strict=True)):
            ctx = ExecutionContext(phase, epoch, i)
            ctx.layout, ctx.plan, ctx.rows, ctx.tensors = layout, bundle, rows, tensors
            yield ctx

    def _stream(self, slot: InputSlot, column: Any, batches: list[EpochBatches]) -> Iterator[Any]:
        bound = self.bound[slot.source]
        own = batches[bound.group]
        rows = own.rows[slot.role]
        if slot.node_id is None:
            rows = bound.view.valid_indices[rows]
        room = self._room.setdefault(slot, []) if self.reuses_memory else None
        keep = self.keeps_epochs
        return pieces(self.plan.adapter, column, rows, own.sizes, room, whole_epoch=keep)

    def _column(self, slot: InputSlot) -> Any:
        view = self.bound[slot.source].view
        if slot.node_id is not None:
            return frozen_outputs(self.plan, slot.node_id, view, self.device)
        return column_tensor(self.plan.adapter, view.collection, slot, self.device)

    def _batches(self, epoch: int) -> list[EpochBatches]:
        """Return the batches of an epoch; any epoch can be made again from its number."""
        if epoch not in self._epochs:
            while len(self._epochs) >= 2:
                del self._epochs[next(iter(self._epochs))]
            own = [g.sampler.epoch(g.view, epoch) for g in self.watch(self.groups)]
            batches = schedule(own, self.policy)
            self._check_sizes(batches)
            self._epochs[epoch] = batches
        return self._epochs[epoch]

    def _groups_of(self, node_id: str) -> set[int]:
        """Return the groups of bindings whose rows reach a node."""
        flow = self.plan.layout.flows[node_id, "features"]
        return {self.bound[leaf.source].group for leaf in leaves(flow)}

    def _check_sizes(self, batches: list[EpochBatches]) -> None:
        """Refuse batches of unlike size where they would be put side by side."""
        if len({tuple(b.sizes) for b in batches}) == 1:
            return
        for node_id, label in self.plan.layout.labels.items():
            groups = self._groups_of(node_id)
            if len({tuple(batches[g].sizes) for g in groups}) > 1:
                rows = {self.groups[g].view.source.label: sum(batches[g].sizes) for g in groups}
                raise DataError(
                    f"phase {self.phase!r}: node {label!r} puts rows of several inputs side by "
                    f"side, and their batches differ in size (rows: {rows}). Give the inputs "
                    "equally many rows, or use samplers of one batch_size with drop_last=True"
                )

    def release(self) -> None:
        """Let go of the tensors; row numbers can still be asked for."""
        self._columns, self._room, self._asked = [], {}, None
        self._epochs.clear()
        del self.plan, self.step, self._plan, self._plan_with_static


class _Rows:
    """Row numbers of the batches of an epoch, made when they are asked for."""

    __slots__ = ("epoch", "feed")

    def __init__(self, feed: Feed, epoch: int) -> None:
        self.feed, self.epoch = feed, epoch

    def __call__(self, source: Source, batch: int) -> Mapping[str, IntArray]:
        bound = self.feed.bound[source]
        own = self.feed._batches(self.epoch)[bound.group]
        rows = bound.view.valid_indices
        return {role: np.asarray(rows[own.batch(batch, role)]) for role in own.rows}


def _roles(bound: Sequence[Bound]) -> tuple[str, ...]:
    roles = {b.sampler.roles for b in bound}
    if len(roles) > 1:
        raise ConfigError(f"samplers of one phase must give the same roles, got {sorted(roles)}")
    return next(iter(roles))
