"""The cache key of a step plan."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from modularml.backends import adapter_for
from modularml.backends.fingerprint import Identity, fingerprint
from modularml.graph.model_node import ModelNode
from modularml.graph.node import ComputeNode
from modularml.training import AppliedLoss, Optimizer

__all__ = ["PlanKey"]


@dataclass(frozen=True)
class PlanKey:
    """What a step plan was compiled from; a plan whose key no longer matches is outdated.

    Values of weights are not part of it: `StepPlan.static_version` shows whether cached outputs of
    the frozen part are still valid.

    Attributes
    ----------
    columns : tuple
        Columns that each reference currently denotes.
    models : tuple
        For each model: its object, whether it is fitted, the shape of its outputs, and
        `BackendAdapter.signature`: layers
        and parameters with their shapes, dtypes and whether they are trainable.
    losses : tuple
        Weight, function and arguments of each loss.
    optimizers : tuple
        The framework's object and the arguments of each optimizer.
    """

    columns: tuple[Hashable, ...]
    models: tuple[Hashable, ...]
    losses: tuple[Hashable, ...]
    optimizers: tuple[Hashable, ...]

    @classmethod
    def of(
        cls,
        nodes: Sequence[ComputeNode],
        losses: Iterable[AppliedLoss],
        optimizers: Iterable[Optimizer],
    ) -> PlanKey:
        """Return the key of a plan compiled now."""
        refs = [ref for node in nodes for ref in node.feature_refs]
        models = [node for node in nodes if isinstance(node, ModelNode)]
        return cls(
            tuple((ref.resolve().node_id, *ref.all_columns()) for ref in refs),
            tuple(
                (
                    Identity(n.model.module),
                    n.model.is_fitted,
                    n.model.output_shape,
                    n.paired,
                    adapter_for(n.backend).signature(n.model.module),
                )
                for n in models
            ),
            tuple(
                (a.weight, a.sample_weight, fingerprint(a.class_weight), a.loss.signature())
                for a in losses
            ),
            tuple((Identity(o.instance), Identity(o.scheduler), o.signature()) for o in optimizers),
        )
