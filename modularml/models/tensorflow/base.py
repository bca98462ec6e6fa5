"""Base classes of Keras models."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from modularml._private.keras import all_layers, mask_of, own_weights, with_mask
from modularml._registry import Registry
from modularml._typing import Array, Shape
from modularml.backends.layouts import InputShape, arranged, shapes_of
from modularml.backends.tensorflow import adapter
from modularml.backends.tensorflow_models import call, check_layers
from modularml.errors import ConfigError
from modularml.io.randomness import unchanged_randomness
from modularml.models.base import check_weights
from modularml.models.layered import LayerArguments, LayeredModel


class TensorflowBaseModel(LayeredModel, ABC):
    """A Keras model that is built once its shapes are known.

    A subclass passes its constructor's arguments to ``super().__init__`` and returns the Keras
    model from `make_model`.

    Attributes
    ----------
    inner : keras.Model or None
        The Keras model; None before `build`.
    training : bool
        Whether calls without ``training=`` run in training mode.
    output_dtype : tf.DType or None
        Dtype that outputs are cast to if layers compute in a lower precision.
    """

    output_dtype: Any = None

    def __init__(self, **init_args: Any) -> None:
        super().__init__("tensorflow", **init_args)
        if isinstance(self, LayerArguments) and "activation" in init_args:
            activation_layer(init_args["activation"])
        self.inner: Any = None
        self.training = False
        self.frozen_variables: list[Any] = []

    @abstractmethod
    def make_model(self, input_shape: Shape, output_shape: Shape | None) -> keras.Model:
        """Return a new Keras model, or layer, for samples of these shapes."""

    def make_layers(self, input_shape: InputShape, output_shape: Shape | None) -> None:
        """Build the Keras model."""
        self.inner = self.make_model(input_shape, output_shape)
        self.frozen_variables = []

    def __call__(self, x: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Return the output of the Keras model for a tensor, shape ``(n, *input_shape)``."""
        if self.inner is None:
            raise self._no_layers()
        training = self.training if training is None else training
        out = self._picked(call(self.inner, x, training=training, **kwargs))
        if self.output_dtype is None or out.dtype == self.output_dtype:
            return out
        return with_mask(tf.cast(out, self.output_dtype), mask_of(out))

    def variables(self) -> dict[str, Any]:
        """Return weights by stable names, including those that are not trainable."""
        return {} if self.inner is None else by_name(self.inner)

    def get_weights(self) -> dict[str, Array]:
        """Return weights by name, as copies."""
        return {name: v.numpy().copy() for name, v in self.variables().items()}

    def set_weights(self, weights: dict[str, Any]) -> None:
        """Restore weights produced by `get_weights`."""
        variables = self.variables()
        check_weights(variables, weights)
        for name, variable in variables.items():
            variable.assign(weights[name])

    def get_state(self) -> dict[str, Any]:
        """Return shapes, weights and the states of random generators, as of dropout."""
        state = super().get_state()
        return {**state, "seeds": [v.numpy() for v in _seeds(self.inner)]} if state else state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        super().set_state(state)
        for variable, value in zip(_seeds(self.inner), state.get("seeds", ()), strict=False):
            variable.assign(value)

    def reset_weights(self, seed: int | None = None) -> None:
        """Reinitialize weights, and seeds of dropout, in place, as Keras does initially.

        Weights of layers that are not trainable are unchanged.

        Raises
        ------
        ConfigError
            If the model was passed as an object of a class that its config cannot rebuild.
        """
        assert self._input_shape is not None
        with nullcontext() if seed is None else unchanged_randomness():
            if seed is not None:
                random.seed(seed)  # from which Keras draws seeds of layers
                np.random.seed(seed % 2**32)  # noqa: NPY002 - an initializer may draw from it
            twin = self._twin()
            call(twin, self._zeros(self._input_shape), **self.example_mask(_ones))
        pairs = ((m.weights + _seeds(m)) for m in (self.inner, twin))
        fixed = {id(v) for v in adapter.fixed(self).values()}
        for variable, fresh in zip(*pairs, strict=True):
            if id(variable) not in fixed:
                variable.assign(fresh)

    def _twin(self) -> Any:
        """Return a rebuilt copy of `inner`."""
        assert self._input_shape is not None
        return self.make_model(self._input_shape, self._built_for)

    def _sketch(self, shape: InputShape, wanted: Shape | None) -> dict[str, Any] | None:
        """Return variables with shapes but without values."""
        try:
            with keras.StatelessScope(initialize_variables=False):
                twin = self._unbuilt()
                twin._make_untried(shape, wanted)
                return twin.variables()
        except (ConfigError, NotImplementedError, AttributeError):
            return None  # passed as an object, or needs values to be built

    def _make_untried(self, shape: InputShape, wanted: Shape | None) -> None:
        super()._make_untried(shape, wanted)
        places = zip(shapes_of(shape), adapter.input_dtypes(self, shape), strict=True)
        blank = [keras.KerasTensor((None, *own), dtype) for own, dtype in places]
        call(self.inner, arranged(blank, shape))

    def _probe(self, shape: InputShape) -> Shape:
        """Return the output shape by running two samples of zeros."""
        check_layers(self.inner)
        try:
            mask = self.example_mask(_ones)
            out = self._picked(call(self.inner, self._zeros(shape), training=False, **mask))
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            raise self._misfit(shape, error) from error
        return self._one_row_each(out, is_tensor=tf.is_tensor(out))

    def _called(self) -> Any:
        return self.inner.call

    def _zeros(self, shape: InputShape) -> Any:
        dtypes = adapter.input_dtypes(self, shape)
        zeros = [tf.zeros((2, *s), d) for s, d in zip(shapes_of(shape), dtypes, strict=True)]
        return arranged(zeros, shape)


class SequentialModel(TensorflowBaseModel, ABC):
    """A Keras model that is one sequence of layers."""

    reads_several = False

    def make_model(self, input_shape: Shape, output_shape: Shape | None) -> keras.Model:
        """Return the layers as one Keras model."""
        return keras.Sequential(self.make_sequence(input_shape, output_shape))

    @abstractmethod
    def make_sequence(self, input_shape: Shape, output_shape: Shape | None) -> list[Any]:
        """Return the layers."""


def _ones(shape: Shape) -> Any:
    return tf.ones(shape, tf.bool)


def activation_layer(name: str) -> keras.layers.Layer:
    """Return the Keras activation for the name of a torch class, in any case.

    Raises
    ------
    UnknownNameError
        If Keras has no equivalent activation.
    """
    return keras.layers.Activation(_ACTIVATIONS[name])


def _leaky_relu(x: Any) -> Any:
    return keras.activations.leaky_relu(x, negative_slope=0.01)


_ACTIVATIONS: Registry[Any] = Registry(
    "activation",
    {
        **{
            name.replace("_", ""): getattr(keras.activations, name)
            for name in (
                *("relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "glu"),
                *("sigmoid", "hard_sigmoid", "log_sigmoid", "tanh", "hard_tanh", "tanh_shrink"),
                *("softplus", "softsign", "soft_shrink", "hard_shrink", "linear"),
            )
        },
        "hardswish": keras.activations.hard_silu,
        "leakyrelu": _leaky_relu,
    },
)
"""Activations by torch's names, if equivalent in both frameworks."""


def _seeds(model: Any) -> list[Any]:
    """Return the states of random generators in a model."""
    variables = [] if model is None else model.variables
    return [v for v in variables if v.path.endswith("seed_generator_state")]


def by_name(model: Any) -> dict[str, Any]:
    """Return the weights of a Keras model by layer name, numbered within the model."""
    owner = {id(v): layer.name for layer in all_layers(model) for v in own_weights(layer)}
    named: dict[str, Any] = {}
    layers_by_stem: dict[str, dict[str, int]] = {}
    for v in model.weights:
        layer = owner[id(v)]
        stem = re.sub(r"_\d+$", "", layer)
        same_stem = layers_by_stem.setdefault(stem, {})
        place = same_stem.setdefault(layer, len(same_stem))
        name = f"{stem}{f'_{place}' if place else ''}.{v.name}"
        twins = sum(other.split("#")[0] == name for other in named)
        named[f"{name}#{twins}" if twins else name] = v
    return named
