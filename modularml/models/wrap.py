"""Wrapping of framework models."""

from __future__ import annotations

import inspect
from typing import Any

from modularml._optional import require
from modularml.backends import Backend, backend_of
from modularml.errors import ConfigError
from modularml.models.base import BaseModel

__all__ = ["wrap_model"]

_WRAPPERS = {
    Backend.TORCH: ("modularml.models.torch.wrapper", "TorchModelWrapper"),
    Backend.TENSORFLOW: ("modularml.models.tensorflow.wrapper", "TensorflowModelWrapper"),
    Backend.SCIKIT: ("modularml.models.sklearn", "ScikitModelWrapper"),
}


def wrap_model(obj: Any) -> BaseModel:
    """Wrap a framework's model, or class of one, for use in a graph.

    Parameters
    ----------
    obj : BaseModel, torch.nn.Module, keras.Model, a class of one of them, or an estimator
        A model of a supported framework.

    Raises
    ------
    ConfigError
        If the object belongs to no supported framework.

    Examples
    --------
    >>> from torch import nn
    >>> type(wrap_model(nn.Linear(4, 2))).__name__
    'TorchModelWrapper'
    >>> from sklearn.linear_model import Ridge
    >>> type(wrap_model(Ridge())).__name__
    'ScikitModelWrapper'
    """
    if isinstance(obj, BaseModel):
        return obj
    if inspect.isclass(obj) and issubclass(obj, BaseModel):
        return obj()  # type: ignore[call-arg]
    wrapper_path = _WRAPPERS.get(backend_of(obj))
    if wrapper_path is None:
        raise ConfigError(
            "model must be a torch.nn.Module, a keras.Model, a class of one of them, a "
            "scikit-learn estimator or a "
            f"BaseModel, got {obj!r}"
        )
    if inspect.isclass(obj) and hasattr(obj, "get_params"):  # an estimator needs no shapes
        obj = obj()
    module, name = wrapper_path
    wrapper = getattr(require(module), name)
    wrapped: BaseModel = wrapper(model_class=obj) if inspect.isclass(obj) else wrapper(model=obj)
    return wrapped
