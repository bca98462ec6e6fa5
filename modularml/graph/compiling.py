"""Compilation of nodes and losses into a step plan."""

from __future__ import annotations

import graphlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from modularml._typing import Shape
from modularml.backends import Backend, BackendAdapter, adapter_for
from modularml.data.execution import MODEL_LOSSES, Layout, WeightSource
from modularml.data.lineage import Source
from modularml.data.references import FeatureSetReference
from modularml.data.schema import ColumnSpec
from modularml.errors import BackendNotSupportedError, GraphError, LossError
from modularml.graph import topology
from modularml.graph.build import input_shapes
from modularml.graph.calling import column_dtypes
from modularml.graph.lineage import (
    column_above,
    lineages_of,
    mask_above,
    resolve_id,
    source_columns_of,
)
from modularml.graph.loss_calls import check_unpadded
from modularml.graph.loss_reading import LossReading
from modularml.graph.merge import side_by_side
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode
from modularml.graph.outputs import unit_flows
from modularml.graph.plan import Crossing, InputSlot, LossOp, StepPlan
from modularml.graph.program import Program, backends_of, converted, in_segments, readers_of
from modularml.graph.sample_weights import weight_source_of
from modularml.graph.weighted_node import (
    Learn,
    Reach,
    check_weights,
    fit_then_predict,
    no_learner,
    trainable,
)
from modularml.training import AppliedLoss

__all__ = ["check_losses", "compile_plan"]


def check_losses(
    nodes: Sequence[ComputeNode], losses: Sequence[AppliedLoss], roles: Sequence[str]
) -> None:
    """Refuse losses that name unknown nodes, roles or values, before any build."""
    _Compiler(nodes, False, roles, set(), {}).check(losses)


def compile_plan(
    nodes: Sequence[ComputeNode],
    losses: Sequence[AppliedLoss],
    *,
    training: bool,
    optimizers: Mapping[str, Any] | None = None,
    roles: Sequence[str] = ("default",),
    detach_after: Iterable[str] = (),
    together: Mapping[Source, int] | None = None,
    learners: Mapping[str, Learn] | None = None,
    weighted: Mapping[Source, int] | None = None,
    compiles: bool = False,
) -> StepPlan:
    """Resolve nodes and losses into a plan.

    Parameters
    ----------
    nodes : sequence of ComputeNode
        Built, in topological order, upstream nodes included.
    losses : sequence of AppliedLoss
        On nodes among these.
    training : bool
        Whether nodes that are not frozen run in training mode, with gradients.
    optimizers : mapping of str to Optimizer
        The optimizer of each trainable node, by id.
    roles : sequence of str
        Every node runs once per role.
    detach_after : iterable of str
        Nodes whose output carries no gradient to those that read it.
    together : mapping of Source to int, optional
        Sources with equal numbers are read row by row together. If given, the frozen part that
        reads only sources of one number becomes a plan of its own, which is computed once.
    learners : mapping of str to callable
        The method, by id, with which a node without gradients learns from features and targets; it
        is called before the node computes outputs.
    weighted : mapping of Source to int, optional
        Sources whose rows have weights; sources with equal numbers share them.
    compiles : bool
        Whether models are compiled by their framework.

    Raises
    ------
    LossError, ShapeError
        If a loss reads values that its node lacks, or shapes do not fit.
    NotFittedError
        If a node has not been fitted and does not learn in this step.
    """
    compiler = _Compiler(nodes, training, roles, set(detach_after), learners or {})
    compiler.weighted, compiler.compiles = weighted or {}, compiles
    return compiler.compile(losses, optimizers or {}, together)


class _Compiler(LossReading):
    def __init__(
        self,
        nodes: Sequence[ComputeNode],
        training: bool,
        roles: Sequence[str],
        detach_after: set[str],
        learners: Mapping[str, Learn],
        whole: _Compiler | None = None,
    ) -> None:
        self.nodes, self.training, self.roles = list(nodes), training, tuple(roles)
        self.detach_after, self.learners = detach_after, learners
        self.by_id = {node.node_id: node for node in nodes}
        self.edges = {n.node_id: [resolve_id(ref) for ref in n.node_refs] for n in nodes}
        self.readers = readers_of(nodes)
        self.native_backends: dict[str, Backend] = (
            backends_of(nodes) if whole is None else whole.native_backends
        )
        if not self.native_backends:
            raise GraphError("a graph needs at least one ModelNode to run")
        self.backends = dict(self.native_backends)
        self.whole = whole
        self.column_dtypes: dict[str, Any] = {}
        self.lineages = lineages_of(nodes)
        self.programs: list[Program] = []
        self.segments: list[list[str]] = []
        self.home: dict[str, int] = {}
        self.places: dict[tuple[str, str], int] = {}
        self.read: dict[tuple[str, str], int] = {}
        self.weighted: Mapping[Source, int] = {}
        self.compiles = False
        self.weight_sources: list[WeightSource | None] = []
        self.padded: set[str] = set()
        self.asked: Sequence[AppliedLoss] = ()
        self.collectors: dict[str, Any] = {}

    def compile(
        self,
        losses: Sequence[AppliedLoss],
        optimizers: Mapping[str, Any],
        together: Mapping[Source, int] | None,
    ) -> StepPlan:
        self.asked = losses
        static = set[str]() if together is None else self._static(together)
        edge = self._edge(static, losses)
        for node_id in edge:
            self._treat_as_column(node_id, static)
        running = [n for n in self.by_id if n not in static or n in edge]
        self._make_segments(running, losses)
        self._check_models(running, edge, bool(losses))
        for node_id in running:
            for role in self.roles:
                if node_id in edge:
                    self._input_of_frozen(node_id, role)
                else:
                    self._run(self.by_id[node_id], role)
        loss_ops = [self._loss(applied) for applied in losses]
        on = [(a.label, self._node_named(a.on, a).node_id) for a in losses]
        for node_id, collector in self.collectors.items():
            on.append((MODEL_LOSSES + self.by_id[node_id].label, node_id))
            loss_ops.append(LossOp(collector.total, ()))
            self.weight_sources.append(self.weight_sources[0])
        learning = self._learning(losses, optimizers)
        return self._plan(losses, tuple(on), loss_ops, learning, static, edge)

    def _check_models(self, running: Sequence[str], edge: set[str], losses: bool) -> None:
        """Refuse models that cannot run here, and collect the losses models define."""
        for program, ids in zip(self.programs, self.segments, strict=True):
            nodes = [
                node for i in ids if isinstance(node := self.by_id[i], ModelNode) and i not in edge
            ]
            for node in nodes:
                trains = self.training and not node.is_frozen
                program.adapter.check_model(
                    node.model.module, node.label, training=trains, losses=losses
                )
            modules = [node.model.module for node in nodes] if losses else []
            collectors = program.adapter.own_losses(modules, compiles=self.compiles)
            pairs = zip(nodes, collectors, strict=False)
            self.collectors |= {
                node.node_id: collector for node, collector in pairs if collector is not None
            }

    def _make_segments(self, running: Sequence[str], losses: Sequence[AppliedLoss]) -> None:
        ties = [[self._node_named(a.on, a).node_id, *self._read_by(a)] for a in losses]
        try:
            self.segments = in_segments(running, self.edges, self.backends, ties)
        except graphlib.CycleError:
            raise LossError(
                f"a loss of {[a.label for a in losses]} reads outputs of a node of another "
                "framework that runs after the loss's own node; apply it on the later node"
            ) from None
        self.programs = [self._new_program(ids) for ids in self.segments]
        self.home = {i: place for place, ids in enumerate(self.segments) for i in ids}

    def _new_program(self, ids: Sequence[str]) -> Program:
        """Return an empty program, on the device of its first model.

        Models with an accelerator of their own come last in that choice.
        """
        adapter = adapter_for(self.backends[ids[0]])
        models = [n for n in map(self.by_id.__getitem__, ids) if isinstance(n, ModelNode)]
        native = [n for n in models if n.backend is adapter.backend]
        ordered = sorted(native, key=lambda n: n.accelerator is not None)
        places = (adapter.device_of(n.model.module) for n in ordered)
        return Program(adapter, next((p for p in places if p is not None), None))

    def _program(self, node_id: str) -> Program:
        return self.programs[self.home[node_id]]

    # -- the part that is computed once -------------------------------------------------------

    def _static(self, together: Mapping[Source, int]) -> set[str]:
        """Return frozen nodes that read, row by row, only columns and frozen nodes."""
        static: set[str] = set()
        for node in self.nodes:
            above = {resolve_id(ref) for ref in node.node_refs}
            if node.is_frozen and above <= static and not self._makes_masks(node):
                static.add(node.node_id)
        return {n for n in static if len(self._groups_of(n, together)) == 1}

    def _makes_masks(self, node: ComputeNode) -> bool:
        if not isinstance(node, ModelNode):
            return False
        return adapter_for(node.backend).makes_masks(node.model.module)

    def _groups_of(self, node_id: str, together: Mapping[Source, int]) -> set[int]:
        return {
            together[leaf.source] for leaf in source_columns_of(self.lineages[node_id, "features"])
        }

    def _edge(self, static: set[str], losses: Sequence[AppliedLoss]) -> set[str]:
        """Return static nodes that a loss or a node outside the static part reads."""
        edge = {
            resolve_id(ref)
            for node in self.nodes
            if node.node_id not in static
            for ref in node.node_refs
        } & static
        read = {a.on for a in losses} | {i.node for a in losses for i in a.parsed if i.node}
        return edge | {n for n in static if n in read or self.by_id[n].label in read}

    def _treat_as_column(self, node_id: str, static: set[str]) -> None:
        """Treat the output of a frozen node as a column in its readers' framework."""
        readers = [r for r in self.readers[node_id] if r not in static]
        backends = {self.backends[r] for r in readers}
        backend = self.backends[node_id]
        if len(backends) == 1 and backend not in backends:
            self.backends[node_id] = backends.pop()
            self.column_dtypes[node_id] = self._read_as(
                self.by_id[readers[0]], node_id, self.dtypes
            )

    def _input_of_frozen(self, node_id: str, role: str) -> None:
        program, dtype = self._program(node_id), self.column_dtypes.get(node_id)
        source = source_columns_of(self.lineages[node_id, "features"])[0].source
        slot = program.slot(role, source, (), dtype, node_id=node_id)
        self.places[node_id, role] = self.read[node_id, role] = program.input(slot)

    # -- forward ------------------------------------------------------------------------------

    def _run(self, node: ComputeNode, role: str) -> None:
        program = self._program(node.node_id)
        model_device = (
            program.adapter.device_of(node.model.module) if isinstance(node, ModelNode) else None
        )
        device = program.device if model_device is None else model_device
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
            fn, many = _with_keyword(fn, node.mask_as), True
        writes = (
            program.adapter.writes_input(node.model.module)
            if isinstance(node, ModelNode)
            else callable(getattr(node, "function", None))
        )
        if (learn := self.learners.get(node.node_id)) is not None:
            if writes:  # the features alone; what else it learns from is no tensor
                fn, writes = _on_a_copy(fn, program.adapter), False
            more = self._learned_from(program, node, role, learn)
            fn, many = fit_then_predict(learn, fn, program.adapter, tuple(more)), True
            args += more.values()
        out = program.op(fn, args, many=many, device=device, writes=writes)
        self.places[node.node_id, role] = self.read[node.node_id, role] = out
        if node.node_id in self.detach_after:
            detached = program.op(program.adapter.detach, [out], many=False, device=device)
            self.read[node.node_id, role] = detached

    def _learned_from(
        self, program: Program, node: ComputeNode, role: str, learn: Learn
    ) -> dict[str, int]:
        """Return the slots of targets, weights and groups, as arrays in their own dtype."""
        plain, places = adapter_for(Backend.SCIKIT), dict[str, int]()
        if (flow := self.lineages[node.node_id, "targets"]) is not None:
            check_unpadded(node.label, flow)
            places["targets"] = self._flow(program, flow, role, (None, None), plain)
        losses = [a for a in self.asked if self._node_named(a.on, a) is node]
        reads = [(node, role)]
        applied = losses[0] if losses else None
        classes = None if applied is None else self._class_weights(applied, node)
        weight_source = weight_source_of(applied, reads, self.lineages, self.weighted, classes)
        if weight_source is not None:
            check_weights(node, learn, losses)
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
            places["groups"] = self._flow(program, leaf, role, (None, None), plain)
        return places

    def _function(
        self, node: ComputeNode, args: Sequence[int], adapter: BackendAdapter
    ) -> Callable[..., Any]:
        if isinstance(node, ModelNode) and node.node_id not in self.learners:
            node.check_fitted()
        fn = node.operation(adapter)
        if isinstance(node, ModelNode):
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
        if self.training and node.is_frozen and isinstance(node, ModelNode) and from_columns:
            return _without_grad(fn, adapter)
        return fn

    def _upstream(
        self, program: Program, node: ComputeNode, ref: Any, role: str, dtype: Any
    ) -> int:
        if not isinstance(ref, FeatureSetReference):
            return self._output(program, resolve_id(ref), role, dtype, self.read)
        columns = ref.columns("features")
        if not columns:
            raise GraphError(f"node {node.label!r} reads no features of {ref.node_label!r}")
        source, schema = Source(node.node_id, ref), ref.resolve().collection.schema
        if node.reads_flat and len({schema[name].shape for name in columns}) > 1:
            parts = [program.input(program.slot(role, source, (c,), dtype)) for c in columns]
            return program.op(partial(side_by_side, program.adapter), parts, many=True)
        return program.input(program.slot(role, source, columns, dtype))

    def _output(
        self, program: Program, node_id: str, role: str, dtype: Any, places: Mapping[Any, int]
    ) -> int:
        """Return the slot of a node's output in a program, converted if need be."""
        if self._program(node_id) is program:
            return places[node_id, role]
        return program.input(Crossing(node_id, role, dtype))

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
        reach = Reach(self.edges, self.segments, self.detach_after)
        learns, reached = {n.node_id for n in trainable(self.nodes)}, set[str]()
        for applied in losses:
            home = self.home[self._node_named(applied.on, applied).node_id]
            behind = reach.behind(i for i in self._read_by(applied) if self.home[i] == home)
            reached |= behind
            if behind & learns:
                own = (optimizers[i] for i in self.segments[home] if i in optimizers)
                found[home] = list({id(optimizer): optimizer for optimizer in own}.values())
        if not any(found) and not self.learners:
            raise no_learner([a.label for a in losses], self.nodes)
        reach.warn(self.by_id, optimizers.keys() - reached)
        return found

    # -- assembly -----------------------------------------------------------------------------

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
            tuple(self._program(i).adapter for i, _ in outputs),
            {n.node_id: n.label for n in self.nodes},
            training=self.training,
            weight_sources=tuple(self.weight_sources),
            padded=frozenset(self.padded),
            over_batch=tuple(
                a.loss.over == "batch" for a in [*losses, *[*losses[:1]] * n_model_losses]
            ),
        )
        segments = [
            program.segment(
                self._modes(i for i in ids if i not in static),
                learning[home],
                [self._origin(home, slot, slots, outputs) for slot in program.inputs],
                [(i, op) for i, op in enumerate(loss_ops) if self.home[on[i][1]] == home],
                [
                    (self.places[i, role], self.by_id[i].label, self._promised(i))
                    for i in ids
                    for role in self.roles
                ],
                eager=not self.learners.keys().isdisjoint(ids),
            )
            for home, (program, ids) in enumerate(zip(self.programs, self.segments, strict=True))
        ]
        return StepPlan(segments, slots, layout, self._static_plan(static, edge), tuple(losses))

    def _promised(self, node_id: str) -> Shape | None:
        """Return the required output shape; None if a fit in this step decides it."""
        fitted = topology.ancestors(self.edges, [node_id]) & self.learners.keys()
        return None if fitted else self.by_id[node_id].output_shape

    def _modes(self, node_ids: Iterable[str]) -> list[tuple[Any, bool]]:
        nodes = [self.by_id[i] for i in node_ids]
        models = [n for n in nodes if isinstance(n, ModelNode)]
        return [(n.model.module, self.training and not n.is_frozen) for n in models]

    def _origin(
        self,
        home: int,
        slot: InputSlot | Crossing,
        slots: Sequence[InputSlot],
        outputs: Sequence[tuple[str, str]],
    ) -> tuple[int, Callable[[Any], Any] | None]:
        """Return the origin of an input of a segment, and its conversion."""
        if isinstance(slot, InputSlot):
            return slots.index(slot), None
        source, target = self._program(slot.node_id).adapter, self.programs[home].adapter
        place = outputs.index((slot.node_id, slot.role))
        return place, converted(source, target, slot.dtype, self.programs[home].device)

    @cached_property
    def dtypes(self) -> dict[str, list[Any]]:
        """The input dtypes of each node; without a model, those of its readers."""
        if self.whole is not None:
            return self.whole.dtypes
        dtypes: dict[str, list[Any]] = {}
        for node in reversed(self.nodes):
            adapter, refs = adapter_for(self.native_backends[node.node_id]), node.upstream_refs
            if isinstance(node, ModelNode):
                columns = [self._columns_behind(ref) for ref in refs]
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

    def _columns_behind(self, ref: Any) -> list[ColumnSpec] | None:
        """Return the columns that reach an input; None if a model's output does too."""
        if isinstance(ref, FeatureSetReference):
            schema = ref.resolve().collection.schema
            return [schema[name] for name in ref.columns("features")]
        above, specs = self.by_id[resolve_id(ref)], list[ColumnSpec]()
        if isinstance(above, ModelNode):
            return None
        for behind in map(self._columns_behind, above.upstream_refs):
            if behind is None:
                return None
            specs += behind
        return specs

    def _static_plan(self, static: set[str], edge: set[str]) -> StepPlan | None:
        if not edge:
            return None
        nodes = [n for n in self.nodes if n.node_id in static]
        return _Compiler(nodes, False, ("default",), set(), {}, self).compile((), {}, None)


def _on_a_copy(fn: Callable[..., Any], adapter: BackendAdapter) -> Callable[..., Any]:
    return lambda x: fn(adapter.concat([x], 0))


def _without_grad(fn: Callable[..., Any], adapter: BackendAdapter) -> Callable[..., Any]:
    def run(x: Any, **kwargs: Any) -> Any:
        with adapter.no_grad():
            return fn(x, **kwargs)

    return run


def _with_keyword(fn: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a function of two listed values that passes the second by keyword."""
    return lambda values: fn(values[0], **{name: values[1]})
