"""The batch feed: the batches of all samplers, as the tensors of each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, repeat
from typing import Any

import numpy as np

from modularml._typing import Array, IntArray
from modularml.backends import PLAIN, StepOptions
from modularml.backends.fingerprint import Identity
from modularml.backends.step_options import NotStackableError, StackMember
from modularml.backends.tensor_operations import Processes
from modularml.data.execution_context import ExecutionContext, Layout, WeightSource
from modularml.data.ids import as_slice
from modularml.data.lineage import Source
from modularml.data.view import FeatureSetView
from modularml.engine.batch_schedule import (
    AlternatingBatches,
    BatchRows,
    BatchSchedulingPolicy,
    check_over_batch,
    limited,
    schedule,
    share,
)
from modularml.engine.binding import Bound, roles_of
from modularml.errors import ConfigError, DataError
from modularml.graph.framework_segment import InputSlot
from modularml.graph.input_tensors import (
    CHUNK_BYTES,
    column_tensor,
    frozen_outputs,
    mean_one,
    pieces,
)
from modularml.graph.lineage import source_columns_of
from modularml.graph.model_graph import ModelGraph
from modularml.samplers import EpochBatches
from modularml.training import AppliedLoss


class BatchFeed:
    """Yields the steps of a phase, with their tensors filled in.

    Parameters
    ----------
    phase : str
        Its label.
    graph : ModelGraph
    bound : sequence of Bound
    losses : sequence of AppliedLoss
    active_nodes : list or None
    training : bool
    policy : BatchSchedulingPolicy
    options : StepOptions
        Options of a training step, such as gradient accumulation and clipping.
    pin_memory : bool
        Whether columns stay in host memory and rows are uploaded in chunks.
    processes : Processes, optional
        The processes that share the batches of an epoch.
    fits : sequence of ModelNode
        Nodes that are fitted on the rows of each step.
    live : bool
        Whether weights of frozen nodes may change from batch to batch, so that their outputs are
        computed in each step and not once.
    chunk : int, optional
        Rows per forward pass of an evaluation; its losses still see the whole batch.
    limit : int or float, optional
        The number of batches of an epoch that run, or their share.

    Attributes
    ----------
    share_run : float
        The share of the batches of the last drawn epoch that run.
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
        options: StepOptions = PLAIN,
        pin_memory: bool = False,
        processes: Processes | None = None,
        fits: Sequence[Any] = (),
        live: bool = False,
        chunk: int | None = None,
        limit: float | None = None,
    ) -> None:
        check_over_batch(phase, losses, options, processes)
        self.phase, self.policy, self.graph, self.losses = phase, policy, graph, losses
        self.limit, self.share_run = limit, 1.0
        self.pin_memory, self.processes = pin_memory, processes
        self.bound = {b.source: b for b in bound}
        ready = sorted(bound, key=lambda b: not b.drawn)
        self.groups = [
            next(b for b in ready if b.group == g) for g in range(1 + max(b.group for b in bound))
        ]
        self._counts_rows = processes is not None or options.accumulate > 1
        self.alternates = policy.alternates and len(self.groups) > 1
        if self.alternates and self._counts_rows:
            raise ConfigError(
                f"phase {phase!r}: samplers that alternate need accumulate=1 and no data_parallel; "
                "use batch_schedule='zip_strict' or 'zip_cycle'"
            )
        once = training and not self.alternates and not live
        kinds = list(dict.fromkeys((b.group, b.stream) for b in bound))
        read_as = {b.source: kinds.index((b.group, b.stream)) for b in bound}
        together = read_as if once else None
        weighted = {
            b.source: read_as[b.source] for b in bound if self.alternates or b.sampler.gives_weights
        }
        self._graph_plan = partial(
            graph.plan,
            training=training,
            roles=roles_of(bound),
            weighted=weighted,
            options=options,
            chunk=chunk,
        )
        self._plan = partial(self._graph_plan, losses, active_nodes=active_nodes, fits=fits)
        self._plan_with_static = partial(self._plan, together=together)
        self._tables = list[Any]()
        self._made_from: Any = None
        self._epochs: dict[int, list[EpochBatches]] = {}
        self._counts: dict[int, Any] = {}
        self.reuses_memory = self.keeps_epochs = False
        self.chunk_bytes = CHUNK_BYTES
        self.watch: Callable[[Sequence[Bound]], Iterable[Bound]] = iter
        self._running: Any = None
        self._runs: dict[int, tuple[IntArray, IntArray | slice]] = {}
        self._buffers: dict[InputSlot, list[Any]] = {}
        self.refresh()

    @property
    def is_current(self) -> bool:
        """Whether every FeatureSet still holds the table this feed was built from."""
        return all(b.view.collection is table for b, table in self._tables)

    def refresh(self) -> None:
        """Update the plan after nodes were frozen, unfrozen or otherwise changed.

        Outputs of frozen nodes are computed again if their weights have changed.
        """
        plan, step = self._plan_with_static()
        self._version = plan.static_version()
        made_from = Identity(plan), self._version
        if made_from == self._made_from and self.is_current:
            return
        self._made_from, self.plan, self.step = made_from, plan, step
        self._tables = [(b, b.view.collection) for b in self.bound.values()]
        if self.alternates:
            groups = {source: b.group for source, b in self.bound.items()}
            alternating = AlternatingBatches(
                plan, self._graph_plan, self.losses, groups, self.graph
            )
            self.step = alternating.step
            self._parts = [(p, [self._column(s) for s in p.slots]) for p in alternating.plans]
        else:
            columns = [self._column(slot) for slot in plan.slots]
            if any(column is None for column in columns):  # frozen outputs vary between calls
                self.plan, self.step = self._plan()
                columns = [self._column(slot) for slot in self.plan.slots]
            self._parts, self._buffers = [(self.plan, columns)], {}
        self.layout: Layout = replace(self.plan.layout, views=self._views())

    def _views(self) -> dict[Source, FeatureSetView]:
        """Return the rows of each source."""
        return {source: bound.view for source, bound in self.bound.items()}

    def stack_member(self, options: StepOptions) -> StackMember:
        """Return what trains this phase's graph as one with others; see `TorchStack`.

        Raises
        ------
        NotStackableError
            If it cannot be trained so.
        """
        if self.alternates or self.processes is not None:
            raise NotStackableError("samplers alternate, or several processes train the graph")
        return self.plan.stack_member(options)

    def prepare(
        self,
        watch: Callable[[Sequence[Bound]], Iterable[Bound]],
        *,
        reuses_memory: bool = False,
        keeps_epochs: bool = False,
    ) -> None:
        """Set how the batches of a run are read.

        Parameters
        ----------
        watch : callable
            Iterates over samplers while they draw, for example under a progress bar.
        reuses_memory : bool
            Whether the memory of a batch is overwritten by later ones.
        keeps_epochs : bool
            Whether outputs of all batches of an epoch, which may be views of them, are held.
        """
        self.reuses_memory, self.keeps_epochs, self.watch = reuses_memory, keeps_epochs, watch

    def n_batches(self, epoch: int) -> int:
        """Return the number of batches of an epoch."""
        return self._batches(epoch)[0].n_batches

    def epoch(self, epoch: int, first: int = 0) -> tuple[int, Iterator[ExecutionContext]]:
        """Return the number of batches of an epoch, and its steps, from batch `first` on."""
        batches = self._batches(epoch)
        n_batches, step = batches[0].n_batches, self.step
        rows, layout, bundle = BatchRows(self, epoch), self.layout, (self.plan, step, self._version)
        streams = [self._tensors(0, batches)]
        if self.alternates:  # with the index of the sampler of each step
            n = len(batches)
            places = [np.arange(i, n_batches, n) for i in range(n)]
            streams = [
                zip(repeat(i), self._tensors(i, [b.taken(own) for b in batches]), strict=False)
                for i, own in enumerate(places)
            ]
        counts = self._counts.get(epoch) or [None] * n_batches
        accumulates: Any = step if hasattr(step, "closing") else None

        def steps() -> Iterator[ExecutionContext]:
            if accumulates is not None:
                accumulates.begin()
            try:
                for i in range(n_batches):
                    ctx = ExecutionContext(self.phase, epoch, i)
                    ctx.layout, ctx.plan, ctx.rows = layout, bundle, rows
                    ctx.tensors = next(streams[i % len(streams)])
                    if accumulates is not None:  # it must know the last batch
                        accumulates.closing, accumulates.sizes = i + 1 == n_batches, counts[i]
                    yield ctx
            finally:
                if accumulates is not None:
                    accumulates.end()

        self._running = steps()
        return n_batches, islice(self._running, first, None) if first else self._running

    def run(self, epoch: int, step: Callable[[Any], Any]) -> None:
        """Call a function of the tensors of each batch of an epoch."""
        for tensors in self._tensors(0, self._batches(epoch)):
            step(tensors)

    def sizes(self, epoch: int, node_id: str) -> list[int]:
        """Return the number of rows of a node in each batch of an epoch."""
        group = min(self._groups_of(node_id))
        return self._batches(epoch)[group].sizes

    def most_rows(self, epoch: int) -> int:
        """Return the number of rows of the largest batch of an epoch."""
        return max(max(batches.sizes) for batches in self._batches(epoch))

    def n_alike(self, epoch: int, first: int) -> int:
        """Return how many batches of an epoch, from one on, have its number of rows throughout."""
        batches = self._batches(epoch)
        runs = [batches[0].n_batches - first]
        for bound in self.bound.values():
            sizes = batches[bound.group].stream(bound.stream).sizes[first:]
            runs.append(next((i for i, n in enumerate(sizes) if n != sizes[0]), len(sizes)))
        return min(runs)

    def gathered(self, epoch: int, table: Array) -> tuple[Array, Array]:
        """Return losses over all processes, and the count that each is a mean over.

        Parameters
        ----------
        table : ndarray, shape (n_batches, n_losses)
        """
        sizes = self._totals(self._batches(epoch))[: len(table)]
        if self.processes is None:
            return table, sizes
        counts = np.array([count for count, _ in self._counts[epoch]])[: len(table), None]
        tables, sizes = map(np.stack, zip(*self.processes.gather((table, counts)), strict=True))
        return (tables * sizes).sum(0) / sizes.sum(0), sizes.sum(0) * np.ones_like(table)

    def _totals(self, batches: list[EpochBatches]) -> Array:
        """Return the count each loss is a mean over: rows, or their summed weight.

        Returns
        -------
        ndarray of float64, shape (n_batches, n_losses)
        """
        layout = self.layout
        columns: list[Any] = []
        for (_, node_id), weight_source, over_batch in zip(
            layout.losses, layout.weight_sources, layout.over_batch, strict=True
        ):
            if weight_source is None and over_batch:
                columns.append(np.ones(batches[0].n_batches))
            elif weight_source is None:
                columns.append(batches[min(self._groups_of(node_id))].sizes)
            else:
                starts = self._batches_of(weight_source.source, batches).bounds[:-1]
                columns.append(np.add.reduceat(self._weights(weight_source, batches), starts))
        return np.array(columns, dtype=np.float64).T

    def _tensors(self, part: int, batches: list[EpochBatches]) -> Iterator[Any]:
        plan, columns = self._parts[part]
        streams = [
            self._stream(slot, column, batches)
            for slot, column in zip(plan.slots, columns, strict=True)
        ]
        return zip(*streams, strict=True)

    def _stream(self, slot: InputSlot, column: Any, batches: list[EpochBatches]) -> Iterator[Any]:
        own_batches = self._batches_of(slot.source, batches)
        if slot.weight_source is not None:
            weights = self._weights(slot.weight_source, batches)
            weights = mean_one(weights, own_batches.bounds) if slot.normalized else weights
            tensor = slot.adapter.from_numpy(weights, dtype=slot.dtype, device=slot.device)
            return iter(slot.adapter.chunks(tensor, own_batches.sizes))
        positions = own_batches.rows[slot.role]
        if own_batches.weights is not None:
            positions = np.maximum(positions, 0)  # padding reads row 0, with weight 0
        rows: IntArray | slice = slice(0, len(positions))
        if not own_batches.in_order:
            if id(positions) not in self._runs:  # holding them keeps their id from being reused
                self._runs[id(positions)] = positions, as_slice(positions)
            rows = self._runs[id(positions)][1]
        span = self.bound[slot.source].view.span if slot.node_id is None else None
        buffers = self._buffers.setdefault(slot, []) if self.reuses_memory else None
        upload = None
        if self.pin_memory and slot.node_id is None:
            upload = partial(slot.adapter.upload, device=slot.device)
        return pieces(
            slot.adapter,
            column,
            rows,
            own_batches.sizes,
            buffers,
            span,
            upload,
            whole_epoch=self.keeps_epochs,
            chunk_bytes=self.chunk_bytes,
        )

    def _batches_of(self, source: Source, batches: list[EpochBatches]) -> EpochBatches:
        """Return the batches that a source reads."""
        bound = self.bound[source]
        return batches[bound.group].stream(bound.stream)

    def _weights(self, weight_source: WeightSource, batches: list[EpochBatches]) -> Array:
        """Return the sample weights of a loss, for all batches concatenated."""

        def view(source: Source) -> Any:
            return self.bound[source].view

        return weight_source.values(
            view,
            lambda s, role: view(s).valid_indices[self._batches_of(s, batches).rows[role]],
            lambda s, role: self._batches_of(s, batches).weight(role),
        )

    def _column(self, slot: InputSlot) -> Any:
        view = self.bound[slot.source].view
        if slot.weight_source is not None:
            return ()
        if slot.node_id is not None:
            return frozen_outputs(self.plan, slot, self._views())
        return column_tensor(
            view.collection,
            replace(slot, device=None) if self.pin_memory else slot,
            in_windows=self.bound[slot.source].sampler.shuffle_window is not None,
        )

    def _batches(self, epoch: int) -> list[EpochBatches]:
        """Return the batches of an epoch, which follow from its number alone."""
        if epoch not in self._epochs:
            for cache in (self._epochs, self._counts, self._runs):
                cache.clear()
            epochs = [g.sampler.epoch(g.view, epoch) for g in self.watch(self.groups)]
            batches = schedule(epochs, self.policy)
            differ = len({tuple(b.sizes) for b in batches}) > 1
            for node_id, label in self.layout.labels.items() if differ else ():
                own = {i: tuple(batches[i].sizes) for i in self._groups_of(node_id)}
                if len(set(own.values())) > 1:
                    rows = {self.groups[i].view.source.label: sum(n) for i, n in own.items()}
                    raise DataError(
                        f"phase {self.phase!r}: node {label!r} combines rows of several inputs, "
                        f"but their batches differ in size (rows: {rows}). Give the inputs equal "
                        "numbers of rows, or use samplers with one batch_size and drop_last=True"
                    )
            n = batches[0].n_batches
            if (n_run := limited(n, self.limit)) < n:
                batches = [b.taken(np.arange(n_run)) for b in batches]
            self.share_run = n_run / n
            if self._counts_rows:
                totals = self._totals(batches)
                if (totals != totals[:, :1]).any():
                    raise ConfigError(
                        f"phase {self.phase!r}: its losses weight samples differently, so the "
                        "gradients of several batches cannot be combined exactly; leave "
                        "accumulate=1 and data_parallel=False"
                    )
                row_totals: Array = totals[:, 0]
                self._counts[epoch] = [(total, total) for total in row_totals.tolist()]
                if self.processes is not None:
                    batches, self._counts[epoch] = share(batches, row_totals, self.processes)
            self._epochs[epoch] = batches
        return self._epochs[epoch]

    def _groups_of(self, node_id: str) -> set[int]:
        """Return the groups of bindings whose rows reach a node."""
        lineage = self.layout.lineages[node_id, "features"]
        return {self.bound[column.source].group for column in source_columns_of(lineage)}

    def __getstate__(self) -> dict[str, Any]:
        """Omit steps and tensors; row numbers remain available."""
        attributes = {name: vars(self)[name] for name in _ROW_ATTRIBUTES}
        return {**attributes, "watch": iter, "_epochs": {}, "_counts": {}, "_runs": {}}

    def release(self) -> None:
        """Release the tensors; row numbers remain available."""
        if self._running is not None:  # suspended after its last batch, with a chunk of rows
            self._running.close()
            self._running = None
        self._parts, self._buffers, self._made_from = [], {}, None
        self._epochs.clear()
        self._runs.clear()
        del self.plan, self.step, self._plan, self._plan_with_static, self._graph_plan, self.graph


_ROW_ATTRIBUTES = (
    "phase",
    "policy",
    "limit",
    "share_run",
    "processes",
    "bound",
    "groups",
    "layout",
    "_counts_rows",
    "alternates",
)
"""Attributes that determine which rows were in which batch."""
