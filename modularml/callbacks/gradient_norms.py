"""Logging of gradient norms."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from modularml.backends.options import GradientSquares
from modularml.data.execution import ExecutionContext
from modularml.engine.callback import Callback, MetricResult, callback_registry
from modularml.errors import ConfigError
from modularml.graph.model_node import ModelNode

__all__ = ["GradientNorms"]


class GradientNorms(Callback):
    """Log the Euclidean norm of the gradients of each node, and of all together.

    They are those of an update of the weights before clipping, of the mean loss over its batches
    with ``accumulate``. The metrics are ``grad_norm``, and ``grad_norm_<node>`` if several nodes or
    losses learn.

    Parameters
    ----------
    every : {'epoch', 'batch'}
        Whether the mean and the maximum (``grad_norm_max``) of the updates of an epoch are logged,
        or each update, under its batch.
    label, execution_order
        See `Callback`.

    Notes
    -----
    Folds and other variants with this callback are not trained as one.

    Examples
    --------
    >>> GradientNorms(every="batch")
    GradientNorms(every='batch', label='GradientNorms')
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
        self.gradient_squares = GradientSquares()
        self._updates: list[dict[str, float]] = []
        self._labels: dict[int, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Omit what belongs to the parameters of a run."""
        return {**vars(self), "_labels": None, "gradient_squares": GradientSquares()}

    def check_ready(self, experiment: Any, phase: Any = None) -> None:
        """Refuse a second callback of this kind, which would get no norms."""
        if sum(isinstance(callback, GradientNorms) for callback in phase.callbacks) > 1:
            raise ConfigError(
                f"phase {phase.label!r} has several GradientNorms; remove all but one"
            )

    @property
    def logs(self) -> list[str]:
        """Names of the metrics that are always logged."""
        return ["grad_norm"] if self.every == "batch" else ["grad_norm", "grad_norm_max"]

    def direction_of(self, name: str) -> bool | None:
        """Return None: neither direction is better."""
        return None

    def on_phase_start(self, **facts: Any) -> None:
        """Start anew."""
        self._updates, self._labels = [], None

    def on_epoch_start(self, **facts: Any) -> None:
        """Start an epoch, in which other parameters may learn."""
        self._updates, self._labels = [], None

    def on_batch_end(
        self, *, phase: Any, exec_ctx: ExecutionContext, **facts: Any
    ) -> list[MetricResult] | None:
        """Collect the norms of an update, if there was one."""
        squares = self.gradient_squares.take()
        if not squares:
            return None
        if self._labels is None:
            self._labels = _labels(phase.graph())
        sums: dict[str, float] = {}
        for key, square in squares.items():
            label = self._labels.get(key, "losses")
            sums[label] = sums.get(label, 0.0) + square
        norms = {"grad_norm": math.sqrt(sum(sums.values()))}
        if len(set(self._labels.values()) | sums.keys()) > 1:
            norms |= {f"grad_norm_{label}": math.sqrt(square) for label, square in sums.items()}
        if self.every == "batch":
            return [MetricResult(name, norm) for name, norm in norms.items()]
        self._updates.append(norms)
        return None

    def on_epoch_end(self, **facts: Any) -> list[MetricResult]:
        """Log the means, and the greatest norm of all gradients."""
        names = dict.fromkeys(name for norms in self._updates for name in norms)
        values = {name: [norms.get(name, 0.0) for norms in self._updates] for name in names}
        results = [MetricResult(name, float(np.mean(of))) for name, of in values.items()]
        if values:
            results.append(MetricResult("grad_norm_max", max(values["grad_norm"])))
        return results

    def get_state(self) -> dict[str, Any]:
        """Return the norms of the epoch so far."""
        return {"updates": [dict(norms) for norms in self._updates]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from `get_state`."""
        self._updates, self._labels = [dict(norms) for norms in state["updates"]], None


def _labels(graph: Any) -> dict[int, str]:
    """Return the label of the node of each parameter, by id."""
    nodes = [n for n in graph.nodes.values() if isinstance(n, ModelNode)]
    return {id(p): node.label for node in nodes for p in node.parameters().values()}


callback_registry.register("GradientNorms", GradientNorms)
