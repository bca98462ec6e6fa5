"""The nodes and edges of a graph, and their edits."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any, Self

from modularml.backends import Backend
from modularml.context import ExperimentContext
from modularml.data.featureset import FeatureSet
from modularml.data.references import ExperimentNodeReference
from modularml.data.view import FeatureSetView
from modularml.errors import GraphError, UnknownNameError, closest
from modularml.graph.learned_rows import LearnedRows, fit_rows_of, leakage_message
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode, GraphNode
from modularml.graph.topology import ancestors, tails
from modularml.graph.weighted_node import WeightedNode

Wiring = dict[str, list[ExperimentNodeReference]]
"""Upstream references of nodes, by node id."""


class NodeGraph:
    """A directed acyclic graph of nodes."""

    def __init__(
        self,
        nodes: Sequence[str | GraphNode] | None,
        label: str,
        ctx: ExperimentContext | None,
    ) -> None:
        self._ctx = ctx or ExperimentContext.get_active()
        self.label = label
        self._built = False
        self._nodes: dict[str, ComputeNode] = {}
        with self._ctx.activate():
            candidates = list(self._ctx.available_computenodes.values()) if nodes is None else nodes
            resolved = [self._ctx.get_node(n) if isinstance(n, str) else n for n in candidates]
            self._nodes = self._checked(resolved)

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
        return {i: self._nodes[i] for i in tails(self._edges())}

    @property
    def frozen_nodes(self) -> dict[str, GraphNode]:
        """Nodes that could learn but are frozen, by id."""
        return {i: n for i, n in self._nodes.items() if isinstance(n, ModelNode) and n.is_frozen}

    @property
    def context(self) -> ExperimentContext:
        """The context that this graph was created in."""
        return self._ctx

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

    def freeze(self, nodes: list[str | GraphNode] | None = None) -> None:
        """Exclude nodes from training; all nodes by default."""
        for node in self._model_nodes(nodes):
            node.freeze()

    def unfreeze(self, nodes: list[str | GraphNode] | None = None) -> None:
        """Include nodes in training again; all nodes by default."""
        for node in self._model_nodes(nodes):
            node.unfreeze()

    @contextmanager
    def frozen_within(self, nodes: Iterable[str | GraphNode]) -> Iterator[None]:
        """Freeze nodes within a block; their own flags and states are not changed."""
        with ExitStack() as stack:
            for node in self._model_nodes(list(nodes)):
                stack.enter_context(node.frozen_within())
            yield

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

    # -- edits --------------------------------------------------------------------------------

    def add_node(self, node: GraphNode) -> Self:
        """Add a node; other nodes keep their weights.

        Raises
        ------
        GraphError
            If the graph already has the node or its label, or lacks a node that it reads from.
        """
        self._check_new(node)
        return self._edited({**self._nodes, node.node_id: node}, {})

    def remove_node(self, node: str | GraphNode) -> Self:
        """Remove a node; its readers take over its inputs."""
        removed = self.get_node(node)
        nodes = {i: n for i, n in self._nodes.items() if n is not removed}
        return self._edited(nodes, _swapped(nodes, removed, removed.upstream_refs))

    def replace_node(self, old_node: str | GraphNode, new_node: GraphNode) -> Self:
        """Replace a node by another, with the same edges."""
        old = self.get_node(old_node)
        self._check_new(new_node, besides=old)
        nodes = {i: n for i, n in self._nodes.items() if n is not old}
        wiring = _swapped(nodes, old, [new_node.reference()])
        wiring[new_node.node_id] = old.upstream_refs
        return self._edited({**nodes, new_node.node_id: new_node}, wiring)

    def insert_node_before(self, new_node: GraphNode, *, downstream: str | GraphNode) -> Self:
        """Insert a node before another, taking over all its inputs."""
        below = self.get_node(downstream)
        self._check_new(new_node)
        wiring: Wiring = {
            new_node.node_id: below.upstream_refs,
            below.node_id: [new_node.reference()],
        }
        return self._edited({**self._nodes, new_node.node_id: new_node}, wiring)

    def insert_node_after(self, new_node: GraphNode, *, upstream: str | GraphNode) -> Self:
        """Insert a node after another; no other edge changes."""
        above = self.get_node(upstream)
        self._check_new(new_node)
        wiring: Wiring = {new_node.node_id: [above.reference()]}
        return self._edited({**self._nodes, new_node.node_id: new_node}, wiring)

    def insert_node_between(
        self, new_node: GraphNode, *, upstream: str | GraphNode, downstream: str | GraphNode
    ) -> Self:
        """Insert a node on the edge between two others.

        Raises
        ------
        GraphError
            If there is no such edge.
        """
        above, below = self.get_node(upstream), self.get_node(downstream)
        self._check_new(new_node)
        refs = below.upstream_refs
        if not any(_refers_to(ref, above) for ref in refs):
            raise GraphError(
                f"{below.label!r} does not read from {above.label!r}; it reads from "
                f"{[r.node_label for r in refs]}"
            )
        new = new_node.reference()
        wiring: Wiring = {
            below.node_id: [new if _refers_to(r, above) else r for r in refs],
            new_node.node_id: [above.reference()],
        }
        return self._edited({**self._nodes, new_node.node_id: new_node}, wiring)

    # -- internals ----------------------------------------------------------------------------

    def _check_new(self, node: GraphNode, besides: GraphNode | None = None) -> None:
        if not isinstance(node, ComputeNode):
            raise TypeError(f"node must be a graph node, got a {type(node).__name__}")
        others = [n for n in self._nodes.values() if n is not besides]
        if any(n is node or n.label == node.label for n in others):
            raise GraphError(f"the graph already has a node {node.label!r}; choose another label")

    def _edited(
        self,
        nodes: dict[str, Any],
        wiring: Wiring,
    ) -> Self:
        """Rewire nodes and take them over; on an error nothing is changed."""
        with self._ctx.activate(), unchanged_on_error(nodes.values()):
            for node_id, refs in wiring.items():
                nodes[node_id].set_upstream_refs(refs)
            checked = self._checked(list(nodes.values()))
        self._nodes, self._built = checked, False
        return self

    def _running(self, active: Iterable[str | GraphNode] | None) -> list[ComputeNode]:
        """Return these nodes, or all, and everything upstream of them, in order."""
        if active is None:
            return list(self._nodes.values())
        ids = ancestors(self._edges(), [self.get_node(n).node_id for n in active])
        return [n for i, n in self._nodes.items() if i in ids]

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
        edges, labels = self._edges(by_id), {i: n.label for i, n in by_id.items()}
        try:
            return {i: by_id[i] for i in graphlib.TopologicalSorter(edges).static_order()}
        except graphlib.CycleError as error:
            cycle = " -> ".join(labels.get(n, n) for n in error.args[1])
            raise GraphError(f"nodes form a cycle: {cycle}; remove one edge") from None

    def _learning(self) -> list[ModelNode]:
        return [n for n in self._nodes.values() if isinstance(n, ModelNode)]

    def _model_nodes(self, nodes: Iterable[str | GraphNode] | None) -> list[ModelNode]:
        selected = self._learning() if nodes is None else [self.get_node(n) for n in nodes]
        return [n for n in selected if isinstance(n, ModelNode)]

    def _backends(self) -> set[Backend]:
        return {node.backend for node in self._learning()}


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


@contextmanager
def unchanged_on_error(objects: Iterable[Any]) -> Iterator[None]:
    """Restore the attributes of objects, and dicts among these, if the block fails."""
    before = [
        (vars(o), {k: copy(v) if isinstance(v, dict) else v for k, v in vars(o).items()})
        for o in objects
    ]
    try:
        yield
    except Exception:
        for namespace, attributes in before:
            namespace.clear()
            namespace.update(attributes)
        raise


def _refers_to(ref: ExperimentNodeReference, node: GraphNode) -> bool:
    return ref.node_id == node.node_id or ref.node_label == node.label


def _swapped(
    nodes: Mapping[str, GraphNode], old: GraphNode, new: Sequence[ExperimentNodeReference]
) -> Wiring:
    """Return the inputs of the readers of a node after its replacement, without repetition."""
    wiring: Wiring = {}
    for node_id, node in nodes.items():
        refs = node.upstream_refs
        if any(_refers_to(ref, old) for ref in refs):
            swapped = [r for ref in refs for r in (new if _refers_to(ref, old) else [ref])]
            wiring[node_id] = list(dict.fromkeys(swapped))
    return wiring
