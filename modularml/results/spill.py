"""How much memory results may take, and where they go beyond it."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from modularml._arguments import at_least
from modularml.config import Configurable
from modularml.io.names import folder_at
from modularml.io.ownership import temporary_folder
from modularml.results.steps import EpochSteps

__all__ = ["ResultsConfig", "ResultsStorage"]


class ResultsConfig(Configurable):
    """Where the recorded outputs of an experiment are kept.

    Parameters
    ----------
    results_dir : path-like, optional
        Folder for what does not fit into memory; it is kept. A temporary one, which goes
        with the experiment and its results, where none is given.
    memory_budget : int, optional
        Bytes of recorded outputs that may lie in memory, of all runs together. Beyond it, whole
        epochs, the oldest first, move to memory-mapped files (outputs as safetensors, losses as
        Arrow) and are read from there when asked for. None keeps all in memory.

    Raises
    ------
    ConfigError
        If an argument is not as described.
    """

    def __init__(
        self, *, results_dir: str | Path | None = None, memory_budget: int | None = None
    ) -> None:
        at_least(0, memory_budget=memory_budget)
        self.results_dir, self.memory_budget = results_dir, memory_budget


class ResultsStorage:
    """The recorded epochs of an experiment that lie in memory, oldest first.

    Parameters
    ----------
    config : ResultsConfig
    """

    def __init__(self, config: ResultsConfig) -> None:
        self.config = config
        self._held: list[weakref.ref[EpochSteps]] = []
        self._temporary: Path | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what lies in memory and the temporary folder, which go with me."""
        return {"config": self.config, "_held": [], "_temporary": None}

    def admit(self, steps: EpochSteps) -> None:
        """Take in an epoch; the oldest ones move to files where there are too many bytes."""
        if self.config.memory_budget is None:
            return
        self._held.append(weakref.ref(steps))
        there = [held for ref in self._held if (held := ref()) is not None]
        free = self.config.memory_budget - sum(held.nbytes for held in there)
        for held in there:
            if free >= 0:
                break
            free += held.nbytes
            held.spill(self.folder(), self)
        self._held = [ref for ref in self._held if (held := ref()) is not None and held.nbytes]

    def folder(self) -> Path:
        """Return the folder for files, made where it is not there."""
        if self.config.results_dir is not None:
            return folder_at(self.config.results_dir)
        if self._temporary is None:
            stack = ExitStack()
            self._temporary = stack.enter_context(temporary_folder())
            weakref.finalize(self, stack.close)
        return self._temporary
