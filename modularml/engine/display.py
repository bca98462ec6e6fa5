"""Progress bars of phases, and the flags that choose them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from modularml.errors import UnknownNameError
from modularml.progress import IN_NOTEBOOK, NO_BAR, Bar, bar
from modularml.results.phase_results import PhaseResults

BatchBars = Callable[[int, int], AbstractContextManager[Bar]]
_SOON = 0.5  # seconds until a nested bar appears

_FLAGS = {
    "show_sampler_progress": True,
    "show_training_progress": True,
    "show_eval_progress": False,
    "persist_progress": IN_NOTEBOOK,
    "persist_epoch_progress": False,
    "val_loss_metric": "val_loss",
}


def check_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return all display flags, with defaults; refuse unknown ones."""
    for name in flags:
        if name not in _FLAGS:
            hint = "Settings of training are arguments of the phase, such as TrainPhase(n_epochs=)"
            raise UnknownNameError("display flag", name, _FLAGS, hint)
    return {**_FLAGS, **flags}


@dataclass(frozen=True)
class Display:
    """Progress bars: which are drawn, and which stay.

    Bars of samplers and batches appear only after half a second, unless they are to stay.
    """

    epochs: bool = False
    batches: bool = False
    samplers: bool = False
    keep: bool = False
    keep_batches: bool = False
    watch: str = "val_loss"

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any], *, training: bool) -> Display:
        """Return the progress bars of a phase; see `check_flags`."""
        if not training:
            return cls(batches=flags["show_eval_progress"], keep_batches=flags["persist_progress"])
        return cls(
            epochs=flags["show_training_progress"],
            batches=flags["show_training_progress"],
            samplers=flags["show_sampler_progress"],
            keep=flags["persist_progress"],
            keep_batches=flags["persist_epoch_progress"],
            watch=flags["val_loss_metric"],
        )

    @contextmanager
    def batch_bars(self) -> Iterator[BatchBars]:
        """Yield a factory of batch bars: one for all epochs, or one per epoch."""
        if self.keep_batches:
            yield lambda epoch, n: bar(
                n, f"epoch {epoch}", show=self.batches, persist=True, unit="batch"
            )
            return
        with bar(None, "", show=self.batches, unit="batch", delay=_SOON) as drawn:

            @contextmanager
            def again(epoch: int, n_batches: int) -> Iterator[Bar]:
                drawn.restart(n_batches, f"epoch {epoch}")
                yield drawn
                drawn.finish()

            yield again

    @contextmanager
    def bars(self, label: str, n_epochs: int) -> Iterator[tuple[Bar, BatchBars]]:
        """Open the bar over epochs, and yield it with the factory of batch bars."""
        if not (self.epochs or self.batches):
            yield NO_BAR, lambda epoch, n_batches: nullcontext(NO_BAR)
            return
        options = {"show": self.epochs, "persist": self.keep}
        with bar(n_epochs, label, **options, unit="epoch") as epochs, self.batch_bars() as batches:
            yield epochs, batches

    def show(self, epochs: Bar, results: PhaseResults | None, epoch: int) -> None:
        """Advance the bar by one epoch, showing its losses."""
        if epochs and results is not None:
            metrics = results._metrics.at_epoch(epoch)
            epochs.show(**{name: metrics.get(name) for name in ("train_loss", self.watch)})
        epochs.update()

    def sampling(self, groups: Sequence[Any]) -> Iterator[Any]:
        """Iterate over samplers under a progress bar."""
        if not self.samplers:
            yield from groups
            return
        with bar(len(groups), "sampling", show=True, unit="sampler", delay=_SOON) as drawn:
            for group in groups:
                yield group
                drawn.update()
