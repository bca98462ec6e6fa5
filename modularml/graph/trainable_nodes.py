"""Trainable nodes, and those that gradients of losses reach."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from modularml._warning import warn
from modularml.errors import GraphError, LossError, OptimizerNotSetError
from modularml.graph.node import ComputeNode

__all__ = ["Reach", "no_learner", "trainable"]


def trainable(nodes: Iterable[ComputeNode]) -> list[ComputeNode]:
    """Return the trainable nodes."""
    return [n for n in nodes if n.has_weights and not n.is_frozen]


class Reach:
    """Reach of gradients: up the edges, within a segment, to detached nodes.

    Parameters
    ----------
    edges : mapping of str to sequence of str
        Inputs of each node.
    segments : sequence of sequence of str
    detached : collection of str
        Nodes whose output is detached.
    """

    def __init__(
        self,
        edges: Mapping[str, Sequence[str]],
        segments: Sequence[Sequence[str]],
        detached: Collection[str],
    ) -> None:
        self.edges, self.detached = edges, detached
        self.home = {i: place for place, ids in enumerate(segments) for i in ids}

    def behind(self, node_ids: Iterable[str]) -> set[str]:
        """Return the nodes that gradients of these nodes' outputs reach."""
        reached, pending = set[str](), list(node_ids)
        while pending:
            node_id = pending.pop()
            if node_id not in reached:
                reached.add(node_id)
                pending += [a for a in self._above(node_id) if a not in self.detached]
        return reached

    def warn(self, by_id: Mapping[str, ComputeNode], unreached: set[str]) -> None:
        """Warn of nodes cut off from gradients by an edge between frameworks."""
        for node_id in self.home:
            for above in set(self.edges[node_id]) & self.home.keys():
                cut = self.behind([above]) & unreached if self._crosses(above, node_id) else ()
                if cut:
                    warn(
                        f"nodes {sorted(by_id[i].label for i in cut)} do not learn: gradients stop "
                        f"between {by_id[above].label!r} and {by_id[node_id].label!r}, where "
                        "frameworks meet; give them a loss of their own, or freeze() them",
                    )

    def _crosses(self, above: str, node_id: str) -> bool:
        return self.home[above] != self.home[node_id]

    def _above(self, node_id: str) -> list[str]:
        above = self.edges[node_id]
        return [a for a in above if a in self.home and not self._crosses(a, node_id)]


def nothing_learns(nodes: Iterable[ComputeNode]) -> GraphError:
    """Return the error that no node is trainable."""
    return GraphError(
        f"nothing can be trained: the nodes {[n.label for n in nodes]} are frozen or have no "
        "weights; unfreeze() one, or run a FitPhase on nodes that learn from all rows at once"
    ).with_code("MML-407")


def no_optimizer(nodes: Iterable[ComputeNode]) -> OptimizerNotSetError:
    """Return the error that trainable nodes have no optimizer."""
    return OptimizerNotSetError(
        f"the trainable nodes {[n.label for n in nodes]} have no optimizer; give one to the "
        "graph, or to each of them"
    ).with_code("MML-406")


def no_learner(labels: Sequence[str], nodes: Iterable[ComputeNode]) -> LossError:
    """Return the error that no loss depends on a trainable node."""
    return LossError(
        f"no loss of {list(labels)} depends on a trainable node; apply one on "
        f"{[n.label for n in trainable(nodes)]}"
    )
