"""Schedules that warm up, or last as long as a phase."""

from __future__ import annotations

from typing import Any

from modularml.backends import BackendAdapter

__all__ = ["PhaseSchedule", "main_of"]


class PhaseSchedule:
    """A schedule of a framework after a linear warm-up, which ends with its phase.

    Rate ``i`` of ``n`` warm-up steps is ``(i + 1) / (n + 1)`` of the first rate of the schedule.

    Parameters
    ----------
    adapter : BackendAdapter
    optimizer : object
        The framework's optimizer.
    main : object or None
        The framework's schedule; None keeps the rate constant.
    warmup : int
        Steps before it.
    n_steps : int or None
        Steps after which the rate stays; None for no end.
    """

    def __init__(
        self,
        adapter: BackendAdapter,
        optimizer: Any,
        main: Any,
        warmup: int,
        n_steps: int | None = None,
    ) -> None:
        self.main, self.warmup, self.n_steps = main, warmup, n_steps
        self._adapter, self._optimizer = adapter, optimizer
        self._first = list(adapter.learning_rates(optimizer).values())
        self.last_epoch = 0
        self._warm_up()

    def step(self, *metric: float) -> None:
        """Step by one epoch or batch."""
        if self.last_epoch == self.n_steps:
            return
        self.last_epoch += 1
        if self.last_epoch <= self.warmup:
            self._warm_up()
        elif self.main is not None:
            self.main.step(*metric)

    def state_dict(self) -> dict[str, Any]:
        """Return the position, the first rates and the state of the framework's schedule."""
        known = {} if self.main is None else self.main.state_dict()
        main = {name: value for name, value in known.items() if not callable(value)}
        return {"last_epoch": self.last_epoch, "first": self._first, "main": main}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.last_epoch, self._first = state["last_epoch"], list(state["first"])
        if self.main is not None:
            self.main.load_state_dict(state["main"])
        if self.last_epoch <= self.warmup:
            self._warm_up()

    def _warm_up(self) -> None:
        if self.warmup:
            factor = (self.last_epoch + 1) / (self.warmup + 1)
            rates = [rate * factor for rate in self._first]
            self._adapter.set_learning_rates(self._optimizer, rates)


def main_of(scheduler: Any) -> Any:
    """Return the framework's schedule within a scheduler."""
    return scheduler.main if isinstance(scheduler, PhaseSchedule) else scheduler
