"""Plots as matplotlib figures that no global state knows of; needs the extra ``plot``."""

from __future__ import annotations

from modularml.viz.bars import bars
from modularml.viz.curves import loss_curves, series
from modularml.viz.predictions import confusion_matrix, parity

__all__ = ["bars", "confusion_matrix", "loss_curves", "parity", "series"]
