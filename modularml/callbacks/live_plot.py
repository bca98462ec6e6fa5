"""Live plots of metrics."""

from __future__ import annotations

from time import monotonic
from typing import Any

from modularml._arguments import at_least
from modularml._optional import require
from modularml.engine.callback import Callback, callback_registry
from modularml.progress import in_notebook, print_line
from modularml.viz.curves import series

__all__ = ["LivePlot"]


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
        self._due = 0.0
        self._last, self._shown = -1, True

    def __getstate__(self) -> dict[str, Any]:
        """Omit the displayed figure."""
        return {**vars(self), "_handle": None}

    def on_phase_start(self, **facts: Any) -> None:
        """Start a new figure."""
        self._handle, self._due = None, 0.0
        self._last, self._shown = -1, True

    def on_epoch_end(
        self, *, experiment: Any, phase: Any, exec_ctx: Any, results: Any = None
    ) -> None:
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


callback_registry.register("LivePlot", LivePlot)
