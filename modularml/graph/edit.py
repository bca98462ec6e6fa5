"""Edits of a graph: new wiring, checked before anything is changed."""

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
"""What each node shall read from, by the node's id."""


def wiring_of(nodes: Mapping[str, GraphNode]) -> Wiring:
    """Return what each node reads from now."""
    return {node_id: node.upstream_refs for node_id, node in nodes.items()}


def removed(nodes: Mapping[str, GraphNode], node: GraphNode) -> Wiring:
    """Return the wiring without a node; who read from it reads what it read."""
    wiring = wiring_of(nodes)
    del wiring[node.node_id]
    return _swap(wiring, node, node.upstream_refs)


def replaced(nodes: Mapping[str, GraphNode], old: GraphNode, new: GraphNode) -> Wiring:
    """Return the wiring with a node in another's place."""
    wiring = wiring_of(nodes)
    del wiring[old.node_id]
    wiring = _swap(wiring, old, [new.reference()])
    wiring[new.node_id] = old.upstream_refs
    return wiring


def inserted_before(
    nodes: Mapping[str, GraphNode], new: GraphNode, downstream: GraphNode
) -> Wiring:
    """Return the wiring with a node that takes over all inputs of another."""
    wiring = wiring_of(nodes)
    wiring[new.node_id] = downstream.upstream_refs
    wiring[downstream.node_id] = [new.reference()]
    return wiring


def inserted_after(nodes: Mapping[str, GraphNode], new: GraphNode, upstream: GraphNode) -> Wiring:
    """Return the wiring with a node that reads from another; nothing else changes."""
    return {**wiring_of(nodes), new.node_id: [upstream.reference()]}


def inserted_between(
    nodes: Mapping[str, GraphNode], new: GraphNode, upstream: GraphNode, downstream: GraphNode
) -> Wiring:
    """Return the wiring with a node on the edge between two others.

    Raises
    ------
    GraphError
        If there is no such edge.
    """
    refs = downstream.upstream_refs
    if not any(_means(ref, upstream) for ref in refs):
        raise GraphError(
            f"{downstream.label!r} does not read from {upstream.label!r}; it reads from "
            f"{[r.node_label for r in refs]}"
        )
    wiring = wiring_of(nodes)
    wiring[downstream.node_id] = [new.reference() if _means(r, upstream) else r for r in refs]
    wiring[new.node_id] = [upstream.reference()]
    return wiring


def rewire(nodes: Mapping[str, GraphNode], wiring: Wiring, check: Callable[[], Any]) -> None:
    """Wire nodes anew; if the check fails, they are wired as before and its error is raised."""
    with unchanged_on_error(nodes.values()):
        for node_id, refs in wiring.items():
            nodes[node_id].set_upstream_refs(refs)
        check()


@contextmanager
def unchanged_on_error(objects: Iterable[Any]) -> Iterator[None]:
    """Give objects the attributes, and dicts among these the items, from before a failed block."""
    before = [
        (vars(o), {k: copy(v) if isinstance(v, dict) else v for k, v in vars(o).items()})
        for o in objects
    ]
    try:
        yield
    except Exception:
        for own, attributes in before:
            own.clear()
            own.update(attributes)
        raise


def _means(ref: ExperimentNodeReference, node: GraphNode) -> bool:
    return ref.node_id == node.node_id or ref.node_label == node.label


def _swap(wiring: Wiring, old: GraphNode, new: Sequence[ExperimentNodeReference]) -> Wiring:
    """Put references in the place of those that mean a node, without repetition."""
    found: Wiring = {}
    for node_id, refs in wiring.items():
        swapped = [r for ref in refs for r in (new if _means(ref, old) else [ref])]
        found[node_id] = list(dict.fromkeys(swapped))
    return found
