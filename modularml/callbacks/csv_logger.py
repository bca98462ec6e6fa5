"""Logging of metrics to CSV files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from modularml.data.execution import ExecutionContext
from modularml.engine.callback import Callback, callback_registry
from modularml.errors import ConfigError
from modularml.io.names import folder_at

__all__ = ["CSVLogger"]


class CSVLogger(Callback):
    """Write the metrics of each epoch to a CSV file, complete after every epoch.

    The columns are ``phase``, ``epoch`` (0-based) and one per metric. A metric that is first logged
    later adds a column, which is empty in earlier lines.

    Parameters
    ----------
    path : path-like
        Its folder is created if needed. Each fold of a cross-validation writes to a separate file:
        ``log_CV_fold_0.csv``.
    append : bool
        Whether lines are appended to an existing file; otherwise the first phase of a run that
        writes to it replaces it. Previews do not write.
    label : str, optional
    execution_order : int
        Must be higher than that of callbacks whose metrics are to be in the line of their epoch.

    Raises
    ------
    ConfigError
        Before a run, if another run is writing to this file, whose process is named, or another
        CSVLogger of the same phase would write to it.

    Examples
    --------
    >>> CSVLogger("metrics.csv").label
    'CSVLogger'
    """

    def __init__(
        self,
        path: str | Path,
        *,
        append: bool = False,
        label: str | None = None,
        execution_order: int = 100,
    ) -> None:
        super().__init__(label, execution_order)
        self.path, self.append = path, append
        self._columns: list[str] = []
        self._replaces = not append
        self.lines_ = 0

    logs: tuple[str, ...] = ()
    writes_files = True

    def separate_files(self, label: str) -> None:
        """Append a label to the file's name: ``log_CV_fold_0.csv``."""
        path = Path(self.path)
        self.path = path.with_stem(f"{path.stem}_{label.replace('/', '_')}")

    def check_ready(self, experiment: Any, phase: Any = None) -> None:
        """Reserve the file for the run before it starts."""
        for other in () if phase is None else phase.callbacks:
            if isinstance(other, CSVLogger) and other is not self and self._shares(other):
                raise ConfigError(
                    f"two CSVLoggers of phase {phase.label!r}, {other.label!r} and {self.label!r}, "
                    f"would write to {str(self.path)!r}; remove one, or pass separate paths"
                )
        self._reserve(experiment)

    def _shares(self, other: CSVLogger) -> bool:
        return Path(self.path).resolve() == Path(other.path).resolve()

    def on_phase_start(self, *, experiment: Any, **facts: Any) -> None:
        """Start an empty file, or append to an existing one."""
        self._reserve(experiment)
        path = Path(self.path)
        self._columns, self.lines_ = [], 0
        if self._replaces:
            path.unlink(missing_ok=True)
            self._replaces = False
        elif path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self._columns, *lines = [*csv.reader(file)] or [[]]
            self.lines_ = len(lines)

    def _reserve(self, experiment: Any) -> None:
        folder_at(Path(self.path).parent)
        runner = experiment._runner
        if runner is not None and runner.owned.add(self.path):
            self._replaces = not self.append and not runner.is_resumed

    def on_epoch_end(
        self, *, experiment: Any, phase: Any, exec_ctx: ExecutionContext, results: Any = None
    ) -> None:
        """Write the line of an epoch."""
        epoch = exec_ctx.epoch_idx
        row = {"phase": phase.label, "epoch": epoch, **results._metrics.at_epoch(epoch)}
        if new := [name for name in row if name not in self._columns]:
            self._columns += new
            self._rewrite()
        with Path(self.path).open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)
        self.lines_ += 1

    def _rewrite(self) -> None:
        """Rewrite the existing lines with all columns."""
        path, lines = Path(self.path), []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                lines = list(csv.DictReader(file))[: self.lines_]  # later epochs are run again
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(lines)


callback_registry.register("CSVLogger", CSVLogger)
