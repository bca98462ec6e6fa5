"""The optimizer of a graph, and the losses with parameters that it trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from modularml.backends import Backend, adapter_for
from modularml.errors import GraphError, LossError
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode
from modularml.graph.node_graph import NodeGraph
from modularml.graph.weighted_node import learners, no_optimizer, nothing_learns, trainable
from modularml.training import AppliedLoss, Loss, Optimizer


class SharedOptimizer:
    """The optimizer of a graph, if it has one, and the losses that are trained in it.

    Parameters
    ----------
    optimizer : Optimizer or None
    """

    def __init__(self, optimizer: Optimizer | None) -> None:
        self.optimizer = optimizer
        self.losses: dict[str, tuple[Loss, str]] = {}
        """Losses with parameters that have been trained, and their node ids, by label."""
        self._framework_optimizer: Any = None
        # states of losses, and moments of their parameters, that have not been trained here yet
        self._later: dict[str, dict[str, Any]] = {"losses": {}, "moments": {}}

    def __getstate__(self) -> dict[str, Any]:
        """Drop the framework's optimizer, which is rebuilt on demand."""
        return {**vars(self), "_framework_optimizer": None}

    def backend(self, nodes: Iterable[ComputeNode]) -> Backend:
        """Return the framework of the optimizer, or else that of the nodes without their own."""
        known = None if self.optimizer is None else self.optimizer.backend
        return known or only_backend(nodes)

    def parameters(self, nodes: Sequence[ComputeNode]) -> dict[str, Any]:
        """Return the parameters of the optimizer by name, shared ones once.

        Parameters that are no longer trainable stay in the optimizer, with their moments, as long
        as a model has them.
        """
        held = set() if self.optimizer is None else self.optimizer.held
        return {name: p for name, p, moves in self._all_of(nodes) if moves or id(p) in held}

    def build(self, graph: NodeGraph, *, force: bool = False) -> None:
        """Build the optimizer for a graph, or add new parameters to it."""
        optimizer, nodes = self.optimizer, list(graph._nodes.values())
        if optimizer is None or not (parameters := self.parameters(nodes)):
            return
        if force:
            optimizer.reset()
        names = [name for name, *_ in self._all_of(nodes)]
        backend, owner = only_backend(nodes), f"graph {graph.label!r}"
        optimizer.build_for(parameters, backend, owner, self._framework_optimizer, names)
        self._framework_optimizer = optimizer.instance
        if later := {k: m for k, m in self._later["moments"].items() if k in parameters}:
            state = optimizer.get_state()
            optimizer.set_state({**state, "moments": {**state["moments"], **later}})
            self._later["moments"] = {}

    def of_nodes(
        self,
        nodes: Sequence[ComputeNode],
        losses: Sequence[tuple[AppliedLoss, ComputeNode]],
        only: ModelNode | None,
        graph: NodeGraph,
    ) -> dict[str, Optimizer]:
        """Return the optimizer of each trainable node, by id; with `only`, that node's own.

        Parameters of the losses, each with its node, are registered to be trained, saved and
        resumed; the optimizer is built for all nodes of its graph.
        """
        if not losses:
            raise LossError("training needs at least one loss; pass losses=[AppliedLoss(...)]")
        learning = [n for n in trainable(nodes) if isinstance(n, ModelNode)]
        if not learning and not learners(nodes, ()):
            raise nothing_learns(nodes)
        for applied, node in losses:
            if isinstance(node, ModelNode) and applied.loss.begin(node.backend):
                if applied.label in self._later["losses"]:
                    applied.loss.set_state(self._later["losses"].pop(applied.label))
                self.losses[applied.label] = applied.loss, node.node_id
        shared = None if only is not None else self.optimizer
        if only is not None:
            learning = [only]
        elif shared is not None:
            self.build(graph)
        backend = None if shared is None else self.backend(graph._nodes.values())
        optimizers: dict[str, Optimizer] = {}
        for node in learning:
            by_graph = node.backend is backend
            optimizer = shared if by_graph else node.optimizer
            if optimizer is not None:
                optimizers[node.node_id] = optimizer
            if optimizer is not None and not by_graph:
                own = [(k, loss) for k, (loss, on) in self.losses.items() if on == node.node_id]
                node.build_optimizer(
                    {f"losses.{k}.{n}": p for k, loss in own for n, p in loss.parameters().items()}
                )
        if missing := [n for n in learning if n.node_id not in optimizers]:
            raise no_optimizer(missing)
        return optimizers

    def get_losses(self) -> dict[str, Any]:
        """Return the states of trained losses by label."""
        return self._later["losses"] | {k: loss.get_state() for k, (loss, _) in self.losses.items()}

    def restore(self, state: dict[str, Any], graph: NodeGraph) -> None:
        """Restore the ``losses`` and the ``optimizer`` of the state of a graph."""
        losses = state.get("losses", {})
        for label, (loss, _) in self.losses.items():
            loss.set_state(losses.get(label, loss.initial))
        self._later["losses"] = {k: v for k, v in losses.items() if k not in self.losses}
        if self.optimizer is None or state["optimizer"] is None:
            return
        if self.optimizer.is_built:
            self.build(graph)
        saved = state["optimizer"]
        moments = saved.get("moments", {})
        known = tuple(f"losses.{label}." for label in self.losses)
        later = {
            name: m
            for name, m in moments.items()
            if name.startswith("losses.") and not name.startswith(known)
        }
        self._later["moments"] = later
        if later:
            saved = {**saved, "moments": {k: m for k, m in moments.items() if k not in later}}
        self.optimizer.set_state(saved)

    def _all_of(self, nodes: Sequence[ComputeNode]) -> Iterator[tuple[str, Any, bool]]:
        """Iterate over (name, parameter, trainable) of the optimizer's framework."""
        seen = set[int]()
        backend = self.backend(nodes)
        for node in nodes:
            if not isinstance(node, ModelNode) or node.backend is not backend or not node.is_built:
                continue
            moving = {id(p) for p in node.parameters().values()}
            for name, p in adapter_for(backend).all_parameters(node.model.module).items():
                if id(p) not in seen:
                    seen.add(id(p))
                    yield f"{node.label}.{name}", p, id(p) in moving
        for label, (loss, _) in self.losses.items():
            for name, p in loss.parameters().items():
                yield f"losses.{label}.{name}", p, True


def only_backend(nodes: Iterable[ComputeNode]) -> Backend:
    """Return the framework of the nodes that an optimizer of all could train.

    Raises
    ------
    GraphError
        If nodes of several frameworks need it, having no optimizer of their own.
    """
    models = [n for n in nodes if isinstance(n, ModelNode) and adapter_for(n.backend).gradients]
    if len({n.backend for n in models}) > 1:
        models = [n for n in models if n.optimizer is None]
    backends = {n.backend: n.label for n in models}
    if len(backends) > 1:
        shown = ", ".join(f"{label}: {b.value}" for b, label in backends.items())
        raise GraphError(
            f"nodes of several frameworks share one optimizer ({shown}), which can train only "
            "one framework; give the nodes of the others their own optimizers"
        )
    return next(iter(backends), Backend.NONE)
