"""Keras 3 on its torch backend: compile and fit."""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras

from benchmarks.cases import LEARNING_RATE
from benchmarks.opponents.contest import Fit, contest


def start(x, y, batch_size: int) -> Fit:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((16,)),
            layers.Dense(64, activation="relu"),
            layers.Dense(64, activation="relu"),
            layers.Dense(1),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(LEARNING_RATE), loss="mse")
    return lambda epochs: model.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=0)


if __name__ == "__main__":
    contest("keras", "keras", start)
