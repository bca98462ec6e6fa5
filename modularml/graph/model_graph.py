"""The model graph: a directed acyclic graph of nodes that trains as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from modularml.backends import Backend, adapter_for
from modularml.backends.base import NotFiniteError
from modularml.config import Configurable, Stateful, decode, encode
from modularml.context import ExperimentContext
from modularml.data.batch import Batch, BatchView
from modularml.data.execution import ExecutionContext, Source
from modularml.data.references import FeatureSetReference
from modularml.data.view import FeatureSetView
from modularml.diagram import Diagram
from modularml.errors import (
    GraphError,
    LossError,
    NonFiniteLossError,
    OptimizerNotSetError,
    UnknownNameError,
)
from modularml.graph import edit, topology
from modularml.graph.build import build_nodes
from modularml.graph.draw import draw
from modularml.graph.files import GraphFiles
from modularml.graph.fitting import fit_node, is_fittable
from modularml.graph.inputs import fill
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode, GraphNode
from modularml.graph.plan import StepPlan, compile_plan, flows_of
from modularml.training import AppliedLoss, Optimizer

__all__ = ["ModelGraph"]

_PLANS_KEPT = 8


class ModelGraph(GraphFiles, Configurable, Stateful):
    """Nodes wired into one graph.

    Parameters
    ----------
    nodes : list of node or label, optional
        None takes every graph node of the context.
    optimizer : Optimizer, optional
        Moves all nodes together. Without it each node that learns needs one of its own, and
        gradients stop behind every node that has a loss of its own.
    label : str
    ctx : ExperimentContext, optional
        The active one where none is given.
    register : bool
        Whether to become the graph of the context.

    Raises
    ------
    GraphError
        If nodes are given twice, read from each other in a circle, or read from a node that is
        not among them.

    Examples
    --------
    >>> # graph = ModelGraph([encoder, head], optimizer=Optimizer("adam"))
    """

    not_config = frozenset({"ctx", "register"})

    def __init__(
        self,
        nodes: list[str | GraphNode] | None,
        optimizer: Optimizer | None = None,
        label: str = "model-graph",
        *,
        ctx: ExperimentContext | None = None,
        register: bool = True,
    ) -> None:
        self._ctx = ctx or ExperimentContext.get_active()
        self.label = label
        self._optimizer = optimizer
        self._plans: dict[Any, tuple[StepPlan, Callable[..., Any], Any]] = {}
        self._built = False
        self._drives: Any = None
        self._nodes: dict[str, ComputeNode] = {}
        with self._ctx.activate():
            given = list(self._ctx.available_computenodes.values()) if nodes is None else nodes
            found = [self._ctx.get_node(n) if isinstance(n, str) else n for n in given]
            self._nodes = self._checked(found)
        if register:
            self._ctx.register_model_graph(self)

    # -- what there is ------------------------------------------------------------------------

    @property
    def nodes(self) -> dict[str, GraphNode]:
        """All nodes by id, in topological order."""
        return dict(self._nodes)

    @property
    def node_labels(self) -> set[str]:
        """Labels of all nodes."""
        return {node.label for node in self._nodes.values()}

    @property
    def head_nodes(self) -> dict[str, GraphNode]:
        """Nodes that read from FeatureSets, by id."""
        return {i: n for i, n in self._nodes.items() if n.feature_refs}

    @property
    def tail_nodes(self) -> dict[str, GraphNode]:
        """Nodes that no other node reads from, by id."""
        return {i: self._nodes[i] for i in topology.tails(self._edges())}

    @property
    def frozen_nodes(self) -> dict[str, GraphNode]:
        """Nodes that could learn but are frozen, by id."""
        return {i: n for i, n in self._nodes.items() if isinstance(n, ModelNode) and n.is_frozen}

    @property
    def optimizer(self) -> Optimizer | None:
        """What moves all nodes together."""
        return self._optimizer

    @property
    def context(self) -> ExperimentContext:
        """The context that this graph was made in."""
        return self._ctx

    @property
    def backend(self) -> Backend | None:
        """The framework of the optimizer; None without one."""
        return None if self._optimizer is None else self._optimizer.backend or self._only_backend()

    @property
    def is_built(self) -> bool:
        """Whether shapes are known and weights exist."""
        return self._built

    def framework(self) -> Backend:
        """Return the framework that the graph runs in: the optimizer's, or that of its models."""
        return self.backend or self._only_backend()

    def move_to(self, device: Any) -> None:
        """Move weights and optimizer moments to a device."""
        self.build()
        adapter = adapter_for(self.framework())
        for node in self._learning():
            adapter.move(node.model.module, device)
        for optimizer in [self._optimizer, *(n.optimizer for n in self._learning())]:
            if optimizer is not None and optimizer.is_built:
                optimizer.set_state(optimizer.get_state())
        self._plans.clear()

    def get_node(self, node: str | GraphNode) -> ComputeNode:
        """Return a node of this graph by label, id or itself.

        Raises
        ------
        UnknownNameError
            If it is not in this graph; the closest labels are listed.
        """
        for mine in self._nodes.values():
            if mine is node or node in (mine.label, mine.node_id):
                return mine
        shown = node.label if isinstance(node, GraphNode) else node
        raise UnknownNameError("node of the graph", shown, self.node_labels)

    # -- build --------------------------------------------------------------------------------

    def build(self, *, force: bool = False) -> None:
        """Find all shapes, make all weights and optimizers.

        Parameters
        ----------
        force : bool
            Whether to make new weights where there are some.

        Raises
        ------
        ShapeError
            If a node cannot take what it reads; both are named.
        GraphError
            If nodes of several frameworks share one optimizer.
        """
        if self._built and not force:
            return
        with self._ctx.activate():
            tails = set(topology.tails(self._edges()))
            build_nodes(list(self._nodes.values()), tails, force=force)
            self._build_optimizer(force)
        self._plans.clear()
        self._built = True

    def get_optimizer_parameters(self) -> dict[str, Any]:
        """Return what the graph's optimizer moves.

        Returns
        -------
        dict
            ``backend``, ``contributing_nodes`` (set of node ids) and ``parameters`` (list).
        """
        named = self._parameters()
        ids = {n.node_id for n in self._learning() if n.parameters()}
        return {
            "backend": self.backend,
            "contributing_nodes": ids,
            "parameters": list(named.values()),
        }

    def freeze(self, nodes: list[str | GraphNode] | None = None) -> None:
        """Keep nodes as they are from now on; all of them where none are named."""
        for node in self._model_nodes(nodes):
            node.freeze()

    def unfreeze(self, nodes: list[str | GraphNode] | None = None) -> None:
        """Let training change nodes again; all of them where none are named."""
        for node in self._model_nodes(nodes):
            node.unfreeze()

    # -- run ----------------------------------------------------------------------------------

    def forward(
        self,
        inputs: dict[tuple[str, FeatureSetReference], Any],
        *,
        active_nodes: list[str | GraphNode] | None = None,
    ) -> dict[str, Batch]:
        """Send batches through the graph, without gradients.

        Parameters
        ----------
        inputs : dict of (str, FeatureSetReference) to Batch, BatchView or SampleData
            By head node id and its reference.
        active_nodes : list, optional
            Nodes to run; those that they read from run too.

        Returns
        -------
        dict of str to Batch
            By node id.
        """
        ctx = ExecutionContext(inputs=inputs)
        self.eval_step(ctx, [], active_nodes=active_nodes)
        return ctx.outputs

    def train_step(
        self,
        ctx: ExecutionContext,
        losses: list[AppliedLoss],
        *,
        active_nodes: list[str | GraphNode] | None = None,
    ) -> None:
        """Move the weights once, on the data of a step.

        With a graph optimizer there is one forward pass, one backward pass and one step. Without,
        every node's own optimizer steps, and gradients stop behind nodes with a loss.

        Parameters
        ----------
        ctx : ExecutionContext
            Its inputs are read; outputs and losses are written to it.
        losses : list of AppliedLoss
        active_nodes : list, optional
            Nodes to run; those that they read from run too.

        Raises
        ------
        GraphError
            If every node that runs is frozen.
        OptimizerNotSetError
            If a node that learns has no optimizer.
        NonFiniteLossError
            If a loss is NaN or infinite; weights are as before.
        """
        self._step(ctx, losses, active_nodes, training=True)

    def eval_step(
        self,
        ctx: ExecutionContext,
        losses: list[AppliedLoss],
        *,
        active_nodes: list[str | GraphNode] | None = None,
    ) -> None:
        """Compute outputs and losses of a step, in evaluation mode and without gradients."""
        self._step(ctx, losses, active_nodes, training=False)

    def fit_step(
        self,
        ctx: ExecutionContext,
        losses: list[AppliedLoss] | None = None,
        *,
        active_nodes: list[str | GraphNode] | None = None,
        freeze_after_fit: bool = True,
    ) -> None:
        """Fit the nodes that learn from all rows at once, in order; others pass rows on.

        Parameters
        ----------
        ctx : ExecutionContext
            Holds all rows; outputs and losses are written to it.
        losses : list of AppliedLoss, optional
            Computed afterwards.
        active_nodes : list, optional
            Nodes to fit; those that they read from run too.
        freeze_after_fit : bool
            Whether fitted nodes are frozen.

        Raises
        ------
        GraphError
            If no node that runs can be fitted.
        """
        nodes = [n for n in self._running(active_nodes) if is_fittable(n) and not n.is_frozen]
        if not nodes:
            raise GraphError(
                "no node can be fitted: each is frozen, or its model has no fit(features, "
                "targets); "
                "train it with a TrainPhase"
            )
        self._fit(ctx, losses, nodes, active_nodes, freeze=freeze_after_fit)

    def plan(
        self,
        losses: Sequence[AppliedLoss],
        *,
        training: bool,
        active_nodes: Iterable[str | GraphNode] | None = None,
        roles: Sequence[str] = ("default",),
        together: Mapping[Source, int] | None = None,
        only: ModelNode | None = None,
    ) -> tuple[StepPlan, Callable[..., Any]]:
        """Return the plan for some losses, and its step; made once for equal arguments.

        Losses on nodes that do not run are left out; with `only`, no other node learns. See
        `compile_plan` for other arguments and errors.
        """
        self.build()
        with self._ctx_of_run():
            nodes = self._running(active_nodes)
            key = (self._plan_key(losses, training, nodes, roles, together), only)
            if key not in self._plans:
                running = [a for a in losses if self.get_node(a.on) in nodes]
                made = self._compile(running, training, nodes, roles, together, only)
                made.losses = tuple(losses)
                step = made.train_step() if training else made.eval_step()
                while len(self._plans) >= _PLANS_KEPT:
                    del self._plans[next(iter(self._plans))]
                self._plans[key] = (made, step, tuple(losses))
            plan, step, _ = self._plans[key]
        return plan, step

    # -- edits --------------------------------------------------------------------------------

    def add_node(self, node: GraphNode) -> ModelGraph:
        """Add a node; other nodes keep what they have learned.

        Raises
        ------
        GraphError
            If the node or its label is here already, or it reads from a node that is not.
        """
        self._add_checked(node)
        return self._edited({**self._nodes, node.node_id: node}, {})

    def remove_node(self, node: str | GraphNode) -> ModelGraph:
        """Remove a node; those that read from it read what it read."""
        gone = self.get_node(node)
        nodes = {i: n for i, n in self._nodes.items() if n is not gone}
        return self._edited(nodes, edit.removed(self.nodes, gone))

    def replace_node(self, old_node: str | GraphNode, new_node: GraphNode) -> ModelGraph:
        """Put a node in another's place, with the same connections."""
        old = self.get_node(old_node)
        self._add_checked(new_node, besides=old)
        nodes = {i: n for i, n in self._nodes.items() if n is not old}
        wiring = edit.replaced(self.nodes, old, new_node)
        return self._edited({**nodes, new_node.node_id: new_node}, wiring)

    def insert_node_before(self, new_node: GraphNode, *, downstream: str | GraphNode) -> ModelGraph:
        """Insert a node that takes over all inputs of another."""
        return self._insert(new_node, edit.inserted_before, self.get_node(downstream))

    def insert_node_after(self, new_node: GraphNode, *, upstream: str | GraphNode) -> ModelGraph:
        """Insert a node that reads from another; nothing else changes."""
        return self._insert(new_node, edit.inserted_after, self.get_node(upstream))

    def insert_node_between(
        self, new_node: GraphNode, *, upstream: str | GraphNode, downstream: str | GraphNode
    ) -> ModelGraph:
        """Insert a node on the edge between two others.

        Raises
        ------
        GraphError
            If there is no such edge.
        """
        ends = self.get_node(upstream), self.get_node(downstream)
        return self._insert(new_node, edit.inserted_between, *ends)

    # -- config and state ---------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Return label, nodes and optimizer as plain data; weights are state."""
        return {
            "label": self.label,
            "nodes": [encode(node) for node in self._nodes.values()],
            "optimizer": encode(self._optimizer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], *, register: bool = True) -> ModelGraph:
        """Make a graph, and its nodes, from a config."""
        nodes = [decode(node) for node in config["nodes"]]
        return cls(nodes, decode(config["optimizer"]), config["label"], register=register)

    def get_state(self) -> dict[str, Any]:
        """Return weights, optimizer moments and what is frozen, by node label."""
        return {
            "is_built": self._built,
            "nodes": {node.label: node.get_state() for node in self._nodes.values()},
            "optimizer": None if self._optimizer is None else self._optimizer.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to what `get_state` returned.

        Raises
        ------
        UnknownNameError
            If the state has a node that this graph has not; nothing is changed then.
        ShapeError, ConfigError
            If weights or moments do not fit; nothing is changed then.
        """
        for label in state["nodes"]:
            self.get_node(label)
        if state["is_built"]:
            self.build()
        before = self.get_state() if self._built else None
        try:
            self._take(state)
        except Exception:
            if before is not None:
                self._take(before)
            raise

    def _take(self, state: dict[str, Any]) -> None:
        for label, own in state["nodes"].items():
            self.get_node(label).set_state(own)
        if self._optimizer is not None and state["optimizer"] is not None:
            self._optimizer.set_state(state["optimizer"])

    # -- how it shows itself ------------------------------------------------------------------

    def visualize(
        self,
        *,
        show_features: bool = False,
        show_targets: bool = False,
        show_tags: bool = False,
        show_frozen: bool = True,
        show_splits: bool = False,
    ) -> Diagram:
        """Draw nodes, what they read and the shapes on the way."""
        asked = {"features": show_features, "targets": show_targets, "tags": show_tags}
        domains = tuple(name for name, wanted in asked.items() if wanted)
        with self._ctx_of_run():
            return draw(
                self._nodes,
                self.label,
                domains=domains,
                show_frozen=show_frozen,
                show_splits=show_splits,
            )

    def __repr__(self) -> str:
        nodes = ", ".join(node.label for node in self._nodes.values())
        return f"ModelGraph({self.label!r}: {nodes}; optimizer={self._optimizer!r})"

    def _repr_html_(self) -> str:
        return self.visualize()._repr_html_()

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    # -- within -------------------------------------------------------------------------------

    def _ctx_of_run(self) -> Any:
        """Resolve references in the active context where it holds this graph, else in mine."""
        active = ExperimentContext.get_active()
        return active.activate() if active.model_graph is self else self._ctx.activate()

    def _edges(self, nodes: Mapping[str, ComputeNode] | None = None) -> dict[str, list[str]]:
        nodes = self._nodes if nodes is None else nodes
        return {i: [_id_among(nodes, n, ref) for ref in n.node_refs] for i, n in nodes.items()}

    def _checked(self, nodes: Sequence[Any]) -> dict[str, ComputeNode]:
        """Return nodes by id in topological order, or say what is wrong with them."""
        if not nodes:
            raise GraphError("a graph needs at least one node")
        by_id: dict[str, ComputeNode] = {}
        for node in nodes:
            if not isinstance(node, ComputeNode):
                raise TypeError(f"nodes must be graph nodes, got a {type(node).__name__}")
            if any(node.label == other.label for other in by_id.values()):
                raise GraphError(f"node label {node.label!r} is given twice; labels are unique")
            by_id[node.node_id] = node
        labels = {i: n.label for i, n in by_id.items()}
        return {i: by_id[i] for i in topology.topological(self._edges(by_id), labels)}

    def _add_checked(self, node: GraphNode, besides: GraphNode | None = None) -> None:
        if not isinstance(node, ComputeNode):
            raise TypeError(f"node must be a graph node, got a {type(node).__name__}")
        others = [n for n in self._nodes.values() if n is not besides]
        if any(n is node or n.label == node.label for n in others):
            raise GraphError(f"the graph has a node {node.label!r} already; choose another label")

    def _insert(
        self, new: GraphNode, how: Callable[..., edit.Wiring], *ends: GraphNode
    ) -> ModelGraph:
        self._add_checked(new)
        return self._edited({**self._nodes, new.node_id: new}, how(self.nodes, new, *ends))

    def _edited(self, nodes: dict[str, Any], wiring: edit.Wiring) -> ModelGraph:
        with self._ctx.activate():
            found: list[dict[str, ComputeNode]] = []
            edit.rewire(nodes, wiring, lambda: found.append(self._checked(list(nodes.values()))))
        self._nodes, self._built = found[0], False
        self._plans.clear()
        return self

    def _learning(self) -> list[ModelNode]:
        return [n for n in self._nodes.values() if isinstance(n, ModelNode)]

    def _model_nodes(self, nodes: Iterable[str | GraphNode] | None) -> list[ModelNode]:
        found = self._learning() if nodes is None else [self.get_node(n) for n in nodes]
        self._plans.clear()
        return [n for n in found if isinstance(n, ModelNode)]

    def _parameters(self) -> dict[str, Any]:
        """Return by name what the graph's optimizer moves; what nodes share, once."""
        found: dict[str, Any] = {}
        for node in self._learning():
            seen = {id(p) for p in found.values()}
            own = node.parameters().items()
            found |= {f"{node.label}.{k}": p for k, p in own if id(p) not in seen}
        return found

    def _only_backend(self) -> Backend:
        backends = {n.backend: n.label for n in self._learning()}
        if len(backends) > 1:
            shown = ", ".join(f"{label}: {b.value}" for b, label in backends.items())
            raise GraphError(
                f"nodes of several frameworks share one optimizer ({shown}); give each node its own"
            )
        return next(iter(backends), Backend.NONE)

    def _build_optimizer(self, force: bool) -> None:
        optimizer = self._optimizer
        if optimizer is None or not (named := self._parameters()):
            return
        mine = optimizer.is_built and optimizer.instance is self._drives
        emptied = mine and len(optimizer.missing(named)) == len(named)
        if force or emptied:
            optimizer.reset()
        optimizer.build_for(named, self._only_backend(), f"graph {self.label!r}")
        self._drives = optimizer.instance

    def _running(self, active: Iterable[str | GraphNode] | None) -> list[ComputeNode]:
        if active is None:
            return list(self._nodes.values())
        wanted = topology.ancestors(self._edges(), [self.get_node(n).node_id for n in active])
        return [n for i, n in self._nodes.items() if i in wanted]

    def _plan_key(
        self,
        losses: Sequence[AppliedLoss],
        training: bool,
        nodes: Sequence[ComputeNode],
        roles: Sequence[str],
        together: Mapping[Source, int] | None,
    ) -> Any:
        refs = [ref for n in nodes for ref in n.feature_refs]
        models = [n for n in nodes if isinstance(n, ModelNode)]
        optimizers = [self._optimizer, *(n.optimizer for n in models)] if training else []
        return (
            tuple((id(a), a.weight) for a in losses),
            training,
            tuple((n.node_id, n.is_frozen) for n in nodes),
            tuple(roles),
            None if together is None else tuple(together.items()),
            tuple((ref.resolve().node_id, *ref.all_columns()) for ref in refs),
            tuple(id(n.model.module) for n in models),
            tuple(id(None if o is None else o.instance) for o in optimizers),
        )

    def _compile(
        self,
        losses: Sequence[AppliedLoss],
        training: bool,
        nodes: Sequence[ComputeNode],
        roles: Sequence[str],
        together: Mapping[Source, int] | None,
        only: ModelNode | None,
    ) -> StepPlan:
        optimizers = self._optimizers(nodes, losses, only) if training else []
        own = {self.get_node(a.on).node_id for a in losses} if self._optimizer is None else set()
        if only is not None:
            own = {n.node_id for n in nodes if n is not only}
        return compile_plan(
            nodes,
            losses,
            training=training,
            optimizers=optimizers,
            roles=roles,
            detach_after=own if training else (),
            together=together,
        )

    def _optimizers(
        self,
        nodes: Sequence[ComputeNode],
        losses: Sequence[AppliedLoss],
        only: ModelNode | None = None,
    ) -> list[Optimizer]:
        if not losses:
            raise LossError("training needs at least one loss; pass losses=[AppliedLoss(...)]")
        moving = [
            n for n in nodes if isinstance(n, ModelNode) and not n.is_frozen and n.has_weights
        ]
        if not moving:
            labels = [n.label for n in nodes]
            raise GraphError(
                f"nothing can be trained: the nodes {labels} are frozen or have no weights; "
                "unfreeze() one"
            )
        if only is not None:
            moving = [only]
        elif self._optimizer is not None:
            if self._optimizer.missing(self._parameters()):
                self._build_optimizer(force=False)
            return [self._optimizer]
        if missing := [n.label for n in moving if n.optimizer is None]:
            raise OptimizerNotSetError(
                f"nodes {missing} learn but have no optimizer; give the graph one, or each of them"
            )
        for node in moving:
            node.build_optimizer()
        return [n.optimizer for n in moving if n.optimizer is not None]

    def _fit(
        self,
        ctx: ExecutionContext,
        losses: Sequence[AppliedLoss] | None,
        nodes: Sequence[Any],
        active_nodes: Iterable[str | GraphNode] | None,
        *,
        freeze: bool,
    ) -> None:
        self.build()
        ctx.plan = None  # its tensors are of other nodes than those run here
        for node in nodes:
            with self._ctx_of_run():
                flows = flows_of(list(self._nodes.values()))
                fit_node(node, ctx, flows, lambda c, ids: self._step(c, (), ids, training=False))
            if freeze:
                node.freeze()
        self._step(ctx, losses or (), active_nodes, training=False)

    def _step(
        self,
        ctx: ExecutionContext,
        losses: Sequence[AppliedLoss],
        active_nodes: Iterable[str | GraphNode] | None,
        *,
        training: bool,
        only: ModelNode | None = None,
    ) -> None:
        if only is None and ctx.plan is not None and ctx.plan[0].serves(losses, training):
            plan, step = ctx.plan
            tensors = ctx.tensors
        else:
            plan, step = self.plan(
                losses,
                training=training,
                active_nodes=active_nodes,
                roles=_roles(ctx),
                only=only,
            )
            tensors = fill(plan, ctx)
            ctx.layout = replace(plan.layout, views=_views(ctx))
        with plan.adapter.modes(plan.modes):
            run_step(ctx, plan, step, tensors)


def run_step(ctx: ExecutionContext, plan: StepPlan, step: Callable[..., Any], tensors: Any) -> None:
    """Run a step on tensors and write what came out to its context.

    Raises
    ------
    NonFiniteLossError
        If a loss is NaN or infinite, with the place in the phase.
    """
    try:
        ctx.values, ctx.outs = step(tensors)
    except NotFiniteError as error:
        label, node_id = plan.layout.losses[error.place]
        raise NonFiniteLossError(
            phase=ctx.phase_label,
            epoch=ctx.epoch_idx,
            batch=ctx.batch_idx,
            node=plan.layout.labels[node_id],
            loss=label,
            value=error.value,
        ) from None
    except Exception as error:
        error.add_note(f"(phase {ctx.phase_label!r}, epoch {ctx.epoch_idx}, batch {ctx.batch_idx})")
        raise
    ctx.layout = ctx.layout or plan.layout


def _id_among(nodes: Mapping[str, ComputeNode], node: ComputeNode, ref: Any) -> str:
    """Return the id of the node, among these, that a reference means."""
    if ref.node_id in nodes:
        return str(ref.node_id)
    for other in nodes.values():
        if other.label == ref.node_label:
            return other.node_id
    labels = [n.label for n in nodes.values()]
    raise GraphError(
        f"node {node.label!r} reads from {ref.node_label!r}, which is not in the graph; add it to "
        f"nodes= (there are {labels})"
    )


def _views(ctx: ExecutionContext) -> dict[Source, FeatureSetView]:
    """Return the rows that a step was given by number."""
    views = {} if ctx.layout is None else dict(ctx.layout.views)
    given = {Source(*key): value for key, value in ctx.inputs.items()}
    return views | {k: v.source for k, v in given.items() if isinstance(v, BatchView)}


def _roles(ctx: ExecutionContext) -> tuple[str, ...]:
    for given in ctx.inputs.values():
        roles = getattr(given, "roles", None)
        if roles:
            return tuple(roles)
    return ("default",)
