"""Graph topology: upstream edges, and the segments of nodes that run in one framework."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping, Sequence

from modularml.backends import Backend, adapter_for
from modularml.graph.lineage import resolve_id
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode

Edges = Mapping[str, Sequence[str]]
"""Upstream nodes of each node, by id."""


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


def readers_of(nodes: Iterable[ComputeNode]) -> dict[str, list[str]]:
    """Return the readers of each node, by id."""
    readers: dict[str, list[str]] = {node.node_id: [] for node in nodes}
    for node in nodes:
        for ref in node.node_refs:
            readers.setdefault(resolve_id(ref), []).append(node.node_id)
    return readers


def backends_of(nodes: Sequence[ComputeNode]) -> dict[str, Backend]:
    """Return the framework that each node runs in.

    A node without a model runs in that of its inputs if these agree, else in that of its readers;
    a framework with gradients is preferred.

    Parameters
    ----------
    nodes : sequence of ComputeNode
        In topological order.
    """
    backends = {n.node_id: n.backend for n in nodes if isinstance(n, ModelNode)}
    undecided = [n for n in nodes if n.node_id not in backends]
    for node in undecided:
        upstream = _known(backends, (resolve_id(ref) for ref in node.node_refs))
        if len(upstream) == 1:
            backends[node.node_id] = upstream[0]
    readers = readers_of(nodes) if undecided else {}
    for node in reversed(undecided):
        if downstream := _known(backends, readers[node.node_id]):
            backends.setdefault(node.node_id, downstream[0])
    for node in undecided:
        if upstream := _known(backends, (resolve_id(ref) for ref in node.node_refs)):
            backends.setdefault(node.node_id, upstream[0])
    return backends


def in_segments(
    ids: Sequence[str],
    edges: Mapping[str, Sequence[str]],
    backends: Mapping[str, Backend],
    ties: Iterable[Sequence[str]] = (),
) -> list[list[str]]:
    """Group nodes into segments of one framework, in the order in which they run.

    Parameters
    ----------
    ids : sequence of str
        In topological order.
    edges : mapping of str to sequence of str
        Inputs of each node; nodes outside `ids` are ignored.
    backends : mapping of str to Backend
    ties : iterable of sequence of str
        A node with a loss, and the other nodes that the loss reads, which must run before or with
        it.

    Returns
    -------
    list of list of str
        Nodes of one framework that are connected by edges share a segment, so that gradients pass
        between them. This is impossible if a path leaves a framework and returns to a node that is
        also reached directly: such a graph is split at every crossing instead.

    Raises
    ------
    graphlib.CycleError
        If a loss reads a node that can only run after it.
    """
    if len({backends[i] for i in ids}) == 1:
        return [list(ids)]
    members = set(ids)
    above = {i: {a for a in edges.get(i, ()) if a in members} for i in ids}
    for on, *others in ties:
        above[on] |= set(others) - {on}
    group = _joined(above, backends)
    try:
        before: dict[str, set[str]] = {name: set() for name in group.values()}
        for i, many in above.items():
            before[group[i]] |= {group[a] for a in many} - {group[i]}
        depth: dict[str, int] = {}
        for name in graphlib.TopologicalSorter(before).static_order():
            depth[name] = max((depth[b] + 1 for b in before[name]), default=0)
        return _grouped(ids, {i: (depth[group[i]], backends[i]) for i in ids})
    except graphlib.CycleError:
        crossed: dict[str, int] = {}
        for i in graphlib.TopologicalSorter(above).static_order():
            depths = (crossed[a] + (backends[a] is not backends[i]) for a in above[i])
            crossed[i] = max(depths, default=0)
        return _grouped(ids, {i: (crossed[i], backends[i]) for i in ids})


def _known(backends: Mapping[str, Backend], ids: Iterable[str]) -> list[Backend]:
    """Return the distinct frameworks of nodes, those with gradients first."""
    distinct = dict.fromkeys(backends[i] for i in ids if i in backends)
    return sorted(distinct, key=lambda backend: not adapter_for(backend).gradients)


def _joined(above: Mapping[str, Iterable[str]], backends: Mapping[str, Backend]) -> dict[str, str]:
    """Return a representative of each node's connected group within one framework."""
    parent = {i: i for i in above}

    def root(i: str) -> str:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, many in above.items():
        for a in many:
            if backends[i] is backends[a]:
                parent[root(i)] = root(a)
    return {i: root(i) for i in above}


def _grouped(ids: Sequence[str], keys: Mapping[str, tuple[int, Backend]]) -> list[list[str]]:
    groups: dict[tuple[int, Backend], list[str]] = {}
    for i in ids:
        groups.setdefault(keys[i], []).append(i)
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]
