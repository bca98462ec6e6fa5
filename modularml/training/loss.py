"""Losses by name, class, callable or factory."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal

from modularml.backends import Backend, adapter_for, backend_of
from modularml.backends.distribution_outputs import MOMENTS, QUANTILES, quantile_labels
from modularml.backends.fingerprint import Identity, fingerprint
from modularml.config import Configurable
from modularml.errors import ConfigError, LossError, UnknownNameError
from modularml.io.artifact import Saveable
from modularml.training.loss_kinds import ALIASES, ELEMENTWISE, FRAMEWORKS, NAMES, OVER_BATCH


class Loss(Configurable, Saveable):
    """A loss function with the same semantics in every framework.

    Its values, one per sample, per element or per batch, are averaged over the samples. A loss that
    is not a mean over samples needs ``over="batch"``. Class weights multiply the loss of a sample,
    and an ignored label counts as a loss of zero, so that no mean depends on how rows are split
    into batches.

    Parameters
    ----------
    loss : str, type or callable, optional
        A name such as ``"mse"`` (in any case, with or without ``loss``), a loss class, or a
        callable on tensors. Exclusive with `factory`. Torch's names mean the same in every
        framework: ``"cross_entropy"`` takes logits, ``"bce"`` probabilities. Other names of Keras
        (``"categorical_crossentropy"``, ``"log_cosh"``), and its classes, mean what Keras means.
    loss_kwargs : dict, optional
        Arguments for the class, or passed to the callable at each call.
    backend : Backend or str, optional
        By default inferred from the class, or from the node the loss is applied on.
    reduction : str
        Passed to classes that take it. With ``"none"`` this library computes the mean.
    factory : callable, optional
        Returns the loss when it is built. A torch module, or a loss or layer of Keras, may have
        parameters, however it is passed: they are trained by the optimizer of the node that the
        loss is applied on.
    over : {'sample', 'batch'}, optional
        Whether the loss is a mean over samples, or a value of a whole batch (Cox, NT-Xent,
        ranking, correlation, a sum). A batch loss is evaluated on all rows of a split at once,
        whatever the ``batch_size`` of the forward pass; in training its epoch value is the mean
        over batches, and ``accumulate`` and ``data_parallel`` are not supported. By default, if the
        loss returns one number, its value on the first batch is compared with those on the halves
        of that batch, with a warning if it is not a mean over samples.
    weight_by : str, optional
        With ``over="batch"``: column whose sum over a batch is the number of terms the loss
        averages over, such as the event indicator of Cox. The epoch value weights batches by it.

    Raises
    ------
    ConfigError
        If not exactly one of `loss` and `factory` is given, or `weight_by` is given without
        ``over="batch"``.
    UnknownNameError
        If the backend has no loss of this name; raised at once if the backend is known.

    Examples
    --------
    >>> Loss("mse", backend="torch")
    Loss(loss='mse', backend=<Backend.TORCH: 'torch'>)
    """

    artifact_kind = "ls"
    was_tried: bool
    """Whether a phase has checked that it is a mean over samples."""
    pairs_warned: bool
    """Whether a warning was raised that it ignores pairs of outputs and targets."""

    def __init__(
        self,
        loss: str | type | Callable[..., Any] | None = None,
        *,
        loss_kwargs: dict[str, Any] | None = None,
        backend: Backend | str | None = None,
        reduction: str = "none",
        factory: Callable[[], Any] | None = None,
        over: Literal["sample", "batch"] | None = None,
        weight_by: str | None = None,
    ) -> None:
        if over not in (None, "sample", "batch"):
            raise ConfigError(f"over must be 'sample', 'batch' or None, got {over!r}")
        if weight_by is not None and over != "batch":
            raise ConfigError("weight_by needs a loss over a batch; also pass over='batch'")
        self.over, self.weight_by = over, weight_by
        if (loss is None) == (factory is None):
            raise ConfigError("pass exactly one of loss and factory")
        if loss is not None and not isinstance(loss, str) and not callable(loss):
            raise ConfigError(f"loss must be a name, a class or a callable, got {loss!r}")
        self.loss, self.loss_kwargs, self.reduction, self.factory = (
            loss,
            loss_kwargs,
            reduction,
            factory,
        )
        found = backend_of(loss) if loss is not None and not isinstance(loss, str) else Backend.NONE
        self._given_backend = backend if backend is None else Backend.from_value(backend)
        self._backend: Backend | None = None if found is Backend.NONE else found
        if backend is not None:
            self._set_backend(Backend.from_value(backend))
        self._callable: Callable[..., Any] | None = None
        self._made_of: Hashable = None
        self._added: dict[str, Any] = {}
        self.was_tried = self.pairs_warned = False
        self.initial: dict[str, Any] | None = None
        if isinstance(loss, str) and self._backend is not None:
            self._class_by_name()

    @property
    def backend(self) -> Backend:
        """The framework of this loss.

        Raises
        ------
        LossError
            If not known yet.
        """
        if self._backend is None:
            raise LossError(f"the backend of {self!r} is not known yet; pass backend= or build it")
        return self._backend

    @property
    def name(self) -> str:
        """Name of the loss, in lower case."""
        if isinstance(self.loss, str):
            return self.loss.lower()
        named = self.loss if self.loss is not None else self.factory
        return getattr(named, "__name__", type(named).__name__).lower()

    @property
    def cls(self) -> type | None:
        """Class of the loss; None for a callable or factory."""
        if isinstance(self.loss, str):
            return self._class_by_name()
        return self.loss if inspect.isclass(self.loss) else None

    @property
    def kind(self) -> str:
        """Name of the class of the framework that it is, or does the same as; else empty.

        The class may be given by name or as a class, as an object of it, or by the function that
        does the same.
        """
        if (cls := self.cls) is not None:
            return cls.__name__
        own = self.loss.func if isinstance(self.loss, functools.partial) else self.loss
        kind = own if inspect.isroutine(own) else type(own)
        module, name = str(getattr(kind, "__module__", "")), getattr(kind, "__name__", "")
        if not module.startswith(FRAMEWORKS) or not inspect.isroutine(own):
            return name if module.startswith(FRAMEWORKS) else ""
        torch, asked = module.startswith("torch."), _plain(name)
        names = {_plain(n): n for n in NAMES if n.endswith("Loss") is torch}
        return names.get(asked) or names.get(ALIASES.get(asked, asked) if torch else asked, "")

    @property
    def labels(self) -> tuple[str, ...]:
        """What each block of outputs predicts, such as mean and variance; else empty."""
        if self.kind == "PinballLoss":
            return quantile_labels((self.loss_kwargs or {}).get("quantiles", QUANTILES))
        return MOMENTS if self.kind == "GaussianNLLLoss" else ()

    @property
    def is_known_mean(self) -> bool:
        """Whether it is known to be a mean over samples without a check."""
        if self.over is not None:
            return self.over == "sample"
        name, kwargs = self.kind, self.loss_kwargs or {}
        reduction = kwargs.get("reduction", _attributes(self.loss).get("reduction"))
        if reduction == "sum" or name in OVER_BATCH:
            return False
        if self.cls is None:  # what averages by itself, over classes' weights or labels it ignores
            return name in ELEMENTWISE and "weight" not in kwargs
        reduction = reduction or self.reduction
        if reduction == "none":
            return isinstance(self.loss, str) or self.cls.__module__.startswith(FRAMEWORKS)
        return reduction != "sum" and name in ELEMENTWISE and kwargs.get("weight") is None

    @property
    def is_built(self) -> bool:
        """Whether the callable exists."""
        return self._callable is not None

    @property
    def allowed_keywords(self) -> list[str]:
        """Names of the arguments that the built loss takes."""
        if self._callable is None:
            raise LossError(f"{self!r} has not been built; call build() first")
        forward = getattr(self._callable, "forward", self._callable)
        return list(inspect.signature(forward).parameters)

    def signature(self) -> Hashable:
        """Return a fingerprint of the function and its arguments, including nested values.

        For a callable object it includes its attributes and layers.
        """
        own = {k: v for k, v in _attributes(self.loss).items() if k != "training"}
        moved = {n: (Identity(p), str(p.dtype)) for n, p in self.parameters().items()}
        return fingerprint((self._arguments(), own)), tuple(moved.items())

    def parameters(self) -> dict[str, Any]:
        """Return the trainable parameters of the built loss, by name."""
        if self._callable is None or self._backend is None:
            return {}
        return adapter_for(self._backend).loss_parameters(self._holder)

    @property
    def _holder(self) -> Any:
        """The object that may have parameters: the one passed, or an instance of the class."""
        is_made = self.loss is None or isinstance(self.loss, str | type)
        return self._callable if is_made else self.loss

    def get_state(self) -> dict[str, Any]:
        """Return parameters and buffers of the loss, by name."""
        if self._callable is None or self._backend is None:
            return {}
        return adapter_for(self._backend).loss_state(self._holder)

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        adapter_for(self.backend).load_loss_state(self._holder, state)

    def begin(self, backend: Backend) -> bool:
        """Record its initial parameters; return whether it has any."""
        self.resolve(backend)
        if self.initial is None and self.parameters():
            self.initial = self.get_state()
        return self.initial is not None

    def begin_like(self, other: Loss) -> None:
        """Start with the initial parameters of another loss."""
        if other.initial is not None:
            self.resolve(other.backend)
            self.set_state(other.initial)

    def _arguments(self) -> tuple[Any, ...]:
        return self.loss, self.factory, self.reduction, self.loss_kwargs, self.over, self.weight_by

    def build(
        self, *, backend: Backend | str | None = None, force_rebuild: bool = False, **kwargs: Any
    ) -> None:
        """Build the callable.

        Parameters
        ----------
        backend : Backend or str, optional
            Needed if the loss is a name and no backend was given.
        force_rebuild : bool
            Whether to rebuild an existing one.
        **kwargs
            Added to `loss_kwargs`.

        Raises
        ------
        LossError
            If it exists and `force_rebuild` is false, or cannot be built.
        """
        if self._callable is not None and not force_rebuild:
            raise LossError(f"{self!r} is already built; pass force_rebuild=True")
        if backend is not None:
            self._set_backend(Backend.from_value(backend))
        self._callable = self._make(self.reduction, kwargs)
        self._made_of, self._added = fingerprint(self._arguments()), kwargs

    def resolve(self, backend: Backend) -> Callable[..., Any]:
        """Return the callable for a backend, built if needed or if arguments changed."""
        if self._callable is None or self._made_of != fingerprint(self._arguments()):
            own = backend if self._backend is None else None
            self.build(backend=own, force_rebuild=True, **self._added)
        elif self._backend is None:
            self._set_backend(backend)
        if self.backend is not backend:
            raise LossError(
                f"{self!r} belongs to {self.backend.value}, its node to {backend.value}"
            )
        assert self._callable is not None
        return self._callable

    def mean_form(self) -> Callable[..., Any] | None:
        """Return a callable that averages itself, if that is equivalent and faster."""
        cls = self.cls
        plain = self.reduction == "none" and cls is not None and not (self.loss_kwargs or {})
        if not plain or cls is None or cls.__name__ not in ELEMENTWISE - {"KLDivLoss"}:
            return None
        made = self._make("mean", {})
        forward: Callable[..., Any] = getattr(made, "forward", made)
        return forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the loss on tensors, without averaging."""
        if self._callable is None:
            raise LossError(f"{self!r} has not been built; call build() first")
        return self._callable(*args, **kwargs)

    def _set_backend(self, backend: Backend) -> None:
        if self._backend not in (None, backend):
            raise ConfigError(
                f"loss {self.name!r} belongs to {self._backend.value}, not to {backend.value}"
            )
        self._backend = backend

    def _class_by_name(self) -> type:
        known = _known_losses(self.backend)
        asked = _plain(str(self.loss))
        cls = known.get(asked) or known.get(ALIASES.get(asked, asked))
        if cls is None:
            names = [*known, *(a for a, target in ALIASES.items() if target in known)]
            raise UnknownNameError(f"{self.backend.value} loss", self.loss, names)
        return cls

    def _make(self, reduction: str, extra: Mapping[str, Any]) -> Callable[..., Any]:
        kwargs = {**(self.loss_kwargs or {}), **extra}
        if self.factory is not None:
            made: Callable[..., Any] = self.factory(**kwargs)
            return made
        cls = self.cls
        if cls is None:
            fn: Any = self.loss
            return (lambda *a, **k: fn(*a, **{**kwargs, **k})) if kwargs else fn
        if "reduction" in inspect.signature(cls).parameters:
            kwargs = {"reduction": reduction, **kwargs}
        try:
            built: Callable[..., Any] = cls(**kwargs)
        except TypeError as error:
            raise LossError(f"{cls.__name__} cannot be built from {kwargs}: {error}") from error
        forward = getattr(built, "forward", built)
        return _of_probabilities(forward) if cls.__name__ == "BCELoss" else built

    def _params(self) -> dict[str, Any]:
        return {
            "loss": self.loss,
            "loss_kwargs": self.loss_kwargs,
            "backend": self._given_backend,
            "reduction": self.reduction,
            "factory": self.factory,
            "over": self.over,
            "weight_by": self.weight_by,
        }


@functools.cache
def _known_losses(backend: Backend) -> Mapping[str, type]:
    return {_plain(name): cls for name, cls in adapter_for(backend).losses().items()}


def _attributes(loss: Any) -> dict[str, Any]:
    """Return the public attributes of a loss object; none for a class or function."""
    if isinstance(loss, str | type) or inspect.isroutine(loss):
        return {}
    return {k: v for k, v in getattr(loss, "__dict__", {}).items() if not k.startswith("_")}


def _of_probabilities(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a loss to explain errors from outputs that are not probabilities."""

    @functools.wraps(fn)
    def loss(*args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        except RuntimeError as error:
            if "between 0 and 1" not in str(error):
                raise
            raise LossError(
                "loss 'bce' needs outputs between 0 and 1, got other values or NaN; end the model "
                "with a sigmoid, or use Loss('bce_with_logits')"
            ) from error

    return loss


def _plain(name: str) -> str:
    name = name.lower().replace("_", "").replace("-", "").replace(" ", "")
    return name.removesuffix("loss") or name
