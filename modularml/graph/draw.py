"""The diagram of a graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from modularml.backends import adapter_for
from modularml.data.references import FeatureSetReference
from modularml.graph.build import columns_shape
from modularml.graph.function import FunctionNode
from modularml.graph.lineage import resolve_id
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode
from modularml.graph.segments import backends_of
from modularml.graph.summary import output_shape, shape_text
from modularml.viz import Diagram, DiagramEdge, DiagramNode

__all__ = ["draw"]

_KINDS = {"torch": "torch", "tensorflow": "tensorflow", "scikit": "sklearn"}


def draw(
    nodes: Mapping[str, ComputeNode],
    title: str,
    *,
    domains: tuple[str, ...],
    show_frozen: bool,
    show_splits: bool,
    detached: Collection[str] = (),
) -> Diagram:
    """Draw the nodes of a graph, their edges and shapes.

    Parameters
    ----------
    nodes : mapping of str to ComputeNode
    title : str
    domains : tuple of str
        Domains whose columns are listed on the FeatureSets.
    show_frozen : bool
        Whether frozen models are dimmed.
    show_splits : bool
        Whether FeatureSets list their splits.
    detached : collection of str
        Ids of nodes after which gradients stop; they also stop between two frameworks.
    """
    boxes: dict[str, DiagramNode] = {}
    edges: list[DiagramEdge] = []
    frameworks = backends_of(list(nodes.values()))
    for node in nodes.values():
        boxes[node.node_id] = _box(node, show_frozen)
        for ref in node.upstream_refs:
            if isinstance(ref, FeatureSetReference):
                fs = ref.resolve()
                boxes.setdefault(fs.node_id, _featureset(fs, domains, show_splits))
                shape = columns_shape(ref, "features", node.label)
                edges.append(DiagramEdge(fs.node_id, node.node_id, shape_text(shape)))
            else:
                above = nodes[resolve_id(ref)]
                crosses = frameworks.get(above.node_id) is not frameworks.get(node.node_id)
                stops = crosses or above.node_id in detached
                edges.append(
                    DiagramEdge(
                        above.node_id,
                        node.node_id,
                        shape_text(output_shape(above)),
                        marker="stop" if stops else "",
                    )
                )
    return Diagram(title, tuple(boxes.values()), tuple(edges), direction="LR")


def _box(node: ComputeNode, show_frozen: bool) -> DiagramNode:
    if not isinstance(node, ModelNode):
        name = node.function_name if isinstance(node, FunctionNode) else type(node).__name__
        kind = "function" if isinstance(node, FunctionNode) else "merge"
        return DiagramNode(node.node_id, node.label, (name,), kind=kind)
    frozen = show_frozen and node.is_frozen
    lines = [node.model.shown_name]
    if node.is_built:
        total, _ = adapter_for(node.backend).count_parameters(node.model.module)
        lines += [f"{total:,} parameters", f"out {shape_text(node.output_shape)}"]
    lines += ["frozen"] if frozen else []
    kind = _KINDS.get(node.backend.value, "node")
    return DiagramNode(node.node_id, node.label, tuple(lines), kind=kind, dimmed=frozen)


def _featureset(fs: Any, domains: tuple[str, ...], show_splits: bool) -> DiagramNode:
    lines = [f"{fs.n_samples:,} rows"]
    for domain in domains:
        keys = fs.collection.schema.keys(domain)
        lines += (
            [f"{domain}: {', '.join(keys[:6])}{', ...' if len(keys) > 6 else ''}"] if keys else []
        )
    if show_splits:
        lines += [f"{name}: {view.n_samples:,}" for name, view in fs.splits.items()]
    return DiagramNode(fs.node_id, fs.label, tuple(lines), kind="featureset")
