"""Small Keras models, and hand-written TensorFlow loops that tests are held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tests.worlds import slices


def net(d: int = 6, out: int = 1, width: int = 8, seed: int = 0) -> keras.Model:
    """Return a small functional network with weights from a seed."""
    keras.utils.set_random_seed(seed)
    ends = keras.Input((d,))
    hidden = layers.Dense(width, activation="tanh")(ends)
    return keras.Model(ends, layers.Dense(out)(hidden))


def twin(model: Any, d: int | tuple[int, ...] = 6) -> Any:
    """Return a model of the same kind with the same weights, its dropout as fresh as its twin's."""
    again = keras.models.clone_model(model)
    again(np.zeros((2, *np.atleast_1d(d)), "f4"))
    for mine, theirs in zip(again.variables, model.variables, strict=True):
        mine.assign(theirs)
    return again


def by_hand(
    model: Any,
    optimizer: Any,
    x: Any,
    y: Any,
    *,
    loss: Callable[..., Any] | None = None,
    variables: Any = None,
    epochs: int = 2,
    batch_size: int = 16,
) -> list[float]:
    """Train as people write it and return the mean loss over the samples of each epoch."""
    loss = loss or (lambda out, target: tf.reduce_mean((out - target) ** 2))
    inputs, n = (x if isinstance(x, list) else [x]), len(y)
    moved = model.trainable_variables if variables is None else variables
    means = []
    for _ in range(epochs):
        total = 0.0
        for rows in slices(n, batch_size):
            given = [tf.constant(part[rows]) for part in inputs]
            with tf.GradientTape() as tape:
                out = model(given if len(given) > 1 else given[0], training=True)
                value = loss(out, tf.constant(y[rows]))
            optimizer.apply_gradients(zip(tape.gradient(value, moved), moved, strict=True))
            total += float(value) * len(y[rows])
        means.append(total / n)
    return means


def assert_equal_weights(a: Any, b: Any, atol: float = 1e-5) -> None:
    """Compare the weights of Keras models in order."""
    for left, right in zip(a.weights, b.weights, strict=True):
        np.testing.assert_allclose(left.numpy(), right.numpy(), atol=atol, rtol=0)
