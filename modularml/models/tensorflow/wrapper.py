"""Any Keras model as a model of a graph."""

from __future__ import annotations

from typing import Any

import keras

from modularml._typing import Shape
from modularml.models.layered import ModelWrapper
from modularml.models.tensorflow.base import TensorflowBaseModel

__all__ = ["TensorflowModelWrapper"]


class TensorflowModelWrapper(ModelWrapper, TensorflowBaseModel):  # noqa: D101 - that of what it is
    __doc__ = ModelWrapper.__doc__

    kind, kind_name = keras.Layer, "keras.Model"

    def make_model(self, input_shape: Shape, output_shape: Shape | None) -> keras.Layer:
        """Return a new model of the class; the one that was given, where there is no class."""
        return self._made(input_shape, output_shape)

    def _twin(self) -> Any:
        if self._init_args["model_class"] is not None:
            return super()._twin()
        if isinstance(self.inner, keras.Sequential) or hasattr(self.inner, "operations"):
            return keras.models.clone_model(self.inner)
        return type(self.inner).from_config(self.inner.get_config())
