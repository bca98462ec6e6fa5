"""The model graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
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
from modularml.graph.edit import unchanged_on_error
from modularml.graph.editing import GraphEditing
from modularml.graph.export import export
from modularml.graph.files import GraphFiles
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode, GraphNode
from modularml.graph.plan import StepPlan
from modularml.graph.plan_key import PlanKey
from modularml.graph.predict import predict
from modularml.graph.running import GraphRunning
from modularml.graph.summary import GraphSummary, draw, summarize
from modularml.io.randomness import process_randomness
from modularml.training import AppliedLoss, Loss, Optimizer
from modularml.viz import Diagram

__all__ = ["ModelGraph"]


class ModelGraph(GraphEditing, GraphRunning, GraphFiles, Configurable, Stateful):
    """A directed acyclic graph of nodes, trained and run as one.

    Parameters
    ----------
    nodes : list of node or label, optional
        By default every graph node of the context.
    optimizer : Optimizer, optional
        Trains all nodes together. Without it each trainable node needs its own optimizer, and
        gradients stop after every node that has a loss.
    label : str
    ctx : ExperimentContext, optional
        By default the active one.
    register : bool
        Whether to register this as the graph of the context.

    Raises
    ------
    GraphError
        If a node occurs twice, the nodes form a cycle, or one reads from a node that is not among
        them.

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
    (1,)
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
        self._warned: set[str] = set()
        self._framework_optimizer: Any = None
        self._losses: dict[str, tuple[Loss, str]] = {}
        self._pending: dict[str, Any] = {"losses": {}, "moments": {}}
        self._nodes: dict[str, ComputeNode] = {}
        with self._ctx.activate():
            candidates = list(self._ctx.available_computenodes.values()) if nodes is None else nodes
            resolved = [self._ctx.get_node(n) if isinstance(n, str) else n for n in candidates]
            self._nodes = self._checked(resolved)
        if register:
            self._ctx.register_model_graph(self)

    def __getstate__(self) -> dict[str, Any]:
        """Drop compiled steps, which are rebuilt on demand."""
        return {**vars(self), "_plans": {}, "_framework_optimizer": None}

    def move_to(self, device: str) -> None:
        """Move weights and moments to a device; nodes with their own accelerator stay.

        Raises
        ------
        DeviceError
            If a framework does not have the device; nothing is moved then.
        """
        self.build()
        devices = {b: adapter_for(b).check_device(device) for b in self._backends()}
        for node in self._learning():
            if node.accelerator is None and node.is_built:
                node.move_to(devices[node.backend])
        for optimizer in [self._optimizer, *(n.optimizer for n in self._learning())]:
            if optimizer is not None and optimizer.is_built:
                optimizer.set_state(optimizer.get_state())
        self._plans.clear()

    # -- build --------------------------------------------------------------------------------

    def build(self, *, force: bool = False) -> None:
        """Infer all shapes, and create all weights and optimizers.

        Parameters
        ----------
        force : bool
            Whether to replace existing weights.

        Raises
        ------
        ShapeError
            If a node does not accept its inputs; the message names both.
        GraphError
            If nodes of several frameworks share one optimizer.

        After an error the graph is unchanged. Nodes that read from an estimator whose output shape
        is unknown before it is fitted are built after the fit.
        """
        if self._built and not force:
            return
        with (
            self._ctx.activate(),
            process_randomness(),
            unchanged_on_error(self._build_targets()),
        ):
            tails = set(topology.tails(self._edges()))
            complete = build_nodes(list(self._nodes.values()), tails, force=force)
            self._build_optimizer(force)
        self._plans.clear()
        self._built = complete

    def get_optimizer_parameters(self) -> dict[str, Any]:
        """Return the parameters of the graph's optimizer.

        Returns
        -------
        dict
            ``backend``, ``contributing_nodes`` (set of node ids) and ``parameters`` (list), or
            ``variables`` in TensorFlow.
        """
        parameters, backend = self._parameters(), self.backend or self._only_backend()
        nodes = [n for n in self._learning() if n.backend is backend and n.is_built]
        ids = {n.node_id for n in nodes if n.parameters()}
        return {
            "backend": self.backend,
            "contributing_nodes": ids,
            adapter_for(backend).moved if parameters else "parameters": list(parameters.values()),
        }

    def freeze(self, nodes: list[str | GraphNode] | None = None) -> None:
        """Exclude nodes from training; all nodes by default."""
        for node in self._model_nodes(nodes):
            node.freeze()

    def unfreeze(self, nodes: list[str | GraphNode] | None = None) -> None:
        """Include nodes in training again; all nodes by default."""
        for node in self._model_nodes(nodes):
            node.unfreeze()

    @contextmanager
    def frozen_within(self, nodes: Iterable[str | GraphNode]) -> Iterator[None]:
        """Freeze nodes within a block; their own flags and states are not changed."""
        with ExitStack() as stack:
            for node in self._model_nodes(list(nodes)):
                stack.enter_context(node.frozen_within())
            yield

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
        """Return the graph's outputs for new or existing rows.

        Parameters
        ----------
        data : FeatureSet, FeatureSetView, DataFrame, dict or ndarray
            Rows of a FeatureSet, or raw columns in its units, to which the recorded scalers are
            applied. Rows of several FeatureSets by label, ``{"windows": rows, "facts": rows}``, are
            joined by the keys of the graph; rows of FeatureSets that are not passed are looked up
            there. Targets are not needed.
        node : GraphNode or str, optional
            Node whose outputs to return; the tail by default.
        batch_size : int, optional
            Rows in one forward pass.
        unscale : bool
            Whether outputs are returned in the units of the node's targets.
        fmt : str
            Any format of `FeatureSet.get_data`. In formats with named columns (``pandas``,
            ``polars``, ``arrow``, ``dict``) these have the names of targets, or of classes for
            scores.
        decode : bool
            Whether classifiers return the label of the most likely class, shape (n, 1), instead of
            scores.
        tags : bool
            Whether the columns are preceded by the tags of the rows and, for rows of a FeatureSet,
            ``sample_uuid``, which is the index of a pandas frame. Tags of new rows are those
            passed.

        Returns
        -------
        ndarray, shape (n, ...), or dict of str to ndarray
            A dict by label if the graph has several tails and no node is named.

        Raises
        ------
        DataError
            If a column that a head node reads is missing.
        """
        with self._ctx_of_run():
            self._warn_of_learned_rows(data)
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

    def export(
        self,
        path: str | Path,
        format: str = "onnx",
        *,
        data: Any = None,
        node: Any | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the graph as one function from raw columns to predictions in their own units.

        The file holds the models and the recorded scalers and encoders of the columns that they
        read, as arithmetic, and runs without this library. Inputs are named after the columns,
        outputs after the targets, and any number of rows can be passed. Rows of several
        FeatureSets must be aligned before.

        Parameters
        ----------
        path : path-like
            With or without its suffix, ``.onnx`` or ``.pt2``.
        format : {"onnx", "torch"}
            An ONNX file, for onnxruntime for example, or a program for `torch.export.load`.
        data : FeatureSet, FeatureSetView, DataFrame or dict, optional
            Rows on which the file is run and compared with `predict` before it is stored; by
            default up to 256 rows of the FeatureSet, if it has rows.
        node : GraphNode or str, optional
            Node whose outputs to export; all tails by default.
        overwrite : bool
            Whether an existing file is replaced.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        BackendNotSupportedError
            If a node is no model of torch.
        ScalerError, DataError, ConfigError
            If a scaler, column or node cannot be exported, or the file gives other numbers than
            `predict` (beyond 1e-5 of the greatest). No file is written then.
        MMLExistsError
            If the file exists and `overwrite` is false.

        Notes
        -----
        The file does not check values: a category that `predict` refuses gives NaN or an error.
        """
        with self._ctx_of_run():
            return export(self, path, format, data=data, node=node, overwrite=overwrite)

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
        """Build a graph and its nodes from a config."""
        nodes = [decode(node) for node in config["nodes"]]
        return cls(nodes, decode(config["optimizer"]), config["label"], register=register)

    def get_state(self) -> dict[str, Any]:
        """Return weights, optimizer moments and frozen flags, by node label.

        The state also holds the parameters of trained losses, by label of the loss.
        """
        losses = self._pending["losses"] | {
            k: loss.get_state() for k, (loss, _) in self._losses.items()
        }
        return {
            "is_built": self._built,
            "nodes": {node.label: node.get_state() for node in self._nodes.values()},
            "optimizer": None if self._optimizer is None else self._optimizer.get_state(),
            **({"losses": losses} if losses else {}),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned.

        Raises
        ------
        UnknownNameError
            If the state has a node that this graph lacks; nothing is changed then.
        ShapeError, ConfigError
            If weights or moments do not fit; nothing is changed then.
        """
        for label in state["nodes"]:
            self.get_node(label)
        if state["is_built"]:
            self.build()
        before = self.get_state() if any(n.is_built for n in self._learning()) else None
        try:
            self._restore_state(state, build=state["is_built"] and not self._built)
        except BaseException:
            if before is not None:
                self._restore_state(before)
            raise

    def _restore_state(self, state: dict[str, Any], *, build: bool = False) -> None:
        for label, node_state in state["nodes"].items():
            self.get_node(label).set_state(node_state)
        if build:  # nodes that waited for an estimator to be fitted
            self.build()
        loss_states = state.get("losses", {})
        for label, (loss, _) in self._losses.items():
            loss.set_state(loss_states.get(label, loss.initial))
        self._pending["losses"] = {k: v for k, v in loss_states.items() if k not in self._losses}
        if self._optimizer is not None and state["optimizer"] is not None:
            if self._optimizer.is_built:
                self._build_optimizer(force=False)
            self._optimizer.set_state(self._without_later(state["optimizer"]))

    def _without_later(self, state: dict[str, Any]) -> dict[str, Any]:
        """Set aside the moments of losses that have not been trained here yet."""
        moments = state.get("moments", {})
        known = {f"losses.{label}." for label in self._losses}
        self._pending["moments"] = {
            name: m
            for name, m in moments.items()
            if name.startswith("losses.") and not any(name.startswith(k) for k in known)
        }
        if not self._pending["moments"]:
            return state
        return {
            **state,
            "moments": {k: m for k, m in moments.items() if k not in self._pending["moments"]},
        }

    def _register_losses(self, losses: Sequence[AppliedLoss]) -> None:
        """Register the parameters of losses to be trained, saved and resumed."""
        for applied in losses:
            node = self.get_node(applied.on)
            if not isinstance(node, ModelNode) or not applied.loss.begin(node.backend):
                continue
            if applied.label in self._pending["losses"]:
                applied.loss.set_state(self._pending["losses"].pop(applied.label))
            self._losses[applied.label] = applied.loss, node.node_id

    # -- display ------------------------------------------------------------------------------

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
        """Draw the nodes, their edges and shapes.

        Edges at which gradients stop are barred: between frameworks and, in a graph without its own
        optimizer, after the nodes that `losses` are applied on.
        """
        shown = {"features": show_features, "targets": show_targets, "tags": show_tags}
        domains = tuple(name for name, is_shown in shown.items() if is_shown)
        no_optimizer = self._optimizer is None
        with self._ctx_of_run():
            return draw(
                self._nodes,
                self.label,
                domains=domains,
                show_frozen=show_frozen,
                show_splits=show_splits,
                detached={self.get_node(a.on).node_id for a in losses if no_optimizer},
            )

    def summary(self) -> GraphSummary:
        """Return a table of nodes, shapes, parameters and optimizers."""
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

    # -- internals ----------------------------------------------------------------------------

    def _warn_of_learned_rows(self, data: Any) -> None:
        """Warn, once, that nodes learned from the rows of a split to predict."""
        experiment = self._ctx.get_experiment()
        off = experiment is not None and experiment.audit == "off"
        if off or not isinstance(data, FeatureSetView):
            return
        if data.label not in data.source.available_splits:
            return
        message = self.taken_for_unseen(data.source, str(data.label))
        if message and message not in self._warned:
            self._warned.add(message)
            warn(message, AuditWarning)

    def _build_targets(self) -> list[Any]:
        """Return all objects whose attributes `build` may change."""
        models = self._learning()
        optimizers = [o for o in (self._optimizer, *(n.optimizer for n in models)) if o is not None]
        return [*self._nodes.values(), *(p for n in models for p in n.model.parts()), *optimizers]

    def _model_nodes(self, nodes: Iterable[str | GraphNode] | None) -> list[ModelNode]:
        selected = self._learning() if nodes is None else [self.get_node(n) for n in nodes]
        return [n for n in selected if isinstance(n, ModelNode)]

    def _build_optimizer(self, force: bool) -> None:
        optimizer = self._optimizer
        if optimizer is None or not (parameters := self._parameters()):
            return
        if force:
            optimizer.reset()
        names = [name for name, *_ in self._all_parameters()]
        owner = f"graph {self.label!r}"
        optimizer.build_for(
            parameters, self._only_backend(), owner, self._framework_optimizer, names
        )
        self._framework_optimizer = optimizer.instance
        if pending := {k: m for k, m in self._pending["moments"].items() if k in parameters}:
            state = optimizer.get_state()
            optimizer.set_state({**state, "moments": {**state["moments"], **pending}})
            self._pending["moments"] = {}
