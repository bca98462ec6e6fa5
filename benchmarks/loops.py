"""Hand-written in-memory training loops in torch, as a good user writes them.

They are the yardstick: whole tensors in memory, a permutation an epoch, batches by `index_select`,
the default Adam, and a running loss. `fused=True` is the same loop with the fused Adam kernel,
which few people know to ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import LEARNING_RATE, Data

loss_fn = nn.MSELoss()


def mlp() -> nn.Module:
    """Return an MLP of shape (n, 16) -> (n, 1)."""
    return nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )


def cnn() -> nn.Module:
    """Return a small CNN of shape (n, 1, 100) -> (n, 1)."""
    return nn.Sequential(
        nn.Conv1d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(16 * 25, 1),
    )


class Fusion(nn.Module):
    """Two encoders of shape (n, 16) -> (n, 32), concatenated, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))
        self.b = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))
        self.head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return (n, 1)."""
        return self.head(torch.cat((self.a(a), self.b(b)), dim=1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "fusion": Fusion,
    "frozen": Fusion,
}


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    batch_size: int,
    epochs: int,
    shuffle: bool = True,
) -> list[float]:
    """Train a model of one input and return the mean loss of each epoch."""
    n, losses = len(x), []
    model.train()
    for _ in range(epochs):
        order = torch.randperm(n) if shuffle else torch.arange(n)
        total = 0.0
        for rows in order.split(batch_size):
            xb, yb = x.index_select(0, rows), y.index_select(0, rows)
            optimizer.zero_grad()
            loss = loss_fn(model(xb), yb)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / n)
    return losses


def train_fusion(
    model: Fusion,
    optimizer: torch.optim.Optimizer,
    a: Tensor,
    b: Tensor,
    y: Tensor,
    *,
    batch_size: int,
    epochs: int,
    shuffle: bool = True,
) -> list[float]:
    """Train a model of two inputs and return the mean loss of each epoch."""
    n, losses = len(y), []
    model.train()
    for _ in range(epochs):
        order = torch.randperm(n) if shuffle else torch.arange(n)
        total = 0.0
        for rows in order.split(batch_size):
            ab, bb, yb = a.index_select(0, rows), b.index_select(0, rows), y.index_select(0, rows)
            optimizer.zero_grad()
            loss = loss_fn(model(ab, bb), yb)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / n)
    return losses


def train_head(
    model: Fusion,
    optimizer: torch.optim.Optimizer,
    a: Tensor,
    b: Tensor,
    y: Tensor,
    *,
    batch_size: int,
    epochs: int,
    shuffle: bool = True,
) -> list[float]:
    """Train the head alone, on top of encoders that are frozen."""
    n, losses = len(y), []
    model.eval()
    model.head.train()
    for _ in range(epochs):
        order = torch.randperm(n) if shuffle else torch.arange(n)
        total = 0.0
        for rows in order.split(batch_size):
            ab, bb, yb = a.index_select(0, rows), b.index_select(0, rows), y.index_select(0, rows)
            with torch.no_grad():
                z = torch.cat((model.a(ab), model.b(bb)), dim=1)
            optimizer.zero_grad()
            loss = loss_fn(model.head(z), yb)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / n)
    return losses


LOOPS: dict[str, Callable[..., list[float]]] = {
    "mlp": train,
    "cnn": train,
    "fusion": train_fusion,
    "frozen": train_head,
}


class HandJob:
    """A hand-written loop with its data, model and optimizer, ready to run.

    Parameters
    ----------
    kind : str
        Of the case.
    data : dict of str to ndarray
        Inputs in the order of the model's arguments, then `y`.
    batch_size : int
    fused : bool
        Whether Adam uses its fused kernel.
    sgd : bool
        Plain SGD in place of Adam.
    """

    def __init__(
        self, kind: str, data: Data, *, batch_size: int, fused: bool = False, sgd: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.model = MODELS[kind]()
        self.tensors = [torch.from_numpy(values) for values in data.values()]
        self.batch_size, self.loop = batch_size, LOOPS[kind]
        moved = self.model.head if kind == "frozen" else self.model
        kwargs: dict[str, Any] = {"fused": True} if fused else {}
        self.optimizer: torch.optim.Optimizer
        if sgd:
            self.optimizer = torch.optim.SGD(moved.parameters(), lr=0.05)
        else:
            self.optimizer = torch.optim.Adam(moved.parameters(), lr=LEARNING_RATE, **kwargs)

    def run(self, epochs: int, *, shuffle: bool = True) -> list[float]:
        """Train on and return the mean loss of each epoch."""
        return self.loop(
            self.model,
            self.optimizer,
            *self.tensors,
            batch_size=self.batch_size,
            epochs=epochs,
            shuffle=shuffle,
        )

    def weights(self) -> list[Tensor]:
        """Return copies of all weights, in the order of the model's parameters."""
        return [p.detach().clone() for p in self.model.parameters()]
