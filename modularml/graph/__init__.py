"""The model graph: nodes, how they are wired, and the plan of a step."""

from modularml.data.references import GraphNodeReference
from modularml.graph.merge import ConcatNode, MergeNode, MergeStrategy, PadMode
from modularml.graph.model_graph import ModelGraph
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode, GraphNode

__all__ = [
    "ComputeNode",
    "ConcatNode",
    "GraphNode",
    "GraphNodeReference",
    "MergeNode",
    "MergeStrategy",
    "ModelGraph",
    "ModelNode",
    "PadMode",
]
