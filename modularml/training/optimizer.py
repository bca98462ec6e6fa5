"""An optimizer of any framework, made when its parameters are known."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from modularml.backends import Backend, BackendAdapter, adapter_for, backend_of
from modularml.config import Configurable, Stateful
from modularml.errors import (
    ConfigError,
    OptimizerNotSetError,
    UnknownNameError,
)
from modularml.io.saveable import Saveable

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

    Raises
    ------
    ConfigError
        If not exactly one of `opt` and `factory` is given.
    UnknownNameError
        If the name is no optimizer of the backend; raised at once where the backend is known.

    Notes
    -----
    Where torch has a fused kernel it is used: the same arithmetic, two to three times as fast on
    small models. ``opt_kwargs={"fused": False}`` turns it off.

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
    ) -> None:
        if (opt is None) == (factory is None):
            raise ConfigError("give exactly one of opt and factory")
        if opt is not None and not isinstance(opt, str) and not inspect.isclass(opt):
            raise TypeError(
                f"opt must be a name or a class, got {opt!r}; give an instance by factory="
            )
        self.opt, self.opt_kwargs, self.factory = opt, opt_kwargs, factory
        found = backend_of(opt) if inspect.isclass(opt) else Backend.NONE
        self._backend: Backend | None = None if found is Backend.NONE else found
        if backend is not None:
            self._set_backend(Backend.from_value(backend))
        self.instance: Any = None
        self._named: dict[str, Any] = {}
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
        self.instance = self._make(params)
        self._named = dict(named or {str(i): p for i, p in enumerate(params)})
        pending, self._pending = self._pending, None
        if pending is not None:
            self.set_state(pending)

    def missing(self, parameters: Mapping[str, Any]) -> list[str]:
        """Return names of those of some parameters that it does not move."""
        held = {id(p) for p in self._named.values()}
        return [name for name, p in parameters.items() if id(p) not in held]

    def build_for(self, parameters: Mapping[str, Any], backend: Backend, owner: str) -> None:
        """Make the framework's optimizer over some parameters; those it moves keep their moments.

        Parameters
        ----------
        parameters : mapping of str to parameter
        backend : Backend
        owner : str
            Whose they are, for messages.

        Raises
        ------
        OptimizerNotSetError
            If it moves the parameters of somebody else.
        """
        if self.instance is None:
            self.build(parameters=parameters, backend=backend)
            return
        if len(self.missing(parameters)) == len(parameters):
            raise OptimizerNotSetError(
                f"{self!r} moves the parameters of another node or graph; give {owner} one of "
                "its own"
            )
        state = self.get_state()
        self.build(parameters=parameters, backend=backend, force_rebuild=True)
        kept = {k: v for k, v in state["moments"].items() if k in parameters}
        self.set_state({**state, "moments": kept})

    def step(self, grads: Any = None, variables: Any = None) -> None:
        """Move the parameters once, along the gradients they hold.

        Raises
        ------
        OptimizerNotSetError
            If it has not been built.
        """
        if self.instance is None:
            raise OptimizerNotSetError(f"{self!r} has not been built; call build(parameters=...)")
        self._adapter().optimizer_step(self.instance, grads, variables)

    def get_state(self) -> dict[str, Any]:
        """Return hyperparameters and moments, as numbers and arrays, by parameter name."""
        if self.instance is None:
            return {"is_built": False} if self._pending is None else self._pending
        return {"is_built": True, **self._adapter().optimizer_state(self.instance, self._named)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over a state; kept until `build` where that has not happened yet.

        Raises
        ------
        ConfigError
            If it belongs to other parameters.
        """
        if not state.get("is_built"):
            return
        if self.instance is None:
            self._pending = state
            return
        self._adapter().load_optimizer_state(self.instance, self._named, state)

    def reset(self) -> None:
        """Forget the framework's optimizer and its moments."""
        self.instance, self._named, self._pending = None, {}, None

    def _make(self, params: list[Any]) -> Any:
        if self.factory is not None:
            return self._adapter().adopt_optimizer(self.factory(params), params)
        cls = self._class()
        try:
            return self._adapter().make_optimizer(cls, params, self.kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.name} cannot be made with {self.kwargs}: {error}") from error

    def _adapter(self) -> BackendAdapter:
        if self._backend is None:
            raise ConfigError(f"the backend of {self.name!r} is not known; pass backend=")
        return adapter_for(self._backend)

    def _set_backend(self, backend: Backend) -> None:
        if self._backend not in (None, backend):
            raise ConfigError(
                f"optimizer {self.name!r} belongs to {self._backend.value}, not to {backend.value}"
            )
        self._backend = backend

    def _class(self) -> type:
        if inspect.isclass(self.opt):
            return self.opt
        adapter = self._adapter()
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
        }
