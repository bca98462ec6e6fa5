"""What an adapter is, and how to find the one that fits."""

from __future__ import annotations

import copy
import enum
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from modularml._optional import loaded, require
from modularml._typing import Array, IntArray, Shape
from modularml.backends.input_shapes import InputShape, is_several, shapes_of
from modularml.backends.options import StepOptions
from modularml.errors import BackendNotSupportedError, ConfigError, UnknownNameError

__all__ = [
    "Backend",
    "BackendAdapter",
    "Compute",
    "Processes",
    "Step",
    "adapter_for",
    "backend_of",
]

Compute = Callable[[Sequence[Any]], tuple[Any, Sequence[Any], Sequence[Any]]]
"""From the input tensors of a batch to (total loss, each loss, each output)."""

Step = Callable[[Sequence[Any]], tuple[Sequence[Any], Sequence[Any]]]
"""From the input tensors of a batch to (each loss, each output)."""


class Backend(enum.Enum):
    """The framework that a model belongs to."""

    TORCH = "torch"
    TENSORFLOW = "tensorflow"
    SCIKIT = "scikit"
    NONE = "none"

    @classmethod
    def from_value(cls, value: str | Backend | None) -> Backend:
        """Read a backend from its name; None gives ``Backend.NONE``."""
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
    """A loss or gradient came out NaN or infinite; weights have not been moved.

    Parameters
    ----------
    place : int
        Which of the losses.
    value : float
    of : {'loss', 'gradient'}
    """

    def __init__(self, place: int, value: float, of: str = "loss") -> None:
        super().__init__(place, value)
        self.place, self.value, self.of = place, value, of


class Processes(ABC):
    """The processes that train one graph together.

    Attributes
    ----------
    rank, size : int
        Number of this process, from 0, and how many there are.
    """

    rank: int
    size: int

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """Return the values that all processes gave, in the order of their ranks."""


class BackendAdapter(ABC):
    """The few things that a graph needs of a framework."""

    backend: ClassVar[Backend]
    gradients: ClassVar[bool] = True
    """Whether its models are moved along gradients."""
    may_reuse_outputs: ClassVar[bool] = False
    """Whether a model of it could write one output over the last."""
    moved: ClassVar[str] = "parameters"
    """What the framework calls the tensors that an optimizer moves."""

    # -- tensors ------------------------------------------------------------------------------

    @abstractmethod
    def from_numpy(self, values: Array, *, dtype: Any = None, device: Any = None) -> Any:
        """Copy an array to a tensor; never an alias of what is immutable."""

    @abstractmethod
    def to_numpy(self, tensor: Any) -> Array:
        """Return a tensor as an array, off the graph and the device."""

    def cast(self, tensor: Any, dtype: Any) -> Any:
        """Return a tensor in another dtype; gradients pass."""
        return tensor.astype(dtype)

    @abstractmethod
    def zeros(self, shape: Shape, dtype: Any) -> Any:
        """Return a tensor of zeros."""

    @abstractmethod
    def sample_mean(self, values: Any) -> Any:
        """Return the mean over samples of values a sample, an element, or one in all."""

    def check_rows(self, values: Any, like: Any, problem: str) -> None:  # noqa: B027 - it is known
        """Have a step fail, with a LossError, where its values have other rows than a tensor."""

    @abstractmethod
    def loss_dtype(self, kind: str, model: Any) -> Any:
        """Return the dtype of targets: ``"index"`` for class numbers, ``"float"`` as `model`'s."""

    @abstractmethod
    def gather(self, column: Any, rows: IntArray | slice, into: Any = None) -> Any:
        """Return rows of a tensor, in the order asked; written to `into` where it is given."""

    @abstractmethod
    def chunks(self, tensor: Any, size: int | list[int]) -> Sequence[Any]:
        """Cut a tensor along axis 0: into pieces of one size, or of these sizes."""

    @abstractmethod
    def row_bytes(self, column: Any) -> int:
        """Return the bytes of one row of a tensor."""

    @abstractmethod
    def reshape(self, tensor: Any, shape: Shape) -> Any:
        """Give each sample another shape."""

    @abstractmethod
    def concat(self, tensors: Sequence[Any], axis: int) -> Any:
        """Concatenate tensors."""

    @abstractmethod
    def mean(self, tensors: Sequence[Any]) -> Any:
        """Return the element-wise mean of tensors."""

    @abstractmethod
    def pad(self, tensor: Any, widths: Sequence[tuple[int, int]], mode: str, value: float) -> Any:
        """Pad each axis at its end, by ``numpy.pad``'s rules for `mode`."""

    def detach(self, tensor: Any) -> Any:
        """Return the tensor off the graph, on its device."""
        return tensor

    def to_host(self, tensor: Any) -> Any:
        """Return the tensor off the graph and off the device."""
        return tensor

    def floats(self, scalars: Sequence[Any]) -> list[float]:
        """Return many scalar tensors as numbers, in one transfer."""
        return [float(scalar) for scalar in scalars]

    # -- models -------------------------------------------------------------------------------

    def parameters(self, model: Any) -> dict[str, Any]:
        """Return by name what an optimizer may move once the model is not frozen."""
        return {}

    def all_parameters(self, model: Any) -> dict[str, Any]:
        """Return every parameter by name, those too that the model's owner switched off."""
        return self.parameters(model)

    def fixed(self, model: Any) -> dict[str, Any]:
        """Return by name the weights and buffers that their owner has switched off."""
        return {}

    def keep_fixed(self, source: Any, target: Any) -> None:  # noqa: B027 - none are switched off
        """Give a model the `fixed` weights of another, and switch them off there too."""

    def shared(self, models: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
        """Return weights that models share: label and name, and those where it is again."""
        return []

    def check_ties(self, models: Mapping[str, Any]) -> None:  # noqa: B027 - most keep all ties
        """Refuse weights that models by label share, and that no copy of these would share."""

    def tie(self, source: Any, name: str, target: Any, again: str) -> None:
        """Let a model hold a weight of another in place of its own."""
        raise self._unable("weights that nodes share, in a file,")

    def signature(self, model: Any) -> Hashable:
        """Return what a step over a model is compiled from; equal as long as it is the same.

        Its layers and parameters by identity, with the shape, dtype and device of each parameter
        and whether it is trainable. Values of weights are no part of it.
        """
        return ()

    def weights_version(self, model: Any) -> Hashable:
        """Return a fingerprint of the values of weights and buffers, whoever changed them."""
        return ()

    def copied(self, value: Any, memo: dict[int, Any]) -> Any:
        """Return a deep copy of a model, or of a loss that is an object."""
        return copy.deepcopy(value, memo)

    def loss_parameters(self, loss: Any) -> dict[str, Any]:
        """Return by name the trainable parameters that a loss itself has."""
        return {}

    def loss_state(self, loss: Any) -> dict[str, Array]:
        """Return parameters and buffers of a loss by name, as arrays of their own."""
        return {}

    def load_loss_state(self, loss: Any, state: Mapping[str, Array]) -> None:
        """Go back to what `loss_state` returned."""
        raise self._unable("parameters of a loss")

    def writes_input(self, model: Any) -> bool:
        """Tell whether calling a model may change the tensor that it is given."""
        return False

    def needs_several_rows(self, model: Any, shape: InputShape) -> bool:
        """Tell whether one sample of a shape is too few to train a model on (batch norms)."""
        return False

    def versions(self, tensors: Sequence[Any]) -> Any:
        """Return what differs once one of these tensors has been changed in place."""
        return None

    def count_parameters(self, model: Any) -> tuple[int, int]:
        """Return how many numbers a model holds, and how many an optimizer may move."""
        n = sum(math.prod(p.shape) for p in self.parameters(model).values())
        return n, n

    def move(self, model: Any, device: Any) -> None:  # noqa: B027 - nothing to move
        """Move a model's weights to a device, in place."""

    def device_of(self, model: Any) -> Any:
        """Return where a model's weights lie; None where that need not be known."""
        return None

    def to_device(self, tensor: Any, device: Any) -> Any:
        """Return a tensor on a device, with its gradient."""
        return tensor

    def upload(self, tensor: Any, device: Any) -> Any:
        """Copy a tensor to a device through pinned memory, while the device works."""
        raise self._unable("pin_memory")

    def processes(self, device: Any) -> Processes:
        """Join the other processes that were started to train together."""
        raise self._unable("data_parallel")

    def modes(self, models: Sequence[tuple[Any, bool]]) -> AbstractContextManager[Any]:
        """Put models into training (True) or evaluation mode within a block, then back."""
        return nullcontext()

    def set_frozen(self, model: Any, frozen: bool) -> None:  # noqa: B027 - no gradients
        """Stop, or allow, gradients into a model's own parameters."""

    def input_dtypes(
        self, model: Any, shape: InputShape, kinds: Sequence[tuple[bool, bool]] = ()
    ) -> list[Any]:
        """Return the dtype in which a model reads each of its inputs; see `input_dtype`.

        Parameters
        ----------
        model : module
        shape : tuple of int, or tuple or dict of such
            Of one sample.
        kinds : sequence of (bool, bool)
            For each input, whether all columns of it are integers, and categories.
        """
        known = list(kinds) or [(False, False)] * len(shapes_of(shape))
        if is_several(shape):
            return self._dtypes_of_several(model, shape, known)
        return [self.input_dtype(model, shape, whole=known[0][0], category=known[0][1])]

    def _dtypes_of_several(
        self, model: Any, shape: InputShape, kinds: Sequence[tuple[bool, bool]]
    ) -> list[Any]:
        raise self._unable("several inputs of one model")

    def input_dtype(
        self, model: Any, shape: Shape | None = None, *, whole: bool = False, category: bool = False
    ) -> Any:
        """Return the dtype in which a model reads some columns.

        Integers are given to models that look them up (an embedding) and to those that read
        categories, floats of the model's precision otherwise. A model that cannot compute with the
        one gets the other; `check_cast` refuses values that the dtype does not hold.

        Parameters
        ----------
        model : module or None
            None for what computes without a model.
        shape : tuple of int, optional
            Of one sample. Where it is None, the model is not asked what it can compute with.
        whole, category : bool
            Whether all columns are integers, and whether all are categories.

        Returns
        -------
        dtype of the framework, or None
            None keeps that of the columns.
        """
        return None

    def exact_integers(self, dtype: Any) -> int | None:
        """Return the number up to which a dtype holds every integer; None for integer dtypes."""
        return None

    def no_grad(self) -> AbstractContextManager[Any]:
        """Return a context in which no gradients are tracked."""
        return nullcontext()

    # -- training -----------------------------------------------------------------------------

    @abstractmethod
    def losses(self) -> Mapping[str, type]:
        """Return loss classes by name."""

    def optimizers(self) -> Mapping[str, type]:
        """Return optimizer classes by name."""
        return {}

    @abstractmethod
    def make_optimizer(self, cls: Any, parameters: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Make an optimizer over these parameters.

        They may come in groups: dicts with ``params``, a ``name`` and arguments of their own.
        """

    def schedules(self) -> Mapping[str, type]:
        """Return learning-rate schedules by name."""
        raise self._unable("schedule")

    def make_schedule(self, schedule: Any, optimizer: Any, kwargs: Mapping[str, Any]) -> Any:
        """Make what sets an optimizer's rate: ``step([metric])``, ``state_dict``, and back."""
        raise self._unable("schedule")

    def learning_rates(self, optimizer: Any) -> dict[str, float]:
        """Return the rate of each group of parameters, by name."""
        raise self._unable("learning_rates")

    def clip_gradients(
        self, optimizer: Any, grads: Any, norm: float | None, value: float | None
    ) -> Any:
        """Limit the gradients that an optimizer's parameters hold, or return these limited."""
        raise self._unable("clip_norm and clip_value")

    def spread(
        self, call: Callable[..., Any], names: Sequence[str] | None
    ) -> Callable[[Sequence[Any]], Any]:
        """Return a call of a model of several inputs as a function of a list of tensors.

        `names` are those of the inputs, in the order of the list; None where the model takes them
        in their order.
        """
        if names is None:
            return call
        return lambda values: call(dict(zip(names, values, strict=True)))

    def direct(self, model: Any) -> Callable[[Any], Any]:
        """Return what does the same as calling a model on one tensor, and may cost less."""
        return model  # type: ignore[no-any-return]

    def check_model(  # noqa: B027 - most frameworks ask for nothing
        self, model: Any, label: str, *, training: bool, losses: bool
    ) -> None:
        """Refuse what a model asks of its framework's own training and that is not done here.

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
            What is asked for is named.
        """

    def own_losses(self, models: Sequence[Any], *, compiles: bool) -> list[Any]:
        """Return for each model what calls it and collects its own losses; None if it has none.

        A collector is called in the model's place; its ``total()`` gives the loss of a step.
        """
        return [None] * len(models)

    def makes_masks(self, model: Any) -> bool:
        """Tell whether a model gives its outputs masks, which go lost where they are kept."""
        return False

    may_mask: ClassVar[bool] = False
    """Whether `loss_values` may find masks."""

    def loss_values(self, values: Any, args: Sequence[Any]) -> Any:
        """Return the values of a loss of some tensors, weighted by the masks that these bear."""
        return values

    def joint_weights(self, weights: Any, args: Sequence[Any]) -> Any:
        """Return weights of elements, of mean 1 a sample, without what masks of `args` omit."""
        return weights

    def options_for(self, options: StepOptions) -> StepOptions:
        """Return options of a step, with what its models ask for beside them."""
        return options

    def finish_training(self, optimizer: Any) -> None:  # noqa: B027 - most do nothing
        """Do what an optimizer does at the end of a training, such as take averages over."""

    def checked_rows(self) -> AbstractContextManager[Any]:
        """Return a context in which models take rows that they have just learned from."""
        return nullcontext()

    def compile(self, model: Any) -> Any:
        """Return a model compiled, to be called in its place."""
        raise self._unable("compile")

    def _unable(self, what: str) -> BackendNotSupportedError:
        return BackendNotSupportedError(f"{what} is not supported for {self.backend.value} models")

    @abstractmethod
    def adopt_optimizer(self, optimizer: Any, parameters: Sequence[Any]) -> Any:
        """Return an optimizer that a factory made, ready to move these parameters."""

    @abstractmethod
    def optimizer_step(self, optimizer: Any, grads: Any = None, variables: Any = None) -> None:
        """Move parameters once, along the gradients they hold or along these."""

    @abstractmethod
    def optimizer_state(self, optimizer: Any, named: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``moments`` by parameter name and ``groups`` of hyperparameters, on the host."""

    @abstractmethod
    def load_optimizer_state(
        self, optimizer: Any, named: Mapping[str, Any], state: Mapping[str, Any]
    ) -> None:
        """Take over what `optimizer_state` returned.

        Raises
        ------
        ConfigError
            If it has moments of parameters that the optimizer does not move.
        """

    @abstractmethod
    def train_step(
        self, compute: Compute, optimizers: Sequence[Any], options: StepOptions | None = None
    ) -> Step:
        """Return a function that computes the loss of a batch and moves the weights.

        Where `options` ask for more than that, it may have ``begin()``, ``closing`` and ``share``:
        see `modularml.backends.torch_step.ExtendedStep`.
        """

    @abstractmethod
    def eval_step(self, compute: Compute) -> Step:
        """Return a function that computes losses and outputs of a batch, without gradients."""

    @abstractmethod
    def check_device(self, device: str) -> Any:
        """Return the device, or say that it is not there.

        Raises
        ------
        DeviceError
            If there is no such device.
        """


PAD_MODES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""What numpy calls the modes of padding."""


def classes_of(room: Any, base: type) -> dict[str, type]:
    """Return the public classes of a module that derive from one, which is left out."""
    found = {n: c for n, c in vars(room).items() if inspect.isclass(c) and n[0] != "_"}
    return {n: c for n, c in found.items() if issubclass(c, base) and c is not base}


def check_moments(state: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse an optimizer's state that belongs to parameters other than these."""
    if unknown := [name for name in state["moments"] if name not in names]:
        raise ConfigError(
            f"the state belongs to other parameters: {unknown} are not among {list(names)}"
        )


def adapter_for(backend: str | Backend) -> BackendAdapter:
    """Return the adapter of a backend; its framework is imported now.

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
        raise BackendNotSupportedError(f"there is no adapter for the backend {backend.value!r}")
    adapter: BackendAdapter = require(module).adapter
    return adapter


_ADAPTERS = {
    Backend.TORCH: "modularml.backends.torch",
    Backend.TENSORFLOW: "modularml.backends.tensorflow",
    Backend.SCIKIT: "modularml.backends.sklearn",
}


def backend_of(obj: Any) -> Backend:
    """Tell which framework a model, tensor, loss or optimizer class belongs to."""
    torch, keras = loaded("torch"), loaded("keras")
    cls = obj if isinstance(obj, type) else type(obj)
    roots = {str(name).split(".")[0] for name in (getattr(obj, "__module__", ""), *_rooms(cls))}
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


def _rooms(cls: type) -> list[str]:
    return [base.__module__ for base in cls.__mro__]
