"""Which nodes learn without gradients: from all rows at once, or batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from modularml.backends import BackendAdapter
from modularml.errors import GraphError
from modularml.graph.model_node import ModelNode

__all__ = ["fitted_then", "is_fittable", "learners", "to_fit"]

Learn = Callable[[Any, Any], Any]


def is_fittable(model: Any) -> bool:
    """Tell whether a model learns from all rows at once.

    It has ``fit(features, targets)``, which takes ``(n, *input_shape)`` and ``(n, *target_shape)``;
    targets may be None. One that has ``partial_fit`` too, and says so by ``learns_in_batches``,
    can learn a little from each batch.
    """
    return hasattr(model, "fit")


def learners(nodes: Iterable[Any], fits: Iterable[ModelNode]) -> dict[str, Learn]:
    """Return by id how nodes learn: those to be fitted at once, others from each batch.

    Parameters
    ----------
    nodes : iterable of ComputeNode
        Of a training phase; those that are frozen learn nothing.
    fits : iterable of ModelNode
        Nodes that are fitted on all rows.
    """
    found: dict[str, Learn] = {}
    for node in nodes:
        if not isinstance(node, ModelNode) or node.is_frozen:
            continue
        model: Any = node.model
        if getattr(model, "learns_in_batches", False):
            found[node.node_id] = model.partial_fit
    for node in fits:
        model = node.model
        if is_fittable(model):
            found[node.node_id] = model.fit
    return found


def to_fit(nodes: Iterable[Any], *, even_frozen: bool = False) -> list[ModelNode]:
    """Return the nodes that can be fitted on all rows.

    Raises
    ------
    GraphError
        If there is none.
    """
    models = [n for n in nodes if isinstance(n, ModelNode)]
    found = [n for n in models if is_fittable(n.model) and (even_frozen or not n.is_frozen)]
    if not found:
        raise GraphError(
            f"none of the nodes {[n.label for n in models]} can be fitted: each is frozen, or its "
            "model has no fit(features, targets); train it with a TrainPhase"
        )
    return found


def fitted_then(
    learn: Learn, fn: Callable[[Any], Any], adapter: BackendAdapter
) -> Callable[[Sequence[Any]], Any]:
    """Return what lets a model learn from features and targets, then sends the features through."""

    def run(values: Sequence[Any]) -> Any:
        features, *targets = values
        learn(adapter.to_numpy(features), targets[0] if targets else None)
        with adapter.checked_rows():
            return fn(features)

    return run
