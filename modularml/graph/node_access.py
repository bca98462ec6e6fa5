"""What a graph consists of: nodes in order, and how to find them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from modularml.backends import Backend, BackendAdapter, adapter_for
from modularml.context import ExperimentContext
from modularml.data import FeatureSet, FeatureSetView
from modularml.errors import GraphError, UnknownNameError, closest
from modularml.graph import topology
from modularml.graph.learned import LearnedRows, said_of
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode, GraphNode
from modularml.graph.plan import StepPlan
from modularml.graph.plan_key import PlanKey
from modularml.training import AppliedLoss, Loss, Optimizer

__all__ = ["GraphMembers", "id_among"]


class GraphMembers:
    """The nodes of a graph, its optimizer and its context."""

    label: str
    _ctx: ExperimentContext
    _nodes: dict[str, ComputeNode]
    _optimizer: Optimizer | None
    _plans: dict[Any, tuple[PlanKey, StepPlan, Callable[..., Any]]]
    _built: bool
    _losses: dict[str, tuple[Loss, str]]
    """Losses with parameters of their own that have been trained, and the node, by label."""

    @abstractmethod
    def build(self, *, force: bool = False) -> None:
        """Find all shapes, make all weights and optimizers."""

    @abstractmethod
    def _build_optimizer(self, force: bool) -> None:
        """Make the optimizer, or add new parameters to it."""

    @abstractmethod
    def _take_up_losses(self, losses: Sequence[AppliedLoss]) -> None:
        """Have parameters that losses themselves have be moved, saved and resumed."""

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

    def has_nodes(self, names: Iterable[str]) -> bool:
        """Tell whether all of these are labels or ids of nodes of this graph."""
        return self._nodes.keys() | self.node_labels >= set(names)

    @property
    def learned_from(self) -> LearnedRows:
        """Rows that weights, estimators and the scalers of what is read learned from.

        They outlive new splits, load and further training, until weights are drawn anew.
        """
        refs = [ref for node in self._nodes.values() for ref in node.feature_refs]
        here = {fs.label: fs for fs in self._ctx.available_featuresets.values()}
        sets = {label: here[label] for r in refs if (label := r.node_label) in here}
        scaled = [
            fs.to_view() if record.fit_rows is None else fs.take(record.fit_rows)
            for fs in sets.values()
            for record in fs.scaler_records
            if record.scaler.learns
        ]
        nodes = [n.learned_from for n in self._nodes.values() if isinstance(n, ModelNode)]
        return LearnedRows().joined(nodes).with_rows(scaled)

    def learn_from(
        self,
        views: Sequence[FeatureSetView],
        active_nodes: Iterable[str | GraphNode] | None,
        fits: Sequence[ModelNode] = (),
        *,
        even_frozen: bool = False,
    ) -> list[tuple[Any, Any]]:
        """Note that nodes which run and learn are about to learn from these rows.

        Parameters
        ----------
        views : sequence of FeatureSetView
        active_nodes, fits
            As of `plan`.
        even_frozen : bool
            Whether frozen nodes may learn too, as something unfreezes them in between.

        Returns
        -------
        list of (BaseModel, LearnedRows or None)
            What each of their models knew before.
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
        """Say which rows an evaluation takes for new though nodes know them; else empty."""
        for node in self._running(active_nodes):
            if isinstance(node, ModelNode):
                rows = node.learned_from.taken_for_unseen(fs, split)
                if len(rows):
                    return said_of(fs, split, rows, f"node {node.label!r}")
        return ""

    # -- within -------------------------------------------------------------------------------

    def _running(self, active: Iterable[str | GraphNode] | None) -> list[ComputeNode]:
        if active is None:
            return list(self._nodes.values())
        wanted = topology.ancestors(self._edges(), [self.get_node(n).node_id for n in active])
        return [n for i, n in self._nodes.items() if i in wanted]

    def _ctx_of_run(self) -> Any:
        """Resolve references in the active context where it holds this graph, else in mine."""
        active = ExperimentContext.get_active()
        return active.activate() if active.model_graph is self else self._ctx.activate()

    def _edges(self, nodes: Mapping[str, ComputeNode] | None = None) -> dict[str, list[str]]:
        nodes = self._nodes if nodes is None else nodes
        return {i: [id_among(nodes, n, ref) for ref in n.node_refs] for i, n in nodes.items()}

    def _checked(self, nodes: Sequence[Any]) -> dict[str, ComputeNode]:
        """Return nodes by id in topological order, or say what is wrong with them."""
        if not nodes:
            raise GraphError("a graph needs at least one node")
        by_id, seen = dict[str, ComputeNode](), set[str]()
        for node in nodes:
            if not isinstance(node, ComputeNode):
                raise TypeError(f"nodes must be graph nodes, got a {type(node).__name__}")
            if node.label in seen:
                raise GraphError(f"node label {node.label!r} is given twice; labels are unique")
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
        return [pair for adapter, own in self._by_backend() for pair in adapter.shared(own)]

    def _check_ties(self) -> None:
        """Refuse shared weights that files and folds part; see `BackendAdapter.check_ties`."""
        for adapter, own in self._by_backend():
            adapter.check_ties(own)

    def _by_backend(self) -> Iterator[tuple[BackendAdapter, dict[str, Any]]]:
        """Iterate over frameworks, with the modules of the nodes of each by label."""
        for backend in sorted(self._backends(), key=lambda b: b.value):
            own = {n.label: n.model.module for n in self._learning() if n.backend is backend}
            yield adapter_for(backend), own

    def _tie(self, shared: Iterable[Sequence[str]]) -> None:
        """Let nodes share weights again, as `_shared` returned them."""
        for label, name, other, again in shared:
            first, second = (self.get_node(x) for x in (label, other))
            if isinstance(first, ModelNode) and isinstance(second, ModelNode):
                adapter = adapter_for(first.backend)
                adapter.tie(first.model.module, name, second.model.module, again)

    def _parameters(self) -> dict[str, Any]:
        """Return by name what the graph's optimizer moves; what nodes share, once.

        Parameters that it moved before and that their owner has switched off stay with it, and so
        do their moments, as long as a model has them.
        """
        held = set() if self._optimizer is None else self._optimizer.held
        return {name: p for name, p, moves in self._all_parameters() if moves or id(p) in held}

    def _all_parameters(self) -> Iterator[tuple[str, Any, bool]]:
        """Iterate over name, parameter and whether it may move, of the optimizer's framework."""
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
        """Return the one framework that needs the graph's optimizer.

        Raises
        ------
        GraphError
            If nodes of several frameworks do, and have none of their own.
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
                f"nodes of several frameworks share one optimizer ({shown}); it moves those of "
                "one, so give the nodes of the others optimizers of their own"
            )
        return next(iter(backends), Backend.NONE)


def id_among(nodes: Mapping[str, ComputeNode], node: ComputeNode, ref: Any) -> str:
    """Return the id of the node, among these, that a reference means."""
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
