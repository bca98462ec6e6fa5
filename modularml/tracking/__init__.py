"""Trackers: experiment callbacks that log runs to MLflow, TensorBoard or Weights & Biases."""

from modularml.tracking.mlflow import MLflowTracker
from modularml.tracking.tensorboard import TensorBoardTracker
from modularml.tracking.tracker import Tracker, TrackingWarning
from modularml.tracking.wandb import WandbTracker

__all__ = [
    "MLflowTracker",
    "TensorBoardTracker",
    "Tracker",
    "TrackingWarning",
    "WandbTracker",
]
