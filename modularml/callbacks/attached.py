"""Callbacks and attachments of a `Runner`, put on a phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modularml.data.execution import ExecutionContext
from modularml.engine.callback import Callback, callback_registry
from modularml.errors import ConfigError, expect
from modularml.loops.attachments import Attachment
from modularml.loops.runner import Event, Listeners

__all__ = ["Attached"]


class Attached(Callback, Listeners):
    """Tell listeners of `modularml.runner` what happens in a phase.

    They are called with a state that has the keys of a `Runner`: ``max_epoch``, ``n_iters``,
    ``running``, ``epoch`` (1-based), ``batch`` (the `ExecutionContext` of the step, with its
    outputs and losses) and ``batches`` (the numbers of an epoch's batches). Besides, ``loss`` is
    the total loss of the batch, and ``phase`` and ``results`` are those of the experiment.
    Setting ``running`` to False ends the phase after the epoch.

    Parameters
    ----------
    attachments : list of Attachment
        Such as ``MeanReducer`` or ``EpochTimer``.
    label : str, optional
    execution_order : int
        Callbacks with higher numbers run later.

    Examples
    --------
    >>> attached = Attached()
    >>> @attached.on(Event.EPOCH_FINISHED)
    ... def say(state):
    ...     print("epoch", state["epoch"])
    """

    def __init__(
        self,
        attachments: Sequence[Attachment] = (),
        *,
        label: str | None = None,
        execution_order: int = 0,
    ) -> None:
        Callback.__init__(self, label, execution_order)
        Listeners.__init__(self)
        self.attachments = list(expect("attachments", attachments, (list, tuple), "a list"))
        self.state: dict[str, Any] = {}
        for attachment in self.attachments:
            if not isinstance(attachment, Attachment):
                raise ConfigError(f"attachments must hold Attachments, got {attachment!r}")
            attachment.attach_on(self)

    def on_phase_start(self, *, experiment: Any, phase: Any, results: Any = None) -> None:
        """Begin with a fresh state."""
        self.state = {
            "batches": range(phase.position.loader.epoch(0)[0]),
            "max_epoch": phase.n_epochs,
            "n_iters": 0,
            "running": True,
            "epoch": 0,
            "batch": None,
            "phase": phase,
            "results": results,
        }
        self._tell(Event.STARTED)

    def on_epoch_start(self, *, exec_ctx: ExecutionContext, **facts: Any) -> None:
        """Count an epoch."""
        self.state["epoch"] = exec_ctx.epoch_idx + 1
        self._tell(Event.EPOCH_STARTED)

    def on_batch_end(self, *, exec_ctx: ExecutionContext, **facts: Any) -> None:
        """Count a batch."""
        self.state["batch"] = exec_ctx
        self.state["n_iters"] += 1
        self.state["loss"] = sum(record.value for record in exec_ctx.losses)
        self._tell(Event.BATCH)

    def on_epoch_end(self, *, phase: Any, **facts: Any) -> None:
        """End an epoch, and the phase where somebody asked for it."""
        self._tell(Event.EPOCH_FINISHED)
        if not self.state["running"]:
            phase.request_stop()

    def on_phase_end(self, **facts: Any) -> None:
        """End."""
        self.state["running"] = False
        self._tell(Event.FINISHED)

    def _tell(self, event: Event) -> None:
        for _, listener in self._ranked[event.value]:
            listener(self.state)


callback_registry.register("Attached", Attached)
