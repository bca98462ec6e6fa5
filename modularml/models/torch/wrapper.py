"""The wrapper of torch modules."""

from __future__ import annotations

from typing import Any

import torch

from modularml._optional import loaded
from modularml._typing import Shape
from modularml.backends.input_shapes import InputShape, is_several
from modularml.backends.torch import adapter
from modularml.backends.torch_inputs import declared_shape
from modularml.errors import ConfigError
from modularml.models.layered import ModelWrapper
from modularml.models.torch import recipe as recipes
from modularml.models.torch.base import TorchBaseModel

__all__ = ["TorchModelWrapper"]


class TorchModelWrapper(ModelWrapper, TorchBaseModel):  # noqa: D101 - that of what it is
    __doc__ = f"""{ModelWrapper.__doc__}
    Examples
    --------
    >>> wrapped = TorchModelWrapper(model=torch.nn.Linear(4, 2))
    >>> wrapped.build(input_shape=(4,))
    >>> wrapped.output_shape
    (2,)
    """

    kind, kind_name = torch.nn.Module, "torch.nn.Module"

    @classmethod
    def _to_recipe(cls, model: Any) -> dict[str, Any]:
        return recipes.to_recipe(model)

    @classmethod
    def _from_recipe(cls, recipe: dict[str, Any], *, sketched: bool = False) -> Any:
        return recipes.sketched(recipe) if sketched else recipes.from_recipe(recipe)

    def _sketch(self, shape: InputShape, wanted: Shape | None) -> dict[str, Any] | None:
        if self._recipe is not None:
            if is_several(shape):
                raise ConfigError(
                    f"samples of several inputs {shape} are not supported for a model described "
                    "by its layers; pass its class (model_class=)"
                )
            recipes.check_size(self._recipe, shape, adapter.input_dtype(self, shape))
        return super()._sketch(shape, wanted)

    def _declared_by_layers(self, shape: Shape) -> Shape | None:
        return None if self.inner is None else declared_shape(self.inner, shape)

    @property
    def module(self) -> Any:
        """The wrapped module, which is called directly unless one of its outputs is picked."""
        own = self.inner is None or _is_keras(self.inner) or self._init_args["output"] is not None
        return self if own else self.inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapped module; Keras on torch does not see torch's mode, so it is passed."""
        if _is_keras(self.inner):
            kwargs.setdefault("training", self.training)
        return self._picked(self.inner(*args, **kwargs))


def _is_keras(model: Any) -> bool:
    keras = loaded("keras")
    return keras is not None and isinstance(model, keras.Layer)
