"""Any Keras model as a model of a graph."""

from __future__ import annotations

from typing import Any

import keras

from modularml._typing import Shape
from modularml.models.layered import ModelWrapper
from modularml.models.tensorflow.base import TensorflowBaseModel

__all__ = ["TensorflowModelWrapper"]


class TensorflowModelWrapper(ModelWrapper, TensorflowBaseModel):
    """Wrap a Keras model, or a class of it that is made once shapes are known.

    Parameters
    ----------
    model : keras.Model or keras.Layer, optional
        A model that exists: functional, sequential or of a class of yours.
    model_class : type, optional
        A class of it, made in `build`; exactly one of the two is given.
    model_kwargs : dict, optional
        Arguments for `model_class`.
    inject_input_shape_as, inject_output_shape_as : str or None
        Argument of `model_class` that gets the shape, where its constructor has it.
    """

    kind = keras.Layer

    def __init__(
        self,
        *,
        model: keras.Layer | None = None,
        model_class: type[keras.Layer] | None = None,
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

    def make_model(self, input_shape: Shape, output_shape: Shape | None) -> keras.Layer:
        """Return a new model of the class; the one that was given, where there is no class."""
        return self._made(input_shape, output_shape)

    def _twin(self) -> Any:
        if self._init_args["model_class"] is not None:
            return super()._twin()
        if isinstance(self.inner, keras.Sequential) or hasattr(self.inner, "operations"):
            return keras.models.clone_model(self.inner)
        return type(self.inner).from_config(self.inner.get_config())
