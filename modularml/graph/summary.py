"""The summary table of a graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING

from modularml._optional import require
from modularml._typing import Shape
from modularml.backends import adapter_for
from modularml.graph.build import input_shapes, output_shape
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode
from modularml.training import Loss, Optimizer

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "GraphSummary",
    "NodeSummary",
    "output_shape",
    "shape_text",
    "summarize",
]


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
    rows = [_row(n, nodes, optimizer) for n in nodes.values()]
    moved = "" if optimizer is None else optimizer.name
    for name, loss in losses.items():
        n = sum(math.prod(p.shape) for p in loss.parameters().values())
        backend = loss.backend.value
        rows.append(NodeSummary(name, loss.name, backend, "", "", n, n, False, moved))
    return GraphSummary(label, tuple(rows))


def _row(
    node: ComputeNode, nodes: Mapping[str, ComputeNode], optimizer: Optimizer | None
) -> NodeSummary:
    incoming = input_shapes(node, nodes)
    shapes = " + ".join(filter(None, map(shape_text, incoming)))
    out = shape_text(output_shape(node))
    if not isinstance(node, ModelNode):
        return NodeSummary(node.label, type(node).__name__, "", shapes, out, 0, 0, False, "")
    if not node.reads_several and node.is_built and node.input_shape not in (None, incoming[0]):
        shapes += f" as {shape_text(node.input_shape)}"
    adapter = adapter_for(node.backend)
    total: int | None
    trainable: int | None
    total, trainable = adapter.count_parameters(node.model.module)
    if not node.is_built and adapter.gradients and not total:
        total = trainable = None
    return NodeSummary(
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


def shape_text(shape: Shape | None) -> str:
    """Return a shape as text."""
    return "" if shape is None else " x ".join(map(str, shape)) or "scalar"
