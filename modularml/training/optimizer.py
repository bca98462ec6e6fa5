"""Optimizers by name, class or factory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from numbers import Real
from typing import Any

from modularml.backends import Backend, BackendAdapter, adapter_for, backend_of
from modularml.backends.fingerprint import fingerprint
from modularml.config import Configurable, Stateful
from modularml.errors import ConfigError, OptimizerNotSetError, UnknownNameError
from modularml.io.artifact import Saveable
from modularml.training.parameters import grouped, kinds_of
from modularml.training.schedule import LRSchedule


class Optimizer(Configurable, Stateful, Saveable):
    """An optimizer by name, class or factory.

    Parameters
    ----------
    opt : str or type, optional
        A name such as ``"adam"``, or a class. Exclusive with `factory`.
    opt_kwargs : dict, optional
        Arguments for the class, such as ``{"lr": 1e-3}``.
    factory : callable, optional
        Takes the parameters and returns an optimizer of the framework.
    backend : Backend or str, optional
        By default inferred from the class, or from the nodes.
    schedule : LRSchedule, str, type or callable, optional
        Learning-rate schedule.
    clip_norm, clip_value : float, optional
        Maximum norm of all gradients together, and maximum absolute value of each element.
    groups : dict of str to dict, optional
        Arguments for groups of parameters, such as ``{"encoder": {"lr": 1e-4}}``. The key is the
        label of a node, optionally followed by a part of its model: ``"encoder.layers.0"``.

    Raises
    ------
    ConfigError
        If not exactly one of `opt` and `factory` is given, or a limit is not positive.
    UnknownNameError
        If the backend has no optimizer of this name; raised at once if the backend is known.

    Notes
    -----
    torch's fused kernel is used where available: the same arithmetic, two to three times as fast on
    small models. ``opt_kwargs={"fused": False}`` turns it off. Keras optimizers also accept torch's
    argument names (``lr``, ``betas``, ``eps``); defaults are those of Keras. In Keras, each of
    `groups` has its own optimizer and schedule.

    Examples
    --------
    >>> Optimizer("adam", opt_kwargs={"lr": 1e-3}, backend="torch").name
    'adam'
    """

    artifact_kind = "op"

    def __init__(
        self,
        opt: str | type | None = None,
        *,
        opt_kwargs: dict[str, Any] | None = None,
        factory: Callable[..., Any] | None = None,
        backend: Backend | str | None = None,
        schedule: LRSchedule | str | type | Callable[..., Any] | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        groups: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        if (opt is None) == (factory is None):
            raise ConfigError("pass exactly one of opt and factory")
        limits: dict[str, Any] = {"clip_norm": clip_norm, "clip_value": clip_value}
        for name, limit in limits.items():
            number = isinstance(limit, Real) and not isinstance(limit, bool)
            if limit is not None and not (number and 0 < limit < float("inf")):
                raise ConfigError(f"{name} must be a positive number or None, got {limit!r}")
        if groups is not None and factory is not None:
            raise ConfigError("groups need opt=; a factory defines its own groups")
        if opt is not None and not isinstance(opt, str) and not inspect.isclass(opt):
            raise TypeError(
                f"opt must be a name or a class, got {opt!r}; pass an instance with factory="
            )
        self.opt, self.opt_kwargs, self.factory = opt, opt_kwargs, factory
        found = backend_of(opt) if inspect.isclass(opt) else Backend.NONE
        self._backend: Backend | None = None if found is Backend.NONE else found
        if backend is not None:
            self._set_backend(Backend.from_value(backend))
        self.clip_norm, self.clip_value, self.groups = clip_norm, clip_value, groups
        self.schedule = schedule
        LRSchedule.from_value(schedule)  # raise here, not in build
        self.instance: Any = None
        self.scheduler: Any = None
        self._named: dict[str, Any] = {}
        self._kinds: dict[str, tuple[Any, ...]] = {}
        self._settings: dict[str, Hashable] = {}
        self._pending: dict[str, Any] | None = None
        self._base_rates: list[float] = []
        self._n_steps: int | None = None  # of the phase, where the schedule depends on it
        if isinstance(opt, str) and self._backend is not None:
            _ = self.cls  # raise here, not in build

    @classmethod
    def from_factory(cls, factory: Callable[..., Any], *, backend: Backend | str) -> Optimizer:
        """Create an optimizer whose framework object comes from a factory."""
        return cls(factory=factory, backend=backend)

    @property
    def backend(self) -> Backend | None:
        """The framework of this optimizer; None until known."""
        return self._backend

    @property
    def name(self) -> str:
        """Name of the optimizer, in lower case."""
        named = self.opt if self.opt is not None else self.factory
        return (named if isinstance(named, str) else getattr(named, "__name__", "factory")).lower()

    @property
    def cls(self) -> type | None:
        """Class of the optimizer; None for a factory."""
        if not isinstance(self.opt, str):
            return self.opt
        adapter = self._adapter
        classes = {n.lower(): c for n, c in adapter.optimizers().items()}
        cls = classes.get(self.opt.lower().replace("_", ""))
        if cls is None:
            raise UnknownNameError(f"{adapter.backend.value} optimizer", self.opt, classes)
        return cls

    @property
    def kwargs(self) -> dict[str, Any]:
        """Arguments for the class."""
        return dict(self.opt_kwargs or {})

    @property
    def is_built(self) -> bool:
        """Whether the framework's optimizer exists."""
        return self.instance is not None

    @property
    def learning_rates(self) -> dict[str, float]:
        """Learning rate of each parameter group, by name; ``default`` for the rest.

        Raises
        ------
        OptimizerNotSetError
            If it has not been built.
        """
        return self._adapter.learning_rates(self._built())

    @property
    def initial_rates(self) -> list[float]:
        """The rate of each group from which a schedule starts; without one, the current rates."""
        return list(self._base_rates or self.learning_rates.values())

    @property
    def lr_schedule(self) -> LRSchedule | None:
        """The learning-rate schedule."""
        return None if self.schedule is None else LRSchedule.from_value(self.schedule)

    @property
    def held(self) -> set[int]:
        """Ids of the Python objects of its parameters."""
        return {id(p) for p in self._named.values()}

    def signature(self) -> Hashable:
        """Return a fingerprint of the arguments, including nested values."""
        return (*self._current_settings().items(), self.clip_norm, self.clip_value)

    def steps_every(self, moment: str) -> bool:
        """Return whether its schedule steps after every ``epoch``, or every ``batch``."""
        return self.lr_schedule is not None and self.lr_schedule.every == moment

    @property
    def takes_length(self) -> bool:
        """Whether its schedule takes its length from each training phase."""
        schedule, backend = self.lr_schedule, self._backend
        return schedule is not None and backend is not None and schedule.needs_length(backend)

    def begin_schedule(self, n_steps: int) -> None:
        """Start a schedule that takes its length from a phase of so many steps."""
        if self.takes_length:
            self._n_steps = n_steps
            self.scheduler = self._schedule(self._built())

    def _schedule(self, instance: Any) -> Any:
        """Return a new schedule; None without one, and until the length is known."""
        schedule = self.lr_schedule
        if schedule is None or self._backend is None:
            return None
        if not self.takes_length:
            return schedule.make(instance, self._backend)
        schedule.check_arguments(self._backend)
        self._adapter.set_learning_rates(instance, self._base_rates, initial=True)
        return self._n_steps and schedule.make(instance, self._backend, self._n_steps)

    def check_begun(self) -> None:
        """Refuse to train by hand with a schedule that takes its length from a phase."""
        if self.scheduler is None and self.takes_length:
            raise ConfigError(
                f"the schedule of {self.name!r} takes its length from a phase, and none has begun; "
                "pass T_max (total_steps, decay_steps), warmup as a number of steps, or run a "
                "TrainPhase"
            )

    def advance(self, metric: float | None = None) -> None:
        """Step the schedule by one epoch or batch; phases call this themselves."""
        self.check_begun()
        if self.scheduler is not None:
            self.scheduler.step(*([] if metric is None else [metric]))

    def build(
        self,
        *,
        parameters: Any | None = None,
        backend: Backend | str | None = None,
        force_rebuild: bool = False,
    ) -> None:
        """Build the framework's optimizer.

        Parameters
        ----------
        parameters : iterable of parameters, or mapping of str to parameter
            Parameters to train; names are used in the saved state.
        backend : Backend or str, optional
            Needed if the optimizer is a name and no backend was given.
        force_rebuild : bool
            Whether to rebuild an existing one, with fresh moments.

        Raises
        ------
        OptimizerNotSetError
            If it exists and `force_rebuild` is false.
        ConfigError
            If there are no parameters, or an argument does not fit the class.
        """
        if self.instance is not None and not force_rebuild:
            raise OptimizerNotSetError(f"{self!r} is already built; pass force_rebuild=True")
        if backend is not None:
            self._set_backend(Backend.from_value(backend))
        if self._backend is None:
            raise ConfigError(f"the backend of {self!r} is not known; pass backend=")
        if not isinstance(parameters, Mapping):
            parameters = {str(i): p for i, p in enumerate(parameters or ())}
        if not parameters:
            raise ConfigError(f"{self!r} has no parameters to train; pass parameters=")
        self._build(dict(parameters))

    def _build(self, named: dict[str, Any], known: Sequence[str] = ()) -> None:
        params = grouped(named, known, self.groups) if self.groups else list(named.values())
        if self.factory is not None:
            instance = self._adapter.adopt_optimizer(self.factory(params), params)
        else:
            cls: Any = self.cls
            try:
                instance = self._adapter.make_optimizer(cls, params, self.kwargs)
            except (TypeError, ValueError) as error:
                problem = f"{self.name} cannot be built with {self.kwargs}: {error}"
                raise ConfigError(problem).with_code("MML-408") from error
        if self.lr_schedule is not None:
            self._base_rates = list(self._adapter.learning_rates(instance).values())
        self.scheduler = self._schedule(instance)
        self.instance, self._named = instance, named
        self._kinds, self._settings = kinds_of(named), self._current_settings()
        pending, self._pending = self._pending, None
        if pending is not None:
            self.set_state(pending)

    def missing(self, parameters: Mapping[str, Any]) -> list[str]:
        """Return the names of the parameters that it does not train."""
        held = self.held
        return [name for name, p in parameters.items() if id(p) not in held]

    def build_for(
        self,
        parameters: Mapping[str, Any],
        backend: Backend,
        owner: str,
        previous: Any = None,
        known: Sequence[str] = (),
    ) -> None:
        """Build the framework's optimizer for parameters, or update it to them.

        New parameters are added, missing ones are removed. The others keep their moments; learning
        rates and the schedule continue, except for arguments that were changed.

        Parameters
        ----------
        parameters : mapping of str to parameter
        backend : Backend
        owner : str
            Owner of the parameters, for messages.
        previous : object, optional
            The framework's optimizer last built for this owner.
        known : sequence of str
            Names of parameters that `groups` may name, including those not trained now.

        Raises
        ------
        OptimizerNotSetError
            If it trains the parameters of another owner.
        ConfigError
            If a rate, or groups, changed while a schedule sets the rates.
        """
        settings, named = self._current_settings(), dict(parameters)
        if self.instance is None:
            self._set_backend(backend)
            self._build(named, known)
            return
        same = self._named.keys() == named.keys() and all(
            self._named[name] is p for name, p in named.items()
        )
        if same and self._kinds == kinds_of(named) and self._settings == settings:
            return
        if self.instance is not previous and len(self.missing(named)) == len(named):
            raise OptimizerNotSetError(
                f"{self!r} already trains the parameters of another node or graph; give {owner} "
                "its own optimizer"
            )
        state = self._state_for(named, settings)
        self._build(named, known)
        self.set_state(state)

    def _state_for(self, named: Mapping[str, Any], now: Mapping[str, Hashable]) -> dict[str, Any]:
        """Return the state for other parameters or arguments."""
        state, before = self.get_state(), self._settings
        if any(now[name] != before[name] for name in ("opt", "factory")):
            return {"is_built": False}
        changed = {k for k in now.keys() | before.keys() if now.get(k) != before.get(k)}
        rates = changed & {"lr", "learning_rate", "groups"}
        if rates and self.scheduler is not None and "schedule" not in changed:
            raise ConfigError(
                f"{', '.join(sorted(rates))} of {self!r} cannot change while its schedule sets "
                "the rates; also change the schedule, or call reset() to start over"
            )
        if changed & {"schedule", "groups", "lr", "learning_rate"}:
            changed |= {"lr", "initial_lr", "learning_rate"}
        old_names = {(id(p), self._kinds[name][0]): name for name, p in self._named.items()}
        sources = {name: old_names.get((id(p), tuple(p.shape))) for name, p in named.items()}
        moments = {n: state["moments"][o] for n, o in sources.items() if o in state["moments"]}
        groups = [{k: v for k, v in g.items() if k not in changed} for g in state["groups"]]
        new_state = {**state, "moments": moments, "groups": groups}
        if "schedule" in changed:
            new_state.pop("schedule", None)
        return new_state

    def step(self, grads: Any = None, variables: Any = None) -> None:
        """Update the parameters once with their gradients.

        Raises
        ------
        OptimizerNotSetError
            If it has not been built.
        """
        instance = self._built()
        if self.clip_norm is not None or self.clip_value is not None:
            limits = (self.clip_norm, self.clip_value)
            grads = self._adapter.clip_gradients(instance, grads, *limits)
        self._adapter.optimizer_step(instance, grads, variables)

    def get_state(self) -> dict[str, Any]:
        """Return hyperparameters and moments, as numbers and arrays, by parameter name."""
        if self.instance is None:
            return {"is_built": False} if self._pending is None else self._pending
        state = {"is_built": True, "class": type(self._built()).__name__}
        state |= self._adapter.optimizer_state(self.instance, self._named)
        if self.scheduler is not None:
            known = self.scheduler.state_dict().items()  # functions come with the config
            state["schedule"] = {name: value for name, value in known if not callable(value)}
            state |= {"n_steps": self._n_steps} if self.takes_length else {}
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state; deferred until `build` if not built yet.

        Raises
        ------
        ConfigError
            If it belongs to other parameters, or to an optimizer of another class.
        """
        if not state.get("is_built"):
            return
        if self.instance is None:
            self._pending = state
            return
        own = type(self.instance).__name__
        if (theirs := state.get("class", own)) != own:  # moments of one mean nothing to another
            raise ConfigError(
                f"the state is of the optimizer {theirs}, and this is {own}; make the optimizer as "
                "it was, or load the weights alone (load_weights)"
            )
        if self.takes_length and state.get("n_steps", self._n_steps) != self._n_steps:
            self.begin_schedule(state["n_steps"])
        self._adapter.load_optimizer_state(self.instance, self._named, state)
        if self.scheduler is not None and "schedule" in state:
            self.scheduler.load_state_dict(state["schedule"])

    def __getstate__(self) -> dict[str, Any]:
        """Replace the framework's optimizer by its state; `build` recreates it."""
        made = {"instance": None, "scheduler": None, "_named": {}, "_pending": self.get_state()}
        return {**vars(self), **made}

    def reset(self) -> None:
        """Discard the framework's optimizer and its moments."""
        self.instance, self.scheduler, self._named, self._pending = None, None, {}, None
        self._n_steps = None

    @property
    def _adapter(self) -> BackendAdapter:
        if self._backend is None:
            raise ConfigError(f"the backend of {self.name!r} is not known; pass backend=")
        return adapter_for(self._backend)

    def _built(self) -> Any:
        if self.instance is None:
            raise OptimizerNotSetError(f"{self!r} has not been built; call build(parameters=...)")
        return self.instance

    def _current_settings(self) -> dict[str, Hashable]:
        """Return the fingerprint of each argument, with `opt_kwargs` one by one."""
        schedule = self.lr_schedule
        settings = {"opt": self.opt, "factory": self.factory, "groups": self.groups}
        settings |= {"schedule": None if schedule is None else schedule._params(), **self.kwargs}
        return {name: fingerprint(value) for name, value in settings.items()}

    def _set_backend(self, backend: Backend) -> None:
        if self._backend not in (None, backend):
            raise ConfigError(
                f"optimizer {self.name!r} belongs to {self._backend.value}, not to {backend.value}"
            )
        self._backend = backend
