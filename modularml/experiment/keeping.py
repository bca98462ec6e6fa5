"""Keeping the graph's state at the hooks that a Checkpointing names."""

from __future__ import annotations

from typing import Any

from modularml.experiment.callback import Callback
from modularml.experiment.checkpointing import Checkpointing

__all__ = ["Keeper"]


class Keeper(Callback):
    """Records the graph's state in a `Checkpointing`, after all other callbacks.

    Parameters
    ----------
    checkpointing : Checkpointing
    """

    def __init__(self, checkpointing: Checkpointing) -> None:
        super().__init__("checkpointing", execution_order=1_000_000)
        self.checkpointing = checkpointing

    def on_phase_start(self, *, phase: Any, **facts: Any) -> None:
        """Start with nothing kept."""
        self.checkpointing.reset()
        self._keep("phase_start", phase, "phase_start")

    def on_epoch_start(self, *, phase: Any, exec_ctx: Any, **facts: Any) -> None:
        """Keep the state before an epoch."""
        self._keep("epoch_start", phase, exec_ctx.epoch_idx)

    def on_epoch_end(self, *, phase: Any, exec_ctx: Any, **facts: Any) -> None:
        """Keep the state after an epoch."""
        self._keep("epoch_end", phase, exec_ctx.epoch_idx)

    def on_batch_start(self, *, phase: Any, exec_ctx: Any, **facts: Any) -> None:
        """Keep the state before a batch."""
        self._keep("batch_start", phase, f"{exec_ctx.epoch_idx}.{exec_ctx.batch_idx}")

    def on_batch_end(self, *, phase: Any, exec_ctx: Any, **facts: Any) -> None:
        """Keep the state after a batch."""
        self._keep("batch_end", phase, f"{exec_ctx.epoch_idx}.{exec_ctx.batch_idx}")

    def on_phase_end(self, *, phase: Any, **facts: Any) -> None:
        """Keep the state at the end."""
        self._keep("phase_end", phase, "phase_end")

    def _keep(self, hook: str, phase: Any, key: int | str) -> None:
        if self.checkpointing.should_save(hook):
            self.checkpointing.record_memory(key, phase.graph().get_state())
