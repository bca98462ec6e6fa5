"""Curves that grow while a phase runs."""

from __future__ import annotations

from time import monotonic
from typing import Any

from modularml._arguments import at_least
from modularml._optional import require
from modularml.engine.callback import Callback, callback_registry
from modularml.progress import in_notebook
from modularml.viz.curves import series

__all__ = ["LivePlot"]


class LivePlot(Callback):
    """Draw the metrics of whole epochs in a notebook, one picture that is replaced in its place.

    Outside a notebook it prints a line of numbers instead.

    Parameters
    ----------
    metrics : list of str, optional
        All that are logged where none are given.
    every_n_epochs : int
        At least 1.
    min_seconds : float
        Epochs that end sooner after a picture get none; the last one always does.
    label : str, optional
    execution_order : int
        Must be higher than that of callbacks whose metrics are drawn.
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
        """Leave out the picture on the screen."""
        return {**vars(self), "_handle": None}

    def on_phase_start(self, **facts: Any) -> None:
        """Begin a new picture."""
        self._handle, self._due = None, 0.0
        self._last, self._shown = -1, True

    def on_epoch_end(
        self, *, experiment: Any, phase: Any, exec_ctx: Any, results: Any = None
    ) -> None:
        """Draw after every n-th epoch, not too often."""
        self._shown = (exec_ctx.epoch_idx + 1) % self.every_n_epochs == 0
        self._shown &= monotonic() >= self._due
        if self._shown:
            self._show(phase.label, results, exec_ctx.epoch_idx)
            self._due = monotonic() + self.min_seconds
        self._last = exec_ctx.epoch_idx

    def on_phase_end(self, *, experiment: Any, phase: Any, results: Any = None) -> None:
        """Draw the whole of it, or print the line of the last epoch where it was not yet."""
        if in_notebook() or not self._shown:
            self._show(phase.label, results, self._last)

    def _show(self, label: str, results: Any, epoch: int) -> None:
        store = results._metrics
        names = [n for n in store.names if self.metrics is None or n in self.metrics]
        if not in_notebook():
            found = store.at_epoch(epoch)
            numbers = [f"{name} {found[name]:.5g}" for name in names if name in found]
            line = f"{label}, epoch {epoch}: {', '.join(numbers)}"
            print(line, flush=True)  # noqa: T201 - it is asked for
            return
        lines = {name: store.epoch_values(name) for name in names}
        drawn = {name: (list(v), list(v.values())) for name, v in lines.items() if v}
        if not drawn:
            return
        figure = series(drawn, x="epoch", title=label)
        if self._handle is None:
            self._handle = require("IPython.display").display(figure, display_id=True)
        else:
            self._handle.update(figure)


callback_registry.register("LivePlot", LivePlot)
