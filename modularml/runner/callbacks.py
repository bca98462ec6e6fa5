"""Callbacks for a `Runner`: stopping early, and writing checkpoints."""

from modularml.loops.runner_callbacks import checkpoint, maybe_stop_early, save

__all__ = ["checkpoint", "maybe_stop_early", "save"]
