"""The loop over epochs and batches that every phase runs through."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np

from modularml._typing import Array
from modularml._warning import warn
from modularml.backends import adapter_for
from modularml.data.execution import ExecutionContext, Layout
from modularml.engine.batch_feed import BatchFeed
from modularml.engine.callback import PHASE_HOOKS, Callback, Dispatcher, as_results
from modularml.engine.lr_scheduling import begin_schedules, check_length
from modularml.engine.run_state import Start
from modularml.engine.runnable import RunnablePhase
from modularml.errors import DataError, NonFiniteLossError
from modularml.graph.inputs import not_finite
from modularml.graph.model_node import ModelNode
from modularml.loops.stream import Stream
from modularml.progress import Bar, bar
from modularml.results.metric_store import compact
from modularml.results.phase_results import PhaseResults
from modularml.results.recording import Recorder, ResultRecording

__all__ = [
    "Display",
    "EpochOverError",
    "RunningEpoch",
    "batch_runner",
    "phase_epochs",
    "run_batches",
    "run_phase",
]


class EpochOverError(Exception):
    """Raised by a step to skip the rest of its epoch."""


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
        with bar(len(groups), "sampling", show=self.samplers, unit="sampler", delay=_SOON) as drawn:
            for group in groups:
                yield group
                drawn.update()


logger = logging.getLogger(__name__)

BatchBars = Callable[[int, int], AbstractContextManager[Bar]]
_SOON = 0.5  # seconds until a nested bar appears


class Hooks:
    """Calls the callbacks of a phase and records what they return."""

    def __init__(
        self,
        phase: RunnablePhase,
        experiment: Any,
        results: PhaseResults,
        extra_callbacks: Sequence[Callback] = (),
    ) -> None:
        self.facts = {"experiment": experiment, "phase": phase, "results": results}
        self.results = results
        callbacks = [
            c
            for c in (*phase.all_callbacks(), *extra_callbacks)
            if not (c.writes_files and experiment.is_preview)
        ]
        self.dispatcher = Dispatcher(callbacks, Callback, PHASE_HOOKS)
        self.handles = self.dispatcher.handles
        self.change_weights = any(
            callback.changes_weights
            for hook in ("on_batch_start", "on_batch_end")
            for callback in self.dispatcher.callbacks(hook)
        )

    def __call__(self, hook: str, epoch: int = 0, **facts: Any) -> None:
        """Call the callbacks that override a hook."""
        if not self.handles(hook):
            return
        edge = hook.removeprefix("on_")
        for callback, returned in self.dispatcher.notify(hook, **self.facts, **facts):
            self.results._add_callback_results(as_results(returned, callback, edge, facts), epoch)

    def readers_of_batches(self) -> list[Any]:
        """Return the callbacks that each batch must wait for."""
        hooks = ("on_batch_start", "on_batch_end")
        return [c for hook in hooks for c in self.dispatcher.callbacks(hook) if c.reads_batches]

    def report(self, error: BaseException) -> None:
        """Call the hooks for an error, and record what they return."""
        for callback, returned in self.dispatcher.report(error, **self.facts):
            self.results._add_callback_results(as_results(returned, callback, "exception", {}), 0)


class ResumedHooks(Hooks):
    """Skips, once, each hook that was fired before the phase was stopped."""

    def __init__(self, fired: set[str], *args: Any) -> None:
        super().__init__(*args)
        self.fired = fired

    def __call__(self, hook: str, epoch: int = 0, **facts: Any) -> None:
        """Call the callbacks that override a hook, unless it was fired before."""
        if hook in self.fired:
            self.fired.remove(hook)
        else:
            super().__call__(hook, epoch, **facts)


def run_phase(
    phase: RunnablePhase,
    experiment: Any,
    results: PhaseResults,
    display: Display,
    feed: BatchFeed | None = None,
) -> PhaseResults:
    """Run a phase to its end, or until a stop is requested; see `phase_epochs`."""
    for _ in phase_epochs(phase, experiment, results, display, feed):
        pass
    return results


def phase_epochs(
    phase: RunnablePhase,
    experiment: Any,
    results: PhaseResults,
    display: Display,
    shared_feed: BatchFeed | None = None,
    start: Start | None = None,
    extra_callbacks: Sequence[Callback] = (),
) -> Generator[int]:
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
            stop if requested
        notify phase end
        (on an error: notify exception, then raise it)

    Closing the iterator requests a stop: the phase ends cleanly. A resumed phase does the same
    from `start` on: fired hooks are not fired again, finished batches are skipped.

    Parameters
    ----------
    phase : RunnablePhase
    experiment : Experiment
    results : PhaseResults
        Filled in while the phase runs.
    display : Display
    shared_feed : BatchFeed, optional
        A feed of the same phase to reuse when it runs repeatedly; it is not released at the end.
    start : Start, optional
        Where a stopped phase resumes; its state has been restored already.
    extra_callbacks : sequence of Callback
        Callbacks besides the phase's own.

    Raises
    ------
    NonFiniteLossError
        If a loss is NaN or infinite.
    """
    with phase.graph().frozen_within(phase.freeze or ()):
        yield from _epochs(phase, experiment, results, display, shared_feed, start, extra_callbacks)


def _epochs(
    phase: RunnablePhase,
    experiment: Any,
    results: PhaseResults,
    display: Display,
    shared_feed: BatchFeed | None,
    start: Start | None,
    extra_callbacks: Sequence[Callback],
) -> Iterator[int]:
    hooks_class = Hooks if start is None else partial(ResumedHooks, start.fired_hooks)
    hooks = hooks_class(phase, experiment, results, extra_callbacks)
    start = start or Start()
    recorder = Recorder(results, phase.recording, getattr(experiment, "results_storage", None))
    phase.stop_requested, phase.partial_epoch = start.stop, None
    display = display if phase.is_main else Display()
    feed, previous_rows = shared_feed, list[tuple[Any, Any]]()
    try:
        feed = feed or phase.feed(live=hooks.change_weights)
        phase.position = _stream(feed, start)
        # without callbacks nothing else holds the tensors of a batch
        feed.reuses_memory = not hooks.handles("on_batch_end")
        feed.keeps_epochs = phase.recording is not ResultRecording.NONE  # outputs may be views
        feed.watch = display.sampling
        if phase.training and not start.hook:
            begin_schedules(phase, feed)
        with display.bars(phase.label, phase.n_epochs) as (epoch_bar, batch_bars):
            hooks("on_phase_start")
            previous_rows = phase.learn_from(feed, live=hooks.change_weights)
            epoch = start.epoch
            for epoch in start.epochs(phase.n_epochs):
                done = start.done(epoch)
                _run_epoch(
                    phase, feed, epoch, hooks, recorder, display, epoch_bar, batch_bars, done
                )
                try:
                    yield epoch
                except GeneratorExit:
                    phase.stop_requested = True
                if phase.stop_requested:
                    break
            feed.plan.finish()
            hooks("on_phase_end", epoch)
            if phase.is_main and shared_feed is None:
                logger.info("phase %r is complete", phase.label)
    except BaseException as error:
        if phase.partial_epoch in (None, (start.epoch, [])):  # no step has run
            for model, rows in previous_rows:
                model.learned_from = rows
        hooks.report(error)
        raise
    finally:
        if feed is not None and feed is not shared_feed:
            feed.release()


def _stream(feed: BatchFeed, start: Start) -> Stream:
    stream = Stream(feed)
    epoch = start.epochs(start.epoch + 1).start  # epochs before it are counted
    stream.load_state_dict({"epoch": epoch, "iteration": start.iteration})
    return stream


@dataclass
class RunningEpoch:
    """An epoch whose batches are about to run.

    Parameters
    ----------
    phase : RunnablePhase
    feed : BatchFeed
    epoch, n_batches : int
        Its 0-based number, and how many batches it has.
    hooks : Hooks
    recorder : Recorder
    contexts : iterator of ExecutionContext
        The batches that are left, filled in by the feed.
    values : list
        Losses of each batch so far; those that run are added.
    step : callable
        Runs one batch.
    batch_bar : Bar
    last : ExecutionContext
        The last batch that has run, or the epoch's own context.
    """

    phase: RunnablePhase
    feed: BatchFeed
    epoch: int
    n_batches: int
    hooks: Hooks
    recorder: Recorder
    contexts: Iterator[ExecutionContext]
    values: list[Sequence[Any]]
    step: Callable[[ExecutionContext], None]
    batch_bar: Bar
    last: ExecutionContext

    def needs_check(self) -> bool:
        """Return whether the first batch of the phase comes next, whose losses are checked."""
        return self.epoch == 0 and not self.values

    def end_batch(self, ctx: ExecutionContext) -> None:
        """Record a batch that has run without its hooks."""
        if self.needs_check():
            self.feed.check_means(ctx, self.n_batches > 1)
        self.values.append(ctx.values)
        self.recorder.record(ctx)
        self.batch_bar.update()
        self.last = ctx

    def takes_several(self) -> bool:
        """Return whether one call of the step may run several batches."""
        n = self.phase.n_epochs * self.n_batches
        able = n >= _FEWEST_STEPS and hasattr(self.feed.step, "several")
        return able and not self.hooks.readers_of_batches()


_FEWEST_STEPS = 1_000  # of a phase, below which tracing several batches costs more than it saves
_MOST_AT_ONCE, _MOST_BYTES = 256, 2**25  # of one call


def run_batches(running: RunningEpoch) -> None:
    """Run the batches of an epoch one after another, or several in one call of the step.

    A step that is compiled batch by batch learns whether it may be, and for how many rows.
    """
    compiled = getattr(running.feed.step, "compiled", None)
    if compiled is not None:
        readers = [c.label for c in running.hooks.readers_of_batches()]
        compiled.begin(running.feed.most_rows(running.epoch), readers)
    if running.takes_several():
        _run_several(running)
    _run_each(running)


def _run_several(running: RunningEpoch) -> None:
    """Run groups of batches of one shape; the first batch of the phase is run alone before."""
    several: Any = running.feed.step.several  # type: ignore[attr-defined]
    n_left = running.feed.n_alike(running.epoch, len(running.values))
    first: Any = next(running.contexts, None)
    if first is None:
        return
    like = None
    n_bytes = sum(8 * math.prod(t.shape) for t in first.tensors)
    if running.needs_check():
        _run_each(running, iter([first]))
        like, n_left = (first.values, first.outs), n_left - 1
    else:
        running.contexts = chain([first], running.contexts)
    most = min(_MOST_AT_ONCE, _MOST_BYTES // max(1, n_bytes))
    n = -(-n_left // -(-n_left // most)) if min(n_left, most) > 1 else 1
    while (size := min(n, n_left)) > 1:
        group: list[Any] = list(islice(running.contexts, size))
        n_left -= size
        if len(group) < size:
            running.contexts = chain(group, running.contexts)
            return
        try:
            done = several([c.tensors for c in group], like)
        except Exception as error:
            error.add_note(
                f"(phase {running.phase.label!r}, epoch {running.epoch}, one of the batches "
                f"{group[0].batch_idx} to {group[-1].batch_idx})"
            )
            raise
        if done is None:
            running.contexts = chain(group, running.contexts)
            return
        for ctx, values, outs in zip(group, *done, strict=False):
            ctx.values, ctx.outs = values, outs
            running.end_batch(ctx)
        left = group[len(done[0]) :]
        _run_each(running, iter(left[:1]))  # its loss is not finite, which it raises
        running.contexts = chain(left[1:], running.contexts)
        if not left and running.hooks.handles("on_batch_end"):  # to end on signals
            running.hooks("on_batch_end", running.epoch, exec_ctx=group[-1])


def _run_each(running: RunningEpoch, contexts: Iterator[ExecutionContext] | None = None) -> None:
    """Run batches one after another; by default all that are left."""
    hooks, feed, epoch = running.hooks, running.feed, running.epoch
    before, after = hooks.handles("on_batch_start"), hooks.handles("on_batch_end")
    step, recorder, values = running.step, running.recorder, running.values
    batch_bar, is_first = running.batch_bar, running.needs_check()
    for ctx in running.contexts if contexts is None else contexts:
        running.last = ctx
        if before:
            hooks("on_batch_start", epoch, exec_ctx=ctx)
        step(ctx)
        if is_first:
            is_first = not feed.check_means(ctx, running.n_batches > 1)
        values.append(ctx.values)
        recorder.record(ctx)
        if after:
            ctx.release()  # a callback may hold on to it
            hooks("on_batch_end", epoch, exec_ctx=ctx)
        batch_bar.update()


batch_runner: ContextVar[Callable[[RunningEpoch], None]] = ContextVar(
    "modularml_batch_runner", default=run_batches
)
"""Runs the batches of each epoch; the default runs them one after another."""


def _run_epoch(
    phase: RunnablePhase,
    feed: BatchFeed,
    epoch: int,
    hooks: Hooks,
    recorder: Recorder,
    display: Display,
    epoch_bar: Bar,
    batch_bars: BatchBars,
    done: list[list[float]],
) -> None:
    ctx = ExecutionContext(phase.label, epoch, max(0, len(done) - 1))
    phase.partial_epoch = epoch, []
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
    phase.partial_epoch = epoch, values
    with plan.modes(), batch_bars(epoch, n_batches) as batch_bar, suppress(EpochOverError):
        contexts = position.data(n_batches - len(done))
        running = RunningEpoch(
            phase, feed, epoch, n_batches, hooks, recorder, contexts, values, step, batch_bar, ctx
        )
        batch_runner.get()(running)
    ctx = running.last
    recorder.end(_log_losses(phase, feed, values, ctx, recorder.results))
    phase.log_scores(recorder.results)
    if feed.share_run < 1:
        recorder.results._metrics.log("share_of_batches", feed.share_run, epoch=epoch)
    hooks("on_epoch_end", epoch, exec_ctx=ctx)
    if phase.training and phase.is_main and logger.isEnabledFor(logging.INFO):
        metrics = recorder.results._metrics.at_epoch(epoch)
        shown = ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())
        logger.info("phase %r, epoch %d of %d: %s", phase.label, epoch, phase.n_epochs, shown)
    display.show(epoch_bar, recorder.results, epoch)


def _check_ahead(phase: RunnablePhase, feed: BatchFeed, epoch: int, n_batches: int) -> None:
    """Refuse batches and schedules that would fail in the remaining epochs."""
    graph = phase.graph()
    for node in graph._running(phase.active_nodes):
        if not isinstance(node, ModelNode) or node.is_frozen or node.input_shape is None:
            continue
        adapter, module = adapter_for(node.backend), node.model.module
        has_single_sample = 1 in feed.sizes(epoch, node.node_id)
        if has_single_sample and adapter.needs_several_rows(module, node.input_shape):
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
    """Log total losses per batch and epoch; return the losses of this process."""
    layout = feed.plan.layout
    if not values or not layout.losses:
        return None
    flat = layout.adapter.floats([v for batch in values for v in batch])
    table = np.asarray(flat, dtype=np.float64).reshape(-1, len(layout.losses))
    own_losses = compact(table)
    if not phase.logs_losses:
        _warn_of_nonfinite(phase, layout, table)
        return own_losses
    table, sizes = feed.gathered(ctx.epoch_idx, table)
    finite = np.asarray(np.isfinite(table).all(axis=1))
    if not finite.all() and (phase.on_nonfinite != "skip" or not finite.any()):
        batch, loss_index = (int(i) for i in np.argwhere(~np.isfinite(table))[0])
        label, node_id = layout.losses[loss_index]
        raise NonFiniteLossError(
            phase=phase.label,
            epoch=ctx.epoch_idx,
            batch=batch,
            node=layout.labels[node_id],
            loss=label,
            value=float(table[batch, loss_index]),
            **not_finite(feed.plan, ctx, batch),
        )
    if n := int((~finite).sum()):
        warn(
            f"phase {phase.label!r}, epoch {ctx.epoch_idx}: {n} of {len(table)} batches had a loss "
            "that is not finite and were skipped",
        )
    is_only_loss = feed.processes is None and own_losses.shape[1] == 1  # share one array
    totals = own_losses[:, 0] if is_only_loss else table.sum(axis=1)
    results._metrics.log_batches("train_loss", totals, epoch=ctx.epoch_idx)
    sizes = sizes * finite[:, None]
    sums = sizes.sum(axis=0)
    table = np.where(finite[:, None], table, 0.0)
    nothing = np.full(len(sums), np.nan)
    means = np.divide((table * sizes).sum(axis=0), sums, out=nothing, where=sums > 0)
    results._metrics.log("train_loss", float(means.sum()), epoch=ctx.epoch_idx)
    return own_losses


def _warn_of_nonfinite(phase: RunnablePhase, layout: Layout, table: Array) -> None:
    """Warn of evaluation losses that are not finite, with their batch counts."""
    for (label, node_id), column in zip(layout.losses, table.T, strict=True):
        if n := int((~np.isfinite(column)).sum()):
            warn(
                f"phase {phase.label!r}: loss {label!r} on node {layout.labels[node_id]!r} is NaN "
                f"or infinite in {n} of {len(column)} batches. If a batch holds nothing to "
                "average, such as no event or pair, evaluate more rows at once (batch_size=None, "
                "or Loss(..., over='batch')); otherwise look for NaN in outputs and columns"
            )


def iterate(
    phase: RunnablePhase, n_epochs: int, display: Display, results: PhaseResults | None
) -> Iterator[ExecutionContext]:
    """Yield the steps of a phase to run by hand; add each to results once it ran."""
    graph = phase.graph()
    with (
        graph.frozen_within(phase.freeze or ()),
        display.bars(phase.label, n_epochs) as (epochs, batches),
    ):
        feed = phase.feed()
        feed.watch = display.sampling
        if phase.training:
            begin_schedules(phase, feed)
        for epoch in range(n_epochs):
            feed.refresh()
            n_batches, steps = feed.epoch(epoch)
            with batches(epoch, n_batches) as batch_bar:
                for ctx in steps:
                    yield ctx
                    if not (epoch or ctx.batch_idx):
                        phase.learn_from(feed)
                    batch_bar.update()
                    if results is not None and ctx.outs:
                        ctx.release()
                        results._execution.append(ctx)
            display.show(epochs, results, epoch)
