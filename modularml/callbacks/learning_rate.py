"""Learning rates: a search for one, and logging."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd

from modularml._arguments import at_least
from modularml._typing import Array
from modularml.backends import adapter_for
from modularml.config import Configurable
from modularml.engine.callback import Callback, CallbackOptions, MetricResult, registered
from modularml.errors import ConfigError, NonFiniteLossError, expect
from modularml.phases.train_eval import TrainPhase
from modularml.viz.curves import series

_FEWEST = 10
"""Rates before a divergence counts, and without which there is no suggestion."""


@dataclass(frozen=True)
class LearningRates:
    """Losses of a training whose learning rate rises.

    Parameters
    ----------
    rates : ndarray, shape (n,)
        Ascending; those after a divergence are missing.
    losses : ndarray, shape (n,)
        Mean training loss of the batches of each update.
    smoothed : ndarray, shape (n,)
        Bias-corrected exponential mean of the losses.
    """

    rates: Array
    losses: Array
    smoothed: Array

    @property
    def suggestion(self) -> float | None:
        """The rate at which the smoothed loss falls fastest; None if it does not fall."""
        if len(self.rates) < _FEWEST:
            return None
        slopes = np.gradient(self.smoothed, np.log(self.rates))
        steepest = int(slopes.argmin())
        return float(self.rates[steepest]) if slopes[steepest] < 0 else None

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per rate."""
        return pd.DataFrame(vars(self))

    def plot(self, *, path: Any = None) -> Any:
        """Draw the losses over the rate, and return the figure."""
        curves = {
            "loss": (self.rates.tolist(), self.losses.tolist()),
            "smoothed": (self.rates.tolist(), self.smoothed.tolist()),
        }
        if self.suggestion is not None:
            at = self.rates.tolist().index(self.suggestion)
            name = f"suggestion {self.suggestion:.2g}"
            curves[name] = ([self.suggestion], [float(self.smoothed[at])])
        figure = series(curves, x="learning rate", y="training loss")
        figure.axes[0].set_xscale("log")
        if path is not None:
            figure.savefig(path)
        return figure

    def __repr__(self) -> str:
        span = f"{self.rates[0]:.2g} to {self.rates[-1]:.2g}" if len(self.rates) else "none"
        shown = "none" if self.suggestion is None else f"{self.suggestion:.2g}"
        return f"LearningRates({len(self.rates)} rates, {span}; suggestion={shown})"


class LearningRateFinder(Configurable):
    """Train with a learning rate that rises from update to update, and undo it.

    Parameters
    ----------
    lowest, highest : float
        First and last rate; they rise geometrically.
    n_steps : int
        Number of updates, at least 10.
    smoothing : float
        From 0 to below 1: the share of the mean that is left after an update.
    stop_factor : float
        The search ends where the smoothed loss is so many times the least; above 1.

    Raises
    ------
    ConfigError
        If an argument is not as described.

    Notes
    -----
    Rates of parameter groups and of several optimizers keep their ratio to the first. Schedules do
    not step. The suggestion is a start for a search, not a result (Smith 2017, *Cyclical Learning
    Rates for Training Neural Networks*, arXiv:1506.01186).

    Examples
    --------
    ``found = LearningRateFinder().find(experiment, phase)``, then ``found.suggestion`` and
    ``found.plot()``.

    Examples
    --------
    >>> finder = LearningRateFinder(1e-5, 1.0, n_steps=50)
    >>> finder.n_steps
    50
    """

    def __init__(
        self,
        lowest: float = 1e-6,
        highest: float = 1.0,
        n_steps: int = 100,
        *,
        smoothing: float = 0.9,
        stop_factor: float = 4.0,
    ) -> None:
        if not 0 < lowest < highest < float("inf"):
            raise ConfigError(f"rates must rise from above 0, got {lowest!r} to {highest!r}")
        at_least(_FEWEST, n_steps=n_steps)
        if not 0 <= smoothing < 1 or not stop_factor > 1:
            raise ConfigError(
                "smoothing must be from 0 to below 1 and stop_factor above 1, got "
                f"{smoothing!r} and {stop_factor!r}"
            )
        self.lowest, self.highest, self.n_steps = lowest, highest, n_steps
        self.smoothing, self.stop_factor = smoothing, stop_factor

    def find(self, experiment: Any, phase: TrainPhase) -> LearningRates:
        """Train the experiment's graph as in a phase, and return the losses by rate.

        Weights, optimizers, random states, samplers and history are as before afterwards. Callbacks
        of the phase are not called.

        Raises
        ------
        ConfigError
            If nothing that the phase trains has an optimizer with a rate.
        """
        expect("phase", phase, TrainPhase, "a TrainPhase")

        def search(runner: Any) -> LearningRates:
            graph, means = phase.graph(), list[float]()
            runner._seed_samplers(phase)
            with graph.frozen_within(phase.freeze or ()), ExitStack() as undo:
                feed = phase.feed()
                optimizers = graph.moving_optimizers(phase.active_nodes)
                have_rates = [o.instance is not None and o.initial_rates[0] for o in optimizers]
                if not optimizers or not all(have_rates):
                    raise ConfigError(
                        "nothing that the phase trains has an optimizer with a learning rate"
                    )
                for optimizer in optimizers:  # no scheduler steps
                    undo.callback(setattr, optimizer, "scheduler", optimizer.scheduler)
                    optimizer.scheduler = None
                feed.refresh()
                rates = np.geomspace(self.lowest, self.highest, self.n_steps)
                for loss in _losses(feed, phase, optimizers, rates):
                    means.append(loss)
                    smooth = self._smoothed(means)
                    if len(means) > _FEWEST and smooth[-1] > self.stop_factor * smooth.min():
                        break
            return LearningRates(rates[: len(means)], np.array(means), self._smoothed(means))

        found: LearningRates = experiment._previewed([phase], {}, search)
        return found

    def _smoothed(self, losses: list[float]) -> Array:
        return np.asarray(pd.Series(losses).ewm(alpha=1 - self.smoothing).mean())


def _losses(feed: Any, phase: TrainPhase, optimizers: list[Any], rates: Array) -> Iterator[float]:
    """Yield the mean loss of each update, until the rates end or a loss is not finite."""
    base = [o.initial_rates for o in optimizers]
    step, left, values = phase.step_of(feed), iter(rates), list[float]()
    rate: Any = next(left)
    _set_rates(optimizers, base, rate)
    for epoch in range(len(rates) + 1):
        _, contexts = feed.epoch(epoch)
        with feed.plan.modes():
            for ctx in contexts:
                try:
                    step(ctx)
                except NonFiniteLossError:
                    return
                values.append(sum(map(float, ctx.values)))
                if getattr(feed.step, "n_batches", 0):  # gradients are accumulated
                    continue
                yield float(np.mean(values))
                rate, values = next(left, None), []
                if rate is None:
                    return
                _set_rates(optimizers, base, rate)


def _set_rates(optimizers: list[Any], base: list[list[float]], rate: float) -> None:
    first = base[0][0]
    for optimizer, own in zip(optimizers, base, strict=True):
        adapter = adapter_for(optimizer.backend)
        adapter.set_learning_rates(optimizer.instance, [rate * r / first for r in own])


@registered
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
        **options: Unpack[CallbackOptions],
    ) -> None:
        super().__init__(**options)
        self.every = every

    def on_epoch_start(self, *, phase: Any, **facts: Any) -> list[MetricResult] | None:
        """Log the rates of an epoch."""
        return self._rates(phase) if self.every == "epoch" else None

    def on_batch_start(self, *, phase: Any, **facts: Any) -> list[MetricResult] | None:
        """Log the rates of a batch."""
        return self._rates(phase) if self.every == "batch" else None

    def _rates(self, phase: Any) -> list[MetricResult]:
        graph = phase.graph()
        nodes = [n for n in graph.nodes.values() if getattr(n, "optimizer", None) is not None]
        optimizers = {"" if len(nodes) == 1 else n.label: n.optimizer for n in nodes}
        if graph.optimizer is not None:
            optimizers = {"": graph.optimizer}
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
