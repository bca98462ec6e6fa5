"""Nodes that learn without gradients, from all rows at once or batch by batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from modularml.backends import BackendAdapter
from modularml.errors import ConfigError, GraphError, LossError
from modularml.graph.model_node import ModelNode
from modularml.training import AppliedLoss

__all__ = ["check_weights", "fit_then_predict", "is_fittable", "learners", "to_fit"]

Learn = Callable[[Any, Any], Any]


def is_fittable(model: Any) -> bool:
    """Return whether a model learns from all rows at once.

    It has ``fit(features, targets)``, which takes ``(n, *input_shape)`` and ``(n, *target_shape)``;
    targets may be None. A model with ``partial_fit`` and ``learns_in_batches`` set learns from each
    batch. Sample weights are passed to methods that take ``sample_weight``.
    """
    return hasattr(model, "fit")


def learners(nodes: Iterable[Any], fits: Iterable[ModelNode]) -> dict[str, Learn]:
    """Return the fit or partial_fit method of each node that learns, by id.

    Parameters
    ----------
    nodes : iterable of ComputeNode
        Of a training phase; frozen ones learn nothing.
    fits : iterable of ModelNode
        Nodes that are fitted on all rows.
    """
    methods: dict[str, Learn] = {}
    for node in nodes:
        if not isinstance(node, ModelNode) or node.is_frozen:
            continue
        model: Any = node.model
        if getattr(model, "learns_in_batches", False):
            methods[node.node_id] = model.partial_fit
    for node in fits:
        model = node.model
        if is_fittable(model):
            methods[node.node_id] = model.fit
    return methods


def to_fit(nodes: Iterable[Any], *, even_frozen: bool = False) -> list[ModelNode]:
    """Return the nodes that can be fitted on all rows.

    Raises
    ------
    GraphError
        If there are none.
    """
    models = [n for n in nodes if isinstance(n, ModelNode)]
    fittable = [n for n in models if is_fittable(n.model) and (even_frozen or not n.is_frozen)]
    if not fittable:
        raise GraphError(
            f"none of the nodes {[n.label for n in models]} can be fitted: each is frozen, or its "
            "model has no fit(features, targets); train it with a TrainPhase"
        )
    return fittable


def check_weights(node: Any, learn: Learn, losses: Sequence[AppliedLoss]) -> None:
    """Refuse sample weights for a model whose method takes none.

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
    if len(columns) > 1 or any(a.class_weight != losses[0].class_weight for a in losses):
        raise LossError(
            f"node {node.label!r} learns with one weight per sample, but its losses have "
            f"different ones, {columns} and {[a.class_weight for a in losses]}; give them the same "
            "sample_weight and class_weight"
        )
    name, model = learn.__name__, node.model
    takes_argument = getattr(model, "takes", None)
    takes_weights = (
        takes_argument(name)
        if takes_argument
        else "sample_weight" in inspect.signature(learn).parameters
    )
    if not takes_weights:
        source = f"column {columns[0]!r}" if columns and columns[0] is not None else "its sampler"
        source = "class_weight" if losses and losses[0].class_weight is not None else source
        raise ConfigError(
            f"node {node.label!r}: {name} of {model.shown_name} takes no sample_weight, but its "
            f"samples are weighted by {source}; omit the weights, or choose an estimator that "
            "takes them"
        )


def fit_then_predict(
    learn: Learn, fn: Callable[[Any], Any], adapter: BackendAdapter, names: Sequence[str]
) -> Callable[[Sequence[Any]], Any]:
    """Return a function that fits a model, then computes its outputs.

    It takes features, followed by the arguments in `names`: 'targets', 'sample_weight' or 'groups'.
    """

    def run(values: Sequence[Any]) -> Any:
        features, *rest = values
        kwargs = dict(zip(names, rest, strict=True))
        learn(adapter.to_numpy(features), kwargs.pop("targets", None), **kwargs)
        with adapter.checked_rows():
            return fn(features)

    return run
