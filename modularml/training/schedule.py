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
"""Common aliases, as normalized by `_plain`, and the frameworks' names."""


class LRSchedule(Configurable):
    """Learning-rate schedule of an optimizer.

    Parameters
    ----------
    schedule : str, type or callable
        A name such as ``"cosine"`` or ``"StepLR"`` (in any case, with or without ``LR``), a class
        of the framework, or a callable that takes the framework's optimizer and returns one.
    schedule_kwargs : dict, optional
        Arguments for it, such as ``{"T_max": 50}``.
    every : {'epoch', 'batch'}
        When it steps: after each epoch, or after each update of the weights.
    monitor : str, optional
        Metric that is passed to it each epoch, such as ``val_loss``; ``ReduceLROnPlateau`` needs
        it.

    Raises
    ------
    ConfigError
        If an argument is not valid.

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
        """Convert a name, class or callable to a schedule; None stays None."""
        return value if value is None or isinstance(value, LRSchedule) else cls(value)

    def make(self, optimizer: Any, backend: Backend) -> Any:
        """Build the framework's schedule for its optimizer.

        Raises
        ------
        UnknownNameError
            If the backend has no schedule of this name.
        ConfigError
            If the arguments do not fit, or a metric is needed and `monitor` is not given.
        """
        schedule = self._named(backend) if isinstance(self.schedule, str) else self.schedule
        if (backend_of_schedule := backend_of(schedule)) not in (Backend.NONE, backend):
            raise ConfigError(
                f"schedule {schedule!r} belongs to {backend_of_schedule.value}, not {backend.value}"
            )
        kwargs = self.schedule_kwargs or {}
        try:
            built = adapter_for(backend).make_schedule(schedule, optimizer, kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self!r} cannot be built: {error}") from error
        first_argument = next(iter(inspect.signature(built.step).parameters.values()), None)
        takes_metric = (
            first_argument is not None and first_argument.default is inspect.Parameter.empty
        )
        if takes_metric is not (self.monitor is not None):
            advice = (
                "needs the metric to monitor: pass" if takes_metric else "monitors no metric: omit"
            )
            raise ConfigError(f"{self!r} {advice} monitor=")
        return built

    def _named(self, backend: Backend) -> Any:
        known = {_plain(name): cls for name, cls in adapter_for(backend).schedules().items()}
        spelling = _plain(str(self.schedule))
        schedule_cls = next(
            (known[n] for n in (spelling, *ALIASES.get(spelling, ())) if n in known), None
        )
        if schedule_cls is None:
            aliases = [alias for alias, names in ALIASES.items() if known.keys() & names]
            raise UnknownNameError(f"{backend.value} schedule", self.schedule, [*known, *aliases])
        return schedule_cls


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace("lr", "")
