"""The loop over epochs and batches that every phase runs through."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from modularml.backends import adapter_for
from modularml.data.execution_context import ExecutionContext
from modularml.engine.batch_feed import BatchFeed
from modularml.engine.callback import Callback, PhaseHooks
from modularml.engine.display import BatchBars, Display
from modularml.engine.losses import check_means, log_losses
from modularml.engine.monitoring import begin_schedules, check_length
from modularml.engine.run_state import RunnablePhase, RunState
from modularml.errors import DataError
from modularml.graph.model_node import ModelNode
from modularml.progress import Bar
from modularml.results.phase_results import PhaseResults
from modularml.results.recording import Recorder, ResultRecording


class EpochOverError(Exception):
    """Raised by a step to skip the rest of its epoch."""


logger = logging.getLogger(__name__)


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
    state: RunState | None = None,
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
    from `state` on: fired hooks are not fired again, finished batches are skipped.

    Parameters
    ----------
    phase : RunnablePhase
    experiment : Experiment
    results : PhaseResults
        Filled in while the phase runs.
    display : Display
    shared_feed : BatchFeed, optional
        A feed of the same phase to reuse when it runs repeatedly; it is not released at the end.
    state : RunState, optional
        Where a stopped phase resumes; what else it had changed has been restored already.
    extra_callbacks : sequence of Callback
        Callbacks besides the phase's own.

    Raises
    ------
    NonFiniteLossError
        If a loss is NaN or infinite.
    """
    graph, state = phase.graph(), state or RunState()
    feed, previous_rows, n_before = shared_feed, list[tuple[Any, Any]](), state.iteration
    display = display if phase.is_main else Display()
    with graph.frozen_within(phase.freeze) if phase.freeze else nullcontext():
        hooks = PhaseHooks(phase, experiment, results, extra_callbacks, state.fired_hooks())
        recorder = Recorder(results, phase.recording, getattr(experiment, "results_storage", None))
        phase.position = state
        try:
            live = any(callback.changes_weights for callback in hooks.of_batches)
            state.feed = feed = feed or phase.feed(live=live)
            feed.prepare(
                # without callbacks nothing else holds the tensors of a batch
                reuses_memory=not hooks.methods["on_batch_end"],
                keeps_epochs=phase.recording is not ResultRecording.NONE,  # outputs may be views
                watch=display.sampling,
            )
            begun = phase.training and not state.hook and begin_schedules(phase, feed)
            is_new = not begun and feed is not shared_feed
            with display.bars(phase.label, phase.n_epochs) as (epoch_bar, batch_bars):
                hooks("on_phase_start")
                previous_rows = phase.learn_from(feed, live=live)
                epoch = state.epoch - 1
                for epoch in state.epochs(phase.n_epochs):
                    _run_epoch(
                        RunningEpoch(phase, feed, epoch, hooks, recorder), batch_bars, is_new=is_new
                    )
                    is_new = False
                    display.show(epoch_bar, results, epoch)
                    try:
                        yield epoch
                    except GeneratorExit:
                        state.stop = True
                    if state.stop:
                        break
                feed.plan.finish()
                hooks("on_phase_end", epoch)
                if phase.is_main and shared_feed is None:
                    logger.info("phase %r is complete", phase.label)
        except BaseException as error:
            if state.iteration == n_before:  # no step has run
                for model, rows in previous_rows:
                    model.learned_from = rows
            hooks.record_error(error)
            raise
        finally:
            if feed is not None and feed is not shared_feed:
                feed.release()


@dataclass
class RunningEpoch:
    """An epoch whose batches are about to run.

    Parameters
    ----------
    phase : RunnablePhase
    feed : BatchFeed
    epoch : int
        Its 0-based number.
    hooks : PhaseHooks
    recorder : Recorder

    Attributes
    ----------
    n_batches : int
    contexts : iterator of ExecutionContext
        The batches that are left, filled in by the feed.
    step : callable
        Runs one batch.
    batch_bar : Bar
    last : ExecutionContext
        The last batch that has run, or the epoch's own context.
    """

    phase: RunnablePhase
    feed: BatchFeed
    epoch: int
    hooks: PhaseHooks
    recorder: Recorder
    n_batches: int = field(init=False)
    contexts: Iterator[ExecutionContext] = field(init=False)
    step: Callable[[ExecutionContext], None] = field(init=False)
    batch_bar: Bar = field(init=False)
    last: ExecutionContext = field(init=False)

    @property
    def values(self) -> list[Sequence[Any]]:
        """Losses of each batch so far; those that run are added."""
        return self.phase.position.losses

    def end_batch(self, ctx: ExecutionContext) -> None:
        """Record a batch that has run without its hooks."""
        if self.epoch == 0 and not self.values:  # the first one of the phase
            check_means(self.feed, ctx, self.n_batches > 1)
        self.phase.position.iteration += 1
        self.values.append(ctx.values)
        self.recorder.record(ctx)
        self.batch_bar.update()
        self.last = ctx


_FEWEST_STEPS = 1_000  # of a phase, below which tracing several batches costs more than it saves
_MOST_AT_ONCE, _MOST_BYTES = 256, 2**25  # of one call


def run_batches(running: RunningEpoch) -> None:
    """Run the batches of an epoch one after another, or several in one call of the step.

    A step that is compiled batch by batch learns whether it may be, and for how many rows.
    """
    step: Any = running.feed.step
    if (compiled := getattr(step, "compiled", None)) is not None:
        readers = [c.label for c in running.hooks.readers_of_batches()]
        compiled.begin(running.feed.most_rows(running.epoch), readers)
    has_many = running.phase.n_epochs * running.n_batches >= _FEWEST_STEPS
    if has_many and hasattr(step, "several") and not running.hooks.readers_of_batches():
        _run_several(running)
    _run_each(running, running.contexts)


def _run_several(running: RunningEpoch) -> None:
    """Run groups of batches of one shape; the first batch of the phase is run alone before."""
    several: Any = running.feed.step.several  # type: ignore[attr-defined]
    n_left = running.feed.n_alike(running.epoch, len(running.values))
    first: Any = next(running.contexts, None)
    if first is None:
        return
    like = None
    n_bytes = sum(8 * math.prod(t.shape) for t in first.tensors)
    if running.epoch == 0 and not running.values:
        _run_each(running, iter([first]))
        like, n_left = (first.values, first.outs), n_left - 1
    else:
        running.contexts = chain([first], running.contexts)
    most = min(_MOST_AT_ONCE, _MOST_BYTES // max(1, n_bytes))
    n = -(-n_left // -(-n_left // most)) if min(n_left, most) > 1 else 1
    while (size := min(n, n_left)) > 1:
        group: list[Any] = list(islice(running.contexts, size))
        n_left -= size
        done = None
        try:
            if len(group) == size:
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
        if not left:  # to end on signals
            running.hooks("on_batch_end", running.epoch, exec_ctx=group[-1])


def _run_each(running: RunningEpoch, contexts: Iterator[ExecutionContext]) -> None:
    """Run batches one after another."""
    hooks, feed, epoch, state = running.hooks, running.feed, running.epoch, running.phase.position
    before, after = hooks.methods["on_batch_start"], hooks.methods["on_batch_end"]
    step, recorder, batch_bar = running.step, running.recorder, running.batch_bar
    values = state.losses
    is_first = epoch == 0 and not values  # of the phase, whose losses are checked
    for ctx in contexts:
        running.last = ctx
        state.iteration += 1
        if before:
            hooks("on_batch_start", epoch, exec_ctx=ctx)
        step(ctx)
        if is_first:
            is_first = not check_means(feed, ctx, running.n_batches > 1)
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


def _run_epoch(running: RunningEpoch, batch_bars: BatchBars, *, is_new: bool) -> None:
    """Run an epoch; the plan of a new feed is current unless a callback was called since."""
    phase, feed, epoch, hooks = running.phase, running.feed, running.epoch, running.hooks
    recorder, state = running.recorder, phase.position
    n_done = state.begin_epoch(epoch)
    ctx = ExecutionContext(phase.label, epoch, max(0, n_done - 1))
    hooks("on_epoch_start", epoch, exec_ctx=ctx)
    if hooks.called or not is_new:
        feed.refresh()
    running.step, running.last = phase.step_of(feed), ctx
    running.n_batches, running.contexts = feed.epoch(epoch, n_done)
    if phase.training:
        _check_ahead(phase, feed, epoch, running.n_batches)
    if not n_done:
        recorder.begin()
    with (
        feed.plan.modes(),
        batch_bars(epoch, running.n_batches) as running.batch_bar,
        suppress(EpochOverError),
    ):
        batch_runner.get()(running)
    ctx, metrics = running.last, recorder.results._metrics
    recorder.end(log_losses(phase, feed, state.losses, ctx, recorder.results))
    phase.log_scores(recorder.results)
    if feed.share_run < 1:
        metrics.log("share_of_batches", feed.share_run, epoch=epoch)
    hooks("on_epoch_end", epoch, exec_ctx=ctx)
    if phase.training and phase.is_main and logger.isEnabledFor(logging.INFO):
        shown = ", ".join(f"{name} {value:.5g}" for name, value in metrics.at_epoch(epoch).items())
        logger.info("phase %r, epoch %d of %d: %s", phase.label, epoch, phase.n_epochs, shown)


def _check_ahead(phase: RunnablePhase, feed: BatchFeed, epoch: int, n_batches: int) -> None:
    """Refuse batches and schedules that would fail in the remaining epochs."""
    for node in feed.graph._running(phase.active_nodes):
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
    for optimizer in feed.graph.moving_optimizers(phase.active_nodes):
        check_length(phase, optimizer, n_batches, phase.n_epochs - epoch)


def iterate(
    phase: RunnablePhase, display: Display, results: PhaseResults | None
) -> Iterator[ExecutionContext]:
    """Yield the steps of a phase to run by hand; add each to results once it ran."""
    graph = phase.graph()
    with (
        graph.frozen_within(phase.freeze or ()),
        display.bars(phase.label, phase.n_epochs) as (epochs, batches),
    ):
        feed = phase.feed()
        feed.prepare(watch=display.sampling)
        if phase.training:
            begin_schedules(phase, feed)
        for epoch in range(phase.n_epochs):
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
