"""Nodes with weights: whether they are trained, and parameters of several."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from modularml._typing import Shape
from modularml._warning import warn
from modularml.backends import Backend, adapter_for
from modularml.backends.input_shapes import InputShape
from modularml.errors import (
    GraphError,
    LossError,
    OptimizerNotSetError,
)
from modularml.graph.learned import LearnedRows
from modularml.graph.node import ComputeNode
from modularml.models.base import BaseModel, renamed_in_order
from modularml.training import Optimizer

__all__ = ["Reach", "WeightedNode", "no_learner", "trainable"]


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


class WeightedNode(ComputeNode):
    """A node with a model, whose weights may be frozen."""

    _model: BaseModel
    _optimizer: Optimizer | None
    _freeze: bool
    """Whether the user froze it."""
    _held: bool
    """Whether a phase froze it for its duration."""

    @abstractmethod
    def build_model(
        self, input_shape: InputShape | None = None, output_shape: Shape | None = None
    ) -> None:
        """Build the model's layers."""

    @abstractmethod
    def build_optimizer(self) -> None:
        """Build the node's own optimizer."""

    @property
    def model(self) -> BaseModel:
        """The wrapped model."""
        return self._model

    @property
    def backend(self) -> Backend:
        """The framework of the model."""
        return self._model.backend

    @property
    def is_built(self) -> bool:
        """Whether shapes are known and weights exist."""
        return self._model.is_built

    @property
    def is_frozen(self) -> bool:
        """Whether the node is excluded from training."""
        return self._freeze or self._held

    @property
    def learned_from(self) -> LearnedRows:
        """Rows that the weights or the estimator learned from, including before a load."""
        return self._model.learned_from or LearnedRows()

    @property
    def has_weights(self) -> bool:
        """Whether training could change this node."""
        return bool(self.parameters())

    def parameters(self) -> dict[str, Any]:
        """Return the parameters by name that are trainable if the node is not frozen."""
        return adapter_for(self.backend).parameters(self._model.module)

    def move_to(self, device: Any) -> None:
        """Move weights to a device."""
        adapter_for(self.backend).move(self._model.module, device)

    def reset_weights(self, seed: int | None = None) -> None:
        """Reinitialize the weights and reset the optimizer's moments."""
        self._model.reset_weights(seed)
        self._model.learned_from = None
        if self._optimizer is not None:
            self._optimizer.reset()
            self.build_optimizer()

    def load_weights(self, source: Any) -> None:
        """Copy the weights of another node or model; build for its shapes if need be.

        Parameters
        ----------
        source : ModelNode, BaseModel, or dict of str to array
            Such as ``ModelGraph.load("old.mg.mml").get_node("encoder")``. Between two sequences of
            layers the names may differ: weights then go from layer to layer, in order, such as
            ``fc.0.weight`` to ``layers.0.weight``.

        Raises
        ------
        ConfigError, ShapeError
            If names or shapes of weights differ from this model's; nothing is changed then.
        """
        model = source.model if isinstance(source, WeightedNode) else source
        learned = getattr(model, "learned_from", None)
        if isinstance(model, BaseModel):
            if not self.is_built:
                self.build_model(model.input_shape, model.output_shape)
            model = model.get_weights()
        if not isinstance(model, Mapping):
            raise TypeError(f"source must be a node, model or dict of weights, got {source!r}")
        if not self.is_built:
            raise GraphError(f"node {self.label!r} has not been built; call graph.build() first")
        own = self._model.get_weights()
        weights = model if own.keys() == model.keys() else renamed_in_order(own, model)
        self._model.set_weights(dict(weights))
        self._model.learned_from = learned

    def freeze(self) -> None:
        """Exclude the node from training; it then runs in evaluation mode."""
        self._set_frozen(True, self._held)

    def unfreeze(self) -> None:
        """Include the node in training again, once no phase freezes it."""
        self._set_frozen(False, self._held)

    @contextmanager
    def frozen_within(self) -> Iterator[None]:
        """Freeze the node within a block; its own flag and its state are not changed."""
        before = self._held
        self._set_frozen(self._freeze, True)
        try:
            yield
        finally:
            self._set_frozen(self._freeze, before)

    def _set_frozen(self, own: bool, held: bool) -> None:
        self._freeze, self._held = own, held
        if self.is_built:
            adapter_for(self.backend).set_frozen(self._model.module, self.is_frozen)
