"""Compiling nodes and losses into a step plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from modularml._typing import Shape
from modularml.backends import PLAIN, BackendAdapter, StepOptions, adapter_for
from modularml.data.execution import Flow, Layout, Leaf, Merged, Source, Weighing
from modularml.data.references import FeatureSetReference
from modularml.errors import (
    BackendNotSupportedError,
    GraphError,
    LossError,
    ShapeError,
    UnknownNameError,
)
from modularml.graph.flows import flows_of, is_integer, leaves, pick_column, resolve_id
from modularml.graph.loss_calls import (
    check_call,
    check_labels,
    mean_over_samples,
    misfit,
    squeezed,
    weighted,
)
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode
from modularml.graph.plan import InputSlot, LossOp, Op, StepPlan
from modularml.graph.weighing import weighing_of
from modularml.training import AppliedLoss, LossInput
from modularml.training.loss import CLASS_INDEX, CLASS_LAST, CLASS_SET, ELEMENTWISE, ONE_A_SAMPLE

__all__ = ["compile_plan"]


def compile_plan(
    nodes: Sequence[ComputeNode],
    losses: Sequence[AppliedLoss],
    *,
    training: bool,
    optimizers: Sequence[Any] = (),
    roles: Sequence[str] = ("default",),
    detach_after: Iterable[str] = (),
    together: Mapping[Source, int] | None = None,
    weighted: Mapping[Source, int] | None = None,
    options: StepOptions = PLAIN,
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
    optimizers : sequence of Optimizer
    roles : sequence of str
        Every node runs once for each.
    detach_after : iterable of str
        Nodes whose output carries no gradient to those that read it.
    together : mapping of Source to int, optional
        Which sources are read row by row together. Where it is given, the frozen part that reads
        only columns of one number is left to a plan of its own.
    weighted : mapping of Source to int, optional
        Sources whose rows have weights; those of one number have the same.
    options : StepOptions

    Raises
    ------
    BackendNotSupportedError
        If nodes belong to more than one framework.
    LossError, ShapeError
        If a loss asks for what its node has not, or shapes do not fit.
    """
    compiler = _Compiler(nodes, training, roles, set(detach_after), compiles=options.compile)
    compiler.weighted = weighted or {}
    plan = compiler.compile(losses, optimizers, together)
    plan.options = options
    return plan


class _Compiler:
    def __init__(
        self,
        nodes: Sequence[ComputeNode],
        training: bool,
        roles: Sequence[str],
        detach_after: set[str],
        whole: _Compiler | None = None,
        compiles: bool = False,
    ) -> None:
        self.compiles = compiles
        self.nodes, self.training, self.roles = list(nodes), training, tuple(roles)
        self.detach_after = detach_after
        self.by_id = {node.node_id: node for node in nodes}
        self.adapter: BackendAdapter = _one_adapter(nodes) if whole is None else whole.adapter
        self.dtypes: dict[str, Any] = (
            _input_dtypes(nodes, self.adapter) if whole is None else whole.dtypes
        )
        self.flows = flows_of(nodes)
        self.device: Any = _main_device(nodes, self.adapter) if whole is None else whole.device
        self.where: dict[int, Any] = {}
        self.copies: dict[tuple[int, Any], int] = {}
        self.slots: list[InputSlot] = []
        self.ops: list[Op] = []
        self.places: dict[tuple[str, str], int] = {}
        self.read: dict[tuple[str, str], int] = {}
        self.n_inner = 0
        self.weighted: Mapping[Source, int] = {}
        self.weighings: list[Weighing | None] = []

    def compile(
        self,
        losses: Sequence[AppliedLoss],
        optimizers: Sequence[Any],
        together: Mapping[Source, int] | None,
    ) -> StepPlan:
        static = set[str]() if together is None else self._static(together)
        edge = self._edge(static, losses)
        for node in self.nodes:
            for role in self.roles:
                if node.node_id in edge:
                    self._input_of_frozen(node, role)
                elif node.node_id not in static:
                    self._run(node, role)
        loss_ops = [self._loss(applied) for applied in losses]
        if optimizers:
            self._check_learning(losses)
        self._order_inputs()
        return self._plan(losses, loss_ops, optimizers, static, edge)

    # -- which part is computed once ----------------------------------------------------------

    def _static(self, together: Mapping[Source, int]) -> set[str]:
        """Return frozen nodes that read nothing but columns, row by row, and frozen nodes."""
        static: set[str] = set()
        for node in self.nodes:
            above = {resolve_id(ref) for ref in node.node_refs}
            if node.is_frozen and above <= static:
                static.add(node.node_id)
        return {n for n in static if len(self._groups_of(n, together)) == 1}

    def _groups_of(self, node_id: str, together: Mapping[Source, int]) -> set[int]:
        return {together[leaf.source] for leaf in leaves(self.flows[node_id, "features"])}

    def _edge(self, static: set[str], losses: Sequence[AppliedLoss]) -> set[str]:
        """Return static nodes that something outside reads."""
        edge = {
            resolve_id(ref)
            for node in self.nodes
            if node.node_id not in static
            for ref in node.node_refs
        } & static
        read = {a.on for a in losses} | {i.node for a in losses for i in a.parsed if i.node}
        return edge | {n for n in static if n in read or self.by_id[n].label in read}

    def _input_of_frozen(self, node: ComputeNode, role: str) -> None:
        leaf = leaves(self.flows[node.node_id, "features"])[0]
        slot = self._slot(InputSlot(role, leaf.source, node_id=node.node_id))
        self.where[slot] = self._place_of(node)
        self.places[node.node_id, role] = self.read[node.node_id, role] = slot

    # -- forward ------------------------------------------------------------------------------

    def _run(self, node: ComputeNode, role: str) -> None:
        device = self._place_of(node)
        from_columns = all(isinstance(ref, FeatureSetReference) for ref in node.upstream_refs)
        read = [self._upstream(node, ref, role) for ref in node.upstream_refs]
        args = [self._moved(arg, device) for arg in read]
        fn = self._function(node, from_columns=from_columns)
        out = self._op(fn, args, many=not isinstance(node, ModelNode))
        self.where[out] = device
        self.places[node.node_id, role] = self.read[node.node_id, role] = out
        if node.node_id in self.detach_after:
            detached = self._op(self.adapter.detach, [out], many=False)
            self.read[node.node_id, role], self.where[detached] = detached, device

    def _place_of(self, node: ComputeNode) -> Any:
        """Return where a node runs: where its weights lie."""
        own = self.adapter.device_of(node.model.module) if isinstance(node, ModelNode) else None
        return self.device if own is None else own

    def _moved(self, arg: int, device: Any) -> int:
        """Return a value on a device; it is moved once, where it lies elsewhere."""
        if self.where.get(arg, self.device) == device:
            return arg
        if (arg, device) not in self.copies:
            move = partial(self.adapter.to_device, device=device)
            self.copies[arg, device] = self._op(move, [arg], many=False)
            self.where[self.copies[arg, device]] = device
        return self.copies[arg, device]

    def _function(self, node: ComputeNode, *, from_columns: bool) -> Callable[..., Any]:
        fn = node.operation(self.adapter)
        if self.compiles and isinstance(node, ModelNode):
            fn = self.adapter.compile(fn)
        if self.training and node.is_frozen and isinstance(node, ModelNode) and from_columns:
            return _without_grad(fn, self.adapter)
        return fn

    def _upstream(self, node: ComputeNode, ref: Any, role: str) -> int:
        if not isinstance(ref, FeatureSetReference):
            return self.read[resolve_id(ref), role]
        columns = ref.columns("features")
        if not columns:
            raise GraphError(f"node {node.label!r} reads no feature of {ref.node_label!r}")
        dtype = self.dtypes[node.node_id]
        return self._slot(InputSlot(role, Source(node.node_id, ref), columns, dtype))

    # -- losses -------------------------------------------------------------------------------

    def _loss(self, applied: AppliedLoss) -> LossOp:
        node = self._node_named(applied.on, applied)
        check_call(applied, applied.loss.resolve(self.adapter.backend))
        args = [self._loss_arg(applied, node, item) for item in applied.parsed]
        weighing = self._weighing(applied, node)
        fn = mean_over_samples(applied, self.adapter, weighed=weighing is not None)
        if weighing is not None:
            like = node.model.module if isinstance(node, ModelNode) else None
            dtype = self.adapter.loss_dtype("float", like)
            slot = InputSlot(weighing.role, weighing.source, dtype=dtype, weighing=weighing)
            args.append(self._slot(slot))
        if applied.weight != 1.0:
            fn = weighted(fn, applied.weight)
        return LossOp(fn, tuple(self._moved(arg, self.device) for arg in args))

    def _weighing(self, applied: AppliedLoss, on: ComputeNode) -> Weighing | None:
        """Say what weighs the samples of a loss, and note it for the layout."""
        reads = [
            (self._node_named(i.node or applied.on, applied), self._role(applied, i.role))
            for i in applied.parsed
        ]
        found = weighing_of(applied, [(on, reads[0][1]), *reads], self.flows, self.weighted)
        self.weighings.append(found)
        return found

    def _loss_arg(self, applied: AppliedLoss, on: ComputeNode, item: LossInput) -> int:
        node = on if item.node is None else self._node_named(item.node, applied)
        role = self._role(applied, item.role)
        if item.domain == "outputs":
            return self.places[node.node_id, role]
        flow = self.flows[node.node_id, item.domain]
        if item.column is not None:
            flow = pick_column(applied, item, self.flows, node)
        if flow is None:
            raise LossError(
                f"loss {applied.label!r} asks for {item.domain} of node {node.label!r}, which "
                "has none; "
                "name them in the FeatureSet reference"
            )
        return self._flow(flow, role, self._fit(applied, on, flow))

    def _fit(self, applied: AppliedLoss, on: ComputeNode, flow: Flow) -> tuple[Any, Shape | None]:
        """Return dtype and shape that a loss wants its target in."""
        shape, out = self._flow_shape(flow), on.output_shape or ()
        name = getattr(applied.loss.cls, "__name__", "")
        like = on.model.module if isinstance(on, ModelNode) else None
        integer = is_integer(flow)
        if name in CLASS_INDEX and integer:
            axis = -1 if name in CLASS_LAST else 0
            rest = out[:-1] if name in CLASS_LAST else out[1:]
            if math.prod(shape) != math.prod(rest):
                raise misfit(applied, on, out, shape, "one class number a sample")
            check_labels(applied, on, flow, out[axis])
            return self.adapter.loss_dtype("index", like), tuple(rest)
        if squeezed(shape) == squeezed(out):
            kind = "index" if integer and (not name or name in CLASS_SET) else "float"
            return self.adapter.loss_dtype(kind, like), tuple(out)
        if name in ELEMENTWISE:
            raise misfit(applied, on, out, shape, "equal shapes")
        if name in CLASS_INDEX:
            wants = "class numbers of an integer dtype (cast them, or number the classes)"
            raise misfit(applied, on, out, shape, f"{wants} or class probabilities")
        one = math.prod(shape) == 1 and (integer or name in ONE_A_SAMPLE)
        kind = "index" if integer and name not in ONE_A_SAMPLE else "float"
        return self.adapter.loss_dtype(kind, like), () if one else None

    def _flow_shape(self, flow: Flow) -> Shape:
        if isinstance(flow, Leaf):
            fs = flow.source.ref.resolve()
            shapes = [fs.collection.schema[name].shape for name in flow.columns]
            if len(set(shapes)) > 1:
                raise ShapeError(f"columns {list(flow.columns)} have unlike shapes {shapes}")
            return (len(shapes), *shapes[0])
        assert isinstance(flow, Merged)
        blank = [self.adapter.zeros((1, *self._flow_shape(p)), None) for p in flow.parts]
        return tuple(flow.merge(blank).shape[1:])

    def _flow(self, flow: Flow, role: str, fit: tuple[Any, Shape | None]) -> int:
        dtype, shape = fit
        if isinstance(flow, Leaf):
            return self._slot(InputSlot(role, flow.source, flow.columns, dtype, shape))
        assert isinstance(flow, Merged)
        parts = [self._flow(part, role, (dtype, None)) for part in flow.parts]
        merged = self._op(flow.merge, parts, many=True)
        if shape is None:
            return merged
        return self._op(lambda t: self.adapter.reshape(t, shape), [merged], many=False)

    def _check_learning(self, losses: Sequence[AppliedLoss]) -> None:
        """Refuse losses that depend on nothing that learns."""
        learns: dict[str, bool] = {}
        for node in self.nodes:
            above = {resolve_id(ref) for ref in node.node_refs} - self.detach_after
            moves = node.has_weights and not node.is_frozen
            learns[node.node_id] = moves or any(learns[i] for i in above)
        read = {
            self._node_named(item.node or applied.on, applied).node_id
            for applied in losses
            for item in applied.parsed
            if item.domain == "outputs" and item.column is None
        }
        if not any(learns[i] for i in read):
            raise LossError(
                f"no loss of {[a.label for a in losses]} depends on a node that learns; apply one "
                f"on {[n.label for n in self.nodes if n.has_weights and not n.is_frozen]}"
            )

    def _node_named(self, name: str, applied: AppliedLoss) -> ComputeNode:
        for node in self.nodes:
            if name in (node.label, node.node_id):
                return node
        raise UnknownNameError(
            f"node of loss {applied.label!r}", name, [n.label for n in self.nodes]
        )

    def _role(self, applied: AppliedLoss, role: str | None) -> str:
        if role is None:
            if len(self.roles) > 1 and "default" not in self.roles:
                raise LossError(
                    f"loss {applied.label!r} must name a role: one of {list(self.roles)}"
                )
            return self.roles[0]
        if role not in self.roles:
            raise LossError(
                f"loss {applied.label!r} asks for the role {role!r}, which the sampler does "
                "not give; "
                f"it gives {list(self.roles)}"
            )
        return role

    # -- slots --------------------------------------------------------------------------------
    # While compiling, slot i of the inputs is i and the result of an operation is -1 - i; once
    # all inputs are known the results move behind them.

    def _slot(self, slot: InputSlot) -> int:
        if slot not in self.slots:
            self.slots.append(slot)
        return self.slots.index(slot)

    def _op(self, fn: Callable[..., Any], args: Sequence[int], *, many: bool) -> int:
        self.n_inner += 1
        self.ops.append(Op(fn, tuple(args), -self.n_inner, many))
        return -self.n_inner

    def _order_inputs(self) -> None:
        n = len(self.slots)

        def place(slot: int) -> int:
            return slot if slot >= 0 else n - 1 - slot

        self.place = place
        self.ops = [
            Op(op.fn, tuple(map(place, op.args)), place(op.out), op.many) for op in self.ops
        ]

    def _plan(
        self,
        losses: Sequence[AppliedLoss],
        loss_ops: Sequence[LossOp],
        optimizers: Sequence[Any],
        static: set[str],
        edge: set[str],
    ) -> StepPlan:
        running = [n for n in self.nodes if n.node_id not in static or n.node_id in edge]
        outputs = tuple((n.node_id, role) for n in running for role in self.roles)
        on = tuple((a.label, self._node_named(a.on, a).node_id) for a in losses)
        labels = {n.node_id: n.label for n in self.nodes}
        layout = Layout(
            outputs,
            on,
            self.flows,
            self.adapter,
            labels,
            training=self.training,
            weighings=tuple(self.weighings),
        )
        models = [n for n in self.nodes if isinstance(n, ModelNode) and n.node_id not in static]
        return StepPlan(
            self.adapter,
            self.slots,
            layout,
            [(n.model.module, self.training and not n.is_frozen) for n in models],
            list(optimizers),
            self._static_plan(static, edge),
            tuple(losses),
            self.ops,
            [LossOp(op.fn, tuple(map(self.place, op.args))) for op in loss_ops],
            [self.place(self.places[key]) for key in outputs],
            self.n_inner,
            device=self.device,
        )

    def _static_plan(self, static: set[str], edge: set[str]) -> StepPlan | None:
        if not edge:
            return None
        nodes = [n for n in self.nodes if n.node_id in static]
        return _Compiler(nodes, False, ("default",), set(), self).compile((), (), None)


def _one_adapter(nodes: Sequence[ComputeNode]) -> BackendAdapter:
    backends = {n.backend: n.label for n in nodes if isinstance(n, ModelNode)}
    if len(backends) > 1:
        shown = ", ".join(f"{label}: {backend.value}" for backend, label in backends.items())
        raise BackendNotSupportedError(f"nodes of several frameworks in one step ({shown})")
    if not backends:
        raise GraphError("a graph needs at least one ModelNode to run")
    return adapter_for(next(iter(backends)))


def _main_device(nodes: Sequence[ComputeNode], adapter: BackendAdapter) -> Any:
    """Return where columns and losses lie: where the first model does that was not sent away."""
    models = [n for n in nodes if isinstance(n, ModelNode)]
    ordered = sorted(models, key=lambda n: n.accelerator is not None)
    found = (adapter.device_of(n.model.module) for n in ordered)
    return next((device for device in found if device is not None), None)


def _input_dtypes(nodes: Sequence[ComputeNode], adapter: BackendAdapter) -> dict[str, Any]:
    """Return the dtype that each node wants columns in; a merge node, what its readers want."""
    found: dict[str, Any] = {}
    for node in reversed(nodes):
        if isinstance(node, ModelNode):
            found[node.node_id] = adapter.input_dtype(node.model.module)
            continue
        readers = (
            n.node_id for n in nodes if node.node_id in {resolve_id(ref) for ref in n.node_refs}
        )
        found[node.node_id] = found.get(next(readers, ""), adapter.input_dtype(None))
    return found


def _without_grad(fn: Callable[..., Any], adapter: BackendAdapter) -> Callable[..., Any]:
    def run(x: Any) -> Any:
        with adapter.no_grad():
            return fn(x)

    return run
