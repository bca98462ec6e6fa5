"""Early stopping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from modularml._warning import warn
from modularml.data.execution import ExecutionContext
from modularml.engine.callback import Callback, CallbackResult, callback_registry
from modularml.engine.monitoring import check_logged, direction
from modularml.errors import ConfigError, MetricNotLoggedError
from modularml.loops.stages import Patience
from modularml.results.recording import ResultRecording
from modularml.results.step_log import StepLog
from modularml.results.stored_steps import packed_steps, unpacked_steps

__all__ = ["EarlyStopping", "EarlyStoppingResult"]

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
        self._check_mode(phase)
        ordered = sorted(phase.callbacks, key=lambda c: c.execution_order)
        loggers = [c for c in ordered if self._monitor in getattr(c, "logs", ())]
        if loggers and ordered.index(loggers[0]) > ordered.index(self):
            raise ConfigError(
                f"EarlyStopping monitors {self._monitor!r}, which {loggers[0].label!r} logs after "
                f"it; pass EarlyStopping an execution_order above {loggers[0].execution_order}"
            )

    def on_epoch_end(
        self, *, experiment: Any, phase: Any, exec_ctx: ExecutionContext, results: Any = None
    ) -> CallbackResult | None:
        """Update the best epoch and its state; stop when patience has run out."""
        epoch = exec_ctx.epoch_idx
        try:
            value = results._metrics.epoch_value(self._monitor, epoch, self.reducer)
        except MetricNotLoggedError:
            if self._will_be_logged(phase, results):
                return None
            raise
        if math.isnan(value):
            warn(
                f"{self._monitor!r} is NaN in epoch {epoch}, which never counts as the best; look "
                "for NaN in the columns (fs.summary())",
            )
        if self._patience.update(value, epoch):
            self._save_best(phase, results)
        elif self._patience.is_spent:
            self._stopped = epoch
            phase.request_stop()
        return None

    def on_phase_end(
        self, *, experiment: Any, phase: Any, results: Any = None
    ) -> EarlyStoppingResult | None:
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

    def _save_best(self, phase: Any, results: Any) -> None:
        if self._restore_best:
            self._best_state = phase.graph().get_state()
            if phase.recording is ResultRecording.LAST:
                self._best_steps = results._execution

    def _check_mode(self, phase: Any) -> None:
        """Warn of a mode that contradicts the metric; correct the default mode."""
        greater = direction(self._monitor, phase.callbacks)
        if greater is None or greater is (self.mode == "max"):
            return
        better, other = ("greater", "max") if greater else ("lower", "min")
        consequence = "so mode='max' is used" if greater else "and mode='max' is used as given"
        warn(
            f"EarlyStopping has mode={self.mode!r}, but {self._monitor!r} is better when it is "
            f"{better}, {consequence}; pass mode={other!r}",
            UserWarning,
        )
        if greater:
            self._patience.mode = "max"

    def _will_be_logged(self, phase: Any, results: Any) -> bool:
        """Return whether the metric is logged in other epochs."""
        declared = [name for c in phase.callbacks for name in getattr(c, "logs", [])]
        return self._monitor in declared or self._monitor in results.metric_names()


callback_registry.register("EarlyStopping", EarlyStopping)
