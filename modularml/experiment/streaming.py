"""A phase as a stream of events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from modularml.experiment.run import Runner
from modularml.loops.events import Event
from modularml.phases.phase import ExperimentPhase
from modularml.results.train_eval import PhaseResults

__all__ = ["stream_events"]


def stream_events(
    experiment: Any, phase: ExperimentPhase, flags: dict[str, Any]
) -> Iterator[Event]:
    """Run a phase and yield an event an epoch; see `Experiment.stream`.

    The experiment's context is active while the phase runs, and never while somebody else does.
    """
    runner = Runner(experiment, flags, phase)
    results = phase.results_class(phase.label)
    with runner.recording(phase) as into:
        into.add_result(results)
        epochs: Any = runner.epochs(phase, results)
        try:
            while True:
                with experiment.ctx.activate():
                    epoch = next(epochs, None)
                if epoch is None:
                    return
                event = _event(experiment, results, epoch)
                with runner.paused():
                    yield event
        except GeneratorExit:  # an end like any other: the history says completed
            with experiment.ctx.activate(), closing(epochs):
                return


def _event(experiment: Any, results: PhaseResults, epoch: int) -> Event:
    metrics = results._metrics.at_epoch(epoch)
    return Event(step=epoch + 1, epoch=epoch, **metrics, model=experiment.model_graph)
