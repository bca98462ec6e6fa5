"""The model graph: a directed acyclic graph of nodes that trains as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from modularml._warning import warn
from modularml.audit import AuditWarning
from modularml.backends import adapter_for
from modularml.config import Configurable, Stateful, decode, encode
from modularml.context import ExperimentContext
from modularml.data import FeatureSetView
from modularml.errors import ConfigError
from modularml.graph import topology
from modularml.graph.build import build_nodes
from modularml.graph.draw import draw
from modularml.graph.edit import unchanged_on_error
from modularml.graph.editing import GraphEditing
from modularml.graph.files import GraphFiles
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode, GraphNode
from modularml.graph.plan import StepPlan
from modularml.graph.plan_key import PlanKey
from modularml.graph.predict import predict
from modularml.graph.running import GraphRunning
from modularml.graph.summary import GraphSummary, summarize
from modularml.training import AppliedLoss, Loss, Optimizer
from modularml.viz import Diagram

__all__ = ["ModelGraph"]


class ModelGraph(GraphEditing, GraphRunning, GraphFiles, Configurable, Stateful):
    """Nodes wired into one graph.

    Parameters
    ----------
    nodes : list of node or label, optional
        None takes every graph node of the context.
    optimizer : Optimizer, optional
        Moves all nodes together. Without it each node that learns needs one of its own, and
        gradients stop behind every node that has a loss of its own.
    label : str
    ctx : ExperimentContext, optional
        The active one where none is given.
    register : bool
        Whether to become the graph of the context.

    Raises
    ------
    GraphError
        If nodes are given twice, read from each other in a circle, or read from a node that is
        not among them.

    Examples
    --------
    >>> import numpy as np
    >>> from torch import nn
    >>> from modularml import FeatureSet
    >>> rows = {"x": np.zeros((4, 3), dtype=np.float32), "y": np.zeros(4, dtype=np.float32)}
    >>> fs = FeatureSet.from_dict("rows", rows, "x", "y")
    >>> graph = ModelGraph([ModelNode("net", nn.Linear(3, 1), fs)], Optimizer("adam"))
    >>> graph.build()
    >>> graph.get_node("net").output_shape
    (1, 1)
    """

    not_config = frozenset({"ctx", "register"})

    def __init__(
        self,
        nodes: list[str | GraphNode] | None,
        optimizer: Optimizer | None = None,
        label: str = "model-graph",
        *,
        ctx: ExperimentContext | None = None,
        register: bool = True,
    ) -> None:
        self._ctx = ctx or ExperimentContext.get_active()
        self.label = label
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"optimizer must be an Optimizer, got {optimizer!r}; write Optimizer('adam')"
            )
        self._optimizer = optimizer
        self._plans: dict[Any, tuple[PlanKey, StepPlan, Callable[..., Any]]] = {}
        self._built = False
        self._said: set[str] = set()
        self._drives: Any = None
        self._losses: dict[str, tuple[Loss, str]] = {}
        self._later: dict[str, Any] = {"losses": {}, "moments": {}}
        self._nodes: dict[str, ComputeNode] = {}
        with self._ctx.activate():
            given = list(self._ctx.available_computenodes.values()) if nodes is None else nodes
            found = [self._ctx.get_node(n) if isinstance(n, str) else n for n in given]
            self._nodes = self._checked(found)
        if register:
            self._ctx.register_model_graph(self)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out compiled steps, which are made again where they are needed."""
        return {**vars(self), "_plans": {}, "_drives": None}

    def move_to(self, device: str) -> None:
        """Move weights and moments to a device; nodes with an accelerator of their own stay.

        Raises
        ------
        DeviceError
            If a framework does not find it; nothing is moved then.
        """
        self.build()
        places = {b: adapter_for(b).check_device(device) for b in self._backends()}
        for node in self._learning():
            if node.accelerator is None and node.is_built:
                node.move_to(places[node.backend])
        for optimizer in [self._optimizer, *(n.optimizer for n in self._learning())]:
            if optimizer is not None and optimizer.is_built:
                optimizer.set_state(optimizer.get_state())
        self._plans.clear()

    # -- build --------------------------------------------------------------------------------

    def build(self, *, force: bool = False) -> None:
        """Find all shapes, make all weights and optimizers.

        Parameters
        ----------
        force : bool
            Whether to make new weights where there are some.

        Raises
        ------
        ShapeError
            If a node cannot take what it reads; both are named.
        GraphError
            If nodes of several frameworks share one optimizer.

        The graph is as it was after an error. What reads from an estimator whose outputs have no
        shape before it is fitted is built once that is so.
        """
        if self._built and not force:
            return
        with self._ctx.activate(), unchanged_on_error(self._made_by_building()):
            tails = set(topology.tails(self._edges()))
            complete = build_nodes(list(self._nodes.values()), tails, force=force)
            self._build_optimizer(force)
        self._plans.clear()
        self._built = complete

    def get_optimizer_parameters(self) -> dict[str, Any]:
        """Return what the graph's optimizer moves.

        Returns
        -------
        dict
            ``backend``, ``contributing_nodes`` (set of node ids) and ``parameters`` (list), which
            are ``variables`` in TensorFlow.
        """
        named, backend = self._parameters(), self.backend or self._only_backend()
        nodes = [n for n in self._learning() if n.backend is backend and n.is_built]
        ids = {n.node_id for n in nodes if n.parameters()}
        return {
            "backend": self.backend,
            "contributing_nodes": ids,
            adapter_for(backend).moved if named else "parameters": list(named.values()),
        }

    def freeze(self, nodes: list[str | GraphNode] | None = None) -> None:
        """Keep nodes as they are from now on; all of them where none are named."""
        for node in self._model_nodes(nodes):
            node.freeze()

    def unfreeze(self, nodes: list[str | GraphNode] | None = None) -> None:
        """Let training change nodes again; all of them where none are named."""
        for node in self._model_nodes(nodes):
            node.unfreeze()

    def predict(
        self,
        data: Any,
        *,
        node: Any | None = None,
        batch_size: int | None = None,
        unscale: bool = True,
        fmt: str = "numpy",
        decode: bool = False,
        tags: bool = False,
    ) -> Any:
        """Return the graph's outputs for new or known rows.

        Parameters
        ----------
        data : FeatureSet, FeatureSetView, DataFrame, dict or ndarray
            Rows of a known set, or raw columns in its units: the recorded scalers are applied.
            Rows of several sets by label, ``{"windows": rows, "facts": rows}``, are joined by the
            keys of the graph; those of a set that is not given are looked up in it.
            Targets are not needed.
        node : GraphNode or str, optional
            Whose outputs; the tail's where none is given.
        batch_size : int, optional
            Rows in one forward pass.
        unscale : bool
            Whether outputs come back in the units of the node's targets.
        fmt : str
            Any format of `FeatureSet.get_data`. Those with named columns (``pandas``, ``polars``,
            ``arrow``, ``dict``) name them after the targets, or the classes that they score.
        decode : bool
            Whether classifiers return the label of the most likely class, shape (n, 1), in place
            of scores.
        tags : bool
            Whether named columns have the tags of the rows before them, and ``sample_uuid``, the
            index of a pandas frame, where the rows are of a FeatureSet. Tags of new rows are those
            that were given.

        Returns
        -------
        ndarray, shape (n, ...), or dict of str to ndarray
            By label where the graph has several tails and no node is named.

        Raises
        ------
        DataError
            If a column that a head node reads is missing.
        """
        with self._ctx_of_run():
            self._warn_of_known(data)
            return predict(
                self,
                data,
                node=node,
                batch_size=batch_size,
                unscale=unscale,
                fmt=fmt,
                decode=decode,
                tags=tags,
            )

    # -- config and state ---------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Return label, nodes and optimizer as plain data; weights are state."""
        return {
            "label": self.label,
            "nodes": [encode(node) for node in self._nodes.values()],
            "optimizer": encode(self._optimizer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], *, register: bool = True) -> ModelGraph:
        """Make a graph, and its nodes, from a config."""
        nodes = [decode(node) for node in config["nodes"]]
        return cls(nodes, decode(config["optimizer"]), config["label"], register=register)

    def get_state(self) -> dict[str, Any]:
        """Return weights, optimizer moments and what is frozen, by node label.

        Parameters of losses that have been trained are there too, by the label of the loss.
        """
        losses = self._later["losses"] | {
            k: own.get_state() for k, (own, _) in self._losses.items()
        }
        return {
            "is_built": self._built,
            "nodes": {node.label: node.get_state() for node in self._nodes.values()},
            "optimizer": None if self._optimizer is None else self._optimizer.get_state(),
            **({"losses": losses} if losses else {}),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to what `get_state` returned.

        Raises
        ------
        UnknownNameError
            If the state has a node that this graph has not; nothing is changed then.
        ShapeError, ConfigError
            If weights or moments do not fit; nothing is changed then.
        """
        for label in state["nodes"]:
            self.get_node(label)
        if state["is_built"]:
            self.build()
        before = self.get_state() if any(n.is_built for n in self._learning()) else None
        try:
            self._take(state, build=state["is_built"] and not self._built)
        except BaseException:
            if before is not None:
                self._take(before)
            raise

    def _take(self, state: dict[str, Any], *, build: bool = False) -> None:
        for label, own in state["nodes"].items():
            self.get_node(label).set_state(own)
        if build:  # what waited for an estimator that has been fitted by now
            self.build()
        given = state.get("losses", {})
        for label, (loss, _) in self._losses.items():
            loss.set_state(given.get(label, loss.initial))
        self._later["losses"] = {k: v for k, v in given.items() if k not in self._losses}
        if self._optimizer is not None and state["optimizer"] is not None:
            if self._optimizer.is_built:
                self._build_optimizer(force=False)
            self._optimizer.set_state(self._without_later(state["optimizer"]))

    def _without_later(self, state: dict[str, Any]) -> dict[str, Any]:
        """Put moments of losses that have not been trained here aside until they are."""
        moments = state.get("moments", {})
        known = {f"losses.{label}." for label in self._losses}
        self._later["moments"] = {
            name: m
            for name, m in moments.items()
            if name.startswith("losses.") and not any(name.startswith(k) for k in known)
        }
        if not self._later["moments"]:
            return state
        return {
            **state,
            "moments": {k: m for k, m in moments.items() if k not in self._later["moments"]},
        }

    def _take_up_losses(self, losses: Sequence[AppliedLoss]) -> None:
        """Have parameters that losses themselves have be moved, saved and resumed."""
        for applied in losses:
            node = self.get_node(applied.on)
            if not isinstance(node, ModelNode) or not applied.loss.begin(node.backend):
                continue
            if applied.label in self._later["losses"]:
                applied.loss.set_state(self._later["losses"].pop(applied.label))
            self._losses[applied.label] = applied.loss, node.node_id

    # -- how it shows itself ------------------------------------------------------------------

    def visualize(
        self,
        *,
        show_features: bool = False,
        show_targets: bool = False,
        show_tags: bool = False,
        show_frozen: bool = True,
        show_splits: bool = False,
        losses: Iterable[AppliedLoss] = (),
    ) -> Diagram:
        """Draw nodes, what they read and the shapes on the way.

        Where gradients stop an edge is barred: where frameworks meet and, in a graph without an
        optimizer of its own, behind the nodes that `losses` are applied on.
        """
        asked = {"features": show_features, "targets": show_targets, "tags": show_tags}
        domains = tuple(name for name, wanted in asked.items() if wanted)
        alone = self._optimizer is None
        with self._ctx_of_run():
            return draw(
                self._nodes,
                self.label,
                domains=domains,
                show_frozen=show_frozen,
                show_splits=show_splits,
                detached={self.get_node(a.on).node_id for a in losses if alone},
            )

    def summary(self) -> GraphSummary:
        """Return a table of nodes, shapes, parameters and who learns."""
        with self._ctx_of_run():
            losses = {label: loss for label, (loss, _) in self._losses.items()}
            return summarize(self.label, self._nodes, self._optimizer, losses)

    def __repr__(self) -> str:
        nodes = ", ".join(node.label for node in self._nodes.values())
        return f"ModelGraph({self.label!r}: {nodes}; optimizer={self._optimizer!r})"

    def _repr_html_(self) -> str:
        return self.visualize()._repr_html_()

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    # -- within -------------------------------------------------------------------------------

    def _warn_of_known(self, data: Any) -> None:
        """Warn, once, that a split to predict is taken for new though nodes learned from it."""
        experiment = self._ctx.get_experiment()
        off = experiment is not None and experiment.audit == "off"
        if off or not isinstance(data, FeatureSetView):
            return
        if data.label not in data.source.available_splits:
            return
        said = self.taken_for_unseen(data.source, str(data.label))
        if said and said not in self._said:
            self._said.add(said)
            warn(said, AuditWarning)

    def _made_by_building(self) -> list[Any]:
        """Return everything whose attributes `build` may change."""
        models = self._learning()
        optimizers = [o for o in (self._optimizer, *(n.optimizer for n in models)) if o is not None]
        return [*self._nodes.values(), *(p for n in models for p in n.model.parts()), *optimizers]

    def _model_nodes(self, nodes: Iterable[str | GraphNode] | None) -> list[ModelNode]:
        found = self._learning() if nodes is None else [self.get_node(n) for n in nodes]
        return [n for n in found if isinstance(n, ModelNode)]

    def _build_optimizer(self, force: bool) -> None:
        optimizer = self._optimizer
        if optimizer is None or not (named := self._parameters()):
            return
        if force:
            optimizer.reset()
        names = [name for name, *_ in self._all_parameters()]
        owner = f"graph {self.label!r}"
        optimizer.build_for(named, self._only_backend(), owner, self._drives, names)
        self._drives = optimizer.instance
        if late := {k: m for k, m in self._later["moments"].items() if k in named}:
            state = optimizer.get_state()
            optimizer.set_state({**state, "moments": {**state["moments"], **late}})
            self._later["moments"] = {}
