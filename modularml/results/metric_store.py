"""What a phase logs: metrics and results of callbacks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from modularml._typing import Array, IntArray
from modularml.errors import ConfigError, MetricNotLoggedError, closest
from modularml.results.series import AxisSeries, Values


@dataclass
class CallbackResult:
    """Base class of callback results; the phase fills in epoch, batch and edge."""

    kind: ClassVar[str] = "callback"

    label: str = field(default="", kw_only=True)
    epoch: int | None = field(default=None, kw_only=True)
    batch: int | None = field(default=None, kw_only=True)
    edge: str = field(default="", kw_only=True)


@dataclass
class MetricResult(CallbackResult):
    """A number that is logged as a metric.

    Examples
    --------
    >>> MetricResult("mape", 0.12).value
    0.12
    """

    kind: ClassVar[str] = "metric"

    name: str
    value: float


@dataclass
class ArtifactResult(CallbackResult):
    """An object that is stored under a name."""

    kind: ClassVar[str] = "artifact"

    name: str
    value: Any


@dataclass
class PayloadResult(CallbackResult):
    """Anything else that a hook returned."""

    kind: ClassVar[str] = "payload"

    payload: Any


class MetricEntry(float):
    """One value of one metric: a float that knows what it is of.

    Parameters
    ----------
    name : str
    value : float
    epoch : int
        0-based.
    batch : int or None
        None for an epoch metric.

    Examples
    --------
    >>> entry = MetricEntry("val_loss", 0.25, epoch=3)
    >>> entry, entry.name, entry.epoch
    (0.25, 'val_loss', 3)
    """

    __slots__ = ("batch", "epoch", "name")

    name: str
    epoch: int
    batch: int | None

    def __new__(cls, name: str, value: float, epoch: int, batch: int | None = None) -> Self:
        """Make a float with these facts."""
        new = super().__new__(cls, value)
        new.name, new.epoch, new.batch = name, epoch, batch
        return new

    @property
    def value(self) -> float:
        """The number itself."""
        return float(self)

    def __getnewargs__(self) -> Any:
        return self.name, float(self), self.epoch, self.batch


class MetricStore:
    """Logged metrics, stored as float32 per batch where that is exact."""

    def __init__(self) -> None:
        self._epochs: dict[str, list[tuple[int, float]]] = {}
        self._batches: dict[str, list[tuple[int, Array]]] = {}

    def log(self, name: str, value: float, *, epoch: int, batch: int | None = None) -> None:
        """Add one value.

        Raises
        ------
        ConfigError
            If it is not a number.
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
        self._batches.setdefault(name, []).append((epoch, compact(np.asarray(values))))

    @property
    def names(self) -> list[str]:
        """Names of all metrics."""
        return list(dict.fromkeys([*self._epochs, *self._batches]))

    def blocks(self, name: str) -> Iterator[tuple[int, Array]]:
        """Iterate over the blocks of a metric: epoch and (batch, value) rows."""
        for epoch, block in self._batches.get(name, []):
            rows = block if block.ndim == 2 else np.column_stack([np.arange(len(block)), block])
            yield epoch, rows

    def entries(self) -> list[MetricEntry]:
        """Return all values, epoch metrics first."""
        entries = [MetricEntry(n, v, e) for n, rows in self._epochs.items() for e, v in rows]
        for name in self._batches:
            for epoch, rows in self.blocks(name):
                entries += [MetricEntry(name, float(v), epoch, int(b)) for b, v in rows]
        return entries

    def series(self) -> AxisSeries[float]:
        """Return values over (name, epoch, batch); batch is None for epoch metrics.

        Each is a `MetricEntry`. If a value was logged twice, the last one counts.
        """
        parts = [_rows("", [], [], [])]
        for name, logged in self._epochs.items():
            last = dict(logged)
            parts.append(_rows(name, list(last), [None] * len(last), list(last.values())))
        for name, blocks in self._batches.items():
            if all(block.ndim == 1 for _, block in blocks):
                parts += [_rows(name, [e] * len(b), range(len(b)), b) for e, b in blocks]
                continue
            by_place = {(e, int(b)): v for e, rows in self.blocks(name) for b, v in rows.tolist()}
            epochs, batches = zip(*by_place, strict=True)
            parts.append(_rows(name, epochs, batches, list(by_place.values())))
        names, epochs, batches, numbers = map(np.concatenate, zip(*parts, strict=True))

        def made(rows: IntArray) -> list[float]:
            columns = (names, numbers, epochs, batches)
            return list(map(MetricEntry, *(column[rows].tolist() for column in columns)))

        values = Values(made, np.arange(len(numbers)), numbers)
        columns = {"name": names, "epoch": epochs, "batch": batches}
        return AxisSeries.from_columns(columns, values, "metrics")

    def epoch_values(self, name: str) -> dict[int, float]:
        """Return the last epoch value logged for each epoch."""
        return dict(self._epochs.get(name, []))

    def at_epoch(self, epoch: int) -> dict[str, float]:
        """Return the epoch metrics of one epoch, the last value of each."""
        metrics = {
            name: next((v for e, v in reversed(rows) if e == epoch), None)
            for name, rows in self._epochs.items()
        }
        return {name: value for name, value in metrics.items() if value is not None}

    def epoch_value(self, name: str, epoch: int, reducer: str = "last") -> float:
        """Return a metric of one epoch: its epoch value, else reduced over batches.

        Raises
        ------
        MetricNotLoggedError
            If it was not logged in this epoch; the closest names are listed.
        """
        values = [v for e, v in self._epochs.get(name, []) if e == epoch]
        if not values:
            values = [
                value
                for e, block in self._batches.get(name, [])
                if e == epoch
                for value in (block if block.ndim == 1 else block[:, 1]).tolist()
            ]
        if not values:
            raise MetricNotLoggedError(
                f"metric {name!r} was not logged in epoch {epoch} ({closest(name, self.names)}). "
                "Add an Evaluation with EvalLossMetric, or monitor another metric"
            )
        reduced = {"last": values[-1], "first": values[0], "sum": math.fsum(values)}
        return reduced.get(reducer, math.fsum(values) / len(values))

    def to_pandas(self) -> pd.DataFrame:
        """Return epoch metrics: one row per epoch, one column per metric."""
        frame = self.series().where(batch=None).to_pandas()
        last = frame.drop_duplicates(["epoch", "name"], keep="last")  # NaN counts as a value
        return last.pivot(index="epoch", columns="name", values="value")

    def plot(self, *, title: str = "", path: Any = None) -> Any:
        """Plot epoch metrics as curves and return the figure."""
        return self.series().where(batch=None).plot(x="epoch", title=title, path=path)

    def __repr__(self) -> str:
        return f"MetricStore({self.names})"


def _rows(name: str, epochs: Any, batches: Any, values: Any) -> tuple[Array, ...]:
    names = np.full(len(epochs), name, dtype=object)
    return (
        names,
        np.array(epochs, dtype=np.int64),
        np.array(batches, dtype=object),
        np.array(values, dtype=np.float64),
    )


def compact(numbers: Array) -> Array:
    """Return numbers as float32 if that is exact, else as float64."""
    small = numbers.astype(np.float32, copy=False)
    same = (small == numbers) | np.isnan(numbers)
    return small if same.all() else numbers.astype(np.float64, copy=False)
