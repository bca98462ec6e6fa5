"""What an adapter is, and how to find the one that fits."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from modularml._optional import loaded, require
from modularml._typing import Array, IntArray, Shape
from modularml.errors import BackendNotSupportedError, UnknownNameError

__all__ = ["Backend", "BackendAdapter", "Compute", "Step", "adapter_for", "backend_of"]

Compute = Callable[[Sequence[Any]], tuple[Any, Sequence[Any], Sequence[Any]]]
"""From the input tensors of a batch to (total loss, each loss, each output)."""

Step = Callable[[Sequence[Any]], tuple[Sequence[Any], Sequence[Any]]]
"""From the input tensors of a batch to (each loss, each output), having moved the weights."""


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
    """A loss came out NaN or infinite; weights have not been moved.

    Parameters
    ----------
    place : int
        Which of the losses.
    value : float
    """

    def __init__(self, place: int, value: float) -> None:
        super().__init__(place, value)
        self.place, self.value = place, value


class BackendAdapter(ABC):
    """The few things that a graph needs of a framework."""

    backend: ClassVar[Backend]

    # -- tensors ------------------------------------------------------------------------------

    @abstractmethod
    def from_numpy(self, values: Array, *, dtype: Any = None, device: Any = None) -> Any:
        """Copy an array to a tensor; never an alias of what is immutable."""

    @abstractmethod
    def to_numpy(self, tensor: Any) -> Array:
        """Return a tensor as an array, off the graph and the device."""

    @abstractmethod
    def zeros(self, shape: Shape, dtype: Any) -> Any:
        """Return a tensor of zeros."""

    @abstractmethod
    def sample_mean(self, values: Any) -> Any:
        """Return the mean over samples of values a sample, an element, or one in all."""

    @abstractmethod
    def loss_dtype(self, kind: str, model: Any) -> Any:
        """Return the dtype of targets: ``"index"`` for class numbers, ``"float"`` as `model`'s."""

    @abstractmethod
    def gather(self, column: Any, rows: IntArray, into: Any = None) -> Any:
        """Return rows of a tensor, in the order asked; written to `into` where it is given."""

    @abstractmethod
    def chunks(self, tensor: Any, size: int | list[int]) -> Sequence[Any]:
        """Cut a tensor along axis 0: into pieces of one size, or of these sizes."""

    @abstractmethod
    def concat(self, tensors: Sequence[Any], axis: int) -> Any:
        """Concatenate tensors."""

    @abstractmethod
    def mean(self, tensors: Sequence[Any]) -> Any:
        """Return the element-wise mean of tensors."""

    @abstractmethod
    def pad(self, tensor: Any, widths: Sequence[tuple[int, int]], mode: str, value: float) -> Any:
        """Pad each axis at its end, by ``numpy.pad``'s rules for `mode`."""

    @abstractmethod
    def detach(self, tensor: Any) -> Any:
        """Return the tensor off the graph, on its device."""

    @abstractmethod
    def to_host(self, tensor: Any) -> Any:
        """Return the tensor off the graph and off the device."""

    @abstractmethod
    def floats(self, scalars: Sequence[Any]) -> list[float]:
        """Return many scalar tensors as numbers, in one transfer."""

    # -- models -------------------------------------------------------------------------------

    @abstractmethod
    def parameters(self, model: Any) -> dict[str, Any]:
        """Return by name what an optimizer may move once the model is not frozen."""

    @abstractmethod
    def move(self, model: Any, device: Any) -> None:
        """Move a model's weights to a device, in place."""

    @abstractmethod
    def modes(self, models: Sequence[tuple[Any, bool]]) -> AbstractContextManager[Any]:
        """Put models into training (True) or evaluation mode within a block, then back."""

    @abstractmethod
    def set_frozen(self, model: Any, frozen: bool) -> None:
        """Stop, or allow, gradients into a model's own parameters."""

    @abstractmethod
    def input_dtype(self, model: Any) -> Any:
        """Return the dtype that a model wants its features in."""

    @abstractmethod
    def no_grad(self) -> AbstractContextManager[Any]:
        """Return a context in which no gradients are tracked."""

    # -- training -----------------------------------------------------------------------------

    @abstractmethod
    def losses(self) -> Mapping[str, type]:
        """Return loss classes by name."""

    @abstractmethod
    def optimizers(self) -> Mapping[str, type]:
        """Return optimizer classes by name."""

    @abstractmethod
    def make_optimizer(self, cls: Any, parameters: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Make an optimizer over these parameters."""

    @abstractmethod
    def train_step(self, compute: Compute, optimizers: Sequence[Any]) -> Step:
        """Return a function that computes the loss of a batch and moves the weights."""

    @abstractmethod
    def check_device(self, device: str) -> Any:
        """Return the device, or say that it is not there.

        Raises
        ------
        DeviceError
            If there is no such device.
        """


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


_ADAPTERS = {Backend.TORCH: "modularml.backends.torch"}


def backend_of(obj: Any) -> Backend:
    """Tell which framework a model, tensor, loss or optimizer class belongs to."""
    torch = loaded("torch")
    cls = obj if isinstance(obj, type) else type(obj)
    if torch is not None:
        bases = (torch.nn.Module, torch.Tensor, torch.optim.Optimizer)
        if issubclass(cls, bases) or str(getattr(obj, "__module__", "")).startswith("torch"):
            return Backend.TORCH
    if any(base.__module__.split(".")[0] in ("keras", "tensorflow") for base in cls.__mro__):
        return Backend.TENSORFLOW
    if hasattr(cls, "get_params") and hasattr(cls, "fit"):
        return Backend.SCIKIT
    return Backend.NONE
