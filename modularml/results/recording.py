"""Recording of the steps of a phase."""

from __future__ import annotations

import enum

from modularml._registry import member
from modularml._typing import Array
from modularml.data.execution import ExecutionContext
from modularml.results.phase_results import PhaseResults
from modularml.results.step_log import EpochSteps, StepLog
from modularml.results.storage import ResultsStorage

__all__ = ["Recorder", "ResultRecording"]


class ResultRecording(enum.Enum):
    """Which steps a training phase records: all, those of the last epoch, none.

    If `EarlyStopping` restores the best epoch, ``LAST`` means that epoch.

    Examples
    --------
    >>> ResultRecording("all").name
    'ALL'
    """

    ALL = "all"
    LAST = "last"
    NONE = "none"

    @classmethod
    def from_value(cls, value: str | ResultRecording) -> ResultRecording:
        """Return the member of this name; UnknownNameError if there is none."""
        return member(cls, value, "result recording")


class Recorder:
    """Adds steps to the results of a phase.

    Parameters
    ----------
    results : PhaseResults
    recording : ResultRecording
    storage : ResultsStorage, optional
        Moves steps to disk beyond a memory limit.
    """

    def __init__(
        self,
        results: PhaseResults,
        recording: ResultRecording,
        storage: ResultsStorage | None = None,
    ) -> None:
        self.results, self.recording, self.storage = results, recording, storage
        self._open: EpochSteps | None = None
        self._previous: EpochSteps | None = None

    def begin(self) -> None:
        """Start an epoch."""
        self._open = None
        if self.recording is ResultRecording.LAST:
            self.results._execution = StepLog()

    def record(self, ctx: ExecutionContext) -> None:
        """Record a step that has run."""
        if self.recording is ResultRecording.NONE or ctx.layout is None:
            return
        if self._open is None:
            self._open = EpochSteps(ctx)
            self.results._execution.parts.append(self._open)
        self._open.add(ctx)

    def end(self, losses: Array | None) -> None:
        """Finish an epoch, given the losses of each batch if known."""
        if self._open is not None:
            # losses of earlier batches are recorded already
            epoch_losses = None if losses is None else losses[-len(self._open) :]
            self._open.close(epoch_losses, self._previous)
            self._previous = self._open
            if self.storage is not None:
                self.storage.admit(self._open)
