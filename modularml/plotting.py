"""Plots as matplotlib figures that no global state knows of; needs the extra ``plot``."""

from __future__ import annotations

from modularml.viz.class_scores import calibration, precision_recall, roc
from modularml.viz.curves import bars, learning_curve, loss_curves, panels, series
from modularml.viz.predictions import confusion_matrix, parity, residuals

__all__ = [
    "bars",
    "calibration",
    "confusion_matrix",
    "learning_curve",
    "loss_curves",
    "panels",
    "parity",
    "precision_recall",
    "residuals",
    "roc",
    "series",
]
