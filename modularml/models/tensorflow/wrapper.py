"""Any Keras model as a model of a graph."""

from __future__ import annotations

import inspect
from typing import Any, Self

import keras

from modularml._typing import Shape
from modularml.config import decode, encode
from modularml.errors import ConfigError
from modularml.models.layered import ModelWrapper
from modularml.models.tensorflow.base import TensorflowBaseModel, by_name
from modularml.models.tensorflow.recipe import check_recipe, from_recipe, to_recipe

__all__ = ["TensorflowModelWrapper"]


class TensorflowModelWrapper(ModelWrapper, TensorflowBaseModel):  # noqa: D101 - that of what it is
    __doc__ = ModelWrapper.__doc__

    kind, kind_name = keras.Layer, "keras.Model"
    _recipe: dict[str, Any] | None = None
    """What the model is made from, until it is made."""

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data.

        Raises
        ------
        ConfigError
            If the model was given as an object, and is neither sequential nor functional or has
            a part that a file may not describe.
        """
        given = self._init_args["model"]
        if not _is_describable(given):
            return super().get_config()
        recipe = self._recipe or to_recipe(given)
        rest = {k: encode(v) for k, v in self._init_args.items() if k != "model"}
        return {"model": recipe, **rest}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make a wrapper; a model is described at first, and has no memory before `build`."""
        if not config.get("model"):
            return super().from_config(config)
        check_recipe(config["model"])
        with keras.StatelessScope(initialize_variables=False):
            model = from_recipe(config["model"])
        made = cls(**{k: decode(v) for k, v in config.items() if k != "model"}, model=model)
        made._recipe = config["model"]
        return made

    def make_layers(self, input_shape: Shape, output_shape: Shape | None) -> None:
        """Make the model from its class or its description; one that exists stays."""
        if self._recipe is not None:
            self.inner = self._init_args["model"] = from_recipe(self._recipe)
            self._recipe = None
        super().make_layers(input_shape, output_shape)

    def _file_state(self) -> dict[str, Any]:
        if self._init_args["model"] is not None and self._recipe is None and not self._built:
            raise ConfigError("the model has weights, and a file cannot hold them yet: build it")
        return self.get_state()

    def _sketch(self, shape: Shape, wanted: Shape | None) -> dict[str, Any] | None:
        if self._recipe is not None:
            return by_name(self.inner)
        return super()._sketch(shape, wanted)

    def make_model(self, input_shape: Shape, output_shape: Shape | None) -> keras.Layer:
        """Return a new model of the class; the one that was given, where there is no class."""
        return self._made(input_shape, output_shape)

    def _twin(self) -> Any:
        if self._init_args["model_class"] is not None:
            return super()._twin()
        if isinstance(self.inner, keras.Sequential) or hasattr(self.inner, "operations"):
            return keras.models.clone_model(self.inner)
        return _made_again(self.inner)


def _is_describable(model: Any) -> bool:
    return type(model) is keras.Sequential or (
        type(model).__name__ == "Functional" and type(model).__module__.startswith("keras.src.")
    )


def _made_again(model: Any) -> Any:
    """Return a model of a user's own class, from what Keras noted of its arguments."""
    cls = type(model)
    takes = inspect.signature(cls).parameters
    try:
        noted = model.get_config()
        any_named = any(p.kind is p.VAR_KEYWORD for p in takes.values())
        return cls.from_config({k: v for k, v in noted.items() if any_named or k in takes})
    except (TypeError, ValueError, NotImplementedError) as error:
        name = cls.__name__
        raise ConfigError(
            f"a {name} that was given as an object cannot be made again ({error}); give its class: "
            f"TensorflowModelWrapper(model_class={name}, model_kwargs={{...}})"
        ) from error
