"""The builder of a plan's segment."""

from __future__ import annotations

import graphlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from modularml._typing import Shape
from modularml.backends import Backend, BackendAdapter, adapter_for
from modularml.data.lineage import Source
from modularml.graph.lineage import resolve_id
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode
from modularml.graph.plan import Crossing, InputSlot, LossOp, Op, Segment

__all__ = ["Program", "backends_of", "converted", "in_segments", "readers_of"]


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
        depth = _depths(group, above)
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


def _depths(group: Mapping[str, str], above: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Return the depth of each group in run order; CycleError if there is none."""
    before: dict[str, set[str]] = {name: set() for name in group.values()}
    for i, many in above.items():
        before[group[i]] |= {group[a] for a in many} - {group[i]}
    depth: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(before).static_order():
        depth[name] = max((depth[b] + 1 for b in before[name]), default=0)
    return depth


def _grouped(ids: Sequence[str], keys: Mapping[str, tuple[int, Backend]]) -> list[list[str]]:
    groups: dict[tuple[int, Backend], list[str]] = {}
    for i in ids:
        groups.setdefault(keys[i], []).append(i)
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]


class Program:
    """Collects inputs, operations and losses of nodes of one framework.

    While compiling, input ``i`` has slot ``i`` and the result of operation ``i`` has slot ``-1 -
    i``; once all inputs are known the results get the slots after them.

    Parameters
    ----------
    adapter : BackendAdapter
    device : object
        Device of columns and losses; None if irrelevant.
    """

    def __init__(self, adapter: BackendAdapter, device: Any = None) -> None:
        self.adapter, self.device = adapter, device
        self._where: dict[int, Any] = {}
        self._copies: dict[tuple[int, Any], int] = {}
        self.inputs: dict[InputSlot | Crossing, int] = {}
        self.ops: list[Op] = []

    def slot(
        self,
        role: str,
        source: Source,
        columns: tuple[str, ...] = (),
        dtype: Any = None,
        shape: Shape | None = None,
        **options: Any,
    ) -> InputSlot:
        """Return an input of columns on the program's device."""
        slot = InputSlot(role, source, columns, dtype, shape, **options)
        return replace(slot, adapter=self.adapter, device=self.device)

    def moved(self, arg: int, device: Any) -> int:
        """Return the slot of a value on a device, copied there at most once."""
        if self._where.get(arg, self.device) == device:
            return arg
        if (arg, device) not in self._copies:
            move = partial(self.adapter.to_device, device=device)
            self._copies[arg, device] = self.op(move, [arg], many=False, device=device)
        return self._copies[arg, device]

    def input(self, slot: InputSlot | Crossing) -> int:
        """Return the slot of an input, the same for equal ones."""
        return self.inputs.setdefault(slot, len(self.inputs))

    def op(
        self,
        fn: Callable[..., Any],
        args: Sequence[int],
        *,
        many: bool,
        device: Any = None,
        writes: bool = False,
    ) -> int:
        """Add an operation and return the slot of its result.

        An operation that `writes` to its inputs gets copies of those with other readers.
        """
        out = -1 - len(self.ops)
        self._where[out] = self.device if device is None else device
        self.ops.append(Op(fn, tuple(args), out, many, writes))
        return out

    def segment(
        self,
        models: Iterable[tuple[Any, bool]],
        optimizers: Iterable[Any],
        takes: Iterable[tuple[int, Callable[[Any], Any] | None]],
        losses: Sequence[tuple[int, LossOp]],
        outputs: Sequence[tuple[int, str, Shape | None]],
        *,
        eager: bool,
    ) -> Segment:
        """Return the segment, with the final slot of every value; see `Segment`."""
        place = self._place
        n_readers = Counter(arg for op in self.ops for arg in op.args)
        n_readers.update(arg for _, op in losses for arg in op.args)
        n_readers.update(slot for slot, *_ in outputs)
        ops = [
            self._on_copies(op) if any(n_readers[a] > 1 for a in op.args) else op for op in self.ops
        ]
        return Segment(
            self.adapter,
            list(models),
            list(optimizers),
            list(takes),
            [i for i, _ in losses],
            [Op(op.fn, tuple(map(place, op.args)), place(op.out), op.many) for op in ops],
            [LossOp(op.fn, tuple(map(place, op.args))) for _, op in losses],
            [place(slot) for slot, *_ in outputs],
            [(label, shape) for _, label, shape in outputs],
            len(self.ops),
            eager,
        )

    def _on_copies(self, op: Op) -> Op:
        if not op.writes:
            return op
        fn, concat = op.fn, self.adapter.concat
        if op.many:
            return replace(op, fn=lambda values: fn([concat([v], 0) for v in values]))
        return replace(op, fn=lambda value: fn(concat([value], 0)))

    def _place(self, slot: int) -> int:
        return slot if slot >= 0 else len(self.inputs) - 1 - slot


def converted(
    source: BackendAdapter, target: BackendAdapter, dtype: Any, device: Any = None
) -> Callable[[Any], Any]:
    """Return the conversion of detached tensors from one framework to another."""
    if source is target:
        return target.detach
    return lambda tensor: target.from_numpy(source.to_numpy(tensor), dtype=dtype, device=device)
