"""Fitting nodes that learn from all rows at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from modularml._typing import Array
from modularml.data.batch import as_numpy
from modularml.data.execution import ExecutionContext
from modularml.data.formats import stack
from modularml.data.references import FeatureSetReference
from modularml.errors import DataError, GraphError
from modularml.graph.model_node import ModelNode
from modularml.graph.plan import resolve_id

__all__ = ["Fittable", "fit_node", "is_fittable"]


@runtime_checkable
class Fittable(Protocol):
    """A model that learns from all rows at once."""

    def fit(self, features: Any, targets: Any) -> Any:
        """Learn from ``(n, *input_shape)`` and ``(n, *target_shape)``; targets may be None."""


def is_fittable(node: Any) -> bool:
    """Tell whether a node's model learns from all rows at once."""
    return isinstance(node, ModelNode) and isinstance(node.model, Fittable)


def fit_node(
    node: ModelNode,
    ctx: ExecutionContext,
    evaluate: Callable[[ExecutionContext, Sequence[str]], None],
) -> None:
    """Fit one node on the rows of a step.

    Parameters
    ----------
    node : ModelNode
    ctx : ExecutionContext
        Holds all rows. Outputs of the nodes that `node` reads from are written to it.
    evaluate : callable
        Runs nodes, given by id, on the step.

    Raises
    ------
    GraphError
        If the node is frozen, or its model has no ``fit``.
    """
    if node.is_frozen:
        raise GraphError(f"node {node.label!r} is frozen; unfreeze() it to fit it")
    if not isinstance(node.model, Fittable):
        raise GraphError(
            f"node {node.label!r} cannot be fitted: its {type(node.model).__name__} has no "
            "fit(features, targets); train it with a TrainPhase"
        )
    above = [resolve_id(ref) for ref in node.node_refs]
    evaluate(ctx, above or [node.node_id])
    node.model.fit(_features(node, ctx, above), ctx.domain(node.node_id, "targets"))


def _features(node: ModelNode, ctx: ExecutionContext, above: Sequence[str]) -> Array:
    if above:
        return as_numpy(ctx.output(above[0]))
    ref = node.upstream_ref
    if not isinstance(ref, FeatureSetReference):
        raise DataError(f"node {node.label!r} reads nothing that could be fitted on")
    batch = ctx.inputs[(node.node_id, ref)]
    view = batch.view(ctx.roles(node.node_id)[0])
    return stack({name: view.column(name) for name in ref.columns("features")})
