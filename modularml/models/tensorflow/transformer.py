"""Transformer encoders of Keras."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
from keras import layers, ops

from modularml.models.sequences import TransformerArguments, positions
from modularml.models.tensorflow.base import activation_layer
from modularml.models.tensorflow.sequences import SequenceModel

__all__ = ["SequentialTransformer"]

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
        mixed = self.out(self._attention(self.qkv(self.norm(x)), real))
        x = x + self.drop(mixed, training=training)
        added = self.down(self.act(self.up(self.norm_again(x))))
        return x + self.drop_again(added, training=training)

    def _attention(self, qkv: Any, real: Any) -> Any:
        n_steps, width = qkv.shape[1:]
        parts = ops.reshape(qkv, (-1, n_steps, 3, self.n_heads, width // (3 * self.n_heads)))
        q, k, v = (parts[:, :, i] for i in range(3))
        q, k, v = (ops.transpose(part, (0, 2, 1, 3)) for part in (q, k, v))
        scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / math.sqrt(q.shape[-1])
        if real is not None:
            scores = ops.where(real[:, None, None, :], scores, -math.inf)
        mixed = ops.transpose(ops.matmul(tf.nn.softmax(scores), v), (0, 2, 1, 3))
        return ops.reshape(mixed, (-1, n_steps, width // 3))
