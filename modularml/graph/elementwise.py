"""Nodes that add or average inputs elementwise."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

from modularml.graph.merge import MergeNode, check_equal

__all__ = ["MeanNode", "SumNode"]


class SumNode(MergeNode):
    """Add inputs of equal shape; see `MergeNode` for the arguments.

    Raises
    ------
    GraphError
        If there are fewer than two inputs.
    ShapeError
        In ``build()``, if the inputs differ in shape.

    Examples
    --------
    >>> import numpy as np
    >>> from modularml import FeatureSet, ModelGraph, ModelNode, SumNode
    >>> from modularml.models.torch import SequentialMLP
    >>> fs = FeatureSet.from_dict("rows", {"x": np.zeros(5), "y": np.zeros(5)}, "x", "y")
    >>> parts = [ModelNode(name, SequentialMLP(output_shape=(3,)), fs) for name in ("a", "b")]
    >>> total = SumNode("total", parts)
    >>> ModelGraph([*parts, total]).build()
    >>> total.output_shape
    (3,)
    """

    def merge_features(self, adapter: Any, values: list[Any]) -> Any:
        """Add tensors."""
        check_equal(values)
        return reduce(add, values)


class MeanNode(SumNode):
    """Average inputs of equal shape, element by element; see `SumNode`."""

    def merge_features(self, adapter: Any, values: list[Any]) -> Any:
        """Average tensors."""
        return super().merge_features(adapter, values) / len(values)
