"""Any torch module as a model of a graph."""

from __future__ import annotations

from typing import Any

import torch

from modularml.models.layered import ModelWrapper
from modularml.models.torch.base import TorchBaseModel

__all__ = ["TorchModelWrapper"]


class TorchModelWrapper(ModelWrapper, TorchBaseModel):
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

    kind = torch.nn.Module

    def __init__(
        self,
        *,
        model: torch.nn.Module | None = None,
        model_class: type[torch.nn.Module] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        inject_input_shape_as: str | None = "input_shape",
        inject_output_shape_as: str | None = "output_shape",
    ) -> None:
        super().__init__()
        self._take(
            model=model,
            model_class=model_class,
            model_kwargs=model_kwargs,
            inject_input_shape_as=inject_input_shape_as,
            inject_output_shape_as=inject_output_shape_as,
        )

    @property
    def module(self) -> Any:
        """The wrapped module itself, so that a call goes straight to it."""
        return self if self.inner is None else self.inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapped module."""
        return self.inner(*args, **kwargs)  # type: ignore[misc]
