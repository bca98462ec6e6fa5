"""Fitting nodes that learn from all rows at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from modularml._typing import Array
from modularml.data.batch import BatchView, as_numpy
from modularml.data.execution import ExecutionContext, Flow, Merged
from modularml.data.formats import stack
from modularml.errors import DataError, GraphError
from modularml.graph.flows import resolve_id
from modularml.graph.model_node import ModelNode

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
    flows: Mapping[tuple[str, str], Flow],
    evaluate: Callable[[ExecutionContext, Sequence[str]], None],
) -> None:
    """Fit one node on the rows of a step.

    Parameters
    ----------
    node : ModelNode
    ctx : ExecutionContext
        Holds all rows. Outputs of the nodes that `node` reads from are written to it.
    flows : mapping of (str, str) to Flow
        Where each node's targets come from, by (node id, domain).
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
    features: Array | None
    above = [resolve_id(ref) for ref in node.node_refs]
    if above:
        evaluate(ctx, above)
        features = as_numpy(ctx.output(above[0]))
    else:
        features = _values(ctx, flows[node.node_id, "features"])
    node.model.fit(features, _values(ctx, flows[node.node_id, "targets"]))


def _values(ctx: ExecutionContext, flow: Flow) -> Array | None:
    """Return the rows of a step's columns as one array; None where there are none."""
    if flow is None:
        return None
    if isinstance(flow, Merged):
        return np.asarray(flow.merge([_values(ctx, part) for part in flow.parts]))
    batch = ctx.inputs[(flow.source.node_id, flow.source.ref)]
    if not isinstance(batch, BatchView):
        raise DataError("nodes are fitted on rows of a FeatureSet; give a BatchView as input")
    view = batch.view(batch.roles[0])
    return stack({name: view.column(name) for name in flow.columns})
