"""Models of tables in Keras: perceptrons, embeddings and heads."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from modularml._typing import Shape
from modularml.backends.input_shapes import InputShape
from modularml.models.heads import GaussianHeadArguments
from modularml.models.sequential import MLPArguments
from modularml.models.tabular import TabularArguments
from modularml.models.tensorflow.base import SequentialModel, TensorflowBaseModel, activation_layer

__all__ = ["GaussianHead", "SequentialMLP", "TabularMLP"]


class SequentialMLP(MLPArguments, SequentialModel):  # noqa: D101 - that of its arguments
    __doc__ = f"""{MLPArguments.__doc__}
    Examples
    --------
    >>> model = SequentialMLP(output_shape=(3,))
    >>> model.build(input_shape=(4,))
    >>> model.output_shape
    (3,)
    """

    config_name = "tensorflow.SequentialMLP"

    def make_sequence(self, input_shape: Shape, output_shape: Shape | None) -> list[Any]:
        """Return linear layers, activations and dropout."""
        output_shape = self.check_output(output_shape)
        sequence: list[Any] = [layers.Flatten()] if len(input_shape) > 1 else []
        for _ in range(self.n_layers - 1):
            sequence += [layers.Dense(self.hidden_dim), activation_layer(self.activation)]
            sequence += [layers.Dropout(self.dropout)] if self.dropout else []
        sequence.append(layers.Dense(math.prod(output_shape)))
        return sequence + ([layers.Reshape(output_shape or (1,))] if len(output_shape) != 1 else [])


class GaussianHead(GaussianHeadArguments, TensorflowBaseModel):  # noqa: D101 - that of arguments
    __doc__ = GaussianHeadArguments.__doc__

    config_name = "tensorflow.GaussianHead"
    reads_several = False

    def make_model(self, input_shape: Shape, output_shape: Shape | None) -> keras.Model:
        """Return the dense layer as a Keras model."""
        return GaussianNetwork(2 * self.n_targets(output_shape), self.min_variance)


class GaussianNetwork(keras.Model):  # type: ignore[misc]
    """A dense layer whose second half becomes positive."""

    def __init__(self, width: int, min_variance: float) -> None:
        super().__init__()
        self.linear, self.min_variance = layers.Dense(width), min_variance

    def call(self, x: Any) -> Any:
        flat = ops.reshape(x, (-1, math.prod(x.shape[1:])))
        mean, raw = ops.split(self.linear(flat), 2, axis=1)
        return ops.concatenate([mean, ops.softplus(raw) + self.min_variance], axis=1)


class TabularMLP(TabularArguments, TensorflowBaseModel):  # noqa: D101 - that of its arguments
    __doc__ = TabularArguments.__doc__

    config_name = "tensorflow.TabularMLP"

    def make_model(self, input_shape: InputShape, output_shape: Shape | None) -> keras.Model:
        """Return embeddings, dense layers, activations and dropout as one Keras model."""
        return TabularNetwork(self, input_shape, self.check_output(output_shape))


class TabularNetwork(keras.Model):  # type: ignore[misc]
    """Embeddings beside numbers, and dense layers on both."""

    def __init__(self, model: TabularMLP, input_shape: InputShape, output_shape: Shape) -> None:
        super().__init__()
        self.columns = model.category_columns(input_shape)
        self.places = model.numbers(input_shape, self.columns)
        self.names = list(input_shape) if isinstance(input_shape, dict) else None
        self.gives_nan = model.handle_unknown == "nan"
        self.embeddings = [
            layers.Embedding(len(column.ids) + 1, column.width, embeddings_initializer="zeros")
            for column in self.columns
        ]
        self.sequence: list[Any] = []
        for _ in range(model.n_layers - 1):
            self.sequence += [layers.Dense(model.hidden_dim), activation_layer(model.activation)]
            self.sequence += [layers.Dropout(model.dropout)] if model.dropout else []
        self.sequence.append(layers.Dense(math.prod(output_shape)))
        if len(output_shape) != 1:
            self.sequence.append(layers.Reshape(output_shape or (1,)))

    def call(self, x: Any, training: bool | None = None) -> Any:
        values = list(x) if isinstance(x, list | tuple) else [x]
        if self.names is not None:
            values = [x[name] for name in self.names]
        flat = [ops.reshape(v, (-1, math.prod(v.shape[1:]))) for v in values]
        rows = [_rows(column.ids, flat[column.input][:, column.place]) for column in self.columns]
        parts = [layer(row) for layer, row in zip(self.embeddings, rows, strict=True)]
        dtype = self.compute_dtype
        parts += [
            ops.cast(tf.gather(v, places, axis=1), dtype)
            for v, places in zip(flat, self.places, strict=True)
        ]
        out = tf.concat(parts, axis=1)
        for layer in self.sequence:
            more = {"training": training} if isinstance(layer, layers.Dropout) else {}
            out = layer(out, **more)
        if self.gives_nan and rows:  # after the activations, some of which make NaN 0
            known = tf.reduce_all(tf.stack(rows) > 0, axis=0)
            known = tf.reshape(known, (-1, *[1] * (len(out.shape) - 1)))
            out = tf.where(known, out, tf.constant(math.nan, out.dtype))
        return out


def _rows(ids: Any, values: Any) -> Any:
    """Return the row of the embedding for each value; 0 if it is not among the ids."""
    known = tf.cast(tf.constant(ids), values.dtype)
    place = tf.minimum(tf.searchsorted(known, values), len(ids) - 1)
    return tf.where(tf.gather(known, place) == values, place + 1, 0)
