"""Scalar metrics of a phase: rows of (name, epoch, batch, value)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from modularml._typing import Array
from modularml.errors import ConfigError, MetricNotLoggedError, closest
from modularml.experiment.series import AxisSeries, Values

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
    """Metrics as they were logged, compact: eight bytes a batch."""

    def __init__(self) -> None:
        self._epochs: dict[str, list[tuple[int, float]]] = {}
        self._batches: dict[str, list[tuple[int, Array]]] = {}

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

    def log_batches(self, name: str, values: Sequence[float] | Array, *, epoch: int) -> None:
        """Add a value for each batch of an epoch, in order."""
        block = np.array(values, dtype=np.float64)
        self._batches.setdefault(name, []).append((epoch, block))

    @property
    def names(self) -> list[str]:
        """Names of all metrics."""
        return list(dict.fromkeys([*self._epochs, *self._batches]))

    def blocks(self, name: str) -> Iterator[tuple[int, Array]]:
        """Iterate over the epoch and (batch, value) rows of each block of a metric."""
        for epoch, block in self._batches.get(name, []):
            rows = block if block.ndim == 2 else np.column_stack([np.arange(len(block)), block])
            yield epoch, rows

    def entries(self) -> list[MetricEntry]:
        """Return every value, those of epochs first."""
        found = [MetricEntry(n, v, e) for n, rows in self._epochs.items() for e, v in rows]
        for name in self._batches:
            for epoch, rows in self.blocks(name):
                found += [MetricEntry(name, float(v), epoch, int(b)) for b, v in rows]
        return found

    def series(self) -> AxisSeries[float]:
        """Return every value over (name, epoch, batch); batch is None for whole epochs.

        Of values logged twice for one place, the last one counts.
        """
        names: list[str] = []
        epochs: list[int] = []
        batches: list[int | None] = []
        values: list[float] = []
        for name, logged in self._epochs.items():
            last = dict(logged)
            names += [name] * len(last)
            epochs += last
            batches += [None] * len(last)
            values += last.values()
        for name in self._batches:
            found: dict[tuple[int, int], float] = {}
            for epoch, rows in self.blocks(name):
                places = [(epoch, b) for b in rows[:, 0].astype(np.int64).tolist()]
                found.update(zip(places, rows[:, 1].tolist(), strict=True))
            names += [name] * len(found)
            epochs += [e for e, _ in found]
            batches += [b for _, b in found]
            values += found.values()
        columns = {
            "name": np.array(names, dtype=object),
            "epoch": np.array(epochs, dtype=np.int64),
            "batch": np.array(batches, dtype=object),
        }
        numbers = np.array(values, dtype=np.float64)
        made = Values(lambda at: numbers[at].tolist(), np.arange(len(numbers)), numbers)
        return AxisSeries.from_columns(columns, made, "metrics")

    def epoch_values(self, name: str) -> dict[int, float]:
        """Return the last value logged for each whole epoch."""
        return dict(self._epochs.get(name, []))

    def at_epoch(self, epoch: int) -> dict[str, float]:
        """Return the metrics of one whole epoch, the last value of each."""
        found = {
            name: next((v for e, v in reversed(rows) if e == epoch), None)
            for name, rows in self._epochs.items()
        }
        return {name: value for name, value in found.items() if value is not None}

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
                x for e, b in self._batches.get(name, []) if e == epoch for x in _flat(b).tolist()
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


def _flat(block: Array) -> Array:
    return block if block.ndim == 1 else np.asarray(block[:, 1])
