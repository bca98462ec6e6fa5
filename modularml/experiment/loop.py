"""The one loop: every phase runs through it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modularml.data.execution import ExecutionContext
from modularml.errors import NonFiniteLossError
from modularml.experiment.callback import PHASE_HOOKS, Callback, Dispatcher, as_results
from modularml.experiment.feed import Feed
from modularml.experiment.recording import Recorder
from modularml.experiment.results import PhaseResults
from modularml.loop import Stream
from modularml.progress import Bar, bar

if TYPE_CHECKING:
    from modularml.experiment.phase import ExperimentPhase

__all__ = ["Display", "EpochOverError", "phase_epochs", "run_phase"]


class EpochOverError(Exception):
    """Raised by a step to leave out the rest of its epoch."""


@dataclass(frozen=True)
class Display:
    """Which progress bars are drawn, and which of them stay."""

    epochs: bool = False
    batches: bool = False
    keep: bool = False
    keep_batches: bool = False
    watch: str = "val_loss"


class Hooks:
    """Notifies the callbacks of a phase and keeps what they say."""

    def __init__(self, phase: ExperimentPhase, experiment: Any, results: PhaseResults) -> None:
        self.facts = {"experiment": experiment, "phase": phase, "results": results}
        self.results = results
        self.dispatcher = Dispatcher(phase.listeners(), Callback, PHASE_HOOKS)
        self.listens = self.dispatcher.listens

    def __call__(self, hook: str, epoch: int = 0, **facts: Any) -> None:
        """Notify everybody who overrides a hook."""
        if not self.listens(hook):
            return
        edge = hook.removeprefix("on_")
        for listener, said in self.dispatcher.notify(hook, **self.facts, **facts):
            self.results._keep(as_results(said, listener, edge, facts), epoch)


def run_phase(
    phase: ExperimentPhase, experiment: Any, results: PhaseResults, display: Display
) -> PhaseResults:
    """Run a phase to its end, or until it is asked to stop; see `phase_epochs`."""
    for _ in phase_epochs(phase, experiment, results, display):
        pass
    return results


def phase_epochs(
    phase: ExperimentPhase, experiment: Any, results: PhaseResults, display: Display
) -> Iterator[int]:
    """Run a phase and yield each epoch's number when it is over.

    ::

        notify phase start
        for each epoch:
            notify epoch start
            for each batch of the epoch:
                notify batch start
                step
                record
                notify batch end
            log the losses of the epoch
            notify epoch end
            stop if somebody asked for it
        notify phase end
        (on an error: notify exception, then raise it)

    Whoever stops iterating has asked for it: the phase ends cleanly.

    Parameters
    ----------
    phase : ExperimentPhase
    experiment : Experiment
    results : PhaseResults
        Filled in as the phase goes on.
    display : Display

    Raises
    ------
    NonFiniteLossError
        If a loss is NaN or infinite.
    """
    hooks = Hooks(phase, experiment, results)
    recorder = Recorder(results, phase.recording)
    phase.stop_requested = False
    display = display if phase.is_main else Display()
    try:
        feed = phase.feed()
        phase.position = Stream(feed)
        feed.reuses_memory = True  # nobody keeps the tensors of a batch
        with bar(
            phase.n_epochs, phase.label, show=display.epochs, persist=display.keep, unit="epoch"
        ) as epochs:
            hooks("on_phase_start")
            for epoch in range(phase.n_epochs):
                _run_epoch(phase, feed, epoch, hooks, recorder, display, epochs)
                try:
                    yield epoch
                except GeneratorExit:
                    phase.stop_requested = True
                if phase.stop_requested:
                    break
            hooks("on_phase_end", epoch)
        feed.release()
    except BaseException as error:
        _report(hooks, error)
        raise


def _report(hooks: Hooks, error: BaseException) -> None:
    """Tell everybody of an error; one that is raised on the way does not hide it."""
    try:
        hooks("on_exception", exception=error)
    except Exception as second:  # noqa: BLE001 - the first error is the one that counts
        error.add_note(f"on_exception failed in turn: {second!r}")


def _run_epoch(
    phase: ExperimentPhase,
    feed: Feed,
    epoch: int,
    hooks: Hooks,
    recorder: Recorder,
    display: Display,
    epochs: Bar,
) -> None:
    before, after = hooks.listens("on_batch_start"), hooks.listens("on_batch_end")
    ctx = ExecutionContext(phase.label, epoch, 0)
    hooks("on_epoch_start", epoch, exec_ctx=ctx)
    feed.refresh()
    plan, step = feed.plan, phase.step_of(feed)
    n_batches, _ = feed.epoch(epoch)
    position = phase.position
    position.increment_epoch()
    position.reload_iterator()
    alone = n_batches == phase.n_epochs == 1
    recorder.begin(lambda node_id: feed.sizes(epoch, node_id), alone=alone)
    values: list[Sequence[Any]] = []
    label = f"epoch {epoch}"
    with (
        plan.modes(),
        bar(
            n_batches, label, show=display.batches, persist=display.keep_batches, unit="batch"
        ) as drawn,
        suppress(EpochOverError),
    ):
        for ctx in position.data(n_batches):
            if before:
                hooks("on_batch_start", epoch, exec_ctx=ctx)
            step(ctx)
            values.append(ctx.values)
            recorder.record(ctx)
            if after:
                hooks("on_batch_end", epoch, exec_ctx=ctx)
            drawn.update()
    if phase.logs_losses and values:
        _log_losses(phase, feed, values, ctx, recorder.results)
    hooks("on_epoch_end", epoch, exec_ctx=ctx)
    shown = recorder.results._metrics
    epochs.show(
        train_loss=shown.epoch_values("train_loss").get(epoch),
        **{display.watch: shown.epoch_values(display.watch).get(epoch)},
    )
    epochs.update()


def _log_losses(
    phase: ExperimentPhase,
    feed: Feed,
    values: list[Sequence[Any]],
    ctx: ExecutionContext,
    results: PhaseResults,
) -> None:
    """Log the total loss of each batch, and its mean over the samples of the epoch."""
    layout = feed.plan.layout
    flat = layout.adapter.floats([v for batch in values for v in batch])
    table = np.asarray(flat, dtype=np.float64).reshape(-1, len(layout.losses))
    table, sizes = feed.gathered(ctx.epoch_idx, table)
    finite = np.isfinite(table).all(axis=1)
    if not finite.all() and (phase.on_nonfinite != "skip" or not finite.any()):
        batch, place = (int(i) for i in np.argwhere(~np.isfinite(table))[0])
        label, node_id = layout.losses[place]
        raise NonFiniteLossError(
            phase=phase.label,
            epoch=ctx.epoch_idx,
            batch=batch,
            node=layout.labels[node_id],
            loss=label,
            value=float(table[batch, place]),
        )
    if n := int((~finite).sum()):
        warnings.warn(
            f"phase {phase.label!r}, epoch {ctx.epoch_idx}: {n} of {len(table)} batches had a loss "
            "that is not finite and were left out",
            UserWarning,
            stacklevel=2,
        )
    totals = table.sum(axis=1)
    results._metrics.log_batches("train_loss", totals, epoch=ctx.epoch_idx)
    sizes = sizes * finite[:, None]
    sums = sizes.sum(axis=0)
    table = np.where(finite[:, None], table, 0.0)
    means = np.divide((table * sizes).sum(axis=0), sums, out=np.zeros(len(sums)), where=sums > 0)
    results._metrics.log("train_loss", float(means.sum()), epoch=ctx.epoch_idx)


def iterate(
    phase: ExperimentPhase, n_epochs: int, display: Display, results: PhaseResults | None
) -> Iterator[ExecutionContext]:
    """Yield the steps of a phase, to be run by hand; results get each once it has run."""
    feed = phase.feed()
    total = None if not display.batches else n_epochs * feed.epoch(0)[0]
    with bar(total, phase.label, show=display.batches, persist=display.keep, unit="batch") as drawn:
        for epoch in range(n_epochs):
            for ctx in feed.epoch(epoch)[1]:
                yield ctx
                drawn.update()
                if results is not None and ctx.outs:
                    ctx.release()
                    results._execution.append(ctx)
