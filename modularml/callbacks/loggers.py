"""Logging callbacks: CSV files, live plots, gradient norms and metrics of your own."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Unpack

import numpy as np

from modularml._arguments import at_least
from modularml._optional import require
from modularml.backends.step_options import GradientSquares
from modularml.data.execution_context import ExecutionContext
from modularml.engine.callback import Callback, CallbackOptions, MetricResult, registered
from modularml.errors import ConfigError
from modularml.graph.model_node import ModelNode
from modularml.io.names import folder_at
from modularml.progress import in_notebook, print_line
from modularml.viz.curves import series


@registered
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
            if not isinstance(other, CSVLogger) or other is self:
                continue
            if Path(self.path).resolve() == Path(other.path).resolve():
                raise ConfigError(
                    f"two CSVLoggers of phase {phase.label!r}, {other.label!r} and {self.label!r}, "
                    f"would write to {str(self.path)!r}; remove one, or pass separate paths"
                )
        self._reserve(experiment)

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

    def on_epoch_end(self, *, phase: Any, exec_ctx: Any, results: Any = None, **facts: Any) -> None:
        """Write the line of an epoch."""
        epoch = exec_ctx.epoch_idx
        row = {"phase": phase.label, "epoch": epoch, **results._metrics.at_epoch(epoch)}
        path = Path(self.path)
        if new := [name for name in row if name not in self._columns]:
            self._columns += new  # of all lines, which are written again
            lines = []
            if path.exists():
                with path.open(newline="", encoding="utf-8") as file:
                    lines = list(csv.DictReader(file))[: self.lines_]  # later epochs are run again
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self._columns)
                writer.writeheader()
                writer.writerows(lines)
        with path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)
        self.lines_ += 1


@registered
class LivePlot(Callback):
    """Plot epoch metrics in a notebook, updating one figure in place.

    Outside a notebook, a line of numbers is printed instead.

    Parameters
    ----------
    metrics : list of str, optional
        By default all metrics that are logged.
    every_n_epochs : int
        At least 1.
    min_seconds : float
        Least time between plots; the last epoch is always plotted.
    label : str, optional
    execution_order : int
        Must be higher than that of callbacks whose metrics are plotted.

    Examples
    --------
    >>> LivePlot(["train_loss", "val_loss"], every_n_epochs=5).metrics
    ['train_loss', 'val_loss']
    """

    logs: tuple[str, ...] = ()

    def __init__(
        self,
        metrics: list[str] | None = None,
        *,
        every_n_epochs: int = 1,
        min_seconds: float = 0.5,
        label: str | None = None,
        execution_order: int = 100,
    ) -> None:
        at_least(1, every_n_epochs=every_n_epochs)
        at_least(0, min_seconds=min_seconds)
        super().__init__(label, execution_order)
        self.metrics, self.every_n_epochs, self.min_seconds = metrics, every_n_epochs, min_seconds
        self._handle: Any = None
        self._due, self._last, self._shown = 0.0, -1, True

    def __getstate__(self) -> dict[str, Any]:
        """Omit the displayed figure."""
        return {**vars(self), "_handle": None}

    def on_phase_start(self, **facts: Any) -> None:
        """Start a new figure."""
        self._handle = None
        self._due, self._last, self._shown = 0.0, -1, True

    def on_epoch_end(self, *, phase: Any, exec_ctx: Any, results: Any = None, **facts: Any) -> None:
        """Plot after every n-th epoch, but not more often than `min_seconds`."""
        self._shown = (exec_ctx.epoch_idx + 1) % self.every_n_epochs == 0
        self._shown &= monotonic() >= self._due
        if self._shown:
            self._show(phase.label, results, exec_ctx.epoch_idx)
            self._due = monotonic() + self.min_seconds
        self._last = exec_ctx.epoch_idx

    def on_phase_end(self, *, experiment: Any, phase: Any, results: Any = None) -> None:
        """Plot the final curves, or print the last epoch if it was not printed."""
        if in_notebook() or not self._shown:
            self._show(phase.label, results, self._last)

    def _show(self, label: str, results: Any, epoch: int) -> None:
        store = results._metrics
        names = [n for n in store.names if self.metrics is None or n in self.metrics]
        if not in_notebook():
            metrics = store.at_epoch(epoch)
            numbers = [f"{name} {metrics[name]:.5g}" for name in names if name in metrics]
            print_line(f"{label}, epoch {epoch}: {', '.join(numbers)}")
            return
        values = {name: store.epoch_values(name) for name in names}
        curves = {name: (list(v), list(v.values())) for name, v in values.items() if v}
        if not curves:
            return
        figure = series(curves, x="epoch", title=label)
        if self._handle is None:
            self._handle = require("IPython.display").display(figure, display_id=True)
        else:
            self._handle.update(figure)


@registered
class GradientNorms(Callback):
    """Log the Euclidean norm of the gradients of each node, and of all together.

    They are those of an update of the weights before clipping, of the mean loss over its batches
    with ``accumulate``. The metrics are ``grad_norm``, and ``grad_norm_<node>`` if several nodes or
    losses learn.

    Parameters
    ----------
    every : {'epoch', 'batch'}
        Whether the mean and the maximum (``grad_norm_max``) of the updates of an epoch are logged,
        or each update, under its batch.
    label, execution_order
        See `Callback`.

    Notes
    -----
    Folds and other variants with this callback are not trained as one.

    Examples
    --------
    >>> GradientNorms(every="batch")
    GradientNorms(every='batch', label='GradientNorms')
    """

    changes_weights = False

    def __init__(
        self,
        *,
        every: Literal["epoch", "batch"] = "epoch",
        **options: Unpack[CallbackOptions],
    ) -> None:
        super().__init__(**options)
        self.every = every
        self.gradient_squares = GradientSquares()
        self._updates: list[dict[str, float]] = []
        self._labels: dict[int, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Omit what belongs to the parameters of a run."""
        return {**vars(self), "_labels": None, "gradient_squares": GradientSquares()}

    def check_ready(self, experiment: Any, phase: Any = None) -> None:
        """Refuse a second callback of this kind, which would get no norms."""
        if sum(isinstance(callback, GradientNorms) for callback in phase.callbacks) > 1:
            raise ConfigError(
                f"phase {phase.label!r} has several GradientNorms; remove all but one"
            )

    @property
    def logs(self) -> list[str]:
        """Names of the metrics that are always logged."""
        return ["grad_norm"] if self.every == "batch" else ["grad_norm", "grad_norm_max"]

    def direction_of(self, name: str) -> bool | None:
        """Return None: neither direction is better."""
        return None

    def on_phase_start(self, **facts: Any) -> None:
        """Start anew."""
        self._updates, self._labels = [], None

    def on_epoch_start(self, **facts: Any) -> None:
        """Start an epoch, in which other parameters may learn."""
        self._updates, self._labels = [], None

    def on_batch_end(
        self, *, phase: Any, exec_ctx: ExecutionContext, **facts: Any
    ) -> list[MetricResult] | None:
        """Collect the norms of an update, if there was one."""
        squares = self.gradient_squares.take()
        if not squares:
            return None
        if self._labels is None:
            self._labels = {
                id(parameter): node.label
                for node in phase.graph().nodes.values()
                if isinstance(node, ModelNode)
                for parameter in node.parameters().values()
            }
        sums: dict[str, float] = {}
        for key, square in squares.items():
            label = self._labels.get(key, "losses")
            sums[label] = sums.get(label, 0.0) + square
        norms = {"grad_norm": math.sqrt(sum(sums.values()))}
        if len(set(self._labels.values()) | sums.keys()) > 1:
            norms |= {f"grad_norm_{label}": math.sqrt(square) for label, square in sums.items()}
        if self.every == "batch":
            return [MetricResult(name, norm) for name, norm in norms.items()]
        self._updates.append(norms)
        return None

    def on_epoch_end(self, **facts: Any) -> list[MetricResult]:
        """Log the means, and the greatest norm of all gradients."""
        names = dict.fromkeys(name for norms in self._updates for name in norms)
        values = {name: [norms.get(name, 0.0) for norms in self._updates] for name in names}
        results = [MetricResult(name, float(np.mean(of))) for name, of in values.items()]
        if values:
            results.append(MetricResult("grad_norm_max", max(values["grad_norm"])))
        return results

    def get_state(self) -> dict[str, Any]:
        """Return the norms of the epoch so far."""
        return {"updates": [dict(norms) for norms in self._updates]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from `get_state`."""
        self._updates, self._labels = [dict(norms) for norms in state["updates"]], None


@registered
class MetricCallback(Callback):
    """Log a metric computed by a function at the end of each epoch.

    Parameters
    ----------
    name : str
    fn : callable
        Takes ``experiment``, ``phase``, ``exec_ctx`` and ``results`` by keyword and returns a
        number, or None to log no value. It may have an attribute ``greater_is_better``.
    label : str, optional
    execution_order : int

    Examples
    --------
    >>> def n_batches(**facts):
    ...     return 1.0
    >>> MetricCallback("n_batches", n_batches).name
    'n_batches'
    """

    def __init__(
        self,
        name: str,
        fn: Callable[..., float | None],
        *,
        label: str | None = None,
        execution_order: int = 0,
    ) -> None:
        super().__init__(label or name, execution_order)
        self.name, self.fn = name, fn

    @property
    def logs(self) -> list[str]:
        """Names of the metrics that this callback logs."""
        return [self.name]

    def direction_of(self, name: str) -> bool | None:
        """Return whether greater values are better, if the function has it."""
        known: bool | None = getattr(self.fn, "greater_is_better", None)
        return known

    def on_epoch_end(self, **facts: Any) -> MetricResult | None:
        """Compute and log the metric."""
        value = self.fn(**facts)
        return None if value is None else MetricResult(self.name, float(value))
