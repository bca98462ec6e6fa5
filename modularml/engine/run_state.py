"""The whole state of a phase that runs: taken, and put back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from modularml.engine.runnable import RunnablePhase
from modularml.errors import ConfigError
from modularml.graph.model_graph import ModelGraph
from modularml.io.randomness import random_states, set_random_states

__all__ = [
    "Start",
    "parts_of",
    "phase_state",
    "set_phase_state",
    "undone_on_error",
    "untouched",
]


@dataclass(frozen=True)
class Start:
    """Where a loop begins: at its beginning, or behind the hook at which a state was saved.

    Parameters
    ----------
    hook : str
        As in `Checkpointing`; empty for the beginning.
    epoch : int
        0-based; -1 before the first.
    losses : list of list of float
        Of the batches of this epoch that are done.
    iteration : int
        Batches of all epochs that are done.
    stop : bool
        Whether somebody has asked the phase to end.
    """

    hook: str = ""
    epoch: int = -1
    losses: list[list[float]] = field(default_factory=list)
    iteration: int = 0
    stop: bool = False

    @classmethod
    def behind(cls, hook: str, phase: RunnablePhase) -> Start:
        """Return where a phase is, while its last callback runs."""
        at = phase.progress() or {"epoch": -1, "losses": []}
        iteration = phase.position.iteration - (hook == "batch_start")
        return cls(hook, at["epoch"], at["losses"], iteration, phase.stop_requested)

    def epochs(self, n_epochs: int) -> range:
        """Return the epochs that are to run, the one under way first."""
        over = self.hook == "phase_end" or (self.hook == "epoch_end" and self.stop)
        first = max(self.epoch, 0) + (self.hook in ("epoch_end", "phase_end"))
        return range(first, first if over else n_epochs)

    def done(self, epoch: int) -> list[list[float]]:
        """Return the losses of the batches of an epoch that are done and not to run again."""
        return self.losses if epoch == self.epoch else []

    @property
    def told(self) -> set[str]:
        """Hooks that have been fired, and would be fired once more."""
        stages = ["phase_start", "epoch_start", "batch_start"]
        ends = {"": 0, "phase_start": 1, "epoch_start": 2, "batch_start": 3, "batch_end": 2}
        found = stages[: ends.get(self.hook, 1)]
        return {f"on_{hook}" for hook in [*found, *(["phase_end"] * (self.hook == "phase_end"))]}


def phase_state(phase: RunnablePhase) -> dict[str, Any]:
    """Return all that decides how a phase goes on from here.

    Returns
    -------
    dict
        That of `ModelGraph.get_state` (weights, optimizers, what is frozen), so that
        `ModelGraph.set_state` takes it, and ``run``: ``random`` states, ``samplers`` and
        ``callbacks`` in order, and ``position``: the 0-based ``epoch``, the ``batch`` of it that
        comes next, and the ``losses`` of its batches so far. The position is None before the
        first epoch.
    """
    samplers, callbacks = parts_of(phase)
    return {
        **phase.graph().get_state(),
        "run": {
            "random": random_states(),
            "samplers": [copy.deepcopy(part.get_state()) for part in samplers],
            "callbacks": [copy.deepcopy(part.get_state()) for part in callbacks],
            "position": phase.progress(),
        },
    }


def set_phase_state(phase: RunnablePhase, state: Mapping[str, Any]) -> dict[str, Any] | None:
    """Go back to what `phase_state` returned, and return the position, which is the loop's.

    Raises
    ------
    ConfigError
        If the phase has other samplers or callbacks than the one it was taken from. Nothing has
        changed then.
    """
    run = state["run"]
    samplers, callbacks = parts_of(phase)
    given = len(run["samplers"]), len(run["callbacks"])
    if given != (len(samplers), len(callbacks)):
        raise ConfigError(
            f"phase {phase.label!r} has {len(samplers)} samplers and {len(callbacks)} callbacks, "
            f"the state has {given[0]} and {given[1]}; make the phase as it was"
        )
    phase.graph().set_state({k: v for k, v in state.items() if k != "run"})
    for part, own in zip(samplers + callbacks, run["samplers"] + run["callbacks"], strict=True):
        part.set_state(copy.deepcopy(own))
    set_random_states(run["random"])
    position: dict[str, Any] | None = run["position"]
    return position


def parts_of(phase: RunnablePhase) -> tuple[list[Any], list[Any]]:
    """Return the samplers and the callbacks of a phase, each once."""
    samplers = [b.sampler for b in phase.input_sources if b.sampler is not None]
    return list({id(s): s for s in samplers}.values()), list(phase.callbacks)


@contextmanager
def untouched(experiment: Any, phases: Iterable[RunnablePhase]) -> Iterator[None]:
    """Undo, on exit, what a block changes.

    Weights, optimizers, random states, nodes, rows, history, and the state of samplers and
    callbacks are as before, bit for bit.
    """
    graph = experiment.model_graph
    if graph is not None:
        graph.build()
    state = None if graph is None else graph.get_state()
    sets = {fs: fs.get_state() for fs in experiment.ctx.available_featuresets.values()}
    history, randomness = list(experiment._history), random_states()
    parts = {id(part): part for phase in phases for own in parts_of(phase) for part in own}
    kept = [(part, copy.deepcopy(part.get_state())) for part in parts.values()]
    with experiment.ctx.temporary():
        try:
            yield
        finally:
            if graph is not None and state is not None:
                graph.set_state(state)
            for fs, rows in sets.items():
                fs.set_state(rows)
            for part, own in kept:
                part.set_state(own)
            experiment._history[:] = history
            set_random_states(randomness)


@contextmanager
def undone_on_error(graph: ModelGraph | None) -> Iterator[None]:
    """Put random states and what is frozen back where a block fails."""
    randomness = random_states()
    frozen = set() if graph is None else set(graph.frozen_nodes)
    try:
        yield
    except BaseException:
        set_random_states(randomness)
        if graph is not None:
            now = set(graph.frozen_nodes)
            graph.freeze(list(frozen - now))
            graph.unfreeze(list(now - frozen))
        raise
