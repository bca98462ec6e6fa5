"""Learning-rate schedules, and their length within a phase."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, Literal

from modularml.backends import Backend, BackendAdapter, adapter_for, backend_of
from modularml.config import Configurable
from modularml.errors import ConfigError, UnknownNameError


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


ALIASES = {
    "cosine": ("cosineannealing", "cosinedecay"),
    "exponential": ("exponentialdecay",),
    "plateau": ("reduceonplateau",),
}
"""Common aliases, as normalized by `_plain`, and the frameworks' names."""

LENGTHS = ("T_max", "total_steps", "decay_steps")
"""Arguments that are the number of steps of a whole schedule."""


class LRSchedule(Configurable):
    """Learning-rate schedule of an optimizer.

    Parameters
    ----------
    schedule : str, type or callable, optional
        A name such as ``"cosine"`` or ``"StepLR"`` (in any case, with or without ``LR``), a class
        of the framework, or a callable that takes the framework's optimizer and returns one. By
        default the rate is constant after `warmup`.
    schedule_kwargs : dict, optional
        Arguments for it, such as ``{"T_max": 50}``. ``T_max``, ``total_steps`` and ``decay_steps``
        are filled in with the steps of the phase after `warmup` where the schedule needs them and
        they are omitted, and so is any argument that is ``"phase"``.
    every : {'epoch', 'batch'}
        When it steps: after each epoch, or after each update of the weights.
    monitor : str, optional
        Metric that is passed to it each epoch, such as ``val_loss``; ``ReduceLROnPlateau`` needs
        it.
    warmup : int or float
        Steps (epochs or updates, as `every`) in which the rate rises linearly to the first rate of
        the schedule, or a share of the steps of the phase if it is a fraction below 1. Rate ``i``
        of ``n`` steps is ``(i + 1) / (n + 1)`` of it.

    Raises
    ------
    ConfigError
        If an argument is not valid.

    Notes
    -----
    A schedule that takes its length from the phase begins anew, from the rate of the optimizer, in
    each training phase. Any other continues through the phases of a run.

    Examples
    --------
    >>> LRSchedule("plateau", schedule_kwargs={"patience": 3}, monitor="val_loss").every
    'epoch'
    """

    def __init__(
        self,
        schedule: str | type | Callable[..., Any] | None = None,
        *,
        schedule_kwargs: dict[str, Any] | None = None,
        every: Literal["epoch", "batch"] = "epoch",
        monitor: str | None = None,
        warmup: float = 0,
    ) -> None:
        if schedule is None and not warmup:
            raise ConfigError("schedule must be given, or warmup for a constant rate after it")
        if not isinstance(schedule, str | None) and not callable(schedule):
            raise ConfigError(f"schedule must be a name, a class or a callable, got {schedule!r}")
        if schedule is None and (schedule_kwargs or monitor):
            raise ConfigError("schedule_kwargs and monitor are for a schedule, and there is none")
        check_warmup(warmup)
        for name, value in (schedule_kwargs or {}).items():
            if name in LENGTHS and isinstance(value, str) and value != "phase":
                raise ConfigError(f"{name} must be a number of steps or 'phase', got {value!r}")
        if every not in ("epoch", "batch"):
            raise ConfigError(f"every must be 'epoch' or 'batch', got {every!r}")
        if monitor is not None and every == "batch":
            raise ConfigError("monitor needs every='epoch': metrics are known after an epoch")
        self.schedule, self.schedule_kwargs = schedule, schedule_kwargs
        self.every, self.monitor, self.warmup = every, monitor, warmup

    @classmethod
    def from_value(cls, value: Any) -> LRSchedule | None:
        """Convert a name, class or callable to a schedule; None stays None."""
        return value if value is None or isinstance(value, LRSchedule) else cls(value)

    def needs_length(self, backend: Backend) -> bool:
        """Return whether it depends on the number of steps of a phase."""
        return 0 < self.warmup < 1 or bool(self._lengths(self._found(backend)))

    def make(self, optimizer: Any, backend: Backend, n_steps: int | None = None) -> Any:
        """Build the framework's schedule for its optimizer.

        Parameters
        ----------
        optimizer : object
            The framework's optimizer.
        backend : Backend
        n_steps : int, optional
            Number of steps of the phase, if it depends on it.

        Raises
        ------
        UnknownNameError
            If the backend has no schedule of this name.
        ConfigError
            If the arguments do not fit, or a metric is needed and `monitor` is not given.
        """
        schedule, adapter = self._found(backend), adapter_for(backend)
        warmup = self._warmup_steps(schedule, n_steps)
        kwargs = {**(self.schedule_kwargs or {})}
        if lengths := self._lengths(schedule):
            kwargs |= dict.fromkeys(lengths, (n_steps or 0) - warmup)
        try:
            built = schedule and adapter.make_schedule(schedule, optimizer, kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self!r} cannot be built: {error}") from error
        arguments = [] if built is None else [*inspect.signature(built.step).parameters.values()]
        takes_metric = bool(arguments) and arguments[0].default is inspect.Parameter.empty
        if built is not None and takes_metric is not (self.monitor is not None):
            advice = (
                "needs the metric to monitor: pass" if takes_metric else "monitors no metric: omit"
            )
            raise ConfigError(f"{self!r} {advice} monitor=")
        if not warmup and n_steps is None:
            return built
        return PhaseSchedule(adapter, optimizer, built, warmup, n_steps)

    def check_arguments(self, backend: Backend) -> None:
        """Refuse arguments that do not fit, before the length is known.

        Raises
        ------
        UnknownNameError
            If the backend has no schedule of this name.
        ConfigError
            If an argument is missing or unknown.
        """
        schedule = self._found(backend)
        kwargs = {**(self.schedule_kwargs or {}), **dict.fromkeys(self._lengths(schedule), 1)}
        first = [] if "initial_learning_rate" in kwargs else [None]  # or the optimizer
        self._warmup_steps(schedule, None)
        try:
            if schedule is not None and _parameters(schedule):
                inspect.signature(schedule).bind(*first, **kwargs)
        except TypeError as error:
            raise ConfigError(f"{self!r} cannot be built: {error}") from error

    def _warmup_steps(self, schedule: Any, n_steps: int | None) -> int:
        warmup = self.warmup if self.warmup >= 1 else round(self.warmup * (n_steps or 0))
        if n_steps is not None and warmup >= n_steps:
            raise ConfigError(
                f"{self!r} warms up for {warmup} steps, and the phase has only {n_steps}; lower "
                f"warmup (in {'updates' if self.every == 'batch' else 'epochs'}), or train longer"
            )
        if self.warmup and "pct_start" in _parameters(schedule):
            raise ConfigError(
                f"{self!r} warms up by itself: pass pct_start in schedule_kwargs instead of warmup"
            )
        return int(warmup)

    def _lengths(self, schedule: Any) -> list[str]:
        """Return the arguments that are the number of steps of the phase."""
        kwargs, known = self.schedule_kwargs or {}, _parameters(schedule)
        asked = [name for name, value in kwargs.items() if isinstance(value, str)]
        asked = [name for name in asked if kwargs[name] == "phase"]
        if {"epochs", "steps_per_epoch"} <= kwargs.keys():
            return asked
        absent = (inspect.Parameter.empty, None)
        needed = [n for n in LENGTHS if n in known and known[n].default in absent]
        return [*asked, *(name for name in needed if name not in kwargs)]

    def _found(self, backend: Backend) -> Any:
        schedule: Any = self.schedule
        if isinstance(schedule, str):
            known = {_plain(name): cls for name, cls in adapter_for(backend).schedules().items()}
            spellings = (_plain(schedule), *ALIASES.get(_plain(schedule), ()))
            schedule = next((known[n] for n in spellings if n in known), None)
            if schedule is None:
                aliases = [alias for alias, names in ALIASES.items() if known.keys() & names]
                raise UnknownNameError(
                    f"{backend.value} schedule", self.schedule, [*known, *aliases]
                )
        if (backend_of_schedule := backend_of(schedule)) not in (Backend.NONE, backend):
            raise ConfigError(
                f"schedule {schedule!r} belongs to {backend_of_schedule.value}, not {backend.value}"
            )
        return schedule


def check_warmup(warmup: Any) -> None:
    """Refuse anything but a whole number of steps, or a share of them."""
    is_number = isinstance(warmup, int | float | Integral) and not isinstance(warmup, bool)
    if not is_number or warmup < 0 or not (warmup < 1 or isinstance(warmup, Integral)):
        raise ConfigError(
            "warmup must be a whole number of steps, or a share of the phase from 0 to 1, got "
            f"{warmup!r}"
        )


def _parameters(schedule: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(schedule).parameters
    except (TypeError, ValueError):  # none, or a builtin has no signature
        return {}


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace("lr", "")
