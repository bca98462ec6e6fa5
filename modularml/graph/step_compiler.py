"""Compilation of nodes and losses into a step plan."""

from __future__ import annotations

import graphlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from modularml.backends import Backend, BackendAdapter, adapter_for
from modularml.data.execution_context import MODEL_LOSSES, Layout
from modularml.data.lineage import Source
from modularml.data.references import FeatureSetReference
from modularml.errors import BackendNotSupportedError, GraphError, LossError
from modularml.graph.build import input_shapes
from modularml.graph.calling import column_dtypes
from modularml.graph.framework_segment import InputSlot, LossOp, Program, converted
from modularml.graph.lineage import (
    column_above,
    columns_behind,
    mask_above,
    resolve_id,
    source_columns_of,
)
from modularml.graph.loss_calls import check_unpadded
from modularml.graph.loss_inputs import LossReader, Read
from modularml.graph.merge import side_by_side
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode
from modularml.graph.step_plan import StepPlan
from modularml.graph.topology import ancestors, in_segments, readers_of
from modularml.graph.unscaling import unit_flows
from modularml.graph.weighted_node import (
    Learn,
    Reach,
    check_models,
    check_weights,
    fit_then_predict,
    trainable,
)
from modularml.training import AppliedLoss


class Compiler(LossReader):
    """Resolves nodes and losses into a plan.

    Parameters
    ----------
    nodes : sequence of ComputeNode
        Built, in topological order, upstream nodes included.
    roles : sequence of str
        Every node runs once per role.
    training : bool
        Whether nodes that are not frozen run in training mode, with gradients.
    detach_after : iterable of str
        Nodes whose output carries no gradient to those that read it.
    learners : mapping of str to callable, optional
        The method, by id, with which a node without gradients learns from features and targets; it
        is called before the node computes outputs.
    weighted : mapping of Source to int, optional
        Sources whose rows have weights; sources with equal numbers share them.
    compiles : bool
        Whether models are compiled by their framework.
    whole : Compiler, optional
        Of the step that these nodes are the frozen part of.
    """

    def __init__(
        self,
        nodes: Sequence[ComputeNode],
        roles: Sequence[str] = ("default",),
        *,
        training: bool = False,
        detach_after: Iterable[str] = (),
        learners: Mapping[str, Learn] | None = None,
        weighted: Mapping[Source, int] | None = None,
        compiles: bool = False,
        whole: Compiler | None = None,
    ) -> None:
        backends = None if whole is None else whole.native_backends
        super().__init__(nodes, roles, training=training, backends=backends)
        self.native_backends: dict[str, Backend] = dict(self.backends)
        self.detach_after, self.learners = set(detach_after), learners or {}
        self.weighted, self.compiles, self.whole = weighted or {}, compiles, whole
        self.edges = {n.node_id: [resolve_id(ref) for ref in n.node_refs] for n in nodes}
        self.readers = readers_of(nodes)
        self.segments: list[list[str]] = []
        self.read: dict[tuple[str, str], int] = {}
        """Slot of each node's output as its readers get it, by id and role."""
        self.collectors: dict[str, Any] = {}

    def compile(
        self,
        losses: Sequence[AppliedLoss],
        optimizers: Mapping[str, Any] | None = None,
        together: Mapping[Source, int] | None = None,
    ) -> StepPlan:
        """Return the plan of nodes with losses on them.

        Parameters
        ----------
        losses : sequence of AppliedLoss
        optimizers : mapping of str to Optimizer, optional
            The optimizer of each trainable node, by id.
        together : mapping of Source to int, optional
            Sources with equal numbers are read row by row together. If given, the frozen part that
            reads only sources of one number becomes a plan of its own, which is computed once.

        Raises
        ------
        LossError, ShapeError
            If a loss reads values that its node lacks, or shapes do not fit.
        NotFittedError
            If a node has not been fitted and does not learn in this step.
        """
        static = set[str]() if together is None else self._static(together)
        edge = self._edge(static, losses)
        column_dtypes = {node_id: self._dtype_as_column(node_id, static) for node_id in edge}
        running = [n for n in self.by_id if n not in static or n in edge]
        self._make_segments(running, losses)
        self._check_models(running, edge, bool(losses))
        for node_id in running:
            for role in self.roles:
                if node_id not in edge:
                    self._run(self.by_id[node_id], role, losses)
                    continue
                program, dtype = self.program(node_id), column_dtypes[node_id]
                source = source_columns_of(self.lineages[node_id, "features"])[0].source
                slot = program.slot(role, source, (), dtype, node_id=node_id)
                self.places[node_id, role] = self.read[node_id, role] = program.input(slot)
        loss_ops = [self.read_loss(applied) for applied in losses]
        on = [(a.label, self.node_named(a.on, a).node_id) for a in losses]
        for node_id, collector in self.collectors.items():
            on.append((MODEL_LOSSES + self.by_id[node_id].label, node_id))
            loss_ops.append(LossOp(collector.total, ()))
            self.weight_sources.append(self.weight_sources[0])
        learning = self._learning(losses, optimizers or {})
        return self._plan(losses, tuple(on), loss_ops, learning, static, edge)

    def _check_models(self, running: Sequence[str], edge: set[str], losses: bool) -> None:
        """Refuse models that cannot run here, and collect the losses models define."""
        for program, ids in zip(self.programs, self.segments, strict=True):
            nodes = [
                node for i in ids if isinstance(node := self.by_id[i], ModelNode) and i not in edge
            ]
            check_models(nodes, training=self.training, losses=losses)
            modules = [node.model.module for node in nodes] if losses else []
            collectors = program.adapter.own_losses(modules, compiles=self.compiles)
            pairs = zip(nodes, collectors, strict=False)
            self.collectors |= {
                node.node_id: collector for node, collector in pairs if collector is not None
            }

    def _make_segments(self, running: Sequence[str], losses: Sequence[AppliedLoss]) -> None:
        ties = [[self.node_named(a.on, a).node_id, *self.read_by(a)] for a in losses]
        try:
            self.segments = in_segments(running, self.edges, self.backends, ties)
        except graphlib.CycleError:
            raise LossError(
                f"a loss of {[a.label for a in losses]} reads outputs of a node of another "
                "framework that runs after the loss's own node; apply it on the later node"
            ) from None
        for ids in self.segments:
            adapter = adapter_for(self.backends[ids[0]])
            models = [n for n in map(self.by_id.__getitem__, ids) if isinstance(n, ModelNode)]
            native = [n for n in models if n.backend is adapter.backend]
            # on the device of the first model; those with an accelerator of their own come last
            ordered = sorted(native, key=lambda n: n.accelerator is not None)
            places = (adapter.device_of(n.model.module) for n in ordered)
            self.programs.append(Program(adapter, next((p for p in places if p is not None), None)))
        self.home = {i: place for place, ids in enumerate(self.segments) for i in ids}

    # -- the part that is computed once -------------------------------------------------------

    def _static(self, together: Mapping[Source, int]) -> set[str]:
        """Return frozen nodes that read, row by row, only columns and frozen nodes."""
        static: set[str] = set()
        for node in self.nodes:
            makes_masks = isinstance(node, ModelNode) and adapter_for(node.backend).makes_masks(
                node.model.module
            )
            if node.is_frozen and static.issuperset(self.edges[node.node_id]) and not makes_masks:
                static.add(node.node_id)
        read = {n: source_columns_of(self.lineages[n, "features"]) for n in static}
        return {n for n, leaves in read.items() if len({together[i.source] for i in leaves}) == 1}

    def _edge(self, static: set[str], losses: Sequence[AppliedLoss]) -> set[str]:
        """Return static nodes that a loss or a node outside the static part reads."""
        read = {a.on for a in losses} | {i.node for a in losses for i in a.parsed if i.node}
        read |= {
            ref for node_id, refs in self.edges.items() if node_id not in static for ref in refs
        }
        return {n for n in static if n in read or self.by_id[n].label in read}

    def _dtype_as_column(self, node_id: str, static: set[str]) -> Any:
        """Treat a frozen node's output as a column in its readers' framework, of this dtype."""
        readers = [r for r in self.readers[node_id] if r not in static]
        backends = {self.backends[r] for r in readers}
        if len(backends) != 1 or self.backends[node_id] in backends:
            return None
        self.backends[node_id] = backends.pop()
        return self._read_as(self.by_id[readers[0]], node_id, self.dtypes)

    # -- forward ------------------------------------------------------------------------------

    def _run(self, node: ComputeNode, role: str, losses: Sequence[AppliedLoss]) -> None:
        program = self.program(node.node_id)
        model = node.model.module if isinstance(node, ModelNode) else None
        own_device = None if model is None else program.adapter.device_of(model)
        device = program.device if own_device is None else own_device
        inputs = zip(node.upstream_refs, self.dtypes[node.node_id], strict=True)
        read = [self._upstream(program, node, ref, role, dtype) for ref, dtype in inputs]
        args = [program.moved(arg, device) for arg in read]
        fn = self._function(node, read, program.adapter)
        many = not isinstance(node, ModelNode) or node.reads_several
        if isinstance(node, ModelNode) and node.mask_as is not None:
            source, mask = mask_above(self.lineages, node)
            steps = source.ref.resolve().collection.schema[mask].shape
            slot = program.slot(role, source, (mask,), shape=steps)
            args.append(program.moved(program.input(slot), device))
            call, name = fn, node.mask_as
            fn, many = (lambda values: call(values[0], **{name: values[1]})), True
        calls_function = callable(getattr(node, "function", None))
        writes = calls_function if model is None else program.adapter.writes_input(model)
        if (learn := self.learners.get(node.node_id)) is not None:
            if writes:  # the features alone; what else it learns from is no tensor
                fn, writes = program.on_copies(fn, many=False), False
            more = self._learned_from(program, node, role, learn, losses)
            fn, many = fit_then_predict(learn, fn, program.adapter, tuple(more)), True
            args += more.values()
        out = program.op(fn, args, many=many, device=device, writes=writes)
        self.places[node.node_id, role] = self.read[node.node_id, role] = out
        if node.node_id in self.detach_after:
            detached = program.op(program.adapter.detach, [out], many=False, device=device)
            self.read[node.node_id, role] = detached

    def _learned_from(
        self,
        program: Program,
        node: ComputeNode,
        role: str,
        learn: Learn,
        losses: Sequence[AppliedLoss],
    ) -> dict[str, int]:
        """Return the slots of targets, weights and groups, as arrays in their own dtype."""
        plain, places = adapter_for(Backend.SCIKIT), dict[str, int]()
        if (flow := self.lineages[node.node_id, "targets"]) is not None:
            check_unpadded(node.label, flow)
            places["targets"] = self.read_flow(program, flow, role, (None, None), plain)
        own = [a for a in losses if self.node_named(a.on, a) is node]
        applied = own[0] if own else None
        classes = None if applied is None else self.class_weights(applied, self.reads(applied))
        weight_source = self.weight_source(applied, [Read(node, role, None)], classes)
        if weight_source is not None:
            check_weights(node, learn, own)
            slot = program.slot(
                role,
                weight_source.source,
                dtype=np.float64,
                weight_source=weight_source,
                normalized=False,
            )
            places["sample_weight"] = program.input(replace(slot, adapter=plain, device=None))
        column = getattr(getattr(node, "model", None), "group_by", None)
        if column is not None and learn.__name__ == "fit":
            leaf = column_above(
                self.lineages, node.node_id, column, f"group_by of node {node.label!r}"
            )
            places["groups"] = self.read_flow(program, leaf, role, (None, None), plain)
        return places

    def _function(
        self, node: ComputeNode, args: Sequence[int], adapter: BackendAdapter
    ) -> Callable[..., Any]:
        fn = node.operation(adapter)
        if not isinstance(node, ModelNode):
            return fn
        if node.node_id not in self.learners:
            node.check_fitted()
        compiles = self.compiles and adapter.gradients
        refused = compiles and not adapter.compiles_masks
        if node.mask_as is not None and (refused or node.node_id in self.learners):
            raise BackendNotSupportedError(
                f"mask_as of node {node.label!r} is not supported with compile=True, nor for a "
                "model that is fitted"
            )
        fn = adapter.compile(fn) if compiles else adapter.direct(fn)
        fn = self.collectors.get(node.node_id, fn)
        fn = adapter.spread(fn, node.input_names) if node.reads_several else fn
        shape = input_shapes(node, self.by_id)[0]
        fn = fn if shape is None else node.arranged(adapter, fn, shape)
        from_columns = all(arg >= 0 for arg in args)
        if not (self.training and node.is_frozen and from_columns):
            return fn

        def without_gradients(x: Any, **kwargs: Any) -> Any:
            with adapter.no_grad():
                return fn(x, **kwargs)

        return without_gradients

    def _upstream(
        self, program: Program, node: ComputeNode, ref: Any, role: str, dtype: Any
    ) -> int:
        if not isinstance(ref, FeatureSetReference):
            return self.output(program, resolve_id(ref), role, dtype, self.read)
        columns = ref.columns("features")
        if not columns:
            raise GraphError(f"node {node.label!r} reads no features of {ref.node_label!r}")
        source, schema = Source(node.node_id, ref), ref.resolve().collection.schema
        if node.reads_flat and len({schema[name].shape for name in columns}) > 1:
            parts = [program.input(program.slot(role, source, (c,), dtype)) for c in columns]
            return program.op(partial(side_by_side, program.adapter), parts, many=True)
        return program.input(program.slot(role, source, columns, dtype))

    # -- optimizers ---------------------------------------------------------------------------

    def _learning(
        self, losses: Sequence[AppliedLoss], optimizers: Mapping[str, Any]
    ) -> list[list[Any]]:
        """Return the optimizers of each segment; none if no loss reaches its nodes.

        Raises
        ------
        LossError
            If no loss depends on a trainable node.
        """
        found: list[list[Any]] = [[] for _ in self.segments]
        if not optimizers:
            return found
        reach = Reach(self.edges, self.home, self.detach_after)
        learns, reached = {n.node_id for n in trainable(self.nodes)}, set[str]()
        for applied in losses:
            home = self.home[self.node_named(applied.on, applied).node_id]
            behind = reach.behind(i for i in self.read_by(applied) if self.home[i] == home)
            reached |= behind
            if behind & learns:
                own = (optimizers[i] for i in self.segments[home] if i in optimizers)
                found[home] = list({id(optimizer): optimizer for optimizer in own}.values())
        if not any(found) and not self.learners:
            raise LossError(
                f"no loss of {[a.label for a in losses]} depends on a trainable node; apply one on "
                f"{[n.label for n in trainable(self.nodes)]}"
            )
        reach.warn(self.by_id, optimizers.keys() - reached)
        return found

    def _plan(
        self,
        losses: Sequence[AppliedLoss],
        on: tuple[tuple[str, str], ...],
        loss_ops: Sequence[LossOp],
        learning: Sequence[Sequence[Any]],
        static: set[str],
        edge: set[str],
    ) -> StepPlan:
        outputs = tuple((i, role) for ids in self.segments for i in ids for role in self.roles)
        inputs = dict.fromkeys(slot for program in self.programs for slot in program.inputs)
        slots = [slot for slot in inputs if isinstance(slot, InputSlot)]
        # losses that models define come last, weighted as the first loss
        n_model_losses = len(on) - len(losses)
        layout = Layout(
            outputs,
            on,
            self.lineages
            | {k: f for n in self.nodes for k, f in unit_flows(n, self.lineages).items()},
            tuple(self.program(i).adapter for i, _ in outputs),
            {n.node_id: n.label for n in self.nodes},
            training=self.training,
            weight_sources=tuple(self.weight_sources),
            padded=frozenset(self.padded),
            over_batch=tuple(
                a.loss.over == "batch" for a in [*losses, *[*losses[:1]] * n_model_losses]
            ),
        )
        segments = []
        for home, (program, ids) in enumerate(zip(self.programs, self.segments, strict=True)):
            models = [
                node
                for i in ids
                if i not in static and isinstance(node := self.by_id[i], ModelNode)
            ]
            takes: list[tuple[int, Callable[[Any], Any] | None]] = []
            for slot in program.inputs:
                if isinstance(slot, InputSlot):
                    takes.append((slots.index(slot), None))
                else:
                    above = self.program(slot.node_id).adapter
                    convert = converted(above, program.adapter, slot.dtype, program.device)
                    takes.append((outputs.index((slot.node_id, slot.role)), convert))
            # a fit in this step decides the shapes of these
            undecided = {i for i in ids if ancestors(self.edges, [i]) & self.learners.keys()}
            segment = program.segment(
                [(n.model.module, self.training and not n.is_frozen) for n in models],
                learning[home],
                takes,
                [(i, op) for i, op in enumerate(loss_ops) if self.home[on[i][1]] == home],
                [
                    (
                        self.places[i, role],
                        node.label,
                        None if i in undecided else node.output_shape,
                    )
                    for i, node in ((i, self.by_id[i]) for i in ids)
                    for role in self.roles
                ],
                eager=not self.learners.keys().isdisjoint(ids),
            )
            segments.append(segment)
        frozen = None
        if edge:
            nodes = [n for n in self.nodes if n.node_id in static]
            frozen = Compiler(nodes, whole=self).compile(())
        return StepPlan(segments, slots, layout, frozen, tuple(losses))

    @cached_property
    def dtypes(self) -> dict[str, list[Any]]:
        """The input dtypes of each node; without a model, those of its readers."""
        if self.whole is not None:
            return self.whole.dtypes
        dtypes: dict[str, list[Any]] = {}
        for node in reversed(self.nodes):
            adapter, refs = adapter_for(self.native_backends[node.node_id]), node.upstream_refs
            if isinstance(node, ModelNode):
                columns = [columns_behind(ref, self.by_id) for ref in refs]
                dtypes[node.node_id] = column_dtypes(
                    adapter, node.model.module, node.input_shape, columns
                )
                continue
            backends = self.native_backends
            same = [r for r in self.readers[node.node_id] if backends[r] is adapter.backend]
            dtype = adapter.input_dtype(None)
            if same:
                dtype = self._read_as(self.by_id[same[0]], node.node_id, dtypes)
            dtypes[node.node_id] = [dtype] * len(refs)
        return dtypes

    def _read_as(self, reader: ComputeNode, above: str, dtypes: Mapping[str, list[Any]]) -> Any:
        """Return the dtype in which a node reads the output of an upstream node."""
        read = [None if r in reader.feature_refs else resolve_id(r) for r in reader.upstream_refs]
        return dtypes[reader.node_id][read.index(above)]
