"""Access to the nodes, edges and parameters of a graph."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from modularml.backends import Backend, BackendAdapter, adapter_for
from modularml.context import ExperimentContext
from modularml.data import FeatureSet, FeatureSetView
from modularml.errors import GraphError, UnknownNameError, closest
from modularml.graph import topology
from modularml.graph.learned import LearnedRows, fit_rows_of, leakage_message
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode, GraphNode
from modularml.graph.plan import StepPlan
from modularml.graph.plan_key import PlanKey
from modularml.graph.weighted_node import WeightedNode
from modularml.training import AppliedLoss, Loss, Optimizer

__all__ = ["NodeAccess", "id_among"]


class NodeAccess:
    """The nodes of a graph, its optimizer and its context."""

    label: str
    _ctx: ExperimentContext
    _nodes: dict[str, ComputeNode]
    _optimizer: Optimizer | None
    _plans: dict[Any, tuple[PlanKey, StepPlan, Callable[..., Any]]]
    _built: bool
    _losses: dict[str, tuple[Loss, str]]
    """Losses with parameters that have been trained, and their node ids, by label."""

    @abstractmethod
    def build(self, *, force: bool = False) -> None:
        """Infer all shapes, and create all weights and optimizers."""

    @abstractmethod
    def _build_optimizer(self, force: bool) -> None:
        """Make the optimizer, or add new parameters to it."""

    @abstractmethod
    def _register_losses(self, losses: Sequence[AppliedLoss]) -> None:
        """Register the parameters of losses to be trained, saved and resumed."""

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
        """The optimizer of all nodes together."""
        return self._optimizer

    @property
    def context(self) -> ExperimentContext:
        """The context that this graph was created in."""
        return self._ctx

    @property
    def backend(self) -> Backend | None:
        """The framework of the optimizer; None without one."""
        return None if self._optimizer is None else self._optimizer.backend or self._only_backend()

    @property
    def is_built(self) -> bool:
        """Whether shapes are known and weights exist."""
        return self._built

    def get_node(self, node: str | GraphNode) -> ComputeNode:
        """Return a node of this graph by label, id or the node itself.

        Raises
        ------
        UnknownNameError
            If it is not in this graph; the message lists the closest labels.
        """
        for candidate in self._nodes.values():
            if candidate is node or node in (candidate.label, candidate.node_id):
                return candidate
        shown = node.label if isinstance(node, GraphNode) else node
        raise UnknownNameError("node of the graph", shown, self.node_labels)

    def has_nodes(self, names: Iterable[str]) -> bool:
        """Return whether all of these are labels or ids of nodes of this graph."""
        return self._nodes.keys() | self.node_labels >= set(names)

    @property
    def learned_from(self) -> LearnedRows:
        """Rows that weights, estimators and the scalers of input columns learned from.

        The record survives new splits, loading and further training, until weights are
        reinitialized.
        """
        refs = [ref for node in self._nodes.values() for ref in node.feature_refs]
        available = {fs.label: fs for fs in self._ctx.available_featuresets.values()}
        sets = {label: available[label] for r in refs if (label := r.node_label) in available}
        scaled = [
            fit_rows_of(fs, record.fit_rows)
            for fs in sets.values()
            for record in fs.scaler_records
            if record.scaler.learns
        ]
        nodes = [n.learned_from for n in self._nodes.values() if isinstance(n, ModelNode)]
        return LearnedRows().joined([*nodes, *scaled])

    def learn_from(
        self,
        views: Sequence[FeatureSetView],
        active_nodes: Iterable[str | GraphNode] | None,
        fits: Sequence[WeightedNode] = (),
        *,
        even_frozen: bool = False,
    ) -> list[tuple[Any, Any]]:
        """Record that the running nodes are about to learn from these rows.

        Parameters
        ----------
        views : sequence of FeatureSetView
        active_nodes, fits
            As of `plan`.
        even_frozen : bool
            Whether frozen nodes count too, as a callback may unfreeze them.

        Returns
        -------
        list of (BaseModel, LearnedRows or None)
            Each model with its previous record.
        """
        before = []
        running = self._running(active_nodes)
        for node in fits or running:
            if isinstance(node, ModelNode) and (node in fits or even_frozen or not node.is_frozen):
                before.append((node.model, node.model.learned_from))
                node.model.learned_from = node.learned_from.with_rows(views)
        return before

    def taken_for_unseen(
        self, fs: FeatureSet, split: str | None, active_nodes: Iterable[Any] | None = None
    ) -> str:
        """Return a warning if an evaluation uses rows nodes learned from; else ''."""
        for node in self._running(active_nodes):
            if isinstance(node, ModelNode):
                rows = node.learned_from.taken_for_unseen(fs, split)
                if len(rows):
                    view = fs.to_view() if split is None else fs.get_split(split)
                    name = f"{fs.label!r}" if split is None else f"split {split!r} of {fs.label!r}"
                    return leakage_message(view, rows, name, f"node {node.label!r}")
        return ""

    def learned_among(self, view: FeatureSetView, name: str = "") -> str:
        """Return a warning if nodes learned from any of these rows; else ''.

        Unlike in `taken_for_unseen`, the name of a split does not matter.
        """
        for node in self._nodes.values():
            if isinstance(node, ModelNode) and len(rows := node.learned_from.known(view)):
                return leakage_message(
                    view, rows, name or repr(view.source.label), f"node {node.label!r}"
                )
        return ""

    # -- internals ----------------------------------------------------------------------------

    def _running(self, active: Iterable[str | GraphNode] | None) -> list[ComputeNode]:
        if active is None:
            return list(self._nodes.values())
        ancestors = topology.ancestors(self._edges(), [self.get_node(n).node_id for n in active])
        return [n for i, n in self._nodes.items() if i in ancestors]

    def _ctx_of_run(self) -> Any:
        """Activate the active context if it holds this graph, else the graph's own."""
        active = ExperimentContext.get_active()
        return active.activate() if active.model_graph is self else self._ctx.activate()

    def _edges(self, nodes: Mapping[str, ComputeNode] | None = None) -> dict[str, list[str]]:
        nodes = self._nodes if nodes is None else nodes
        return {i: [id_among(nodes, n, ref) for ref in n.node_refs] for i, n in nodes.items()}

    def _checked(self, nodes: Sequence[Any]) -> dict[str, ComputeNode]:
        """Validate nodes and return them by id in topological order."""
        if not nodes:
            raise GraphError("a graph needs at least one node")
        by_id, seen = dict[str, ComputeNode](), set[str]()
        for node in nodes:
            if not isinstance(node, ComputeNode):
                raise TypeError(f"nodes must be graph nodes, got a {type(node).__name__}")
            if node.label in seen:
                raise GraphError(f"node label {node.label!r} occurs twice; labels must be unique")
            seen.add(node.label)
            by_id[node.node_id] = node
        if self._optimizer is not None and self._optimizer.backend is None:
            self._only_backend(by_id.values())
        labels = {i: n.label for i, n in by_id.items()}
        return {i: by_id[i] for i in topology.topological(self._edges(by_id), labels)}

    def _learning(self) -> list[ModelNode]:
        return [n for n in self._nodes.values() if isinstance(n, ModelNode)]

    def _backends(self) -> set[Backend]:
        return {node.backend for node in self._learning()}

    def _shared(self) -> list[tuple[str, str, str, str]]:
        """Return weights that several nodes share; see `BackendAdapter.shared`."""
        return [pair for adapter, modules in self._by_backend() for pair in adapter.shared(modules)]

    def _check_ties(self) -> None:
        """Refuse shared weights that files cannot restore; see `BackendAdapter.check_ties`."""
        for adapter, modules in self._by_backend():
            adapter.check_ties(modules)

    def _by_backend(self) -> Iterator[tuple[BackendAdapter, dict[str, Any]]]:
        """Iterate over frameworks, each with the modules of its nodes by label."""
        for backend in sorted(self._backends(), key=lambda b: b.value):
            modules = {n.label: n.model.module for n in self._learning() if n.backend is backend}
            yield adapter_for(backend), modules

    def _tie(self, shared: Iterable[Sequence[str]]) -> None:
        """Tie the weights of nodes again, as `_shared` returned them."""
        for label, name, other, other_name in shared:
            first, second = (self.get_node(x) for x in (label, other))
            if isinstance(first, ModelNode) and isinstance(second, ModelNode):
                adapter = adapter_for(first.backend)
                adapter.tie(first.model.module, name, second.model.module, other_name)

    def _parameters(self) -> dict[str, Any]:
        """Return the parameters of the graph's optimizer by name, shared ones once.

        Parameters that are no longer trainable stay in the optimizer, with their moments, as long
        as a model has them.
        """
        held = set() if self._optimizer is None else self._optimizer.held
        return {name: p for name, p, moves in self._all_parameters() if moves or id(p) in held}

    def _all_parameters(self) -> Iterator[tuple[str, Any, bool]]:
        """Iterate over (name, parameter, trainable) of the optimizer's framework."""
        seen = set[int]()
        backend = self.backend or self._only_backend()
        for node in (n for n in self._learning() if n.backend is backend and n.is_built):
            moving = {id(p) for p in node.parameters().values()}
            for name, p in adapter_for(backend).all_parameters(node.model.module).items():
                if id(p) not in seen:
                    seen.add(id(p))
                    yield f"{node.label}.{name}", p, id(p) in moving
        for label, (loss, _) in self._losses.items():
            for name, p in loss.parameters().items():
                yield f"losses.{label}.{name}", p, True

    def _only_backend(self, among: Iterable[ComputeNode] | None = None) -> Backend:
        """Return the framework of the graph's optimizer.

        Raises
        ------
        GraphError
            If nodes of several frameworks need it, having no optimizer of their own.
        """
        among = self._nodes.values() if among is None else among
        models = [n for n in among if isinstance(n, ModelNode)]
        nodes = [n for n in models if adapter_for(n.backend).gradients]
        if len({n.backend for n in nodes}) > 1:
            nodes = [n for n in nodes if n.optimizer is None]
        backends = {n.backend: n.label for n in nodes}
        if len(backends) > 1:
            shown = ", ".join(f"{label}: {b.value}" for b, label in backends.items())
            raise GraphError(
                f"nodes of several frameworks share one optimizer ({shown}), which can train only "
                "one framework; give the nodes of the others their own optimizers"
            )
        return next(iter(backends), Backend.NONE)


def id_among(nodes: Mapping[str, ComputeNode], node: ComputeNode, ref: Any) -> str:
    """Return the id of the node that a reference denotes, among these."""
    if ref.node_id in nodes:
        return str(ref.node_id)
    for other in nodes.values():
        if other.label == ref.node_label:
            return other.node_id
    near = closest(ref.node_label, [n.label for n in nodes.values() if n is not node])
    raise GraphError(
        f"node {node.label!r} reads from {ref.node_label!r}, which is not in the graph; add it to "
        f"nodes= ({near})"
    )
