"""Models in Keras: perceptrons, embeddings, and recurrent, convolutional and attention layers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from modularml._typing import Shape
from modularml.backends.layouts import InputShape
from modularml.models.layered import LayerArguments
from modularml.models.sequence_arguments import (
    CNNArguments,
    RNNArguments,
    SequenceArguments,
    TCNArguments,
    TransformerArguments,
    positions,
)
from modularml.models.tabular_arguments import GaussianHeadArguments, MLPArguments, TabularArguments
from modularml.models.tensorflow.base import SequentialModel, TensorflowBaseModel, activation_layer

__all__ = [
    "GaussianHead",
    "SequenceModel",
    "SequentialCNN",
    "SequentialMLP",
    "SequentialRNN",
    "SequentialTCN",
    "SequentialTransformer",
    "TabularMLP",
]


def output_layers(output_shape: Shape) -> list[Any]:
    """Return a dense layer to an output shape."""
    dense = layers.Dense(math.prod(output_shape))
    return [dense, layers.Reshape(output_shape or (1,))] if len(output_shape) != 1 else [dense]


def dense_layers(model: LayerArguments, output_shape: Shape) -> list[Any]:
    """Return the hidden layers that the arguments of a model describe, and the output layer."""
    hidden: list[Any] = []
    for _ in range(model.n_layers - 1):
        hidden += [layers.Dense(model.hidden_dim), activation_layer(model.activation)]
        hidden += [layers.Dropout(model.dropout)] if model.dropout else []
    return hidden + output_layers(output_shape)


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
        first = [layers.Flatten()] if len(input_shape) > 1 else []
        return [*first, *dense_layers(self, output_shape)]


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
        self.sequence = dense_layers(model, output_shape)

    def call(self, x: Any, training: bool | None = None) -> Any:
        values = list(x) if isinstance(x, list | tuple) else [x]
        if self.names is not None:
            values = [x[name] for name in self.names]
        flat = [ops.reshape(v, (-1, math.prod(v.shape[1:]))) for v in values]
        rows = []  # of the embeddings; 0 for values that are not among the ids
        for column in self.columns:
            read = flat[column.input][:, column.place]
            known = tf.cast(tf.constant(column.ids), read.dtype)
            place = tf.minimum(tf.searchsorted(known, read), len(column.ids) - 1)
            rows.append(tf.where(tf.gather(known, place) == read, place + 1, 0))
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


class SequenceModel(SequenceArguments, TensorflowBaseModel, ABC):
    """An encoder of steps, pooling over real steps, and a linear layer."""

    reads_several = False

    @abstractmethod
    def make_encoder(self, n_channels: int, n_steps: int) -> list[Any]:
        """Return layers of ``(n, time, width)``; those with `reads_mask` get the mask too."""

    def make_model(self, input_shape: Shape, output_shape: Shape | None) -> keras.Model:
        """Return the encoder and the linear layer as one Keras model."""
        encoder = self.make_encoder(*self.sizes(input_shape))
        head = [] if output_shape is None else output_layers(output_shape)
        return SequenceNetwork(encoder, head, self)


class SequenceNetwork(keras.Model):  # type: ignore[misc]
    """Layers over steps, whose real ones come first, pooling, and layers of the output."""

    def __init__(self, encoder: list[Any], head: list[Any], arguments: SequenceArguments) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.pooling, self.check_mask = arguments.pooling, arguments.check_mask
        self.supports_masking = True

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """Return no mask, as there are no steps after pooling."""

    def call(self, x: Any, mask: Any = None, training: bool | None = None) -> Any:
        steps = ops.transpose(x, (0, 2, 1)) if len(x.shape) == 3 else x[:, 0]
        if mask is not None:
            self.check_mask(mask, steps)
            mask, n_steps = ops.cast(mask, "bool"), mask.shape[1]
            # real steps come before padding, which becomes 0
            places = ops.arange(n_steps, dtype="int32")
            order = ops.sort(ops.where(mask, places, places + n_steps), axis=1) % n_steps
            mask = ops.take_along_axis(mask, order, axis=1)
            steps = ops.take_along_axis(steps, order[..., None], axis=1)
            steps = ops.where(mask[..., None], steps, ops.zeros_like(steps))
        for layer in self.encoder:
            more = (mask,) if getattr(layer, "reads_mask", False) else ()
            steps = layer(steps, *more, training=training)
        if mask is None:
            out = ops.mean(steps, axis=1) if self.pooling == "mean" else steps[:, -1]
        else:
            n_real = ops.sum(ops.cast(mask, "int32"), axis=1, keepdims=True)
            if self.pooling == "mean":
                total = ops.sum(steps * ops.cast(mask, steps.dtype)[..., None], axis=1)
                out = total / ops.cast(n_real, steps.dtype)  # NaN without real steps
            else:
                places = ops.arange(steps.shape[1], dtype="int32")
                is_last = ops.cast(places == n_real - 1, steps.dtype)
                last = ops.sum(steps * is_last[..., None], axis=1)
                out = ops.where(n_real > 0, last, math.nan)
        for layer in self.head:
            out = layer(out)
        return out


_CELLS = {"gru": layers.GRU, "lstm": layers.LSTM}


class SequentialRNN(RNNArguments, SequenceModel):  # noqa: D101 - that of its arguments
    __doc__ = f"""{RNNArguments.__doc__}
    Examples
    --------
    >>> model = SequentialRNN(output_shape=(3,))
    >>> model.build(input_shape=(1, 100))
    >>> model.output_shape
    (3,)
    """

    config_name = "tensorflow.SequentialRNN"

    def make_encoder(self, n_channels: int, n_steps: int) -> list[Any]:
        """Return recurrent layers and dropout; padding comes after real steps."""
        encoder: list[Any] = []
        for _ in range(self.n_layers):
            encoder.append(_CELLS[self.cell](self.hidden_dim, return_sequences=True))
            encoder += [layers.Dropout(self.dropout)] if self.dropout else []
        return encoder


_CONV = {2: layers.Conv1D, 3: layers.Conv2D, 4: layers.Conv3D}
_POOL = {2: layers.MaxPooling1D, 3: layers.MaxPooling2D, 4: layers.MaxPooling3D}
_ZEROS = {2: layers.ZeroPadding1D, 3: layers.ZeroPadding2D, 4: layers.ZeroPadding3D}


class SequentialCNN(CNNArguments, SequentialModel):  # noqa: D101 - that of its arguments
    __doc__ = f"""{CNNArguments.__doc__}
    Examples
    --------
    >>> model = SequentialCNN(output_shape=(3,))
    >>> model.build(input_shape=(1, 100))
    >>> model.output_shape
    (3,)
    """

    config_name = "tensorflow.SequentialCNN"

    def make_sequence(self, input_shape: Shape, output_shape: Shape | None) -> list[Any]:
        """Return convolutions, activations, pooling and the linear layer.

        TensorFlow convolves with channels last, so the first and last layers permute them.
        """
        self.spaces(input_shape)
        rank = len(input_shape)
        sequence = [layers.Permute((*range(2, rank + 1), 1))]
        same = self.stride == 1 and 2 * self.padding == self.kernel_size - 1
        conv, pads = _CONV[rank], "same" if same else "valid"
        for _ in range(self.n_layers):
            sequence += [_ZEROS[rank](self.padding)] if self.padding and not same else []
            sequence.append(conv(self.hidden_dim, self.kernel_size, self.stride, padding=pads))
            sequence.append(activation_layer(self.activation))
            sequence += [_POOL[rank](self.pooling)] if self.pooling > 1 else []
            sequence += [layers.Dropout(self.dropout)] if self.dropout else []
        sequence.append(layers.Permute((rank, *range(1, rank))))
        if output_shape is not None:
            sequence += [layers.Flatten(), layers.Dense(math.prod(output_shape))]
            sequence += [layers.Reshape(output_shape)] if len(output_shape) > 1 else []
        elif self.flatten_output:
            sequence.append(layers.Flatten())
        return sequence


class SequentialTCN(TCNArguments, SequenceModel):  # noqa: D101 - that of its arguments
    __doc__ = f"""{TCNArguments.__doc__}
    Examples
    --------
    >>> model = SequentialTCN(output_shape=(3,))
    >>> model.build(input_shape=(1, 100))
    >>> model.output_shape
    (3,)
    """

    config_name = "tensorflow.SequentialTCN"

    def make_encoder(self, n_channels: int, n_steps: int) -> list[Any]:
        """Return the residual blocks; no step sees a later one."""
        widths = [n_channels, *[self.hidden_dim] * (self.n_layers - 1)]
        return [CausalBlock(self, width, 2**layer) for layer, width in enumerate(widths)]


class CausalBlock(layers.Layer):  # type: ignore[misc]
    """Two causal convolutions beside the identity, or a convolution of width 1."""

    def __init__(self, model: SequentialTCN, width: int, dilation: int) -> None:
        super().__init__()
        hidden, size = model.hidden_dim, model.kernel_size
        self.first, self.second = (
            layers.Conv1D(hidden, size, padding="causal", dilation_rate=dilation) for _ in range(2)
        )
        self.skip = layers.Identity() if width == hidden else layers.Conv1D(hidden, 1)
        self.act = activation_layer(model.activation)
        self.drop, self.drop_again = layers.Dropout(model.dropout), layers.Dropout(model.dropout)

    def call(self, x: Any, training: bool | None = None) -> Any:
        out = self.drop(self.act(self.first(x)), training=training)
        out = self.drop_again(self.act(self.second(out)), training=training)
        return self.act(out + self.skip(x))


_EPSILON = 1e-5
"""Of layer normalizations, as in torch."""


class SequentialTransformer(TransformerArguments, SequenceModel):  # noqa: D101 - of its arguments
    __doc__ = f"""{TransformerArguments.__doc__}
    Examples
    --------
    >>> model = SequentialTransformer(output_shape=(3,))
    >>> model.build(input_shape=(1, 100))
    >>> model.output_shape
    (3,)
    """

    config_name = "tensorflow.SequentialTransformer"

    def make_encoder(self, n_channels: int, n_steps: int) -> list[Any]:
        """Return the dense layer for steps, positions, encoder layers and normalization."""
        first = [layers.Dense(self.hidden_dim), Positions(n_steps, self.hidden_dim)]
        drop = [layers.Dropout(self.dropout)] if self.dropout else []
        blocks = [AttentionBlock(self) for _ in range(self.n_layers)]
        return [*first, *drop, *blocks, layers.LayerNormalization(epsilon=_EPSILON)]


class Positions(layers.Layer):  # type: ignore[misc]
    """Adds the encodings of positions."""

    def __init__(self, n_steps: int, dim: int) -> None:
        super().__init__()
        self.encoding = positions(n_steps, dim)

    def call(self, x: Any) -> Any:
        return x + ops.cast(self.encoding[: x.shape[1]], x.dtype)


class AttentionBlock(layers.Layer):  # type: ignore[misc]
    """Self-attention and a feed-forward part, each after a normalization."""

    reads_mask = True

    def __init__(self, model: SequentialTransformer) -> None:
        super().__init__()
        dim, self.n_heads = model.hidden_dim, model.n_heads
        norms = (layers.LayerNormalization(epsilon=_EPSILON) for _ in range(2))
        self.norm, self.qkv = next(norms), layers.Dense(3 * dim)
        self.out, self.norm_again = layers.Dense(dim), next(norms)
        self.up, self.down = layers.Dense(4 * dim), layers.Dense(dim)
        self.act = activation_layer(model.activation)
        self.drop, self.drop_again = layers.Dropout(model.dropout), layers.Dropout(model.dropout)

    def call(self, x: Any, real: Any, training: bool | None = None) -> Any:
        qkv = self.qkv(self.norm(x))
        n_steps, width = qkv.shape[1:]
        parts = ops.reshape(qkv, (-1, n_steps, 3, self.n_heads, width // (3 * self.n_heads)))
        q, k, v = (ops.transpose(parts[:, :, i], (0, 2, 1, 3)) for i in range(3))
        scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / math.sqrt(q.shape[-1])
        if real is not None:
            scores = ops.where(real[:, None, None, :], scores, -math.inf)
        mixed = ops.transpose(ops.matmul(tf.nn.softmax(scores), v), (0, 2, 1, 3))
        mixed = self.out(ops.reshape(mixed, (-1, n_steps, width // 3)))
        x = x + self.drop(mixed, training=training)
        added = self.down(self.act(self.up(self.norm_again(x))))
        return x + self.drop_again(added, training=training)
