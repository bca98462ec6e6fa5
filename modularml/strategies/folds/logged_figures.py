"""Logged scores of runs, by phase and metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from modularml.experiment import PhaseGroupResults, TrainResults

__all__ = ["At", "logged_figures"]

At: TypeAlias = Literal["kept", "last", "best"]


def logged_figures(
    runs: Mapping[str, PhaseGroupResults], at: At
) -> tuple[dict[str, dict[str, float]], list[tuple[str, str, str, float]], set[str]]:
    """Return logged scores by run, those of groups, and names of missing ones.

    A score is a metric of a training phase in one epoch, or a loss over all rows or a metric of
    another phase: ``train.val_loss``, ``test.mse``.
    """
    frame: dict[str, dict[str, float]] = {}
    groups, unlogged = [], set()
    for run, results in runs.items():
        for label, phase in results.flatten().items():
            values = phase.figures(at) if isinstance(phase, TrainResults) else _losses(phase)
            for name in phase.metric_names():
                logged = phase._metrics.epoch_values(name)
                if not logged:
                    continue
                if not isinstance(phase, TrainResults):
                    values.setdefault(name, logged[max(logged)])
                base, bracket, group = name.partition("[")
                score = f"{label}.{base if bracket else name}"
                if bracket and name in values:
                    groups.append((run, score, group.removesuffix("]"), values.pop(name)))
                elif name not in values and not bracket:
                    values[name] = float("nan")
                    unlogged.add(score)
            if values:
                row = {f"{label}.{name}": value for name, value in values.items()}
                frame[run] = frame.get(run, {}) | row
    return frame, groups, unlogged


def _losses(phase: Any) -> dict[str, float]:
    """Return the losses over all rows of an evaluation or fit phase."""
    if not phase._execution:
        return {}
    layout = phase._execution[0].layout
    losses: dict[str, float] = {}
    for _, node_id in layout.losses if layout is not None else ():
        losses |= phase.aggregated_losses(node_id)
    return losses
