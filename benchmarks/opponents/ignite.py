"""PyTorch-Ignite: its supervised trainer on a DataLoader, as in its quickstart."""

import torch
from ignite.engine import create_supervised_trainer
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.cases import LEARNING_RATE
from benchmarks.loops import loss_fn, mlp
from benchmarks.opponents.contest import Fit, contest


def start(x, y, batch_size: int) -> Fit:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    trainer = create_supervised_trainer(model, optimizer, loss_fn)
    rows = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    loader = DataLoader(rows, batch_size=batch_size, shuffle=True)
    return lambda epochs: trainer.run(loader, max_epochs=epochs).output


if __name__ == "__main__":
    contest("ignite", "pytorch-ignite", start)
