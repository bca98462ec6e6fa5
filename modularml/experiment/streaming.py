"""A phase as a stream of events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from modularml.experiment.run import Runner
from modularml.loops.events import Event
from modularml.phases.phase import ExperimentPhase

__all__ = ["stream_events"]


def stream_events(
    experiment: Any, phase: ExperimentPhase, flags: dict[str, Any]
) -> Iterator[Event]:
    """Run a phase and yield an event per epoch; see `Experiment.stream`.

    The experiment's context is active only while the phase runs.
    """
    runner = Runner(experiment, flags, phase)
    results = phase.results_class(phase.label)
    with runner.recording(phase) as group:
        group.add_result(results)
        epochs: Any = runner.epochs(phase, results)
        try:
            while True:
                with experiment.ctx.activate():
                    epoch = next(epochs, None)
                if epoch is None:
                    return
                metrics = results._metrics.at_epoch(epoch)
                graph = experiment.model_graph
                event = Event(step=epoch + 1, epoch=epoch, **metrics, model=graph)
                with runner.paused():
                    yield event
        except GeneratorExit:  # the run counts as completed
            with experiment.ctx.activate(), closing(epochs):
                return
