"""Edit methods of a graph; each is validated before anything changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from modularml.errors import GraphError
from modularml.graph import edit
from modularml.graph.node import ComputeNode, GraphNode
from modularml.graph.node_access import NodeAccess

__all__ = ["GraphEditing"]


class GraphEditing(NodeAccess):
    """Add, remove, replace and insert nodes; the others keep their weights."""

    def add_node(self, node: GraphNode) -> Self:
        """Add a node; other nodes keep their weights.

        Raises
        ------
        GraphError
            If the graph already has the node or its label, or lacks a node that it reads from.
        """
        self._add_checked(node)
        return self._edited({**self._nodes, node.node_id: node}, {})

    def remove_node(self, node: str | GraphNode) -> Self:
        """Remove a node; its readers take over its inputs."""
        removed = self.get_node(node)
        nodes = {i: n for i, n in self._nodes.items() if n is not removed}
        return self._edited(nodes, edit.removed(self.nodes, removed))

    def replace_node(self, old_node: str | GraphNode, new_node: GraphNode) -> Self:
        """Replace a node by another, with the same edges."""
        old = self.get_node(old_node)
        self._add_checked(new_node, besides=old)
        nodes = {i: n for i, n in self._nodes.items() if n is not old}
        wiring = edit.replaced(self.nodes, old, new_node)
        return self._edited({**nodes, new_node.node_id: new_node}, wiring)

    def insert_node_before(self, new_node: GraphNode, *, downstream: str | GraphNode) -> Self:
        """Insert a node before another, taking over all its inputs."""
        return self._insert(new_node, edit.inserted_before, self.get_node(downstream))

    def insert_node_after(self, new_node: GraphNode, *, upstream: str | GraphNode) -> Self:
        """Insert a node after another; no other edge changes."""
        return self._insert(new_node, edit.inserted_after, self.get_node(upstream))

    def insert_node_between(
        self, new_node: GraphNode, *, upstream: str | GraphNode, downstream: str | GraphNode
    ) -> Self:
        """Insert a node on the edge between two others.

        Raises
        ------
        GraphError
            If there is no such edge.
        """
        ends = self.get_node(upstream), self.get_node(downstream)
        return self._insert(new_node, edit.inserted_between, *ends)

    # -- internals ----------------------------------------------------------------------------

    def _add_checked(self, node: GraphNode, besides: GraphNode | None = None) -> None:
        if not isinstance(node, ComputeNode):
            raise TypeError(f"node must be a graph node, got a {type(node).__name__}")
        others = [n for n in self._nodes.values() if n is not besides]
        if any(n is node or n.label == node.label for n in others):
            raise GraphError(f"the graph already has a node {node.label!r}; choose another label")

    def _insert(self, new: GraphNode, how: Callable[..., edit.Wiring], *ends: GraphNode) -> Self:
        self._add_checked(new)
        return self._edited({**self._nodes, new.node_id: new}, how(self.nodes, new, *ends))

    def _edited(self, nodes: dict[str, Any], wiring: edit.Wiring) -> Self:
        with self._ctx.activate():
            checked: list[dict[str, ComputeNode]] = []
            edit.rewire(nodes, wiring, lambda: checked.append(self._checked(list(nodes.values()))))
        self._nodes, self._built = checked[0], False
        self._plans.clear()
        return self
