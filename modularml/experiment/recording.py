"""Which steps of a phase are kept."""

from __future__ import annotations

import enum

from modularml.data.execution import ExecutionContext
from modularml.errors import UnknownNameError
from modularml.experiment.results import PhaseResults

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
        """Read it from its name.

        Raises
        ------
        UnknownNameError
            If there is no such recording.
        """
        if isinstance(value, cls):
            return value
        names = [member.value for member in cls]
        if str(value).lower() not in names:
            raise UnknownNameError("result recording", value, names)
        return cls(str(value).lower())


class Recorder:
    """Keeps steps in the results of a phase, as asked.

    Parameters
    ----------
    results : PhaseResults
    recording : ResultRecording
    """

    def __init__(self, results: PhaseResults, recording: ResultRecording) -> None:
        self.results, self.recording = results, recording
        self._epoch: int | None = None

    def record(self, ctx: ExecutionContext) -> None:
        """Keep a step that has run."""
        if self.recording is ResultRecording.NONE:
            return
        ctx.release()
        kept = self.results._execution
        if self.recording is ResultRecording.LAST and ctx.epoch_idx != self._epoch:
            self._epoch = ctx.epoch_idx
            self.results._execution = kept = []
        kept.append(ctx)
