"""Any torch module as a model of a graph."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from modularml._typing import Shape
from modularml.errors import ConfigError, ShapeError
from modularml.models.torch.base import TorchBaseModel

__all__ = ["TorchModelWrapper"]


class TorchModelWrapper(TorchBaseModel):
    """Wrap a module, or a class of it that is made once shapes are known.

    Parameters
    ----------
    model : torch.nn.Module, optional
        A module that exists.
    model_class : type, optional
        A class of it, made in `build`; exactly one of the two is given.
    model_kwargs : dict, optional
        Arguments for `model_class`.
    inject_input_shape_as, inject_output_shape_as : str or None
        Argument of `model_class` that gets the shape, where its constructor has it.

    Examples
    --------
    >>> wrapped = TorchModelWrapper(model=torch.nn.Linear(4, 2))
    >>> wrapped.build(input_shape=(4,))
    >>> wrapped.output_shape
    (2,)
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module | None = None,
        model_class: type[torch.nn.Module] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        inject_input_shape_as: str | None = "input_shape",
        inject_output_shape_as: str | None = "output_shape",
    ) -> None:
        if (model is None) == (model_class is None):
            raise ConfigError("give exactly one of model and model_class")
        if model is not None and not isinstance(model, torch.nn.Module):
            raise ConfigError(f"model must be a torch.nn.Module, got a {type(model).__name__}")
        if model_class is not None and not _is_module_class(model_class):
            raise ConfigError(
                f"model_class must be a class of torch.nn.Module, got {model_class!r}"
            )
        super().__init__()
        self._init_args = {
            "model": model,
            "model_class": model_class,
            "model_kwargs": model_kwargs,
            "inject_input_shape_as": inject_input_shape_as,
            "inject_output_shape_as": inject_output_shape_as,
        }
        self.inner = model

    @property
    def module(self) -> Any:
        """The wrapped module itself, so that a call goes straight to it."""
        return self if self.inner is None else self.inner

    def make_layers(self, input_shape: Shape, output_shape: Shape | None) -> None:
        """Make the module from its class; one that exists stays."""
        cls = self._init_args["model_class"]
        if cls is None:
            return
        kwargs = dict(self._init_args["model_kwargs"] or {})
        takes = inspect.signature(cls).parameters
        for name, shape in (
            (self._init_args["inject_input_shape_as"], input_shape),
            (self._init_args["inject_output_shape_as"], output_shape),
        ):
            if name and name in takes and shape is not None:
                kwargs.setdefault(name, shape)
        try:
            self.inner = cls(**kwargs)
        except TypeError as error:
            raise ShapeError(
                f"{cls.__name__}({', '.join(kwargs)}) cannot be made: {error}"
            ) from error

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data.

        Raises
        ------
        ConfigError
            If the module was given as an object: nothing says how to make it again.
        """
        if self._init_args["model"] is not None:
            name = type(self._init_args["model"]).__name__
            raise ConfigError(
                f"a {name} that was given as an object cannot be made again from data; give "
                "its class: "
                f"TorchModelWrapper(model_class={name}, model_kwargs={{...}})"
            )
        return super().get_config()

    @property
    def _shown(self) -> str:
        """Name of the wrapped module in messages."""
        return type(self.inner or self).__name__

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapped module."""
        return self.inner(*args, **kwargs)  # type: ignore[misc]


def _is_module_class(obj: Any) -> bool:
    return inspect.isclass(obj) and issubclass(obj, torch.nn.Module)
