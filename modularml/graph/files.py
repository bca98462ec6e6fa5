"""Saving and loading of graphs, and their checkpoints."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self

from modularml._warning import warn
from modularml.config import decode
from modularml.context import ExperimentContext
from modularml.data import FeatureSet
from modularml.data.packing import packed_without_rows, scalers_fingerprint, unpacked
from modularml.errors import (
    ConfigError,
    MMLKindError,
    MMLNotFoundError,
    ModularMLError,
    UnknownNameError,
    expect,
)
from modularml.io import limits
from modularml.io.artifact import Contents, YamlMixin, read_artifact, write_artifact
from modularml.training import Optimizer

__all__ = ["ContextYaml", "GraphFiles", "attach_rows", "graph_from", "use_ids"]


class ContextYaml(YamlMixin):
    """YAML of objects that refer to nodes, by label, resolved in the active context."""

    @classmethod
    def _yaml_scope(
        cls, obj: Any = None
    ) -> tuple[Mapping[str, str], Mapping[str, str], AbstractContextManager[Any]]:
        ctx: ExperimentContext = getattr(obj, "_ctx", None) or ExperimentContext.get_active()
        labels = {node_id: node.label for node_id, node in ctx.available_nodes.items()}
        nodes = ctx.available_featuresets if cls.makes_nodes else ctx.available_nodes
        ids = {node.label: node_id for node_id, node in nodes.items()}
        return labels, ids, ctx.beside(see_sets=True) if cls.makes_nodes else nullcontext()


class GraphFiles(ContextYaml):
    """`save`, `load` and checkpoints of a `ModelGraph`."""

    artifact_kind = "mg"
    makes_nodes = True
    _ctx: ExperimentContext
    _nodes: dict[str, Any]
    _optimizer: Optimizer | None
    label: str

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
        self._check_ties()  # type: ignore[attr-defined]
        config: Any = self.get_config  # type: ignore[attr-defined]
        refs = [ref for node in self._nodes.values() for ref in node.feature_refs]
        labels = {ref.node_label for ref in refs if self._ctx.has_node(label=ref.node_label)}

        def state() -> dict[str, Any]:
            sets: list[Any] = [self._ctx.get_node(label=label) for label in sorted(labels)]
            featuresets = {
                fs.label: packed_without_rows({**fs.get_state(), "splits": {}}) for fs in sets
            }
            return {**self._file_state(), "featuresets": featuresets}

        return self._write(filepath, "mg", config, overwrite, package_code, state)

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
        trusted = allow_packaged_code, custom_objects, allow_import
        try:
            contents = read_artifact(filepath, "mg", *trusted)
        except (MMLKindError, MMLNotFoundError) as error:
            try:
                contents = read_artifact(filepath, "exp", *trusted)
            except (MMLKindError, MMLNotFoundError):
                raise error from None
        ctx = ExperimentContext.get_active()
        use_ids(contents, ctx, overwrite)
        with contents.building(), ctx.beside(overwrite=overwrite, see_sets=True) as beside:
            state = contents.state()
            for label, data in state.get("featuresets", {}).items():
                _use_set(label, unpacked(data), contents.ids[label], beside)
            config, state = _graph_of(contents, state)
            graph: Self = graph_from(cls, config, contents.ids)
            graph._set_file_state(state)
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
        return self._write(filepath, "ckpt", lambda: config, overwrite)

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
            self._restore(state)
        return self

    def _check_storable(self) -> None:
        """Refuse models that a checkpoint cannot hold, as far as known before training.

        Raises
        ------
        ConfigError
            With the node, its model and a remedy.
        """
        graph: Any = self
        for node in graph._learning():
            try:
                node.model.check_storable()
            except ModularMLError as error:
                raise ConfigError(
                    f"this run writes checkpoints, which cannot hold the {node.model.shown_name} "
                    f"of node {node.label!r}: {error}. Use another model, or run without "
                    "checkpoints on disk (Checkpointing(mode='memory')) and with n_jobs=1"
                ) from error

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state; on an error the graph is unchanged."""
        self.set_state({**state, "is_built": True})  # type: ignore[attr-defined]

    def _write(
        self,
        filepath: str | Path,
        kind: str,
        config: Any,
        overwrite: bool,
        package_code: bool = False,
        state: Callable[[], Any] | None = None,
    ) -> Path:
        return write_artifact(
            filepath,
            kind,
            "ModelGraph",
            config,
            state or self._file_state,
            overwrite=overwrite,
            ids={i: node.label for i, node in self._nodes.items()},
            others={i: fs.label for i, fs in self._ctx.available_featuresets.items()},
            facts={"backends": self._file_backends()},
            package_code=package_code,
        )

    def _file_backends(self) -> dict[str, str]:
        return {n.label: n.backend.value for n in self._nodes.values() if hasattr(n, "backend")}

    def _file_state(self) -> dict[str, Any]:
        graph: Any = self
        if any(n.model.has_own_weights and not n.is_built for n in graph._learning()):
            graph.build()  # else their weights would be lost
        state: dict[str, Any] = graph.get_state()
        if shared := graph._shared():
            state["shared"] = [list(pair) for pair in shared]
        models = [node["model"] for node in state["nodes"].values() if "model" in node]
        return {**state, "is_built": bool(models) and all(models)}

    def _set_file_state(self, state: Mapping[str, Any]) -> None:
        """Restore weights with their shapes, so that no rows are needed."""
        graph: Any = self
        graph._restore_state(state)
        graph._tie(state.get("shared", ()))
        refs = [ref for node in self._nodes.values() for ref in node.feature_refs]
        available = {fs.label for fs in self._ctx.available_featuresets.values()}
        if state["is_built"] and all(ref.node_label in available for ref in refs):
            graph.build()


def _graph_of(contents: Contents, state: Any) -> tuple[Any, Any]:
    """Return config and state of the graph in a file."""
    if contents.type != "Experiment":
        return contents.config, state
    if contents.config["model_graph"] is None:
        raise MMLKindError(limits.OTHER_KIND, contents.path, "", "is an experiment without a graph")
    return contents.config["model_graph"]["params"], state["model_graph"]


def use_ids(contents: Contents, ctx: ExperimentContext, overwrite: bool) -> None:
    """Assign free ids to the nodes of a file, and those of existing FeatureSets."""
    existing = {fs.label: node_id for node_id, fs in ctx.available_featuresets.items()}
    created = {label: str(uuid.uuid4()) for label in contents.part("featuresets")}
    contents.ids = {**ctx.free_ids(contents.ids, overwrite=overwrite), **created, **existing}
    contents.use_ids(contents.ids)


def _use_set(label: str, state: dict[str, Any], node_id: str, ctx: ExperimentContext) -> None:
    """Use the FeatureSet of this label, or create one from the file's columns."""
    if not ctx.has_node(node_id=node_id):
        FeatureSet(label, state["collection"], node_id=node_id).set_state(state)
        return
    existing: Any = ctx.get_node(node_id=node_id)
    if scalers_fingerprint(existing.scaler_records) != scalers_fingerprint(state["scaler_records"]):
        warn(
            f"the scalers of FeatureSet {label!r} differ from those that the graph was saved "
            "with, and predictions use the current ones. Load the graph in a context without "
            "this FeatureSet to use those of the file"
        )


def attach_rows(ctx: ExperimentContext, sets: Iterable[FeatureSet]) -> None:
    """Attach rows to the FeatureSets of a context that lack them, by label.

    Raises
    ------
    UnknownNameError
        If no FeatureSet of that label lacks rows. Nothing is changed then.
    DataError
        If the rows are not those that were omitted.
    """
    without_rows = {s.label: s for s in ctx.available_featuresets.values() if not s.has_rows}
    for fs in sets:
        if expect("sets", fs, FeatureSet, "FeatureSets").label not in without_rows:
            raise UnknownNameError("FeatureSet without rows", fs.label, without_rows)
    for fs in sets:
        without_rows[fs.label].attach(fs)


def graph_from(cls: Any, config: Mapping[str, Any], ids: Mapping[str, str]) -> Any:
    """Build a graph and its nodes in the active context, with ids by label."""
    nodes = []
    for tree in config["nodes"]:
        params = tree["params"]
        node_id = ids.get(params["label"])
        nodes.append(decode({**tree, "params": {**params, "node_id": node_id}}))
    return cls(nodes, decode(config["optimizer"]), config["label"])
