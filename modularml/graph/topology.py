"""The shape of a graph, as pure functions of who reads from whom."""

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
        If nodes read from each other in a circle; their labels are given.
    """
    try:
        return list(graphlib.TopologicalSorter(upstream).static_order())
    except graphlib.CycleError as error:
        circle = " -> ".join(labels.get(n, n) for n in error.args[1])
        raise GraphError(
            f"nodes read from each other in a circle: {circle}; remove one edge"
        ) from None


def tails(upstream: Edges) -> list[str]:
    """Return nodes that no other node reads from."""
    read = {above for many in upstream.values() for above in many}
    return [node for node in upstream if node not in read]


def ancestors(upstream: Edges, nodes: Iterable[str]) -> set[str]:
    """Return these nodes and all that they read from, directly or not."""
    found: set[str] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left.extend(upstream.get(node, ()))
    return found
