"""Which nodes learn without gradients: from all rows at once, or batch by batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from modularml.backends import BackendAdapter
from modularml.errors import ConfigError, GraphError, LossError
from modularml.graph.model_node import ModelNode
from modularml.training import AppliedLoss

__all__ = ["check_weights", "fitted_then", "is_fittable", "learners", "to_fit"]

Learn = Callable[[Any, Any], Any]


def is_fittable(model: Any) -> bool:
    """Tell whether a model learns from all rows at once.

    It has ``fit(features, targets)``, which takes ``(n, *input_shape)`` and ``(n, *target_shape)``;
    targets may be None. One that has ``partial_fit`` too, and says so by ``learns_in_batches``,
    can learn a little from each batch. Weights of samples are given to those that take
    ``sample_weight``.
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


def check_weights(node: Any, learn: Learn, losses: Sequence[AppliedLoss]) -> None:
    """Refuse weights of samples for a model that learns without them.

    Parameters
    ----------
    node : ModelNode
    learn : callable
        Its ``fit`` or ``partial_fit``.
    losses : sequence of AppliedLoss
        Those on this node.

    Raises
    ------
    ConfigError
        If the method takes no ``sample_weight``.
    LossError
        If losses weight the samples differently.
    """
    columns = list(dict.fromkeys(a.sample_weight for a in losses))
    if len(columns) > 1:
        raise LossError(
            f"node {node.label!r} learns with one weight a sample, and its losses weigh samples by "
            f"{columns}; give them the same sample_weight"
        )
    name, model = learn.__name__, node.model
    asks = getattr(model, "takes", None)
    taken = asks(name) if asks else "sample_weight" in inspect.signature(learn).parameters
    if not taken:
        by = f"column {columns[0]!r}" if columns and columns[0] is not None else "its sampler"
        raise ConfigError(
            f"node {node.label!r}: {name} of {model.shown_name} takes no sample_weight, and its "
            f"samples are weighed by {by}; leave the weights out, or choose an estimator that "
            "takes them"
        )


def fitted_then(
    learn: Learn, fn: Callable[[Any], Any], adapter: BackendAdapter, names: Sequence[str]
) -> Callable[[Sequence[Any]], Any]:
    """Return what lets a model learn, then sends the features through.

    It takes features and what else is learned from: `names` of 'targets', 'sample_weight' and
    'groups'.
    """

    def run(values: Sequence[Any]) -> Any:
        features, *rest = values
        given = dict(zip(names, rest, strict=True))
        learn(adapter.to_numpy(features), given.pop("targets", None), **given)
        with adapter.checked_rows():
            return fn(features)

    return run
