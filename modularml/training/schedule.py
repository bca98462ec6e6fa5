"""Learning-rate schedules by name, class or factory."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

from modularml.backends import Backend, adapter_for, backend_of
from modularml.config import Configurable
from modularml.errors import ConfigError, UnknownNameError

__all__ = ["LRSchedule"]

ALIASES = {
    "cosine": ("cosineannealing", "cosinedecay"),
    "exponential": ("exponentialdecay",),
    "plateau": ("reduceonplateau",),
}
"""Common spellings, as `_plain` writes them, and what frameworks call them."""


class LRSchedule(Configurable):
    """What sets the learning rate of an optimizer while it trains.

    Parameters
    ----------
    schedule : str, type or callable
        A name such as ``"cosine"`` or ``"StepLR"`` (in any case, with or without ``LR``), a class
        of the framework, or a callable that takes the framework's optimizer and returns one.
    schedule_kwargs : dict, optional
        Arguments for it, such as ``{"T_max": 50}``.
    every : {'epoch', 'batch'}
        When it goes on: after an epoch, or each time weights have moved.
    monitor : str, optional
        Metric that is passed on each epoch, such as ``val_loss``; ``ReduceLROnPlateau`` needs it.

    Raises
    ------
    ConfigError
        If an argument is not as described.

    Examples
    --------
    >>> LRSchedule("plateau", schedule_kwargs={"patience": 3}, monitor="val_loss").every
    'epoch'
    """

    def __init__(
        self,
        schedule: str | type | Callable[..., Any],
        *,
        schedule_kwargs: dict[str, Any] | None = None,
        every: Literal["epoch", "batch"] = "epoch",
        monitor: str | None = None,
    ) -> None:
        if not isinstance(schedule, str) and not callable(schedule):
            raise ConfigError(f"schedule must be a name, a class or a callable, got {schedule!r}")
        if every not in ("epoch", "batch"):
            raise ConfigError(f"every must be 'epoch' or 'batch', got {every!r}")
        if monitor is not None and every == "batch":
            raise ConfigError("monitor needs every='epoch': metrics are known after an epoch")
        self.schedule, self.schedule_kwargs = schedule, schedule_kwargs
        self.every, self.monitor = every, monitor

    @classmethod
    def from_value(cls, value: Any) -> LRSchedule | None:
        """Read a schedule from a name, class or callable; None stays None."""
        return value if value is None or isinstance(value, LRSchedule) else cls(value)

    def make(self, optimizer: Any, backend: Backend) -> Any:
        """Make the framework's schedule of its optimizer.

        Raises
        ------
        UnknownNameError
            If the name is no schedule of the backend.
        ConfigError
            If the arguments do not fit, or a metric is needed and none is named.
        """
        schedule = self._named(backend) if isinstance(self.schedule, str) else self.schedule
        if (own := backend_of(schedule)) not in (Backend.NONE, backend):
            raise ConfigError(f"schedule {schedule!r} belongs to {own.value}, not {backend.value}")
        kwargs = self.schedule_kwargs or {}
        try:
            made = adapter_for(backend).make_schedule(schedule, optimizer, kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self!r} cannot be made: {error}") from error
        takes = next(iter(inspect.signature(made.step).parameters.values()), None)
        watches = takes is not None and takes.default is inspect.Parameter.empty
        if watches is not (self.monitor is not None):
            need = "needs the metric that it watches: pass" if watches else "watches nothing: leave"
            raise ConfigError(f"{self!r} {need} monitor=")
        return made

    def _named(self, backend: Backend) -> Any:
        known = {_plain(name): cls for name, cls in adapter_for(backend).schedules().items()}
        asked = _plain(str(self.schedule))
        found = next((known[n] for n in (asked, *ALIASES.get(asked, ())) if n in known), None)
        if found is None:
            there = [alias for alias, names in ALIASES.items() if known.keys() & names]
            raise UnknownNameError(f"{backend.value} schedule", self.schedule, [*known, *there])
        return found


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace("lr", "")
