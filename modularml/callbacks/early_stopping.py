"""Stopping when a metric stops getting better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from modularml._warning import warn
from modularml.data.execution import ExecutionContext
from modularml.engine.callback import Callback, CallbackResult, callback_registry
from modularml.engine.monitoring import check_logged, direction
from modularml.errors import ConfigError, MetricNotLoggedError
from modularml.loops.patience import Patience
from modularml.results.recording import ResultRecording
from modularml.results.steps import StepLog
from modularml.results.stored_steps import packed_steps, unpacked_steps

__all__ = ["EarlyStopping", "EarlyStoppingResult"]

_WATCHED = ("mode", "best", "best_epoch", "waited")


@dataclass
class EarlyStoppingResult(CallbackResult):
    """When a training stopped, and which epoch was best."""

    kind: ClassVar[str] = "early_stopping"

    monitor: str = ""
    best_epoch: int | None = None
    best_value: float | None = None
    stopped_epoch: int | None = None
    restored: bool = False


class EarlyStopping(Callback):
    """Stop a training when a metric has not improved for some epochs.

    Parameters
    ----------
    monitor : str
        Name of a metric that is logged: ``train_loss``, or one of an `Evaluation`.
    mode : {'min', 'max'}
        Which values are better. ``min``, the default, gives way to ``max``, with a warning, where
        the metric is known to be better when it is greater, such as ``val_r2``; ``max`` for a
        metric that is better when it is lower is warned of and honoured.
    patience : int
        Epochs without improvement before the phase stops; at least 0.
    min_delta : float
        Smallest change that counts as improvement; at least 0.
    restore_best : bool
        Whether the graph goes back to the best epoch at the end.
    reducer : {'mean', 'sum', 'last', 'first'}
        Where the metric has several values an epoch.
    label : str, optional
    execution_order : int
        Must be higher than that of the callback which logs the metric.

    Raises
    ------
    ConfigError
        If an argument is not as described.
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
        self._best_state: Any = None
        self._best_steps = StepLog()
        self._stopped: int | None = None
        self._reset()

    @property
    def monitor(self) -> str:
        """Name of the metric."""
        return self._monitor

    @property
    def restore_best(self) -> bool:
        """Whether the graph goes back to the best epoch at the end."""
        return self._restore_best

    @property
    def best_epoch(self) -> int | None:
        """The epoch with the best value so far; None before the first."""
        return self._watch.best_epoch

    @property
    def best_value(self) -> float | None:
        """The best value so far; None before the first."""
        return self._watch.best

    @property
    def stopped_epoch(self) -> int | None:
        """The epoch after which the training was stopped; None where it was not."""
        return self._stopped

    def on_phase_start(self, *, experiment: Any, phase: Any, results: Any = None) -> None:
        """Forget an earlier phase."""
        self._reset()
        self.check_ready(experiment, phase)

    def check_ready(self, experiment: Any, phase: Any = None) -> None:
        """Refuse a metric that nobody logs before this callback."""
        check_logged(self._monitor, phase, "EarlyStopping")
        self._check_mode(phase)
        ordered = sorted(phase.callbacks, key=lambda c: c.execution_order)
        loggers = [c for c in ordered if self._monitor in getattr(c, "logs", ())]
        if loggers and ordered.index(loggers[0]) > ordered.index(self):
            raise ConfigError(
                f"EarlyStopping watches {self._monitor!r}, which {loggers[0].label!r} logs after "
                f"it; give EarlyStopping an execution_order above {loggers[0].execution_order}"
            )

    def on_epoch_end(
        self, *, experiment: Any, phase: Any, exec_ctx: ExecutionContext, results: Any = None
    ) -> CallbackResult | None:
        """Look at the metric; keep the state of the best epoch; stop where patience is spent."""
        epoch = exec_ctx.epoch_idx
        try:
            value = results._metrics.epoch_value(self._monitor, epoch, self.reducer)
        except MetricNotLoggedError:
            if self._will_be_logged(phase, results):
                return None
            raise
        if math.isnan(value):
            warn(
                f"{self._monitor!r} is NaN in epoch {epoch}, which is never the best one; look for "
                "NaN in the columns (fs.summary())",
            )
        if self._watch.update(value, epoch):
            self._keep(phase, results)
        elif self._watch.is_spent:
            self._stopped = epoch
            phase.request_stop()
        return None

    def on_phase_end(
        self, *, experiment: Any, phase: Any, results: Any = None
    ) -> EarlyStoppingResult | None:
        """Go back to the best epoch, where asked, and say what happened."""
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
        """Return how long it has waited, and the best epoch so far with its state."""
        watch = {name: getattr(self._watch, name) for name in _WATCHED}
        steps = {"best_steps": packed_steps(self._best_steps)} if self._best_steps else {}
        return {"watch": watch, "stopped": self._stopped, "best_state": self._best_state, **steps}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_state` returned."""
        for name in state["watch"].keys() & _WATCHED:
            setattr(self._watch, name, state["watch"][name])
        self._stopped, self._best_state = state["stopped"], state["best_state"]
        self._best_steps = StepLog(unpacked_steps(state.get("best_steps")))

    def _reset(self) -> None:
        self._watch = Patience(self.mode, self.patience, self.min_delta)
        self._stopped, self._best_state, self._best_steps = None, None, StepLog()

    def _keep(self, phase: Any, results: Any) -> None:
        if self._restore_best:
            self._best_state = phase.graph().get_state()
            if phase.recording is ResultRecording.LAST:
                self._best_steps = results._execution

    def _check_mode(self, phase: Any) -> None:
        """Warn of a mode that contradicts the metric; the default gives way."""
        greater = direction(self._monitor, phase.callbacks)
        if greater is None or greater is (self.mode == "max"):
            return
        better, other = ("greater", "max") if greater else ("lower", "min")
        followed = "so mode='max' is used" if greater else "and mode='max' is honoured"
        warn(
            f"EarlyStopping has mode={self.mode!r}, but {self._monitor!r} is better when it is "
            f"{better}, {followed}; pass mode={other!r}",
            UserWarning,
        )
        if greater:
            self._watch.mode = "max"

    def _will_be_logged(self, phase: Any, results: Any) -> bool:
        """Tell whether the metric comes in other epochs than this one."""
        announced = [name for c in phase.callbacks for name in getattr(c, "logs", [])]
        return self._monitor in announced or self._monitor in results.metric_names()


callback_registry.register("EarlyStopping", EarlyStopping)
