"""Stopping after a time."""

from __future__ import annotations

import logging
import re
from time import monotonic
from typing import Any, Literal

from modularml.data.execution import ExecutionContext
from modularml.engine.callback import Callback, PayloadResult, callback_registry
from modularml.engine.loop import EpochOverError
from modularml.errors import ConfigError

__all__ = ["MaxTime"]

_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "min": 60.0, "s": 1.0, "": 1.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s|)")

logger = logging.getLogger(__name__)


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
        label: str | None = None,
        execution_order: int = 0,
    ) -> None:
        super().__init__(label, execution_order)
        self.budget, self.every = budget, every
        self.seconds = _seconds(budget)
        self._before, self._started = 0.0, monotonic()
        self._stopped: int | None = None
        if every == "batch":
            self.on_batch_end = self._end_batch  # type: ignore[method-assign]

    def __getstate__(self) -> dict[str, Any]:
        """Omit the bound hook, which would belong to the original."""
        return {name: value for name, value in vars(self).items() if name != "on_batch_end"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Bind the hook again."""
        vars(self).update(state)
        if self.every == "batch":
            self.on_batch_end = self._end_batch  # type: ignore[method-assign]

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

    def _end_batch(self, *, phase: Any, exec_ctx: ExecutionContext, **facts: Any) -> None:
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


def _seconds(budget: float | str) -> float:
    if isinstance(budget, str):
        parts = _PART.findall(budget.strip())
        is_whole = "".join(budget.split()) == "".join(n + unit for n, unit in parts)
        bare = len(parts) > 1 and any(not unit for _, unit in parts)
        seconds = sum(float(n) * _UNITS[unit] for n, unit in parts) if is_whole and not bare else 0
    else:
        seconds = float(budget)
    if not 0 < seconds < float("inf"):
        raise ConfigError(
            "budget must be a positive time: seconds, or a text such as '90s', '30min', '2h', "
            f"'1h30m' or '2d', got {budget!r}"
        )
    return seconds


callback_registry.register("MaxTime", MaxTime)
