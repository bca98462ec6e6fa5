"""Rewiring of graphs: pure functions that return the new edges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

from modularml.data.references import ExperimentNodeReference
from modularml.errors import GraphError
from modularml.graph.node import GraphNode

__all__ = ["Wiring", "inserted_after", "inserted_before", "inserted_between", "removed", "replaced"]

Wiring = dict[str, list[ExperimentNodeReference]]
"""Upstream references of each node, by node id."""


def wiring_of(nodes: Mapping[str, GraphNode]) -> Wiring:
    """Return the current upstream references of each node."""
    return {node_id: node.upstream_refs for node_id, node in nodes.items()}


def removed(nodes: Mapping[str, GraphNode], node: GraphNode) -> Wiring:
    """Return the wiring without a node; its readers take over its inputs."""
    wiring = wiring_of(nodes)
    del wiring[node.node_id]
    return _swap(wiring, node, node.upstream_refs)


def replaced(nodes: Mapping[str, GraphNode], old: GraphNode, new: GraphNode) -> Wiring:
    """Return the wiring with one node replaced by another."""
    wiring = wiring_of(nodes)
    del wiring[old.node_id]
    wiring = _swap(wiring, old, [new.reference()])
    wiring[new.node_id] = old.upstream_refs
    return wiring


def inserted_before(
    nodes: Mapping[str, GraphNode], new: GraphNode, downstream: GraphNode
) -> Wiring:
    """Return the wiring with a new node before another, taking over its inputs."""
    wiring = wiring_of(nodes)
    wiring[new.node_id] = downstream.upstream_refs
    wiring[downstream.node_id] = [new.reference()]
    return wiring


def inserted_after(nodes: Mapping[str, GraphNode], new: GraphNode, upstream: GraphNode) -> Wiring:
    """Return the wiring with a new node after another; no other edge changes."""
    return {**wiring_of(nodes), new.node_id: [upstream.reference()]}


def inserted_between(
    nodes: Mapping[str, GraphNode], new: GraphNode, upstream: GraphNode, downstream: GraphNode
) -> Wiring:
    """Return the wiring with a new node on the edge between two others.

    Raises
    ------
    GraphError
        If there is no such edge.
    """
    refs = downstream.upstream_refs
    if not any(_refers_to(ref, upstream) for ref in refs):
        raise GraphError(
            f"{downstream.label!r} does not read from {upstream.label!r}; it reads from "
            f"{[r.node_label for r in refs]}"
        )
    wiring = wiring_of(nodes)
    wiring[downstream.node_id] = [new.reference() if _refers_to(r, upstream) else r for r in refs]
    wiring[new.node_id] = [upstream.reference()]
    return wiring


def rewire(nodes: Mapping[str, GraphNode], wiring: Wiring, check: Callable[[], Any]) -> None:
    """Rewire nodes; if the check raises, restore the wiring and re-raise."""
    with unchanged_on_error(nodes.values()):
        for node_id, refs in wiring.items():
            nodes[node_id].set_upstream_refs(refs)
        check()


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


def _swap(wiring: Wiring, old: GraphNode, new: Sequence[ExperimentNodeReference]) -> Wiring:
    """Replace the references to a node, without repetition."""
    result: Wiring = {}
    for node_id, refs in wiring.items():
        swapped = [r for ref in refs for r in (new if _refers_to(ref, old) else [ref])]
        result[node_id] = list(dict.fromkeys(swapped))
    return result
