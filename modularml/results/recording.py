"""Recording of the steps of a phase: in memory, and in files beyond a budget."""

from __future__ import annotations

import enum
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from modularml._arguments import at_least
from modularml._registry import member
from modularml._typing import Array
from modularml.config import Configurable
from modularml.data.execution_context import ExecutionContext
from modularml.io.atomic import temporary_folder
from modularml.io.names import folder_at
from modularml.results.phase_results import PhaseResults
from modularml.results.step_log import EpochSteps, StepLog


class ResultsConfig(Configurable):
    """Where the recorded outputs of an experiment are stored.

    Parameters
    ----------
    results_dir : path-like, optional
        Folder for outputs beyond the memory budget; it is not deleted. By default a temporary
        folder, deleted with the experiment and its results.
    memory_budget : int, optional
        Bytes of recorded outputs in memory, for all runs together. Beyond it, whole epochs, the
        oldest first, move to memory-mapped files (outputs as safetensors, losses as Arrow) and are
        read from there on access. None keeps everything in memory.

    Raises
    ------
    ConfigError
        If an argument is not as described.

    Examples
    --------
    >>> ResultsConfig(memory_budget=2**30).memory_budget
    1073741824
    """

    def __init__(
        self, *, results_dir: str | Path | None = None, memory_budget: int | None = None
    ) -> None:
        at_least(0, memory_budget=memory_budget)
        self.results_dir, self.memory_budget = results_dir, memory_budget


class ResultsStorage:
    """The recorded epochs of an experiment in memory, oldest first.

    Parameters
    ----------
    config : ResultsConfig
    """

    def __init__(self, config: ResultsConfig) -> None:
        self.config = config
        self._in_memory: list[weakref.ref[EpochSteps]] = []
        self._temporary: Path | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Omit the epochs in memory and the temporary folder."""
        return {"config": self.config, "_in_memory": [], "_temporary": None}

    def admit(self, steps: EpochSteps) -> None:
        """Add an epoch; move the oldest epochs to files beyond the memory budget."""
        if self.config.memory_budget is None:
            return
        self._in_memory.append(weakref.ref(steps))
        epochs = [epoch for ref in self._in_memory if (epoch := ref()) is not None]
        free = self.config.memory_budget - sum(epoch.nbytes for epoch in epochs)
        for epoch in epochs:
            if free >= 0:
                break
            free += epoch.nbytes
            epoch.spill(self.folder(), self)
        self._in_memory = [
            ref for ref in self._in_memory if (epoch := ref()) is not None and epoch.nbytes
        ]

    def folder(self) -> Path:
        """Return the folder for files; create it if needed."""
        if self.config.results_dir is not None:
            return folder_at(self.config.results_dir)
        if self._temporary is None:
            stack = ExitStack()
            self._temporary = stack.enter_context(temporary_folder())
            weakref.finalize(self, stack.close)
        return self._temporary


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
