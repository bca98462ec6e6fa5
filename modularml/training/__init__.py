"""Losses, their inputs, optimizers and learning-rate schedules."""

from modularml.training.applied import AppliedLoss, LossInput
from modularml.training.loss import Loss
from modularml.training.optimizer import Optimizer
from modularml.training.schedule import LRSchedule

__all__ = ["AppliedLoss", "LRSchedule", "Loss", "LossInput", "Optimizer"]
