"""The adapter for scikit-learn, whose tensors are numpy arrays."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray, Shape
from modularml.backends import sklearn_losses
from modularml.backends.base import Backend, BackendAdapter, Compute, Step
from modularml.backends.fingerprint import fingerprint
from modularml.backends.tensor_operations import PAD_MODES
from modularml.errors import BackendNotSupportedError

__all__ = ["SklearnAdapter", "adapter"]


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
        return {name: getattr(sklearn_losses, name) for name in sklearn_losses.__all__}

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
