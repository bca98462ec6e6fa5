"""Graph topology: pure functions of upstream edges."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping, Sequence

from modularml.errors import GraphError

__all__ = ["ancestors", "tails", "topological"]

Edges = Mapping[str, Sequence[str]]
"""Upstream nodes of each node, by id."""


def topological(upstream: Edges, labels: Mapping[str, str]) -> list[str]:
    """Order nodes so that each comes after those it reads from.

    Raises
    ------
    GraphError
        If nodes form a cycle; the message gives their labels.
    """
    try:
        return list(graphlib.TopologicalSorter(upstream).static_order())
    except graphlib.CycleError as error:
        cycle = " -> ".join(labels.get(n, n) for n in error.args[1])
        raise GraphError(f"nodes form a cycle: {cycle}; remove one edge") from None


def tails(upstream: Edges) -> list[str]:
    """Return nodes that no other node reads from."""
    read = {upstream_node for many in upstream.values() for upstream_node in many}
    return [node for node in upstream if node not in read]


def ancestors(upstream: Edges, nodes: Iterable[str]) -> set[str]:
    """Return these nodes and everything upstream of them."""
    visited: set[str] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in visited:
            visited.add(node)
            pending.extend(upstream.get(node, ()))
    return visited
