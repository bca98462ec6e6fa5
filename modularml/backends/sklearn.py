"""The adapter for scikit-learn, whose tensors are numpy arrays."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray, Shape
from modularml.backends.base import Backend, BackendAdapter, Compute, Step
from modularml.backends.fingerprint import fingerprint
from modularml.backends.tensor_operations import PAD_MODES
from modularml.errors import BackendNotSupportedError


@dataclass
class _Loss:
    reduction: str = "none"

    def __call__(self, output: Array, target: Array) -> Any:
        values = self.values(output, target)
        return values if self.reduction == "none" else getattr(values, self.reduction)()

    def values(self, output: Array, target: Array) -> Any:
        raise NotImplementedError


@dataclass
class MSELoss(_Loss):
    """Squared difference."""

    def values(self, output: Array, target: Array) -> Any:
        return np.square(output - target)


@dataclass
class L1Loss(_Loss):
    """Absolute difference."""

    def values(self, output: Array, target: Array) -> Any:
        return np.abs(output - target)


@dataclass
class HuberLoss(_Loss):
    """Half the squared difference, linear beyond `delta`."""

    delta: float = 1.0

    def values(self, output: Array, target: Array) -> Any:
        difference = np.abs(output - target)
        return np.where(
            difference < self.delta,
            0.5 * difference**2,
            self.delta * (difference - 0.5 * self.delta),
        )


@dataclass
class BCELoss(_Loss):
    """Logarithmic loss of a probability of class 1."""

    def values(self, output: Array, target: Array) -> Any:
        return -(target * _log(output) + (1 - target) * _log(1 - output))


@dataclass
class CrossEntropyLoss(_Loss):
    """Logarithmic loss of class probabilities from ``predict_proba`` (not logits)."""

    def values(self, output: Array, target: Array) -> Any:
        chosen = np.take_along_axis(output, target.reshape(len(target), 1), axis=1)
        return -_log(chosen)[:, 0]


def _log(p: Array) -> Array:
    """Return the clipped logarithm, as in `sklearn.metrics.log_loss`."""
    eps = np.finfo(p.dtype).eps
    return np.asarray(np.log(np.clip(p, eps, 1 - eps)))


class SklearnAdapter(BackendAdapter):
    """Operations that a graph needs from scikit-learn, without gradients or devices."""

    backend: ClassVar[Backend] = Backend.SCIKIT
    may_reuse_outputs = True
    gradients: ClassVar[bool] = False

    # -- tensors ------------------------------------------------------------------------------

    def from_numpy(self, values: Array, *, dtype: Any = None, device: Any = None) -> Any:
        """Return the array; read-only if it is not copied."""
        array = np.asarray(values, dtype=dtype).view()
        array.flags.writeable = False
        return array

    def to_numpy(self, tensor: Any) -> Array:
        return np.asarray(tensor)

    def zeros(self, shape: Shape, dtype: Any) -> Any:
        return np.zeros(shape, dtype)

    def sample_mean(self, values: Any) -> Any:
        return np.mean(values)

    def loss_dtype(self, kind: str, model: Any) -> Any:
        return np.dtype(np.int64 if kind == "index" else np.float64)

    def gather(self, column: Any, rows: IntArray | slice, into: Any = None) -> Any:
        """Return rows of an array in the given order; a slice is not copied."""
        if isinstance(rows, slice):
            return column[rows]
        into = into if into is not None and into.flags.writeable else None
        return np.take(column, rows, axis=0, out=into)

    def chunks(self, tensor: Any, size: int | list[int]) -> Sequence[Any]:
        if isinstance(size, int):
            return [tensor[at : at + size] for at in range(0, len(tensor), size)]
        ends = np.cumsum(size)
        return [tensor[end - n : end] for n, end in zip(size, ends, strict=True)]

    def row_bytes(self, column: Any) -> int:
        return int(np.prod(column.shape[1:], dtype=int) * column.dtype.itemsize)

    def reshape(self, tensor: Any, shape: Shape) -> Any:
        return tensor.reshape(len(tensor), *shape)

    def concat(self, tensors: Sequence[Any], axis: int) -> Any:
        return np.concatenate(tensors, axis=axis)

    def mean(self, tensors: Sequence[Any]) -> Any:
        return np.mean(tensors, axis=0)

    def pad(self, tensor: Any, widths: Sequence[tuple[int, int]], mode: str, value: float) -> Any:
        if mode == "constant":
            return np.pad(tensor, widths, constant_values=value)
        return np.pad(tensor, widths, mode=PAD_MODES[mode])

    def weights_version(self, model: Any) -> Hashable:
        """Return a fingerprint of the attributes of an estimator and of nested ones."""
        estimator = getattr(model, "inner", model)
        params = (
            estimator.get_params(deep=True).values() if hasattr(estimator, "get_params") else ()
        )
        parts = [estimator, *(part for part in params if hasattr(part, "fit"))]
        return tuple(fingerprint(dict(vars(part))) for part in parts)

    def writes_input(self, model: Any) -> bool:
        estimator = getattr(model, "inner", model)
        params = estimator.get_params(deep=True) if hasattr(estimator, "get_params") else {}
        return any(k.split("__")[-1].startswith("copy") and v is False for k, v in params.items())

    def checked_rows(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = require("sklearn").config_context(assume_finite=True)
        return context

    # -- training -----------------------------------------------------------------------------

    def losses(self) -> Mapping[str, type]:
        return {cls.__name__: cls for cls in _Loss.__subclasses__()}

    def make_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Raise, as an estimator learns without an optimizer."""
        raise BackendNotSupportedError("scikit-learn estimators need no optimizer; omit it")

    adopt_optimizer = optimizer_step = make_optimizer
    optimizer_state = load_optimizer_state = train_step = make_optimizer

    def eval_step(self, compute: Compute) -> Step:
        return lambda inputs: compute(inputs)[1:]

    def check_device(self, device: str) -> Any:
        """Return None, as arrays are always on the host."""


adapter = SklearnAdapter()
