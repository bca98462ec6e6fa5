"""Which nodes run together: runs of one framework, in an order that can be kept."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping, Sequence

from modularml.backends import Backend, adapter_for
from modularml.graph.lineage import resolve_id
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode

__all__ = ["backends_of", "in_segments", "readers_of"]


def readers_of(nodes: Iterable[ComputeNode]) -> dict[str, list[str]]:
    """Return who reads each node, by id."""
    readers: dict[str, list[str]] = {node.node_id: [] for node in nodes}
    for node in nodes:
        for ref in node.node_refs:
            readers.setdefault(resolve_id(ref), []).append(node.node_id)
    return readers


def backends_of(nodes: Sequence[ComputeNode]) -> dict[str, Backend]:
    """Return the framework that each node runs in.

    A node without a model runs in that of its inputs where they agree, else in that of its
    readers; one that carries gradients is preferred.

    Parameters
    ----------
    nodes : sequence of ComputeNode
        In topological order.
    """
    found = {n.node_id: n.backend for n in nodes if isinstance(n, ModelNode)}
    open_ones = [n for n in nodes if n.node_id not in found]
    for node in open_ones:
        above = _known(found, (resolve_id(ref) for ref in node.node_refs))
        if len(above) == 1:
            found[node.node_id] = above[0]
    readers = readers_of(nodes) if open_ones else {}
    for node in reversed(open_ones):
        if below := _known(found, readers[node.node_id]):
            found.setdefault(node.node_id, below[0])
    for node in open_ones:
        if above := _known(found, (resolve_id(ref) for ref in node.node_refs)):
            found.setdefault(node.node_id, above[0])
    return found


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
        What each node reads from; others than `ids` do not count.
    backends : mapping of str to Backend
    ties : iterable of sequence of str
        A node with a loss, and further nodes that the loss reads: they run before or with it.

    Returns
    -------
    list of list of str
        Nodes of one framework that are joined by edges are in one segment, so that gradients
        pass between them. That fails where a path leaves a framework and comes back to a node
        that is also reached directly: such a graph is cut at every crossing instead.

    Raises
    ------
    graphlib.CycleError
        If a loss reads what can only run after it.
    """
    if len({backends[i] for i in ids}) == 1:
        return [list(ids)]
    mine = set(ids)
    above = {i: {a for a in edges.get(i, ()) if a in mine} for i in ids}
    for on, *others in ties:
        above[on] |= set(others) - {on}
    whole = _joined(above, backends)
    try:
        depth = _depths(whole, above)
        return _grouped(ids, {i: (depth[whole[i]], backends[i]) for i in ids})
    except graphlib.CycleError:
        crossed: dict[str, int] = {}
        for i in graphlib.TopologicalSorter(above).static_order():
            deeper = (crossed[a] + (backends[a] is not backends[i]) for a in above[i])
            crossed[i] = max(deeper, default=0)
        return _grouped(ids, {i: (crossed[i], backends[i]) for i in ids})


def _known(found: Mapping[str, Backend], ids: Iterable[str]) -> list[Backend]:
    """Return the frameworks of some nodes, each once, those with gradients first."""
    known = dict.fromkeys(found[i] for i in ids if i in found)
    return sorted(known, key=lambda backend: not adapter_for(backend).gradients)


def _joined(above: Mapping[str, Iterable[str]], backends: Mapping[str, Backend]) -> dict[str, str]:
    """Return a name for each set of nodes that are joined within one framework."""
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


def _depths(whole: Mapping[str, str], above: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Return how many sets must have run before each; CycleError where there is no order."""
    before: dict[str, set[str]] = {name: set() for name in whole.values()}
    for i, many in above.items():
        before[whole[i]] |= {whole[a] for a in many} - {whole[i]}
    depth: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(before).static_order():
        depth[name] = max((depth[b] + 1 for b in before[name]), default=0)
    return depth


def _grouped(ids: Sequence[str], keys: Mapping[str, tuple[int, Backend]]) -> list[list[str]]:
    groups: dict[tuple[int, Backend], list[str]] = {}
    for i in ids:
        groups.setdefault(keys[i], []).append(i)
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]
