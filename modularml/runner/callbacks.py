"""Callbacks for a `Runner`: early stopping and checkpoints."""

from modularml.loops.runner_callbacks import checkpoint, maybe_stop_early, save

__all__ = ["checkpoint", "maybe_stop_early", "save"]
