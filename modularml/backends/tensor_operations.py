"""What a framework does with tensors and with the weights of models."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from modularml._typing import Array, IntArray, Shape
from modularml.backends.layouts import InputShape, is_several, shapes_of
from modularml.errors import BackendNotSupportedError


@dataclass(frozen=True)
class Processes:
    """The processes that train one graph together.

    Attributes
    ----------
    rank, size : int
        Number of this process, from 0, and how many there are.
    gather : callable
        Takes a value, and returns those of all processes, ordered by rank.
    """

    rank: int
    size: int
    gather: Callable[[Any], list[Any]]


class TensorOperations(ABC):
    """Operations on tensors of one framework."""

    backend: ClassVar[Any]
    """The `Backend` that it is for."""

    @abstractmethod
    def from_numpy(self, values: Array, *, dtype: Any = None, device: Any = None) -> Any:
        """Copy an array to a tensor; never an alias of immutable memory."""

    def assemble(self, n: int, parts: Iterable[Any]) -> Any:
        """Concatenate tensors with `n` rows in all, read one after the other."""
        return self.concat(list(parts), 0)

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

    def take(self, values: Array, rows: IntArray | slice, into: Any = None) -> Any:
        """Return rows of an array as a tensor, optionally written to `into`."""
        return self.from_numpy(values[rows])

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

    def _unable(self, what: str) -> BackendNotSupportedError:
        return BackendNotSupportedError(f"{what} is not supported for {self.backend.value} models")


class ModelOperations(TensorOperations):
    """Operations on models, and on their weights, of one framework."""

    def parameters(self, model: Any) -> dict[str, Any]:
        """Return the parameters by name that are trainable if the model is not frozen."""
        return {}

    def all_parameters(self, model: Any) -> dict[str, Any]:
        """Return all parameters by name, including those that the user froze."""
        return self.parameters(model)

    def fixed(self, model: Any) -> dict[str, Any]:
        """Return the weights and buffers by name that the user froze."""
        return {}

    def keep_fixed(self, source: Any, target: Any) -> None:
        """Copy the `fixed` weights of a model to another, and freeze them there too."""

    def shared(self, models: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
        """Return shared weights as (label, name, other label, other name)."""
        return []

    def check_ties(self, models: Mapping[str, Any]) -> None:
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

    def move(self, model: Any, device: Any) -> None:
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

    def set_frozen(self, model: Any, frozen: bool) -> None:
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

    def compile(self, model: Any) -> Any:
        """Return a compiled function to call instead of the model."""
        raise self._unable("compile")

    def no_grad(self) -> AbstractContextManager[Any]:
        """Return a context in which no gradients are tracked."""
        return nullcontext()


PAD_MODES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""numpy's names of the padding modes."""
