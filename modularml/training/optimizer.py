"""An optimizer of any framework, made when its parameters are known."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from numbers import Real
from typing import Any

from modularml.backends import Backend, BackendAdapter, adapter_for, backend_of
from modularml.backends.fingerprint import fingerprint
from modularml.config import Configurable, Stateful
from modularml.errors import (
    ConfigError,
    OptimizerNotSetError,
    UnknownNameError,
)
from modularml.io.saveable import Saveable
from modularml.training.schedule import LRSchedule

__all__ = ["Optimizer"]


class Optimizer(Configurable, Stateful, Saveable):
    """An optimizer by name, class or factory.

    Parameters
    ----------
    opt : str or type, optional
        A name such as ``"adam"``, or a class. Exclusive with `factory`.
    opt_kwargs : dict, optional
        Arguments for the class, such as ``{"lr": 1e-3}``.
    factory : callable, optional
        Takes the parameters and returns an optimizer.
    backend : Backend or str, optional
        Found from the class, or from the nodes.
    schedule : LRSchedule, str, type or callable, optional
        What sets the learning rate while it trains.
    clip_norm, clip_value : float, optional
        Largest norm of all gradients together, and of each of their elements.
    groups : dict of str to dict, optional
        Arguments for some parameters alone, such as ``{"encoder": {"lr": 1e-4}}``. The key is the
        label of a node or, after a dot, a part of its model: ``"encoder.layers.0"``.

    Raises
    ------
    ConfigError
        If not exactly one of `opt` and `factory` is given, or a limit is not positive.
    UnknownNameError
        If the name is no optimizer of the backend; raised at once where the backend is known.

    Notes
    -----
    Where torch has a fused kernel it is used: the same arithmetic, two to three times as fast on
    small models. ``opt_kwargs={"fused": False}`` turns it off. Optimizers of Keras take their
    arguments by torch's names too (``lr``, ``betas``, ``eps``); what is not given is Keras' own.
    Each of `groups` has an optimizer of Keras, and a schedule, of its own.

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
            raise ConfigError("give exactly one of opt and factory")
        limits: dict[str, Any] = {"clip_norm": clip_norm, "clip_value": clip_value}
        for name, limit in limits.items():
            number = isinstance(limit, Real) and not isinstance(limit, bool)
            if limit is not None and not (number and 0 < limit < float("inf")):
                raise ConfigError(f"{name} must be a positive number or None, got {limit!r}")
        if groups is not None and factory is not None:
            raise ConfigError("groups are for opt=; a factory makes its own")
        if opt is not None and not isinstance(opt, str) and not inspect.isclass(opt):
            raise TypeError(
                f"opt must be a name or a class, got {opt!r}; give an instance by factory="
            )
        self.opt, self.opt_kwargs, self.factory = opt, opt_kwargs, factory
        found = backend_of(opt) if inspect.isclass(opt) else Backend.NONE
        self._backend: Backend | None = None if found is Backend.NONE else found
        if backend is not None:
            self._set_backend(Backend.from_value(backend))
        self.clip_norm, self.clip_value, self.groups = clip_norm, clip_value, groups
        self.schedule = schedule
        LRSchedule.from_value(schedule)  # refused here, not where it is built
        self.instance: Any = None
        self.scheduler: Any = None
        self._named: dict[str, Any] = {}
        self._kinds: dict[str, tuple[Any, ...]] = {}
        self._settings: dict[str, Hashable] = {}
        self._pending: dict[str, Any] | None = None
        if isinstance(opt, str) and self._backend is not None:
            self._class()

    @classmethod
    def from_factory(cls, factory: Callable[..., Any], *, backend: Backend | str) -> Optimizer:
        """Make an optimizer whose framework object comes from a factory."""
        return cls(factory=factory, backend=backend)

    @property
    def backend(self) -> Backend | None:
        """The framework of this optimizer; None while it is not known."""
        return self._backend

    @property
    def name(self) -> str:
        """Name of the optimizer, in lower case."""
        named = self.opt if self.opt is not None else self.factory
        return (
            named.lower()
            if isinstance(named, str)
            else getattr(named, "__name__", "factory").lower()
        )

    @property
    def cls(self) -> type | None:
        """Class of the optimizer; None for a factory."""
        return self._class() if self.opt is not None else None

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
        """The rate of each group of parameters, by name; ``default`` for those in no group.

        Raises
        ------
        OptimizerNotSetError
            If it has not been built.
        """
        return self._adapter.learning_rates(self._built())

    @property
    def lr_schedule(self) -> LRSchedule | None:
        """What sets the learning rate."""
        return LRSchedule.from_value(self.schedule)

    @property
    def held(self) -> set[int]:
        """Identities of the parameters that it moves."""
        return {id(p) for p in self._named.values()}

    def signature(self) -> Hashable:
        """Return the fingerprint of the arguments, which changes with what is within them."""
        return (*self._settings_now().items(), self.clip_norm, self.clip_value)

    def goes_on_every(self, moment: str) -> bool:
        """Tell whether its schedule goes on after every ``epoch``, or every ``batch``."""
        return self.lr_schedule is not None and self.lr_schedule.every == moment

    def advance(self, metric: float | None = None) -> None:
        """Let the schedule go on by one epoch or batch; phases do so by themselves."""
        if self.scheduler is not None:
            self.scheduler.step(*([] if metric is None else [metric]))

    def build(
        self,
        *,
        parameters: Any | None = None,
        backend: Backend | str | None = None,
        force_rebuild: bool = False,
    ) -> None:
        """Make the framework's optimizer.

        Parameters
        ----------
        parameters : iterable of parameters, or mapping of str to parameter
            What it moves; names are used in the saved state.
        backend : Backend or str, optional
            Needed where the optimizer is a name and no backend was given.
        force_rebuild : bool
            Whether to make it again, with fresh moments, where it exists.

        Raises
        ------
        OptimizerNotSetError
            If it exists and `force_rebuild` is false.
        ConfigError
            If there are no parameters, or an argument does not fit the class.
        """
        if self.instance is not None and not force_rebuild:
            raise OptimizerNotSetError(f"{self!r} is built already; pass force_rebuild=True")
        if backend is not None:
            self._set_backend(Backend.from_value(backend))
        if self._backend is None:
            raise ConfigError(f"the backend of {self!r} is not known; pass backend=")
        named = parameters if isinstance(parameters, Mapping) else None
        params = list(named.values()) if named is not None else list(parameters or ())
        if not params:
            raise ConfigError(f"{self!r} has no parameters to move; pass parameters=")
        self._build(dict(named or {str(i): p for i, p in enumerate(params)}))

    def _build(self, named: dict[str, Any], known: Sequence[str] = ()) -> None:
        params = list(named.values())
        instance = self._make(params if not self.groups else self._grouped(named, known))
        schedule = self.lr_schedule
        assert self._backend is not None
        self.scheduler = None if schedule is None else schedule.make(instance, self._backend)
        self.instance, self._named = instance, named
        self._kinds, self._settings = _kinds(named), self._settings_now()
        pending, self._pending = self._pending, None
        if pending is not None:
            self.set_state(pending)

    def missing(self, parameters: Mapping[str, Any]) -> list[str]:
        """Return names of those of some parameters that it does not move."""
        held = self.held
        return [name for name, p in parameters.items() if id(p) not in held]

    def build_for(
        self,
        parameters: Mapping[str, Any],
        backend: Backend,
        owner: str,
        mine: Any = None,
        known: Sequence[str] = (),
    ) -> None:
        """Make the framework's optimizer over some parameters, where it is not over these yet.

        New parameters are added, others are removed. Those that stay keep their moments; learning
        rates and the schedule go on, but for arguments that were changed.

        Parameters
        ----------
        parameters : mapping of str to parameter
        backend : Backend
        owner : str
            Whose they are, for messages.
        mine : object, optional
            The framework's optimizer that was made for this owner last.
        known : sequence of str
            Names of parameters that `groups` may name, those included that are not moved now.

        Raises
        ------
        OptimizerNotSetError
            If it moves the parameters of somebody else.
        ConfigError
            If a rate, or groups, were changed while a schedule sets the rates.
        """
        now, named = self._settings_now(), dict(parameters)
        if self.instance is None:
            self._set_backend(backend)
            self._build(named, known)
            return
        same = self._named.keys() == named.keys() and all(
            self._named[name] is p for name, p in named.items()
        )
        if same and self._kinds == _kinds(named) and self._settings == now:
            return
        if self.instance is not mine and len(self.missing(named)) == len(named):
            raise OptimizerNotSetError(
                f"{self!r} moves the parameters of another node or graph; give {owner} one of "
                "its own"
            )
        state = self._state_for(named, now)
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
                f"{', '.join(sorted(rates))} of {self!r} cannot change while its schedule sets the "
                "rates; give it another schedule too, or call reset() and begin anew"
            )
        if changed & {"schedule", "groups", "lr", "learning_rate"}:
            changed |= {"lr", "initial_lr", "learning_rate"}
        old = {(id(p), self._kinds[name][0]): name for name, p in self._named.items()}
        names = {name: old.get((id(p), tuple(p.shape))) for name, p in named.items()}
        moments = {n: state["moments"][o] for n, o in names.items() if o in state["moments"]}
        groups = [{k: v for k, v in g.items() if k not in changed} for g in state["groups"]]
        kept = {**state, "moments": moments, "groups": groups}
        if "schedule" in changed:
            kept.pop("schedule", None)
        return kept

    def step(self, grads: Any = None, variables: Any = None) -> None:
        """Move the parameters once, along the gradients they hold.

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
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over a state; kept until `build` where that has not happened yet.

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
        self._adapter.load_optimizer_state(self.instance, self._named, state)
        if self.scheduler is not None and "schedule" in state:
            self.scheduler.load_state_dict(state["schedule"])

    def __getstate__(self) -> dict[str, Any]:
        """Hold numbers in place of the framework's optimizer, which is made again by `build`."""
        made = {"instance": None, "scheduler": None, "_named": {}, "_pending": self.get_state()}
        return {**vars(self), **made}

    def reset(self) -> None:
        """Forget the framework's optimizer and its moments."""
        self.instance, self.scheduler, self._named, self._pending = None, None, {}, None

    @property
    def _adapter(self) -> BackendAdapter:
        if self._backend is None:
            raise ConfigError(f"the backend of {self.name!r} is not known; pass backend=")
        return adapter_for(self._backend)

    def _built(self) -> Any:
        if self.instance is None:
            raise OptimizerNotSetError(f"{self!r} has not been built; call build(parameters=...)")
        return self.instance

    def _settings_now(self) -> dict[str, Hashable]:
        """Return the fingerprint of each argument, those for the class one by one."""
        schedule = self.lr_schedule
        found = {"opt": self.opt, "factory": self.factory, "groups": self.groups}
        found |= {"schedule": None if schedule is None else schedule._params(), **self.kwargs}
        return {name: fingerprint(value) for name, value in found.items()}

    def _grouped(self, named: Mapping[str, Any], known: Sequence[str]) -> list[Any]:
        """Return parameters in groups, those that no group names first.

        A group whose parameters are all switched off by now is empty, and there for when they are
        switched on.
        """
        given = self.groups or {}
        found: dict[str, list[Any]] = {"": [], **{name: [] for name in given}}
        names = list(dict.fromkeys([*named, *known]))
        members = set[str]()
        for name in names:
            fits = [key for key in given if f"{name}.".startswith(f"{key}.")]
            key = max(fits, key=len, default="")
            members.add(key)
            if name in named:
                found[key].append(named[name])
        if unknown := [key for key in given if key not in members]:
            parts = {name.rsplit(".", i)[0] for name in names for i in range(name.count(".") + 1)}
            raise UnknownNameError("group of parameters", unknown[0], parts)
        rest = found.pop("")
        groups = [{"params": p, "name": name, **given[name]} for name, p in found.items()]
        return [{"params": rest}, *groups] if "" in members else groups

    def _make(self, params: list[Any]) -> Any:
        if self.factory is not None:
            return self._adapter.adopt_optimizer(self.factory(params), params)
        cls = self._class()
        try:
            return self._adapter.make_optimizer(cls, params, self.kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.name} cannot be made with {self.kwargs}: {error}") from error

    def _set_backend(self, backend: Backend) -> None:
        if self._backend not in (None, backend):
            raise ConfigError(
                f"optimizer {self.name!r} belongs to {self._backend.value}, not to {backend.value}"
            )
        self._backend = backend

    def _class(self) -> type:
        if inspect.isclass(self.opt):
            return self.opt
        adapter = self._adapter
        known = {n.lower(): c for n, c in adapter.optimizers().items()}
        found = known.get(str(self.opt).lower().replace("_", ""))
        if found is None:
            raise UnknownNameError(f"{adapter.backend.value} optimizer", self.opt, known)
        return found

    def _params(self) -> dict[str, Any]:
        return {
            "opt": self.opt,
            "opt_kwargs": self.opt_kwargs,
            "factory": self.factory,
            "backend": self._backend,
            "schedule": self.schedule,
            "clip_norm": self.clip_norm,
            "clip_value": self.clip_value,
            "groups": self.groups,
        }


def _kinds(named: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return shape, dtype and device of parameters by name."""
    return {
        name: (tuple(p.shape), str(p.dtype), str(getattr(p, "device", "")))
        for name, p in named.items()
    }
