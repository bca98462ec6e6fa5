"""Which nodes a loss moves, and which it cannot reach."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from modularml._warning import warn
from modularml.errors import GraphError, LossError, OptimizerNotSetError
from modularml.graph.node import ComputeNode

__all__ = ["Reach", "moving", "no_learner"]


def moving(nodes: Iterable[ComputeNode]) -> list[ComputeNode]:
    """Return nodes that training could change."""
    return [n for n in nodes if n.has_weights and not n.is_frozen]


class Reach:
    """How far gradients go: up the edges, to the border of a segment or a stop within it.

    Parameters
    ----------
    edges : mapping of str to sequence of str
        What each node reads from.
    segments : sequence of sequence of str
    detached : collection of str
        Nodes whose output carries no gradient.
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
        """Return nodes that gradients of the outputs of these reach."""
        found, left = set[str](), list(node_ids)
        while left:
            node_id = left.pop()
            if node_id not in found:
                found.add(node_id)
                left += [a for a in self._above(node_id) if a not in self.detached]
        return found

    def warn(self, by_id: Mapping[str, ComputeNode], unreached: set[str]) -> None:
        """Say which nodes would learn but for an edge to another framework."""
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
    """Return the error that training could change none of some nodes."""
    return GraphError(
        f"nothing can be trained: the nodes {[n.label for n in nodes]} are frozen or have no "
        "weights; unfreeze() one, or run a FitPhase on what learns from all rows at once"
    )


def no_optimizer(nodes: Iterable[ComputeNode]) -> OptimizerNotSetError:
    """Return the error that nodes would learn and nothing moves them."""
    return OptimizerNotSetError(
        f"nodes {[n.label for n in nodes]} learn but have no optimizer; give the graph one, or "
        "each of them"
    )


def no_learner(labels: Sequence[str], nodes: Iterable[ComputeNode]) -> LossError:
    """Return the error that no loss depends on a node that learns."""
    return LossError(
        f"no loss of {list(labels)} depends on a node that learns; apply one on "
        f"{[n.label for n in moving(nodes)]}"
    )
