"""The model graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from modularml._warning import warn
from modularml.audit import AuditWarning
from modularml.config import Configurable, Stateful, decode, encode
from modularml.context import ExperimentContext
from modularml.data.featureset import FeatureSet
from modularml.data.featureset_packing import packed_without_rows
from modularml.data.formats import ARRAY_FORMATS, convert_array
from modularml.data.view import FeatureSetView
from modularml.errors import MMLKindError
from modularml.graph.export import export
from modularml.graph.files import (
    ContextYaml,
    attach_rows,
    check_ties,
    file_state,
    graph_from,
    read_graph,
    set_file_state,
    use_ids,
    use_sets,
    write_graph,
)
from modularml.graph.node import GraphNode
from modularml.graph.predict import format_of, predictions
from modularml.graph.steps import GraphSteps
from modularml.graph.summary import GraphSummary, draw, summarize
from modularml.io import limits
from modularml.io.artifact import read_artifact
from modularml.training import AppliedLoss, Optimizer
from modularml.viz import Diagram


class ModelGraph(GraphSteps, ContextYaml, Configurable, Stateful):
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
    >>> from modularml import FeatureSet, ModelNode, Optimizer
    >>> rows = {"x": np.zeros((4, 3), dtype=np.float32), "y": np.zeros(4, dtype=np.float32)}
    >>> fs = FeatureSet.from_dict("rows", rows, "x", "y")
    >>> graph = ModelGraph([ModelNode("net", nn.Linear(3, 1), fs)], Optimizer("adam"))
    >>> graph.build()
    >>> graph.get_node("net").output_shape
    (1,)
    """

    not_config = frozenset({"ctx", "register"})
    artifact_kind = "mg"
    makes_nodes = True

    def __init__(
        self,
        nodes: list[str | GraphNode] | None,
        optimizer: Optimizer | None = None,
        label: str = "model-graph",
        *,
        ctx: ExperimentContext | None = None,
        register: bool = True,
    ) -> None:
        self._warned: set[str] = set()
        super().__init__(nodes, optimizer, label, ctx)
        if register:
            self._ctx.register_model_graph(self)

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
            form, outputs = format_of(fmt, tags=tags), {}
            for prediction in predictions(
                self, data, node=node, batch_size=batch_size, allow_missing=True
            ):
                values = prediction.values(unscale=unscale, decode=decode)
                if form in ARRAY_FORMATS:
                    outputs[prediction.label] = convert_array(values, form)
                else:
                    columns = prediction.named(values, decode=decode)
                    outputs[prediction.label] = prediction.table(columns, form, tags=tags)
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

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
            "optimizer": encode(self.optimizer),
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
        losses, optimizer = self._shared.get_losses(), self.optimizer
        return {
            "is_built": self._built,
            "nodes": {node.label: node.get_state() for node in self._nodes.values()},
            "optimizer": None if optimizer is None else optimizer.get_state(),
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
        self._shared.restore(state, self)

    # -- files --------------------------------------------------------------------------------

    def save(
        self, filepath: str | Path, *, overwrite: bool = False, package_code: bool = False
    ) -> Path:
        """Write everything that `predict` needs to a file ``name.mg.mml``.

        The file holds nodes, weights and optimizers, and the columns and fitted scalers of each
        FeatureSet that the graph reads, but no rows.

        Raises
        ------
        MMLExistsError
            If the file exists and `overwrite` is false.
        MMLError
            If a part cannot be stored as data, or the file cannot be written.
        """
        check_ties(self)
        refs = [ref for node in self._nodes.values() for ref in node.feature_refs]
        labels = {ref.node_label for ref in refs if self._ctx.has_node(label=ref.node_label)}

        def state() -> dict[str, Any]:
            sets: list[Any] = [self._ctx.get_node(label=label) for label in sorted(labels)]
            featuresets = {
                fs.label: packed_without_rows({**fs.get_state(), "splits": {}}) for fs in sets
            }
            return {**file_state(self), "featuresets": featuresets}

        return write_graph(self, filepath, "mg", self.get_config, state, overwrite, package_code)

    @classmethod
    def load(
        cls,
        filepath: str | Path,
        *,
        allow_packaged_code: bool | str = False,
        overwrite: bool = False,
        custom_objects: Mapping[str, Any] | None = None,
        allow_import: Iterable[str] = (),
    ) -> Self:
        """Read a graph and its nodes from a file of a graph, or from that of an experiment.

        Parameters
        ----------
        filepath : path-like
            With or without its suffix. Of an experiment, phases, callbacks and history are not
            built, so their classes may be missing.
        allow_packaged_code : bool or str
            Whether code that the author packaged may run; see `BaseModel.load`.
        overwrite : bool
            Whether nodes with the same ids or labels, and the graph of the active context, are
            replaced. If not, the loaded graph gets a context of its own on a conflict.
        custom_objects, allow_import
            How your own classes are found; see `BaseModel.load`.

        Notes
        -----
        The graph reads from FeatureSets of the active context with the same labels; a warning names
        each whose scalers differ from those in the file. The others are created from the file: they
        have columns and scalers, so `predict` works, but no rows until `attach`.

        Raises
        ------
        MMLError
            If the file is damaged, newer, or of another kind. Nothing is changed then.
        """
        contents = read_graph(filepath, allow_packaged_code, custom_objects, allow_import)
        ctx = ExperimentContext.get_active()
        use_ids(contents, ctx, overwrite)
        with contents.building(), ctx.beside(overwrite=overwrite, see_sets=True) as beside:
            state = contents.state()
            use_sets(state.get("featuresets", {}), contents.ids, beside)
            config = contents.config
            if contents.type == "Experiment":
                config, state = config["model_graph"]["params"], state["model_graph"]
            graph: Self = graph_from(cls, config, contents.ids)
            set_file_state(graph, state)
        return graph

    def attach(self, *sets: FeatureSet) -> None:
        """Attach rows, which the file of a graph does not hold; see `FeatureSet.attach`."""
        attach_rows(self._ctx, sets)

    def save_checkpoint(
        self, filepath: str | Path, *, overwrite: bool = False, meta: dict[str, Any] | None = None
    ) -> Path:
        """Write weights and optimizers to a file ``name.ckpt.mml``.

        Parameters
        ----------
        filepath : path-like
        overwrite : bool
        meta : dict, optional
            Plain data of your own, stored with the checkpoint.
        """
        config = {"label": self.label, "meta": dict(meta or {})}
        return write_graph(
            self, filepath, "ckpt", lambda: config, partial(file_state, self), overwrite
        )

    def restore_checkpoint(self, filepath: str | Path) -> Self:
        """Restore a checkpoint of a graph, or of its experiment, matching nodes by label.

        Returns this graph.

        Raises
        ------
        MMLError
            If the file is damaged or belongs to another graph. Nothing is changed then.
        """
        contents = read_artifact(filepath, "ckpt")
        with contents.building():
            state = contents.state()
            state = state["model_graph"] if contents.type == "Experiment" else state
        if contents.type not in ("ModelGraph", "Experiment") or state is None:
            problem = f"is a checkpoint of an {contents.type} without a ModelGraph"
            raise MMLKindError(limits.OTHER_KIND, contents.path, "", problem)
        with contents.building():
            self.set_state({**state, "is_built": True})
        return self

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
        no_optimizer = self.optimizer is None
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
            losses = {label: loss for label, (loss, _) in self._shared.losses.items()}
            return summarize(self.label, self._nodes, self.optimizer, losses)

    def __repr__(self) -> str:
        nodes = ", ".join(node.label for node in self._nodes.values())
        return f"ModelGraph({self.label!r}: {nodes}; optimizer={self.optimizer!r})"

    def _repr_html_(self) -> str:
        return self.visualize()._repr_html_()

    __eq__ = object.__eq__
    __hash__ = object.__hash__

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
