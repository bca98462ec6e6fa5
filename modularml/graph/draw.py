"""The picture of a graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from modularml._typing import Shape
from modularml.data.references import FeatureSetReference
from modularml.diagram import Diagram, DiagramEdge, DiagramNode
from modularml.graph.build import columns_shape
from modularml.graph.flows import resolve_id
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode

__all__ = ["draw"]

_KINDS = {"torch": "torch", "tensorflow": "tensorflow", "scikit": "sklearn"}


def draw(
    nodes: Mapping[str, ComputeNode],
    title: str,
    *,
    domains: tuple[str, ...],
    show_frozen: bool,
    show_splits: bool,
) -> Diagram:
    """Draw nodes, what they read and the shapes on the way.

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
    """
    boxes: dict[str, DiagramNode] = {}
    edges: list[DiagramEdge] = []
    for node in nodes.values():
        boxes[node.node_id] = _box(node, show_frozen)
        for ref in node.upstream_refs:
            if isinstance(ref, FeatureSetReference):
                fs = ref.resolve()
                boxes.setdefault(fs.node_id, _featureset(fs, domains, show_splits))
                edges.append(
                    DiagramEdge(fs.node_id, node.node_id, _shape_text(_input_shape(ref, node)))
                )
            else:
                above = nodes[resolve_id(ref)]
                edges.append(
                    DiagramEdge(above.node_id, node.node_id, _shape_text(_output_shape(above)))
                )
    return Diagram(title, tuple(boxes.values()), tuple(edges), direction="LR")


def _box(node: ComputeNode, show_frozen: bool) -> DiagramNode:
    if not isinstance(node, ModelNode):
        return DiagramNode(node.node_id, node.label, (type(node).__name__,), kind="merge")
    frozen = show_frozen and node.is_frozen
    lines = [node.model.shown_name]
    if node.is_built:
        count = sum(math.prod(p.shape) for p in node.parameters().values())
        lines.append(f"{count:,} parameters")
        lines.append(f"out {_shape_text(node.output_shape)}")
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


def _input_shape(ref: FeatureSetReference, node: ComputeNode) -> Shape:
    return columns_shape(ref, "features", node.label)


def _output_shape(node: ComputeNode) -> Shape | None:
    return node.output_shape if not isinstance(node, ModelNode) or node.is_built else None


def _shape_text(shape: Shape | None) -> str:
    return "" if shape is None else " x ".join(map(str, shape)) or "scalar"
