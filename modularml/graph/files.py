"""Files of graphs: their state, nodes, ids and FeatureSets."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from modularml._warning import warn
from modularml.backends import BackendAdapter, adapter_for
from modularml.config import decode
from modularml.context import ExperimentContext
from modularml.data.featureset import FeatureSet
from modularml.data.featureset_packing import scalers_fingerprint, unpacked
from modularml.errors import (
    ConfigError,
    MMLKindError,
    MMLNotFoundError,
    ModularMLError,
    UnknownNameError,
    expect,
)
from modularml.graph.model_node import ModelNode
from modularml.graph.steps import GraphSteps
from modularml.io import limits
from modularml.io.artifact import Contents, YamlMixin, read_artifact, write_artifact


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


def check_storable(graph: GraphSteps) -> None:
    """Refuse models that a checkpoint cannot hold, as far as known before training.

    Raises
    ------
    ConfigError
        With the node, its model and a remedy.
    """
    for node in graph._learning():
        try:
            node.model.check_storable()
        except ModularMLError as error:
            raise ConfigError(
                f"this run writes checkpoints, which cannot hold the {node.model.shown_name} "
                f"of node {node.label!r}: {error}. Use another model, or run without "
                "checkpoints on disk (Checkpointing(mode='memory')) and with n_jobs=1"
            ) from error


def file_backends(graph: GraphSteps) -> dict[str, str]:
    """Return the framework of each node by label."""
    return {n.label: n.backend.value for n in graph._nodes.values() if hasattr(n, "backend")}


def file_state(graph: Any) -> dict[str, Any]:
    """Return the state of a graph for a file; weights passed with models are built first."""
    if any(n.model.has_own_weights and not n.is_built for n in graph._learning()):
        graph.build()  # else their weights would be lost
    state: dict[str, Any] = graph.get_state()
    if shared := [p for adapter, modules in _by_backend(graph) for p in adapter.shared(modules)]:
        state["shared"] = [list(pair) for pair in shared]
    models = [node["model"] for node in state["nodes"].values() if "model" in node]
    return {**state, "is_built": bool(models) and all(models)}


def set_file_state(graph: Any, state: Mapping[str, Any]) -> None:
    """Restore weights with their shapes, so that no rows are needed."""
    graph._restore_state(state)
    for label, name, other, other_name in state.get("shared", ()):
        first, second = (graph.get_node(x) for x in (label, other))
        if isinstance(first, ModelNode) and isinstance(second, ModelNode):
            adapter = adapter_for(first.backend)
            adapter.tie(first.model.module, name, second.model.module, other_name)
    refs = [ref for node in graph._nodes.values() for ref in node.feature_refs]
    available = {fs.label for fs in graph._ctx.available_featuresets.values()}
    if state["is_built"] and all(ref.node_label in available for ref in refs):
        graph.build()


def check_ties(graph: GraphSteps) -> None:
    """Refuse shared weights that files cannot restore; see `BackendAdapter.check_ties`."""
    for adapter, modules in _by_backend(graph):
        adapter.check_ties(modules)


def _by_backend(graph: GraphSteps) -> Iterator[tuple[BackendAdapter, dict[str, Any]]]:
    """Iterate over frameworks, each with the modules of its nodes by label."""
    for backend in sorted(graph._backends(), key=lambda b: b.value):
        modules = {n.label: n.model.module for n in graph._learning() if n.backend is backend}
        yield adapter_for(backend), modules


def write_graph(
    graph: GraphSteps,
    filepath: str | Path,
    kind: str,
    config: Callable[[], Any],
    state: Callable[[], Any],
    overwrite: bool,
    package_code: bool = False,
) -> Path:
    """Write an artifact of a graph."""
    return write_artifact(
        filepath,
        kind,
        "ModelGraph",
        config,
        state,
        overwrite=overwrite,
        ids={i: node.label for i, node in graph.nodes.items()},
        others={i: fs.label for i, fs in graph.context.available_featuresets.items()},
        facts={"backends": file_backends(graph)},
        package_code=package_code,
    )


def read_graph(filepath: str | Path, *trusted: Any) -> Contents:
    """Read the file of a graph, or else that of an experiment, which must have one."""
    try:
        return read_artifact(filepath, "mg", *trusted)
    except (MMLKindError, MMLNotFoundError) as error:
        try:
            contents = read_artifact(filepath, "exp", *trusted)
        except (MMLKindError, MMLNotFoundError):
            raise error from None
    if contents.config["model_graph"] is None:
        raise MMLKindError(limits.OTHER_KIND, contents.path, "", "is an experiment without a graph")
    return contents


def use_ids(contents: Contents, ctx: ExperimentContext, overwrite: bool) -> None:
    """Assign free ids to the nodes of a file, and those of existing FeatureSets."""
    existing = {fs.label: node_id for node_id, fs in ctx.available_featuresets.items()}
    created = {label: str(uuid.uuid4()) for label in contents.part("featuresets")}
    contents.ids = {**ctx.free_ids(contents.ids, overwrite=overwrite), **created, **existing}
    contents.use_ids(contents.ids)


def use_sets(states: Mapping[str, Any], ids: Mapping[str, str], ctx: ExperimentContext) -> None:
    """Use the FeatureSets of these labels, or create those that are missing from their columns."""
    for label, packed in states.items():
        state, node_id = unpacked(packed), ids[label]
        if not ctx.has_node(node_id=node_id):
            FeatureSet(label, state["collection"], node_id=node_id).set_state(state)
            continue
        existing: Any = ctx.get_node(node_id=node_id)
        saved = scalers_fingerprint(state["scaler_records"])
        if scalers_fingerprint(existing.scaler_records) != saved:
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


def warn_of_stored_rows(graph: Any) -> None:
    """Warn of estimators that store training rows, before a file without rows is written."""
    models = {n.label: getattr(n, "model", None) for n in graph.nodes.values()}
    inner = {label: getattr(model, "inner", None) for label, model in models.items()}
    if nodes := [
        label
        for label, estimator in inner.items()
        if any(hasattr(estimator, a) for a in _ROW_ATTRIBUTES)
    ]:
        warn(
            f"the estimators of {nodes} predict with stored training rows, which are "
            "therefore in the file; use another kind of estimator to share no rows"
        )


_ROW_ATTRIBUTES = ("_fit_X", "X_train_", "X_fit_", "support_vectors_", "X_thresholds_")
"""Fitted attributes of scikit-learn estimators that store training rows."""
