"""Which steps of a phase are kept."""

from __future__ import annotations

import enum

from modularml._registry import member
from modularml._typing import Array
from modularml.data.execution import ExecutionContext
from modularml.results.spill import ResultsStorage
from modularml.results.steps import EpochSteps, StepLog
from modularml.results.train_eval import PhaseResults

__all__ = ["Recorder", "ResultRecording"]


class ResultRecording(enum.Enum):
    """Which steps a training keeps: all, those of the last epoch, or none.

    Where `EarlyStopping` restores the best epoch, ``LAST`` means that epoch.
    """

    ALL = "all"
    LAST = "last"
    NONE = "none"

    @classmethod
    def from_value(cls, value: str | ResultRecording) -> ResultRecording:
        """Read it from its name; UnknownNameError where there is none."""
        return member(cls, value, "result recording")


class Recorder:
    """Keeps steps in the results of a phase, as asked.

    Parameters
    ----------
    results : PhaseResults
    recording : ResultRecording
    room : ResultsStorage, optional
        Where steps go that memory has no room for.
    """

    def __init__(
        self, results: PhaseResults, recording: ResultRecording, room: ResultsStorage | None = None
    ) -> None:
        self.results, self.recording, self.room = results, recording, room
        self._open: EpochSteps | None = None
        self._before: EpochSteps | None = None

    def begin(self) -> None:
        """Make ready for an epoch."""
        self._open = None
        if self.recording is ResultRecording.LAST:
            self.results._execution = StepLog()

    def record(self, ctx: ExecutionContext) -> None:
        """Keep a step that has run."""
        if self.recording is ResultRecording.NONE or ctx.layout is None:
            return
        if self._open is None:
            self._open = EpochSteps(ctx)
            self.results._execution.parts.append(self._open)
        self._open.add(ctx)

    def end(self, losses: Array | None) -> None:
        """Finish an epoch; `losses` holds those of each batch, where they are known."""
        if self._open is not None:
            own = None if losses is None else losses[-len(self._open) :]  # others are kept already
            self._open.close(own, self._before)
            self._before = self._open
            if self.room is not None:
                self.room.admit(self._open)
