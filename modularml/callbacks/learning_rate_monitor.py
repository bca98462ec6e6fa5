"""Logging of learning rates."""

from __future__ import annotations

from typing import Any, Literal

from modularml.engine.callback import Callback, MetricResult, callback_registry

__all__ = ["LearningRateMonitor"]


class LearningRateMonitor(Callback):
    """Log the learning rates of each epoch or batch.

    The metric is named ``lr``; with several optimizers or parameter groups, the node's label and
    the group's name are appended: ``lr_encoder``.

    Parameters
    ----------
    every : {'epoch', 'batch'}
    label, execution_order
        See `Callback`.

    Examples
    --------
    >>> LearningRateMonitor(every="batch").every
    'batch'
    """

    changes_weights = False

    def __init__(
        self,
        *,
        every: Literal["epoch", "batch"] = "epoch",
        label: str | None = None,
        execution_order: int = 0,
    ) -> None:
        super().__init__(label, execution_order)
        self.every = every

    def on_epoch_start(self, *, phase: Any, **facts: Any) -> list[MetricResult] | None:
        """Log the rates of an epoch."""
        return self._rates(phase) if self.every == "epoch" else None

    def on_batch_start(self, *, phase: Any, **facts: Any) -> list[MetricResult] | None:
        """Log the rates of a batch."""
        return self._rates(phase) if self.every == "batch" else None

    def _rates(self, phase: Any) -> list[MetricResult]:
        graph = phase.graph()
        optimizers = (
            {"": graph.optimizer} if graph.optimizer is not None else _node_optimizers(graph)
        )
        moving = graph.moving_optimizers(phase.active_nodes)
        results: list[MetricResult] = []
        for label, optimizer in optimizers.items():
            if optimizer.is_built and any(o is optimizer for o in moving):
                rates = optimizer.learning_rates
                names = {g: "" if len(rates) == 1 else g for g in rates}
                for group, rate in rates.items():
                    parts = ("lr", label, names[group])
                    results.append(MetricResult("_".join(filter(None, parts)), rate))
        return results


def _node_optimizers(graph: Any) -> dict[str, Any]:
    """Return the optimizers of nodes by label."""
    nodes = [n for n in graph.nodes.values() if getattr(n, "optimizer", None) is not None]
    return {"" if len(nodes) == 1 else n.label: n.optimizer for n in nodes}


callback_registry.register("LearningRateMonitor", LearningRateMonitor)
