"""skorch: a NeuralNetRegressor fitted on arrays."""

import torch
from skorch import NeuralNetRegressor

from benchmarks.cases import LEARNING_RATE
from benchmarks.loops import mlp
from benchmarks.opponents.contest import Fit, contest


def start(x, y, batch_size: int) -> Fit:
    net = NeuralNetRegressor(
        mlp,
        optimizer=torch.optim.Adam,
        lr=LEARNING_RATE,
        batch_size=batch_size,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )
    net.initialize()
    return lambda epochs: net.partial_fit(x, y, epochs=epochs)


if __name__ == "__main__":
    contest("skorch", "skorch", start)
