"""The model graph: nodes, edges, and the plan of a step."""

from modularml.data.references import GraphNodeReference
from modularml.graph.merge import MergeNode, MergeStrategy
from modularml.graph.merge_nodes import (
    ConcatNode,
    FlattenNode,
    FunctionNode,
    MeanNode,
    PadMode,
    SumNode,
    function_registry,
)
from modularml.graph.model_graph import ModelGraph
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode, GraphNode
from modularml.graph.summary import GraphSummary, NodeSummary

__all__ = [
    "ComputeNode",
    "ConcatNode",
    "FlattenNode",
    "FunctionNode",
    "GraphNode",
    "GraphNodeReference",
    "GraphSummary",
    "MeanNode",
    "MergeNode",
    "MergeStrategy",
    "ModelGraph",
    "ModelNode",
    "NodeSummary",
    "PadMode",
    "SumNode",
    "function_registry",
]
