"""Lightning: a LightningModule and a Trainer with everything optional switched off."""

import logging
import warnings

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.cases import LEARNING_RATE
from benchmarks.loops import loss_fn, mlp
from benchmarks.opponents.contest import Fit, contest

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Regressor(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = mlp()

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = loss_fn(self.model(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)


def start(x, y, batch_size: int) -> Fit:
    model = Regressor()
    rows = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    loader = DataLoader(rows, batch_size=batch_size, shuffle=True)

    def fit(epochs: int) -> None:
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, loader)

    return fit


if __name__ == "__main__":
    contest("lightning", "lightning", start)
