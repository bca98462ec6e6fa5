"""The adapter base class, and the lookup of adapters."""

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
from modularml.backends.stacking import NotStackableError, Stack, StackMember
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
        """Return the values of all processes, ordered by rank."""


class BackendAdapter(ABC):
    """Operations that a graph needs from a framework."""

    backend: ClassVar[Backend]
    gradients: ClassVar[bool] = True
    """Whether its models are trained by gradients."""
    may_reuse_outputs: ClassVar[bool] = False
    """Whether its models may overwrite the previous output."""
    stacks: ClassVar[bool] = False
    """Whether several small models can be trained as one."""
    moved: ClassVar[str] = "parameters"
    """The framework's name for the tensors that an optimizer updates."""

    # -- tensors ------------------------------------------------------------------------------

    @abstractmethod
    def from_numpy(self, values: Array, *, dtype: Any = None, device: Any = None) -> Any:
        """Copy an array to a tensor; never an alias of immutable memory."""

    @abstractmethod
    def to_numpy(self, tensor: Any) -> Array:
        """Return a tensor as an array, detached and on the host."""

    def cast(self, tensor: Any, dtype: Any) -> Any:
        """Return a tensor in another dtype; gradients pass."""
        return tensor.astype(dtype)

    @abstractmethod
    def zeros(self, shape: Shape, dtype: Any) -> Any:
        """Return a tensor of zeros."""

    @abstractmethod
    def sample_mean(self, values: Any) -> Any:
        """Return the mean over samples of values per sample, per element, or of one value."""

    def check_rows(self, values: Any, like: Any, problem: str) -> None:  # noqa: B027 - no-op by default
        """Raise a LossError in a step if values and a tensor differ in rows."""

    @abstractmethod
    def loss_dtype(self, kind: str, model: Any) -> Any:
        """Return the dtype of targets: ``"index"`` for class numbers, or ``"float"``."""

    @abstractmethod
    def gather(self, column: Any, rows: IntArray | slice, into: Any = None) -> Any:
        """Return rows of a tensor in the given order, optionally written to `into`."""

    @abstractmethod
    def chunks(self, tensor: Any, size: int | list[int]) -> Sequence[Any]:
        """Split a tensor along axis 0 into pieces of one size, or of given sizes."""

    @abstractmethod
    def row_bytes(self, column: Any) -> int:
        """Return the bytes of one row of a tensor."""

    @abstractmethod
    def reshape(self, tensor: Any, shape: Shape) -> Any:
        """Reshape each sample."""

    def swap_axes(self, tensor: Any) -> Any:
        """Exchange the two axes of each sample."""
        raise self._unable("input_layout")

    @abstractmethod
    def concat(self, tensors: Sequence[Any], axis: int) -> Any:
        """Concatenate tensors."""

    @abstractmethod
    def mean(self, tensors: Sequence[Any]) -> Any:
        """Return the elementwise mean of tensors."""

    @abstractmethod
    def pad(self, tensor: Any, widths: Sequence[tuple[int, int]], mode: str, value: float) -> Any:
        """Pad each axis at its end, with the modes of ``numpy.pad``."""

    def detach(self, tensor: Any) -> Any:
        """Return the tensor detached, on its device."""
        return tensor

    def to_host(self, tensor: Any) -> Any:
        """Return the tensor detached, on the host."""
        return tensor

    def floats(self, scalars: Sequence[Any]) -> list[float]:
        """Return many scalar tensors as numbers, in one transfer."""
        return [float(scalar) for scalar in scalars]

    # -- models -------------------------------------------------------------------------------

    def parameters(self, model: Any) -> dict[str, Any]:
        """Return the parameters by name that are trainable if the model is not frozen."""
        return {}

    def all_parameters(self, model: Any) -> dict[str, Any]:
        """Return all parameters by name, including those that the user froze."""
        return self.parameters(model)

    def fixed(self, model: Any) -> dict[str, Any]:
        """Return the weights and buffers by name that the user froze."""
        return {}

    def keep_fixed(self, source: Any, target: Any) -> None:  # noqa: B027 - none are frozen
        """Copy the `fixed` weights of a model to another, and freeze them there too."""

    def shared(self, models: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
        """Return shared weights as (label, name, other label, other name)."""
        return []

    def check_ties(self, models: Mapping[str, Any]) -> None:  # noqa: B027 - most keep all ties
        """Refuse shared weights that copies of the models would not share."""

    def tie(self, source: Any, name: str, target: Any, again: str) -> None:
        """Replace a weight of a model by that of another."""
        raise self._unable("sharing weights between nodes in a file")

    estimates_statistics: ClassVar[bool] = False
    """Whether the statistics of batch normalization can be estimated anew."""

    # -- averages of weights ------------------------------------------------------------------

    def copies(self, tensors: Sequence[Any]) -> list[Any]:
        """Return copies of the values of parameters or buffers."""
        raise self._unable("averaging weights")

    def like(self, tensors: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        """Return the values of arrays as `copies` of the tensors would hold them."""
        return [array.copy() for array in arrays]

    def approach(self, averages: Sequence[Any], tensors: Sequence[Any], weight: float) -> None:
        """Move averages towards values, in place, by this share of the difference."""
        raise self._unable("averaging weights")

    def assign(self, tensors: Sequence[Any], values: Sequence[Any]) -> None:
        """Set parameters or buffers to values, tensors or arrays, in place."""
        raise self._unable("averaging weights")

    def running_statistics(self, model: Any) -> dict[str, Any]:
        """Return the statistics of batch normalization, by name."""
        return {}

    def estimating(self, models: Sequence[Any]) -> AbstractContextManager[Any]:
        """Return a context in which these are estimated anew, from all that is run in it."""
        raise self._unable("estimating the statistics of batch normalization")

    def signature(self, model: Any) -> Hashable:
        """Return the key of a model for compiled steps; equal while these are valid.

        It holds layers and parameters by identity, with the shape, dtype and device of each
        parameter and whether it is trainable. Values of weights are not part of it.
        """
        return ()

    def weights_version(self, model: Any) -> Hashable:
        """Return a fingerprint of the values of weights and buffers."""
        return ()

    def copied(self, value: Any, memo: dict[int, Any]) -> Any:
        """Return a deep copy of a model or loss object."""
        return copy.deepcopy(value, memo)

    def loss_parameters(self, loss: Any) -> dict[str, Any]:
        """Return the trainable parameters of a loss, by name."""
        return {}

    def loss_state(self, loss: Any) -> dict[str, Array]:
        """Return parameters and buffers of a loss by name, as copies."""
        return {}

    def load_loss_state(self, loss: Any, state: Mapping[str, Array]) -> None:
        """Restore what `loss_state` returned."""
        raise self._unable("parameters of a loss")

    def writes_input(self, model: Any) -> bool:
        """Return whether calling a model may change its input in place."""
        return False

    def needs_several_rows(self, model: Any, shape: InputShape) -> bool:
        """Return whether training a model needs several rows (batch norm)."""
        return False

    def versions(self, tensors: Sequence[Any]) -> Any:
        """Return versions of tensors, which differ after a change in place."""
        return None

    def count_parameters(self, model: Any) -> tuple[int, int]:
        """Return the number of all, and of trainable, parameters of a model."""
        n = sum(math.prod(p.shape) for p in self.parameters(model).values())
        return n, n

    def move(self, model: Any, device: Any) -> None:  # noqa: B027 - nothing to move
        """Move a model's weights to a device, in place."""

    def device_of(self, model: Any) -> Any:
        """Return the device of a model's weights; None if irrelevant."""
        return None

    def to_device(self, tensor: Any, device: Any) -> Any:
        """Return a tensor on a device, with its gradient."""
        return tensor

    def upload(self, tensor: Any, device: Any) -> Any:
        """Copy a tensor to a device asynchronously through pinned memory."""
        raise self._unable("pin_memory")

    def processes(self, device: Any) -> Processes:
        """Join the other processes that were started to train together."""
        raise self._unable("data_parallel")

    def modes(self, models: Sequence[tuple[Any, bool]]) -> AbstractContextManager[Any]:
        """Set training (True) or evaluation mode of models within a block."""
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
            Of one sample of each input.
        kinds : sequence of (bool, bool)
            For each input, whether all of its columns are integers, and categories.
        """
        all_kinds = list(kinds) or [(False, False)] * len(shapes_of(shape))
        if is_several(shape):
            return self._dtypes_of_several(model, shape, all_kinds)
        return [self.input_dtype(model, shape, whole=all_kinds[0][0], category=all_kinds[0][1])]

    def _dtypes_of_several(
        self, model: Any, shape: InputShape, kinds: Sequence[tuple[bool, bool]]
    ) -> list[Any]:
        raise self._unable("several inputs per model")

    def input_dtype(
        self, model: Any, shape: Shape | None = None, *, whole: bool = False, category: bool = False
    ) -> Any:
        """Return the dtype in which a model reads columns.

        It is an integer dtype for models with an embedding and for those that read categories, else
        the float dtype of the model. A model that does not support one gets the other; `check_cast`
        refuses values that the dtype cannot represent.

        Parameters
        ----------
        model : module or None
            None for nodes without a model.
        shape : tuple of int, optional
            Of one sample of each input. If None, the model is not probed for supported dtypes.
        whole, category : bool
            Whether all columns are integers, and whether all are categories.

        Returns
        -------
        dtype of the framework, or None
            None keeps the dtype of the columns.
        """
        return None

    def exact_integers(self, dtype: Any) -> int | None:
        """Return the largest n with all integers to n exact; None for integer dtypes."""
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

    def spread(
        self, call: Callable[..., Any], names: Sequence[str] | None
    ) -> Callable[[Sequence[Any]], Any]:
        """Return a function of a list of tensors that calls a model with several inputs.

        `names` are those of the inputs, in the order of the list; None for positional inputs.
        """
        if names is None:
            return call
        return lambda values: call(dict(zip(names, values, strict=True)))

    def direct(self, model: Any) -> Callable[[Any], Any]:
        """Return a function equivalent to calling a model on one tensor, maybe faster."""
        return model  # type: ignore[no-any-return]

    def check_model(  # noqa: B027 - nothing to refuse by default
        self, model: Any, label: str, *, training: bool, losses: bool
    ) -> None:
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

    def loss_values(self, values: Any, args: Sequence[Any]) -> Any:
        """Return the values of a loss, weighted by the masks attached to its arguments."""
        return values

    def joint_weights(self, weights: Any, args: Sequence[Any]) -> Any:
        """Return element weights with mean 1 per sample, 0 where masks of `args` are false."""
        return weights

    def options_for(self, options: StepOptions) -> StepOptions:
        """Return options of a step, extended by what its models need."""
        return options

    def finish_training(self, optimizer: Any) -> None:  # noqa: B027 - most do nothing
        """Run an optimizer's final update, such as applying weight averages."""

    def checked_rows(self) -> AbstractContextManager[Any]:
        """Return a context that skips checks of rows the model was just fitted on."""
        return nullcontext()

    def compile(self, model: Any) -> Any:
        """Return a compiled function to call instead of the model."""
        raise self._unable("compile")

    def _unable(self, what: str) -> BackendNotSupportedError:
        return BackendNotSupportedError(f"{what} is not supported for {self.backend.value} models")

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
    ) -> Stack:
        """Return the steps of several members as one; see `Stack`.

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


PAD_MODES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""numpy's names of the padding modes."""


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
    roots = {
        str(name).split(".")[0] for name in (getattr(obj, "__module__", ""), *_modules_of(cls))
    }
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


def _modules_of(cls: type) -> list[str]:
    return [base.__module__ for base in cls.__mro__]
