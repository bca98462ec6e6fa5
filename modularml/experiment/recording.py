"""Which steps of a phase are kept."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

from modularml.data.execution import ExecutionContext
from modularml.errors import ShapeError, UnknownNameError
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
        self._sizes: Callable[[str], list[int]] = lambda node_id: []
        self._shelves: list[Sequence[Any]] = []
        self._alone = False

    def begin(self, sizes: Callable[[str], list[int]], *, alone: bool = False) -> None:
        """Make ready for an epoch.

        Parameters
        ----------
        sizes : callable
            From a node's id to its rows in each batch.
        alone : bool
            Whether it is the only batch of the phase; its outputs are kept as they are.
        """
        self._sizes, self._shelves, self._alone = sizes, [], alone
        if self.recording is ResultRecording.LAST:
            self.results._execution = []

    def record(self, ctx: ExecutionContext) -> None:
        """Keep a step that has run; the outputs of an epoch lie side by side in memory."""
        if self.recording is ResultRecording.NONE or ctx.layout is None:
            return
        if self._alone:
            ctx.release()
            self.results._execution.append(ctx)
            return
        adapters, place = ctx.layout.adapters, ctx.batch_idx
        if not self._shelves:
            named = zip(adapters, ctx.layout.outputs, ctx.outs, strict=True)
            self._shelves = [a.shelf(out, self._sizes(node)) for a, (node, _), out in named]
        shelved = zip(adapters, self._shelves, ctx.outs, strict=True)
        kept = [adapter.put(shelf[place], out) for adapter, shelf, out in shelved]
        for i, (shelf, out) in enumerate(zip(self._shelves, kept, strict=True)):
            if out is not shelf[place]:
                self._check_shape(ctx, i, shelf[place])
        ctx.release(kept)
        self.results._execution.append(ctx)

    def _check_shape(self, ctx: ExecutionContext, place: int, room: Any) -> None:
        """Refuse an output of another shape than those of the batches before it."""
        out, layout = ctx.outs[place], ctx.layout
        if room is not None and layout is not None and room.shape[1:] != out.shape[1:]:
            raise ShapeError(
                f"node {layout.labels[layout.outputs[place][0]]!r} gives samples of shape "
                f"{tuple(out.shape[1:])} in batch {ctx.batch_idx}, and gave "
                f"{tuple(room.shape[1:])} before; a model must give every batch the same shape"
            )
