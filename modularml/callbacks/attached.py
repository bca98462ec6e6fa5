"""Callbacks and attachments of `modularml.runner` on a phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from modularml.data.execution_context import ExecutionContext
from modularml.engine.callback import Callback, CallbackOptions, registered
from modularml.errors import ConfigError, expect
from modularml.loops.attachments import Attachment
from modularml.loops.runner import Event, Listeners


@registered
class Attached(Callback, Listeners):
    """Call event listeners of `modularml.runner` in a phase.

    They are called with a state that has the keys of a `Runner`: ``max_epoch``, ``n_iters``,
    ``running``, ``epoch`` (1-based), ``batch`` (the `ExecutionContext` of the step, with its
    outputs and losses) and ``batches`` (the batch numbers of an epoch). Also, ``loss`` is the
    total loss of the batch, and ``phase`` and ``results`` are those of the experiment.
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
        self, attachments: Sequence[Attachment] = (), **options: Unpack[CallbackOptions]
    ) -> None:
        Callback.__init__(self, **options)
        Listeners.__init__(self)
        self.attachments = list(expect("attachments", attachments, (list, tuple), "a list"))
        self.state: dict[str, Any] = {}
        for attachment in self.attachments:
            if not isinstance(attachment, Attachment):
                raise ConfigError(
                    f"attachments must be a list of Attachment objects, got {attachment!r}"
                )
            attachment.attach_on(self)

    def on_phase_start(self, *, experiment: Any, phase: Any, results: Any = None) -> None:
        """Start with a new state."""
        self.state = {
            "batches": range(phase.position.feed.n_batches(0)),
            "max_epoch": phase.n_epochs,
            "n_iters": 0,
            "running": True,
            "epoch": 0,
            "batch": None,
            "phase": phase,
            "results": results,
        }
        self._fire(Event.STARTED)

    def on_epoch_start(self, *, exec_ctx: ExecutionContext, **facts: Any) -> None:
        """Count the epoch."""
        self.state["epoch"] = exec_ctx.epoch_idx + 1
        self._fire(Event.EPOCH_STARTED)

    def on_batch_end(self, *, exec_ctx: ExecutionContext, **facts: Any) -> None:
        """Count the batch."""
        self.state["batch"] = exec_ctx
        self.state["n_iters"] += 1
        self.state["loss"] = sum(record.value for record in exec_ctx.losses)
        self._fire(Event.BATCH)

    def on_epoch_end(self, *, phase: Any, **facts: Any) -> None:
        """End the epoch, and the phase if ``running`` was set to False."""
        self._fire(Event.EPOCH_FINISHED)
        if not self.state["running"]:
            phase.request_stop()

    def on_phase_end(self, **facts: Any) -> None:
        """End the phase."""
        self.state["running"] = False
        self._fire(Event.FINISHED)

    def _fire(self, event: Event) -> None:
        for _, listener in self._ranked[event.value]:
            listener(self.state)
