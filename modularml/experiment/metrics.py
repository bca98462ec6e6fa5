"""Scalar metrics of a phase: rows of (name, epoch, batch, value)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modularml.errors import ConfigError, MetricNotLoggedError, closest
from modularml.experiment.series import AxisSeries

__all__ = ["MetricEntry", "MetricStore"]


@dataclass(frozen=True)
class MetricEntry:
    """One value of one metric.

    Parameters
    ----------
    name : str
    value : float
    epoch : int
        0-based.
    batch : int or None
        None for a value of the whole epoch.
    """

    name: str
    value: float
    epoch: int
    batch: int | None = None


class MetricStore:
    """Metrics as they were logged, compact: a block of batches is one array."""

    def __init__(self) -> None:
        self._epochs: dict[str, list[tuple[int, float]]] = {}
        self._batches: dict[str, list[tuple[int, np.ndarray[Any, Any]]]] = {}

    def log(self, name: str, value: float, *, epoch: int, batch: int | None = None) -> None:
        """Add one value.

        Raises
        ------
        ConfigError
            If it is no number.
        """
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ConfigError(f"metric {name!r} must be a number, got {value!r}") from None
        if batch is None:
            self._epochs.setdefault(name, []).append((epoch, number))
        else:
            self._batches.setdefault(name, []).append((epoch, np.array([[batch, number]])))

    def log_batches(self, name: str, values: Sequence[float], *, epoch: int) -> None:
        """Add a value for each batch of an epoch, in order."""
        block = np.column_stack([np.arange(len(values)), np.asarray(values, dtype=np.float64)])
        self._batches.setdefault(name, []).append((epoch, block))

    @property
    def names(self) -> list[str]:
        """Names of all metrics."""
        return list(dict.fromkeys([*self._epochs, *self._batches]))

    def entries(self) -> list[MetricEntry]:
        """Return every value, those of epochs first."""
        found = [MetricEntry(n, v, e) for n, rows in self._epochs.items() for e, v in rows]
        for name, blocks in self._batches.items():
            for epoch, block in blocks:
                found += [MetricEntry(name, float(v), epoch, int(b)) for b, v in block]
        return found

    def series(self) -> AxisSeries[float]:
        """Return every value over (name, epoch, batch); batch is None for whole epochs."""
        data = {(e.name, e.epoch, e.batch): e.value for e in self.entries()}
        return AxisSeries(("name", "epoch", "batch"), data, "metrics")

    def epoch_values(self, name: str) -> dict[int, float]:
        """Return the last value logged for each whole epoch."""
        return dict(self._epochs.get(name, []))

    def epoch_value(self, name: str, epoch: int, reducer: str = "last") -> float:
        """Return a metric of one epoch, from the epoch's values or else its batches'.

        Raises
        ------
        MetricNotLoggedError
            If nobody logged it in this epoch; the closest names are listed.
        """
        values = [v for e, v in self._epochs.get(name, []) if e == epoch]
        if not values:
            values = [
                float(x) for e, b in self._batches.get(name, []) if e == epoch for x in b[:, 1]
            ]
        if not values:
            raise MetricNotLoggedError(
                f"nobody logs the metric {name!r} in epoch {epoch} ({closest(name, self.names)}). "
                "Add an Evaluation with EvalLossMetric, or monitor another metric"
            )
        picks = {"last": values[-1], "first": values[0], "sum": math.fsum(values)}
        return picks.get(reducer, math.fsum(values) / len(values))

    def __repr__(self) -> str:
        return f"MetricStore({self.names})"
