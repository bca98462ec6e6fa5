"""What moves weights: losses, where they are applied, and optimizers."""

from modularml.training.applied import AppliedLoss, LossInput
from modularml.training.loss import Loss
from modularml.training.optimizer import Optimizer

__all__ = ["AppliedLoss", "Loss", "LossInput", "Optimizer"]
