"""The wrapper of Keras models."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import keras

from modularml._typing import Shape
from modularml.backends.input_shapes import InputShape
from modularml.backends.layouts import matching
from modularml.errors import ConfigError
from modularml.models.layered import ModelWrapper
from modularml.models.tensorflow.base import TensorflowBaseModel, by_name
from modularml.models.tensorflow.recipe import check_recipe, from_recipe, to_recipe

__all__ = ["TensorflowModelWrapper"]


class TensorflowModelWrapper(ModelWrapper, TensorflowBaseModel):  # noqa: D101 - that of what it is
    __doc__ = ModelWrapper.__doc__

    kind, kind_name = keras.Layer, "keras.Model"

    @classmethod
    def _to_recipe(cls, model: Any) -> dict[str, Any]:
        if not _is_describable(model):
            raise ConfigError("it is neither sequential nor functional")
        return to_recipe(model)

    @classmethod
    def _from_recipe(cls, recipe: dict[str, Any], *, sketched: bool = False) -> Any:
        check_recipe(recipe)
        with keras.StatelessScope(initialize_variables=False) if sketched else nullcontext():
            return from_recipe(recipe)

    def _sketch(self, shape: InputShape, wanted: Shape | None) -> dict[str, Any] | None:
        if self._recipe is not None:
            return by_name(self.inner)
        return super()._sketch(shape, wanted)

    def _declared_by_layers(self, shape: Shape) -> Shape | None:
        declared = getattr(self.inner, "inputs", None) or []
        return matching(shape, tuple(declared[0].shape[1:])) if len(declared) == 1 else None

    def make_model(self, input_shape: Shape, output_shape: Shape | None) -> keras.Layer:
        """Return a new model of the class, or the model that was passed."""
        return self._instantiated(input_shape, output_shape)

    def _twin(self) -> Any:
        if self._init_args["model_class"] is not None:
            return super()._twin()
        if isinstance(self.inner, keras.Sequential) or hasattr(self.inner, "operations"):
            return keras.models.clone_model(self.inner)
        return _rebuilt(self.inner)


def _is_describable(model: Any) -> bool:
    return type(model) is keras.Sequential or (
        type(model).__name__ == "Functional" and type(model).__module__.startswith("keras.src.")
    )


def _rebuilt(model: Any) -> Any:
    """Rebuild a model of a custom class from the arguments that Keras recorded."""
    cls = type(model)
    parameters = inspect.signature(cls).parameters
    try:
        config = model.get_config()
        any_named = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return cls.from_config({k: v for k, v in config.items() if any_named or k in parameters})
    except (TypeError, ValueError, NotImplementedError) as error:
        name = cls.__name__
        raise ConfigError(
            f"a {name} that was passed as an object cannot be rebuilt ({error}); pass its class: "
            f"TensorflowModelWrapper(model_class={name}, model_kwargs={{...}})"
        ) from error
