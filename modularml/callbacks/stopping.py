"""Stopping early, or after a time."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from time import monotonic
from typing import Any, ClassVar, Literal, Unpack

from modularml._warning import warn
from modularml.data.execution_context import ExecutionContext
from modularml.engine.callback import (
    Callback,
    CallbackOptions,
    CallbackResult,
    PayloadResult,
    registered,
)
from modularml.engine.loop import EpochOverError
from modularml.engine.monitoring import check_logged, direction
from modularml.errors import ConfigError, MetricNotLoggedError
from modularml.loops.event_stages import Patience
from modularml.results.packed_results import packed_steps, unpacked_steps
from modularml.results.recording import ResultRecording
from modularml.results.step_log import StepLog

_PATIENCE_STATE = ("mode", "best", "best_epoch", "waited")


@dataclass
class EarlyStoppingResult(CallbackResult):
    """The epoch at which training stopped, and the best epoch."""

    kind: ClassVar[str] = "early_stopping"

    monitor: str = ""
    best_epoch: int | None = None
    best_value: float | None = None
    stopped_epoch: int | None = None
    restored: bool = False


@registered
class EarlyStopping(Callback):
    """Stop training when a metric has not improved for some epochs.

    Parameters
    ----------
    monitor : str
        Name of a metric that is logged: ``train_loss``, or one of an `Evaluation`.
    mode : {'min', 'max'}
        Which values are better. The default ``min`` is replaced by ``max``, with a warning, if
        greater values of the metric are known to be better, such as ``val_r2``. ``max`` for a
        metric that is better when lower is used, with a warning.
    patience : int
        Epochs without improvement before the phase stops; at least 0.
    min_delta : float
        Smallest change that counts as improvement; at least 0.
    restore_best : bool
        Whether the weights of the best epoch are restored at the end.
    reducer : {'mean', 'sum', 'last', 'first'}
        How several values of the metric in an epoch are reduced.
    label : str, optional
    execution_order : int
        Must be higher than that of the callback that logs the metric.

    Raises
    ------
    ConfigError
        If an argument is not as described.

    Examples
    --------
    >>> EarlyStopping(monitor="val_loss", patience=10, restore_best=True)
    EarlyStopping(patience=10, restore_best=True, label='EarlyStopping')
    """

    logs: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        monitor: str = "val_loss",
        mode: Literal["min", "max"] = "min",
        patience: int = 5,
        min_delta: float = 0.0,
        restore_best: bool = False,
        reducer: Literal["mean", "sum", "last", "first"] = "last",
        label: str | None = None,
        execution_order: int = 1,
    ) -> None:
        super().__init__(label, execution_order)
        self._monitor, self.mode, self.patience = monitor, mode, patience
        self.min_delta, self.reducer, self._restore_best = float(min_delta), reducer, restore_best
        self._stopped: int | None = None
        self._reset()

    @property
    def monitor(self) -> str:
        """Name of the metric."""
        return self._monitor

    @property
    def restore_best(self) -> bool:
        """Whether the weights of the best epoch are restored at the end."""
        return self._restore_best

    @property
    def best_epoch(self) -> int | None:
        """The epoch with the best value so far; None before the first."""
        return self._patience.best_epoch

    @property
    def best_value(self) -> float | None:
        """The best value so far; None before the first."""
        return self._patience.best

    @property
    def stopped_epoch(self) -> int | None:
        """The epoch after which training was stopped; None if it was not."""
        return self._stopped

    def on_phase_start(self, *, experiment: Any, phase: Any, results: Any = None) -> None:
        """Reset the state of an earlier phase."""
        self._reset()
        self.check_ready(experiment, phase)

    def check_ready(self, experiment: Any, phase: Any = None) -> None:
        """Refuse a metric that is not logged before this callback runs."""
        check_logged(self._monitor, phase, "EarlyStopping")
        greater = direction(self._monitor, phase.callbacks)
        if greater is not None and greater is not (self.mode == "max"):
            better, other = ("greater", "max") if greater else ("lower", "min")
            consequence = "so mode='max' is used" if greater else "and mode='max' is used as given"
            warn(
                f"EarlyStopping has mode={self.mode!r}, but {self._monitor!r} is better when it is "
                f"{better}, {consequence}; pass mode={other!r}",
                UserWarning,
            )
            if greater:
                self._patience.mode = "max"
        ordered = sorted(phase.callbacks, key=lambda c: c.execution_order)
        loggers = [c for c in ordered if self._monitor in getattr(c, "logs", ())]
        if loggers and ordered.index(loggers[0]) > ordered.index(self):
            raise ConfigError(
                f"EarlyStopping monitors {self._monitor!r}, which {loggers[0].label!r} logs after "
                f"it; pass EarlyStopping an execution_order above {loggers[0].execution_order}"
            )

    def on_epoch_end(self, *, phase: Any, exec_ctx: Any, results: Any = None, **facts: Any) -> None:
        """Update the best epoch and its state; stop when patience has run out."""
        epoch = exec_ctx.epoch_idx
        try:
            value = results._metrics.epoch_value(self._monitor, epoch, self.reducer)
        except MetricNotLoggedError:
            logged = [name for c in phase.callbacks for name in getattr(c, "logs", [])]
            if self._monitor in [*logged, *results.metric_names()]:  # in other epochs
                return
            raise
        if math.isnan(value):
            warn(
                f"{self._monitor!r} is NaN in epoch {epoch}, which never counts as the best; look "
                "for NaN in the columns (fs.summary())",
            )
        if self._patience.update(value, epoch):
            if self._restore_best:
                self._best_state = phase.graph().get_state()
                if phase.recording is ResultRecording.LAST:
                    self._best_steps = results._execution
        elif self._patience.is_spent:
            self._stopped = epoch
            phase.request_stop()

    def on_phase_end(self, *, phase: Any, results: Any = None, **facts: Any) -> EarlyStoppingResult:
        """Restore the best epoch if configured, and return a summary."""
        restored = self._restore_best and self._best_state is not None
        if restored:
            phase.graph().set_state(self._best_state)
            if phase.recording is ResultRecording.LAST:
                results._execution = self._best_steps
        self._best_state, self._best_steps = None, StepLog()
        return EarlyStoppingResult(
            monitor=self._monitor,
            best_epoch=self.best_epoch,
            best_value=self.best_value,
            stopped_epoch=self._stopped,
            restored=restored,
        )

    def get_state(self) -> dict[str, Any]:
        """Return the patience counter, and the best epoch so far with its state."""
        patience = {name: getattr(self._patience, name) for name in _PATIENCE_STATE}
        steps = {"best_steps": packed_steps(self._best_steps)} if self._best_steps else {}
        return {
            "watch": patience,
            "stopped": self._stopped,
            "best_state": self._best_state,
            **steps,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from `get_state`."""
        for name in state["watch"].keys() & _PATIENCE_STATE:
            setattr(self._patience, name, state["watch"][name])
        self._stopped, self._best_state = state["stopped"], state["best_state"]
        self._best_steps = StepLog(unpacked_steps(state.get("best_steps")))

    def _reset(self) -> None:
        self._patience = Patience(self.mode, self.patience, self.min_delta)
        self._stopped, self._best_state, self._best_steps = None, None, StepLog()


_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "min": 60.0, "s": 1.0, "": 1.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s|)")

logger = logging.getLogger(__name__)


@registered
class MaxTime(Callback):
    """Stop a phase after a time.

    The time of a run that was stopped and resumed counts, but not the time between.

    Parameters
    ----------
    budget : float or str
        In seconds, or with units: ``"90s"``, ``"30min"``, ``"2h"``, ``"1h30m"``, ``"2d"``.
    every : {'epoch', 'batch'}
        When the time is looked at: at the end of each epoch, or of each update of the weights,
        which ends the epoch there.
    label : str, optional
    execution_order : int

    Raises
    ------
    ConfigError
        If the budget is not a positive time.

    Notes
    -----
    Folds and other variants with this callback are not trained as one, as each has its own time.

    Examples
    --------
    >>> MaxTime("1h30m").seconds
    5400.0
    """

    logs: tuple[str, ...] = ()
    changes_weights = False
    measures_time = True

    def __init__(
        self,
        budget: float | str,
        *,
        every: Literal["epoch", "batch"] = "epoch",
        **options: Unpack[CallbackOptions],
    ) -> None:
        super().__init__(**options)
        self.budget, self.every = budget, every
        if isinstance(budget, str):
            parts = _PART.findall(budget.strip())
            is_whole = "".join(budget.split()) == "".join(n + unit for n, unit in parts)
            bare = len(parts) > 1 and any(not unit for _, unit in parts)
            seconds = sum(float(n) * _UNITS[u] for n, u in parts) if is_whole and not bare else 0.0
        else:
            seconds = float(budget)
        if not 0 < seconds < float("inf"):
            raise ConfigError(
                "budget must be a positive time: seconds, or a text such as '90s', '30min', '2h', "
                f"'1h30m' or '2d', got {budget!r}"
            )
        self.seconds = seconds
        self._before, self._started = 0.0, monotonic()
        self._stopped: int | None = None
        self.unused_hooks = () if every == "batch" else ("on_batch_end",)

    @property
    def elapsed(self) -> float:
        """Seconds since the phase started, without those between a stop and its resumption."""
        return self._before + monotonic() - self._started

    @property
    def stopped_epoch(self) -> int | None:
        """The epoch (0-based) in which the phase was stopped; None if it was not."""
        return self._stopped

    def on_phase_start(self, **facts: Any) -> None:
        """Start the clock."""
        self._before, self._started, self._stopped = 0.0, monotonic(), None

    def on_epoch_end(self, *, phase: Any, exec_ctx: ExecutionContext, **facts: Any) -> None:
        """Stop the phase if the time is over."""
        if self._stopped is None and self._is_over(phase):
            self._stop(phase, exec_ctx.epoch_idx)

    def on_batch_end(self, *, phase: Any, exec_ctx: ExecutionContext, **facts: Any) -> None:
        """End the epoch, and stop the phase, if the time is over."""
        if phase.has_no_pending_gradients and self._is_over(phase):
            self._stop(phase, exec_ctx.epoch_idx)
            raise EpochOverError

    def on_phase_end(self, **facts: Any) -> PayloadResult | None:
        """Return the epoch in which the time was over."""
        if self._stopped is None:
            return None
        return PayloadResult(payload={"stopped_epoch": self._stopped, "budget": self.seconds})

    def get_state(self) -> dict[str, Any]:
        """Return the seconds so far, and the epoch in which they were over."""
        return {"elapsed": self.elapsed, "stopped": self._stopped}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from `get_state`; the clock goes on from there."""
        self._before, self._started = state["elapsed"], monotonic()
        self._stopped = state["stopped"]

    def _is_over(self, phase: Any) -> bool:
        processes = phase.position.feed.processes
        elapsed = [self.elapsed] if processes is None else processes.gather(self.elapsed)
        return max(elapsed) >= self.seconds

    def _stop(self, phase: Any, epoch: int) -> None:
        self._stopped = epoch
        logger.info("phase %r stops in epoch %d: %s is over", phase.label, epoch, self.budget)
        phase.request_stop()
