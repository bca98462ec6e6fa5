"""TensorFlow: a hand-written `tf.function` loop, Keras' own `fit`, and ours; in one process.

``python -m benchmarks.tensorflow_ratios`` prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf

from benchmarks.cases import DATA, LEARNING_RATE, N_ROWS, Data
from benchmarks.ours import OurJob
from benchmarks.timing import interleave, ratio

BATCH, EPOCHS = 64, 8
WORK = {
    "mlp": ("TensorFlow, MLP 16-64-64-1, batch 64", False, 0.25),
    "mlp, compiled": ("the same, compile=True", True, 0.12),
    "fusion": ("TensorFlow, two encoders, concat, head, batch 64", False, 0.35),
}
"""Name, whether XLA compiles it, and the largest ratio."""


def network(kind: str) -> keras.Model:
    """Return one functional model of the inputs of a case."""
    if kind == "mlp":
        ends = [keras.Input((16,))]
        out = _dense(_dense(ends[0], 64), 64)
    else:
        ends = [keras.Input((16,)), keras.Input((16,))]
        out = keras.layers.Concatenate()([_dense(_dense(x, 64), 32, None) for x in ends])
        out = _dense(out, 64)
    return keras.Model(ends, _dense(out, 1, None))


def _dense(x: Any, width: int, activation: str | None = "relu") -> Any:
    return keras.layers.Dense(width, activation=activation)(x)


class HandJob:
    """A loop as a good user of TensorFlow writes it: tensors in memory, the step one graph."""

    def __init__(self, kind: str, data: Data) -> None:
        self.model = network(kind)
        *inputs, y = (tf.constant(values) for values in data.values())
        optimizer, loss_fn = keras.optimizers.Adam(LEARNING_RATE), keras.losses.MeanSquaredError()
        model = self.model

        @tf.function
        def step(rows: Any) -> Any:
            with tf.GradientTape() as tape:
                out = model([tf.gather(x, rows) for x in inputs], training=True)
                loss = loss_fn(tf.gather(y, rows), out)
            grads = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))
            return loss

        self.step, self.n = step, len(y)

    def run(self, epochs: int) -> list[float]:
        """Train on and return the mean loss of each epoch."""
        losses = []
        for _ in range(epochs):
            order, total = tf.random.shuffle(tf.range(self.n)), 0.0
            for at in range(0, self.n, BATCH):
                rows = order[at : at + BATCH]
                total += float(self.step(rows)) * len(rows)
            losses.append(total / self.n)
        return losses


class FitJob:
    """The same through Keras' `fit`."""

    def __init__(self, kind: str, data: Data) -> None:
        self.model = network(kind)
        self.model.compile(keras.optimizers.Adam(LEARNING_RATE), "mse")
        *self.inputs, self.y = data.values()

    def run(self, epochs: int) -> list[float]:
        """Train on and return the mean loss of each epoch."""
        done = self.model.fit(self.inputs, self.y, batch_size=BATCH, epochs=epochs, verbose=0)
        found: list[float] = done.history["loss"]
        return found


def measure(name: str, *, quick: bool = False) -> dict[str, Any]:
    """Time one case: by hand, by `fit` and through modularml, every batch recorded."""
    work, compiles, limit = WORK[name]
    kind = name.split(",")[0]
    data = DATA[kind](2_000 if quick else N_ROWS)
    epochs = 1 if quick else EPOCHS
    ours = OurJob(kind, data, batch_size=BATCH, backend="tensorflow").build()
    hand, fit = HandJob(kind, data), FitJob(kind, data)
    works = {
        "hand": lambda: hand.run(epochs),
        "ours": lambda: ours.run(epochs, compile=compiles),
        "fit": lambda: fit.run(epochs),
    }
    times = interleave(works, repeats=2 if quick else 4)
    steps = epochs * -(-len(data["y"]) // BATCH)
    return {
        "work": work,
        "value": ratio(times, "ours"),
        "limit": limit,
        "ok": ratio(times, "ours") <= limit,
        "fit": ratio(times, "fit"),
        "us_a_step": {name: 1e6 * min(found) / steps for name, found in times.items()},
    }


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(json.dumps([measure(name, quick="--quick" in sys.argv) for name in WORK]))
