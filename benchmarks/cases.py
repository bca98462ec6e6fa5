"""What is measured: data, sizes and limits; no framework is imported here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_ROWS = 20_000
LEARNING_RATE = 1e-3

Data = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Case:
    """One job, done by hand and by others.

    Parameters
    ----------
    name : str
    kind : str
        ``mlp``, ``cnn``, ``fusion`` or ``frozen``: which data, model and loop.
    batch_size : int
    epochs : int
        In one measurement, the same for all contestants.
    required, aim : float
        Highest allowed and hoped-for ratio to the hand-written loop.
    """

    name: str
    kind: str
    batch_size: int
    epochs: int
    required: float
    aim: float | None = None


CASES = (
    Case("MLP 16-64-64-1, batch 32", "mlp", 32, 3, 0.80, 0.65),
    Case("MLP 16-64-64-1, batch 64", "mlp", 64, 5, 0.80, 0.65),
    Case("MLP 16-64-64-1, batch 512", "mlp", 512, 20, 0.90, 0.80),
    Case("1-D CNN on (1, 100), batch 64", "cnn", 64, 2, 0.95),
    Case("two encoders, concat, head, batch 64", "fusion", 64, 3, 0.95),
    Case("the same, encoders frozen, batch 64", "frozen", 64, 4, 0.82),
)


def table(n_rows: int, n_columns: int = 16, seed: int = 0) -> Data:
    """Return `x` of shape (n_rows, n_columns) and a noisy smooth function `y` of it."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_rows, n_columns))
    y = np.tanh(x[:, :1] + 0.5 * x[:, 1:2] * x[:, 2:3]) + 0.3 * x[:, 3:4]
    y += 0.1 * rng.standard_normal((n_rows, 1))
    return {"x": x.astype(np.float32), "y": y.astype(np.float32)}


def sequences(n_rows: int, length: int = 100, seed: int = 0) -> Data:
    """Return waves `x` of shape (n_rows, 1, length) and their frequency `y`."""
    rng = np.random.default_rng(seed)
    y = rng.uniform(0.5, 2.0, (n_rows, 1))
    phase = rng.uniform(0, 2 * np.pi, (n_rows, 1))
    x = np.sin(y * np.linspace(0, 10, length) + phase) + 0.1 * rng.standard_normal((n_rows, length))
    return {"x": x[:, None, :].astype(np.float32), "y": y.astype(np.float32)}


def two_tables(n_rows: int, seed: int = 0) -> Data:
    """Return `a` and `b`, both of shape (n_rows, 16), and a target `y` that needs both."""
    x = table(n_rows, 32, seed)["x"]
    a, b = x[:, :16].copy(), x[:, 16:].copy()
    y = np.tanh(a[:, :1] * b[:, :1]) + 0.5 * a[:, 1:2] - 0.5 * b[:, 1:2]
    return {"a": a, "b": b, "y": y.astype(np.float32)}


DATA: dict[str, Callable[[int], Data]] = {
    "mlp": table,
    "cnn": sequences,
    "fusion": two_tables,
    "frozen": two_tables,
}
