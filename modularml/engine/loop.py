"""The one loop: every phase runs through it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from modularml._typing import Array
from modularml._warning import warn
from modularml.backends import adapter_for
from modularml.data.execution import ExecutionContext, Layout
from modularml.engine.batch_feed import BatchFeed
from modularml.engine.callback import PHASE_HOOKS, Callback, Dispatcher, as_results
from modularml.engine.lr_scheduling import check_length
from modularml.engine.run_state import Start
from modularml.engine.runnable import RunnablePhase
from modularml.errors import DataError, NonFiniteLossError
from modularml.graph.inputs import not_finite
from modularml.graph.model_node import ModelNode
from modularml.loops.stream import Stream
from modularml.progress import Bar, bar
from modularml.results.metric_store import compact
from modularml.results.recording import Recorder, ResultRecording
from modularml.results.train_eval import PhaseResults

__all__ = ["Display", "EpochOverError", "phase_epochs", "run_phase"]


class EpochOverError(Exception):
    """Raised by a step to leave out the rest of its epoch."""


@dataclass(frozen=True)
class Display:
    """Which progress bars are drawn, and which of them stay.

    Bars of samplers and of batches appear when they take longer than half a second, or when they
    are to stay.
    """

    epochs: bool = False
    batches: bool = False
    samplers: bool = False
    keep: bool = False
    keep_batches: bool = False
    watch: str = "val_loss"

    @contextmanager
    def batch_bars(self) -> Iterator[BatchBars]:
        """Give the bar over the batches of each epoch: one for all, or one each where they stay."""
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
        """Open the bar over epochs, and give those over batches."""
        options = {"show": self.epochs, "persist": self.keep}
        with bar(n_epochs, label, **options, unit="epoch") as epochs, self.batch_bars() as batches:
            yield epochs, batches

    def show(self, epochs: Bar, results: PhaseResults | None, epoch: int) -> None:
        """Count an epoch, its losses beside the bar."""
        if epochs and results is not None:
            found = results._metrics.at_epoch(epoch)
            epochs.show(**{name: found.get(name) for name in ("train_loss", self.watch)})
        epochs.update()

    def sampling(self, groups: Sequence[Any]) -> Iterator[Any]:
        """Iterate over what is sampled."""
        with bar(len(groups), "sampling", show=self.samplers, unit="sampler", delay=_SOON) as drawn:
            for group in groups:
                yield group
                drawn.update()


logger = logging.getLogger(__name__)

BatchBars = Callable[[int, int], AbstractContextManager[Bar]]
_SOON = 0.5  # seconds until a nested bar appears


class Hooks:
    """Notifies the callbacks of a phase and keeps what they say."""

    def __init__(
        self,
        phase: RunnablePhase,
        experiment: Any,
        results: PhaseResults,
        listeners: Sequence[Callback] = (),
    ) -> None:
        self.facts = {"experiment": experiment, "phase": phase, "results": results}
        self.results = results
        heard = [
            c
            for c in (*phase.listeners(), *listeners)
            if not (c.writes_files and experiment.is_preview)
        ]
        self.dispatcher = Dispatcher(heard, Callback, PHASE_HOOKS)
        self.listens = self.dispatcher.listens
        self.change_weights = any(
            listener.changes_weights
            for hook in ("on_batch_start", "on_batch_end")
            for listener in self.dispatcher.listeners(hook)
        )

    def __call__(self, hook: str, epoch: int = 0, **facts: Any) -> None:
        """Notify everybody who overrides a hook."""
        if not self.listens(hook):
            return
        edge = hook.removeprefix("on_")
        for listener, said in self.dispatcher.notify(hook, **self.facts, **facts):
            self.results._keep(as_results(said, listener, edge, facts), epoch)

    def report(self, error: BaseException) -> None:
        """Fire the hook for an error; nothing that callbacks raise or return hides it."""
        for listener, said in self.dispatcher.report(error, **self.facts):
            self.results._keep(as_results(said, listener, "exception", {}), 0)


class ResumedHooks(Hooks):
    """Skips, once, each hook that was fired before the phase was stopped."""

    def __init__(self, told: set[str], *args: Any) -> None:
        super().__init__(*args)
        self.told = told

    def __call__(self, hook: str, epoch: int = 0, **facts: Any) -> None:
        """Notify everybody who overrides a hook, unless they know."""
        if hook in self.told:
            self.told.remove(hook)
        else:
            super().__call__(hook, epoch, **facts)


def run_phase(
    phase: RunnablePhase,
    experiment: Any,
    results: PhaseResults,
    display: Display,
    feed: BatchFeed | None = None,
) -> PhaseResults:
    """Run a phase to its end, or until it is asked to stop; see `phase_epochs`."""
    for _ in phase_epochs(phase, experiment, results, display, feed):
        pass
    return results


def phase_epochs(
    phase: RunnablePhase,
    experiment: Any,
    results: PhaseResults,
    display: Display,
    given: BatchFeed | None = None,
    start: Start | None = None,
    listeners: Sequence[Callback] = (),
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

    Whoever stops iterating has asked for it: the phase ends cleanly. A phase that is resumed does
    the same from `start` on: fired hooks are not fired again, finished batches are skipped.

    Parameters
    ----------
    phase : RunnablePhase
    experiment : Experiment
    results : PhaseResults
        Filled in as the phase goes on.
    display : Display
    given : BatchFeed, optional
        Of the same phase, for one that runs again and again; it is not released at the end.
    start : Start, optional
        Where a phase that was stopped goes on; its state has been put back.
    listeners : sequence of Callback
        Callbacks besides the phase's own.

    Raises
    ------
    NonFiniteLossError
        If a loss is NaN or infinite.
    """
    make = Hooks if start is None else partial(ResumedHooks, start.told)
    hooks = make(phase, experiment, results, listeners)
    start = start or Start()
    recorder = Recorder(results, phase.recording, getattr(experiment, "results_storage", None))
    phase.stop_requested, phase.under_way = start.stop, None
    display = display if phase.is_main else Display()
    feed, unlearned = given, list[tuple[Any, Any]]()
    try:
        feed = feed or phase.feed(live=hooks.change_weights)
        phase.position = _stream(feed, start)
        # from one epoch to the next, nobody else keeps the tensors of a batch
        feed.reuses_memory = not hooks.listens("on_batch_end")
        feed.keeps_epochs = phase.recording is not ResultRecording.NONE  # outputs may be views
        feed.watch = display.sampling
        with display.bars(phase.label, phase.n_epochs) as (epochs, batches):
            hooks("on_phase_start")
            unlearned = phase.learn_from(feed, live=hooks.change_weights)
            epoch = start.epoch
            for epoch in start.epochs(phase.n_epochs):
                done = start.done(epoch)
                _run_epoch(phase, feed, epoch, hooks, recorder, display, epochs, batches, done)
                try:
                    yield epoch
                except GeneratorExit:
                    phase.stop_requested = True
                if phase.stop_requested:
                    break
            feed.plan.finish()
            hooks("on_phase_end", epoch)
            if phase.is_main and given is None:
                logger.info("phase %r is done", phase.label)
    except BaseException as error:
        if phase.under_way is None or phase.under_way == (start.epoch, []):  # no step was made
            for model, rows in unlearned:
                model.learned_from = rows
        hooks.report(error)
        raise
    finally:
        if feed is not None and feed is not given:
            feed.release()


def _stream(feed: BatchFeed, start: Start) -> Stream:
    stream = Stream(feed)
    epoch = start.epochs(start.epoch + 1).start  # those before it are counted
    stream.load_state_dict({"epoch": epoch, "iteration": start.iteration})
    return stream


def _run_epoch(
    phase: RunnablePhase,
    feed: BatchFeed,
    epoch: int,
    hooks: Hooks,
    recorder: Recorder,
    display: Display,
    epochs: Bar,
    batches: BatchBars,
    done: list[list[float]],
) -> None:
    before, after = hooks.listens("on_batch_start"), hooks.listens("on_batch_end")
    ctx = ExecutionContext(phase.label, epoch, max(0, len(done) - 1))
    phase.under_way = epoch, []
    hooks("on_epoch_start", epoch, exec_ctx=ctx)
    feed.refresh()
    plan, step = feed.plan, phase.step_of(feed)
    n_batches, _ = feed.epoch(epoch)
    if phase.training:
        _check_ahead(phase, feed, epoch, n_batches)
    feed.first = len(done)
    position = phase.position
    position.increment_epoch()
    position.reload_iterator()
    if not done:
        recorder.begin()
    values: list[Sequence[Any]] = [*done]
    is_first = epoch == 0 and not done
    phase.under_way = epoch, values
    with plan.modes(), batches(epoch, n_batches) as drawn, suppress(EpochOverError):
        for ctx in position.data(n_batches - len(done)):
            if before:
                hooks("on_batch_start", epoch, exec_ctx=ctx)
            step(ctx)
            if is_first:
                is_first = not feed.check_means(ctx, n_batches > 1)
            values.append(ctx.values)
            recorder.record(ctx)
            if after:
                ctx.release()  # somebody may keep it
                hooks("on_batch_end", epoch, exec_ctx=ctx)
            drawn.update()
    recorder.end(_log_losses(phase, feed, values, ctx, recorder.results))
    hooks("on_epoch_end", epoch, exec_ctx=ctx)
    if phase.training and phase.is_main and logger.isEnabledFor(logging.INFO):
        found = recorder.results._metrics.at_epoch(epoch)
        shown = ", ".join(f"{name} {value:.5g}" for name, value in found.items())
        logger.info("phase %r, epoch %d of %d: %s", phase.label, epoch, phase.n_epochs, shown)
    display.show(epochs, recorder.results, epoch)


def _check_ahead(phase: RunnablePhase, feed: BatchFeed, epoch: int, n_batches: int) -> None:
    """Refuse what would fail in the course of the epochs that are left."""
    graph = phase.graph()
    for node in graph._running(phase.active_nodes):
        if not isinstance(node, ModelNode) or node.is_frozen or node.input_shape is None:
            continue
        adapter, module = adapter_for(node.backend), node.model.module
        alone = 1 in feed.sizes(epoch, node.node_id)
        if alone and adapter.needs_several_rows(module, node.input_shape):
            raise DataError(
                f"phase {phase.label!r}, epoch {epoch}: a batch holds one sample, and batch "
                f"normalization in node {node.label!r} needs more to train on; pass drop_last=True "
                "to the sampler, or choose another batch_size"
            )
    for optimizer in graph.moving_optimizers(phase.active_nodes):
        check_length(phase, optimizer, n_batches, phase.n_epochs - epoch)


def _log_losses(
    phase: RunnablePhase,
    feed: BatchFeed,
    values: list[Sequence[Any]],
    ctx: ExecutionContext,
    results: PhaseResults,
) -> Array | None:
    """Log the total loss of each batch and its mean over samples; return this process's losses."""
    layout = feed.plan.layout
    if not values or not layout.losses:
        return None
    flat = layout.adapter.floats([v for batch in values for v in batch])
    table = np.asarray(flat, dtype=np.float64).reshape(-1, len(layout.losses))
    own = compact(table)
    if not phase.logs_losses:
        _warn_of_nonfinite(phase, layout, table)
        return own
    table, sizes = feed.gathered(ctx.epoch_idx, table)
    finite = np.asarray(np.isfinite(table).all(axis=1))
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
            **not_finite(feed.plan, ctx, batch),
        )
    if n := int((~finite).sum()):
        warn(
            f"phase {phase.label!r}, epoch {ctx.epoch_idx}: {n} of {len(table)} batches had a loss "
            "that is not finite and were left out",
        )
    alone = feed.processes is None and own.shape[1] == 1  # then the numbers are held once
    totals = own[:, 0] if alone else table.sum(axis=1)
    results._metrics.log_batches("train_loss", totals, epoch=ctx.epoch_idx)
    sizes = sizes * finite[:, None]
    sums = sizes.sum(axis=0)
    table = np.where(finite[:, None], table, 0.0)
    nothing = np.full(len(sums), np.nan)
    means = np.divide((table * sizes).sum(axis=0), sums, out=nothing, where=sums > 0)
    results._metrics.log("train_loss", float(means.sum()), epoch=ctx.epoch_idx)
    return own


def _warn_of_nonfinite(phase: RunnablePhase, layout: Layout, table: Array) -> None:
    """Say which losses of an evaluation are no numbers, and in how many batches."""
    for (label, node_id), column in zip(layout.losses, table.T, strict=True):
        if n := int((~np.isfinite(column)).sum()):
            warn(
                f"phase {phase.label!r}: loss {label!r} on node {layout.labels[node_id]!r} is NaN "
                f"or infinite in {n} of {len(column)} batches. Where a batch holds nothing to "
                "average, such as no event or pair, evaluate more rows at once (batch_size=None, "
                "or Loss(..., over='batch')); else look for NaN in outputs and columns"
            )


def iterate(
    phase: RunnablePhase, n_epochs: int, display: Display, results: PhaseResults | None
) -> Iterator[ExecutionContext]:
    """Yield the steps of a phase, to be run by hand; results get each once it has run."""
    feed = phase.feed()
    feed.watch = display.sampling
    with display.bars(phase.label, n_epochs) as (epochs, batches):
        for epoch in range(n_epochs):
            feed.refresh()
            n_batches, steps = feed.epoch(epoch)
            with batches(epoch, n_batches) as drawn:
                for ctx in steps:
                    yield ctx
                    if not (epoch or ctx.batch_idx):
                        phase.learn_from(feed)
                    drawn.update()
                    if results is not None and ctx.outs:
                        ctx.release()
                        results._execution.append(ctx)
            display.show(epochs, results, epoch)
