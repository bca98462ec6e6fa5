"""Watching learning rates."""

from __future__ import annotations

from typing import Any, Literal

from modularml.engine.callback import Callback, MetricResult, callback_registry

__all__ = ["LearningRateMonitor"]


class LearningRateMonitor(Callback):
    """Log the learning rates that an epoch or batch is trained with.

    A metric is called ``lr``; where there are several optimizers or groups of parameters, the
    node's label and the group's name follow: ``lr_encoder``.

    Parameters
    ----------
    every : {'epoch', 'batch'}
    label, execution_order
        As of `Callback`.
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
        owned = {"": graph.optimizer} if graph.optimizer is not None else _own(graph)
        moving = graph.moving_optimizers(phase.active_nodes)
        found: list[MetricResult] = []
        for owner, optimizer in owned.items():
            if optimizer.is_built and any(o is optimizer for o in moving):
                rates = optimizer.learning_rates
                names = {g: "" if len(rates) == 1 else g for g in rates}
                found += [MetricResult(_name(owner, names[g]), rate) for g, rate in rates.items()]
        return found


def _own(graph: Any) -> dict[str, Any]:
    """Return the optimizers of the nodes, by label."""
    nodes = [n for n in graph.nodes.values() if getattr(n, "optimizer", None) is not None]
    return {"" if len(nodes) == 1 else n.label: n.optimizer for n in nodes}


def _name(*parts: str) -> str:
    return "_".join(["lr", *(part for part in parts if part)])


callback_registry.register("LearningRateMonitor", LearningRateMonitor)
