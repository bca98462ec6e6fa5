"""Summaries and diagrams of graphs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING

from modularml._optional import require
from modularml._typing import Shape
from modularml.backends import adapter_for
from modularml.data.references import FeatureSetReference
from modularml.graph.build import input_shapes, output_shape
from modularml.graph.lineage import resolve_id
from modularml.graph.merge_nodes import FunctionNode
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode
from modularml.graph.topology import backends_of
from modularml.training import Loss, Optimizer
from modularml.viz import Diagram, DiagramEdge, DiagramNode

if TYPE_CHECKING:
    import pandas as pd


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
        for ref, shape in zip(node.upstream_refs, input_shapes(node, nodes), strict=True):
            if isinstance(ref, FeatureSetReference):
                fs = ref.resolve()
                lines = [f"{fs.n_samples:,} rows"]
                for domain, keys in ((d, fs.collection.schema.keys(d)) for d in domains):
                    shown = f"{', '.join(keys[:6])}{', ...' if len(keys) > 6 else ''}"
                    lines += [f"{domain}: {shown}"] if keys else []
                if show_splits:
                    lines += [f"{name}: {view.n_samples:,}" for name, view in fs.splits.items()]
                box = DiagramNode(fs.node_id, fs.label, tuple(lines), kind="featureset")
                boxes.setdefault(fs.node_id, box)
                edges.append(DiagramEdge(fs.node_id, node.node_id, shape_text(shape)))
            else:
                above = nodes[resolve_id(ref)]
                crosses = frameworks.get(above.node_id) is not frameworks.get(node.node_id)
                stops = crosses or above.node_id in detached
                edges.append(
                    DiagramEdge(
                        above.node_id,
                        node.node_id,
                        shape_text(shape),
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


_COUNTS = ("parameters", "trainable")


@dataclass(frozen=True)
class NodeSummary:
    """One node of a graph; shapes are of one sample, and empty before they are known."""

    node: str
    type: str
    backend: str
    input_shape: str
    output_shape: str
    parameters: int | None
    trainable: int | None
    frozen: bool
    optimizer: str


@dataclass(frozen=True, repr=False)
class GraphSummary:
    """Nodes of a graph in order, shown as a table.

    Parameters
    ----------
    label : str
    nodes : tuple of NodeSummary
    """

    label: str
    nodes: tuple[NodeSummary, ...]

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per node."""
        frame: pd.DataFrame = require("pandas").DataFrame([asdict(node) for node in self.nodes])
        return frame

    def __repr__(self) -> str:
        return f"{self._title}\n{self._shown().to_string(index=False)}"

    def _repr_html_(self) -> str:
        table = self._shown().to_html(index=False, border=0)
        return f"<div><b>{escape(self._title)}</b>{table}</div>"

    @property
    def _title(self) -> str:
        counts = [[getattr(n, k) for n in self.nodes] for k in _COUNTS]
        if any(None in column for column in counts):
            return f"{self.label}: {len(self.nodes)} nodes, parameters not known before build()"
        total, trainable = map(sum, counts)
        return (
            f"{self.label}: {len(self.nodes)} nodes, {total:,} parameters, {trainable:,} trainable"
        )

    def _shown(self) -> pd.DataFrame:
        frame = self.to_pandas()
        for name in _COUNTS:
            frame[name] = [
                "?" if (n := getattr(node, name)) is None else f"{n:,}" for node in self.nodes
            ]
        frame["frozen"] = ["yes" if frozen else "" for frozen in frame["frozen"]]
        return frame


def summarize(
    label: str,
    nodes: Mapping[str, ComputeNode],
    optimizer: Optimizer | None,
    losses: Mapping[str, Loss],
) -> GraphSummary:
    """Return the summary of nodes in order; `optimizer` is the graph's.

    The last rows are `losses`, by label, with parameters of their own.
    """
    rows = []
    for node in nodes.values():
        incoming = input_shapes(node, nodes)
        shapes = " + ".join(filter(None, map(shape_text, incoming)))
        out = shape_text(output_shape(node))
        if not isinstance(node, ModelNode):
            kind = type(node).__name__
            rows.append(NodeSummary(node.label, kind, "", shapes, out, 0, 0, False, ""))
            continue
        if not node.reads_several and node.is_built and node.input_shape not in (None, incoming[0]):
            shapes += f" as {shape_text(node.input_shape)}"
        adapter = adapter_for(node.backend)
        counts = adapter.count_parameters(node.model.module)
        unknown = not node.is_built and adapter.gradients and not counts[0]
        total, trainable = (None, None) if unknown else counts
        rows.append(
            NodeSummary(
                node.label,
                node.model.shown_name,
                node.backend.value,
                shapes,
                out,
                total,
                0 if node.is_frozen else trainable,
                node.is_frozen,
                next((o.name for o in (optimizer, node.optimizer) if o is not None), ""),
            )
        )
    moved = "" if optimizer is None else optimizer.name
    for name, loss in losses.items():
        n = sum(math.prod(p.shape) for p in loss.parameters().values())
        backend = loss.backend.value
        rows.append(NodeSummary(name, loss.name, backend, "", "", n, n, False, moved))
    return GraphSummary(label, tuple(rows))


def shape_text(shape: Shape | None) -> str:
    """Return a shape as text."""
    return "" if shape is None else " x ".join(map(str, shape)) or "scalar"
