"""The adapter base class, and the lookup of adapters."""

from __future__ import annotations

import enum
import inspect
from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, ClassVar

from modularml._optional import loaded, require
from modularml.backends.step_options import NotStackableError, StackMember, StepOptions
from modularml.backends.tensor_operations import ModelOperations
from modularml.errors import BackendNotSupportedError, ConfigError, UnknownNameError

Compute = Callable[[Sequence[Any]], tuple[Any, Sequence[Any], Sequence[Any]]]
"""From the input tensors of a batch to (total loss, each loss, each output)."""

Step = Callable[[Sequence[Any]], tuple[Sequence[Any], Sequence[Any]]]
"""From the input tensors of a batch to (each loss, each output)."""


class Backend(enum.Enum):
    """The framework that a model belongs to.

    Examples
    --------
    >>> Backend("torch") is Backend.TORCH
    True
    """

    TORCH = "torch"
    TENSORFLOW = "tensorflow"
    SCIKIT = "scikit"
    NONE = "none"

    @classmethod
    def from_value(cls, value: str | Backend | None) -> Backend:
        """Convert a name to a backend; None gives ``Backend.NONE``."""
        if isinstance(value, cls):
            return value
        name = _SPELLINGS.get(str(value).lower(), str(value).lower())
        known = [backend.value for backend in cls]
        if name not in known:
            raise UnknownNameError("backend", value, [*known, *_SPELLINGS])
        return cls(name)


_SPELLINGS = {
    "pytorch": "torch",
    "tf": "tensorflow",
    "keras": "tensorflow",
    "sklearn": "scikit",
    "scikit-learn": "scikit",
}


class NotFiniteError(ArithmeticError):
    """A loss or gradient is NaN or infinite; weights are unchanged.

    Parameters
    ----------
    place : int
        Index of the loss.
    value : float
    of : {'loss', 'gradient'}
    """

    def __init__(self, place: int, value: float, of: str = "loss") -> None:
        super().__init__(place, value)
        self.place, self.value, self.of = place, value, of


class BackendAdapter(ModelOperations):
    """Operations that a graph needs from a framework."""

    backend: ClassVar[Backend]
    gradients: ClassVar[bool] = True
    """Whether its models are trained by gradients."""
    may_reuse_outputs: ClassVar[bool] = False
    """Whether its models may overwrite the previous output."""
    stacks: ClassVar[bool] = False
    """Whether several small models can be trained as one."""
    compiles_masks: ClassVar[bool] = False
    """Whether models that take masks can be compiled."""
    moved: ClassVar[str] = "parameters"
    """The framework's name for the tensors that an optimizer updates."""

    # -- training -----------------------------------------------------------------------------

    @abstractmethod
    def losses(self) -> Mapping[str, type]:
        """Return loss classes by name."""

    def optimizers(self) -> Mapping[str, type]:
        """Return optimizer classes by name."""
        return {}

    @abstractmethod
    def make_optimizer(self, cls: Any, parameters: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Create an optimizer of parameters.

        They may be groups: dicts with ``params``, ``name`` and further arguments.
        """

    def schedules(self) -> Mapping[str, type]:
        """Return learning-rate schedules by name."""
        raise self._unable("schedule")

    def make_schedule(self, schedule: Any, optimizer: Any, kwargs: Mapping[str, Any]) -> Any:
        """Create a schedule: ``step([metric])``, ``state_dict``, ``load_state_dict``."""
        raise self._unable("schedule")

    def set_learning_rates(
        self, optimizer: Any, rates: Sequence[float], *, initial: bool = False
    ) -> None:
        """Set the learning rate of each group, in the order of `learning_rates`.

        The next schedule starts from them if they are the `initial` ones.
        """
        raise self._unable("learning rates")

    def learning_rates(self, optimizer: Any) -> dict[str, float]:
        """Return the learning rate of each parameter group, by name."""
        raise self._unable("learning_rates")

    def clip_gradients(
        self, optimizer: Any, grads: Any, norm: float | None, value: float | None
    ) -> Any:
        """Clip the gradients of an optimizer's parameters, or return `grads` clipped."""
        raise self._unable("clip_norm and clip_value")

    def check_model(self, model: Any, label: str, *, training: bool, losses: bool) -> None:
        """Refuse features of the framework's own training that are not supported here.

        Parameters
        ----------
        model : module
        label : str
            Of its node.
        training, losses : bool
            Whether the step trains it, and whether losses are computed.

        Raises
        ------
        BackendNotSupportedError
            The message names the feature.
        """

    def own_losses(self, models: Sequence[Any], *, compiles: bool) -> list[Any]:
        """Return a collector of the losses that each model defines; None without any.

        A collector is called instead of the model; its ``total()`` is the loss of a step.
        """
        return [None] * len(models)

    def makes_masks(self, model: Any) -> bool:
        """Return whether a model attaches masks to its outputs, which caching would lose."""
        return False

    may_mask: ClassVar[bool] = False
    """Whether `loss_values` may find masks."""

    def mask_of(self, tensor: Any) -> Any:
        """Return the mask attached to a tensor, or None."""
        return None

    def loss_values(self, values: Any, args: Sequence[Any]) -> Any:
        """Return the values of a loss, weighted by the masks attached to its arguments."""
        return values

    def joint_weights(self, weights: Any, args: Sequence[Any]) -> Any:
        """Return element weights with mean 1 per sample, 0 where masks of `args` are false."""
        return weights

    def options_for(self, options: StepOptions) -> StepOptions:
        """Return options of a step, extended by what its models need."""
        return options

    def finish_training(self, optimizer: Any) -> None:
        """Run an optimizer's final update, such as applying weight averages."""

    def checked_rows(self) -> AbstractContextManager[Any]:
        """Return a context that skips checks of rows the model was just fitted on."""
        return nullcontext()

    @abstractmethod
    def adopt_optimizer(self, optimizer: Any, parameters: Sequence[Any]) -> Any:
        """Return an optimizer from a factory, ready to update these parameters."""

    @abstractmethod
    def optimizer_step(self, optimizer: Any, grads: Any = None, variables: Any = None) -> None:
        """Update parameters once with their gradients, or with `grads`."""

    @abstractmethod
    def optimizer_state(self, optimizer: Any, named: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``moments`` by parameter name and ``groups`` of hyperparameters, on the host."""

    @abstractmethod
    def load_optimizer_state(
        self, optimizer: Any, named: Mapping[str, Any], state: Mapping[str, Any]
    ) -> None:
        """Restore what `optimizer_state` returned.

        Raises
        ------
        ConfigError
            If it has moments of parameters that the optimizer does not update.
        """

    @abstractmethod
    def train_step(
        self, compute: Compute, optimizers: Sequence[Any], options: StepOptions | None = None
    ) -> Step:
        """Return a function that computes the loss of a batch and updates the weights.

        With further `options`, it may have ``begin()``, ``closing`` and ``sizes``: see
        `modularml.backends.torch_step.ExtendedStep`. It may have ``several(batches, like)``, which
        trains on batches of one shape in one call: see `several_steps` of TensorFlow.
        """

    @abstractmethod
    def eval_step(self, compute: Compute) -> Step:
        """Return a function that computes losses and outputs of a batch, without gradients."""

    def kind_of(self, models: Sequence[Any]) -> Hashable:
        """Return what models that are trained as one have in common.

        Raises
        ------
        NotStackableError
            If models of this framework cannot be trained as one.
        """
        raise NotStackableError(f"{self.backend.value} models cannot be trained as one")

    def stack(
        self,
        members: Sequence[StackMember],
        inputs: Sequence[Sequence[Any]],
        random_states: Sequence[Mapping[str, Any]],
    ) -> Any:
        """Return a `TorchStack`, the steps of several members as one.

        Parameters
        ----------
        members : sequence of StackMember
        inputs : sequence of sequence of tensor
            A batch of each member.
        random_states : sequence of mapping
            Of each member, before this batch.

        Raises
        ------
        NotStackableError
            If they cannot be trained as one.
        """
        raise NotStackableError(f"{self.backend.value} models cannot be trained as one")

    @abstractmethod
    def check_device(self, device: str) -> Any:
        """Return the framework's device of a name.

        Raises
        ------
        DeviceError
            If the device is not available.
        """


def classes_of(module: Any, base: type) -> dict[str, type]:
    """Return the public subclasses of a class in a module, without the class itself."""
    classes = {n: c for n, c in vars(module).items() if inspect.isclass(c) and n[0] != "_"}
    return {n: c for n, c in classes.items() if issubclass(c, base) and c is not base}


def check_moments(state: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse an optimizer's state that belongs to other parameters."""
    if unknown := [name for name in state["moments"] if name not in names]:
        raise ConfigError(
            f"the state belongs to other parameters: {unknown} are not among {list(names)}"
        )


@cache
def adapter_for(backend: str | Backend) -> BackendAdapter:
    """Return the adapter of a backend, importing its framework.

    Raises
    ------
    MissingDependencyError
        If the framework is not installed.
    BackendNotSupportedError
        If there is no adapter for it.
    """
    backend = Backend.from_value(backend)
    module = _ADAPTERS.get(backend)
    if module is None:
        raise BackendNotSupportedError(f"backend {backend.value!r} is not supported")
    adapter: BackendAdapter = require(module).adapter
    return adapter


_ADAPTERS = {
    Backend.TORCH: "modularml.backends.torch",
    Backend.TENSORFLOW: "modularml.backends.tensorflow",
    Backend.SCIKIT: "modularml.backends.sklearn",
}


def backend_of(obj: Any) -> Backend:
    """Return the framework of a model, tensor, loss or optimizer class."""
    torch, keras = loaded("torch"), loaded("keras")
    cls = obj if isinstance(obj, type) else type(obj)
    modules = (getattr(obj, "__module__", ""), *(base.__module__ for base in cls.__mro__))
    roots = {str(name).split(".")[0] for name in modules}
    if torch is not None and (
        issubclass(cls, torch.nn.Module | torch.Tensor | torch.optim.Optimizer) or "torch" in roots
    ):
        return Backend.TORCH
    if "tensorflow" in roots:
        return Backend.TENSORFLOW
    if "keras" in roots and keras is not None:  # which runs on one of several frameworks
        return _OF_KERAS.get(keras.config.backend(), Backend.NONE)
    if hasattr(cls, "get_params") and hasattr(cls, "fit"):
        return Backend.SCIKIT
    return Backend.NONE


_OF_KERAS = {"tensorflow": Backend.TENSORFLOW, "torch": Backend.TORCH}
