"""The state of a running phase: its position, and capturing and restoring it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from modularml.backends import StepOptions
from modularml.data.execution_context import ExecutionContext
from modularml.engine.batch_feed import BatchFeed
from modularml.engine.binding import InputBinding
from modularml.engine.callback import Callback
from modularml.errors import ConfigError
from modularml.graph.model_graph import ModelGraph
from modularml.io.randomness import random_states, set_random_states
from modularml.results.phase_results import PhaseResults
from modularml.results.recording import ResultRecording


@dataclass(eq=False)
class RunState:
    """Position of a phase in its run, which the loop moves and hooks read.

    Parameters
    ----------
    hook : str
        The hook of the checkpoint that it resumes from, as in `Checkpointing`; empty for the
        beginning.
    epoch : int
        The current epoch, 1-based; 0 before the first.
    losses : list of sequence of number
        The losses of each batch of this epoch so far.
    iteration : int
        The number of batches of all epochs so far, with the one that runs.
    stop : bool
        Whether the phase ends after this epoch.
    feed : BatchFeed, optional
        Its batches; set when it starts.
    """

    hook: str = ""
    epoch: int = 0
    losses: list[Sequence[Any]] = field(default_factory=list)
    iteration: int = 0
    stop: bool = False
    feed: Any = None

    @classmethod
    def resumed(cls, record: Mapping[str, Any]) -> RunState:
        """Return the position after the hook of a checkpoint; see `record`."""
        return cls(**{**record, "epoch": record["epoch"] + 1})

    def record(self, hook: str) -> dict[str, Any]:
        """Return the position as plain data, as seen by the last callback of a hook.

        Its ``epoch`` is 0-based; -1 before the first.
        """
        return {
            "hook": hook,
            "epoch": self.epoch - 1,
            "losses": [[float(value) for value in batch] for batch in self.losses],
            "iteration": self.iteration - (hook == "batch_start"),
            "stop": self.stop,
        }

    def state_dict(self) -> dict[str, int]:
        """Return the number of epochs and of batches so far."""
        return {"epoch": self.epoch, "iteration": self.iteration}

    def epochs(self, n_epochs: int) -> range:
        """Return the 0-based epochs left to run, starting with an unfinished one."""
        is_over = self.hook == "phase_end" or (self.hook == "epoch_end" and self.stop)
        first = max(self.epoch - 1, 0) + (self.hook in ("epoch_end", "phase_end"))
        return range(first, first if is_over else n_epochs)

    def begin_epoch(self, epoch: int) -> int:
        """Move to a 0-based epoch; return how many of its batches have run already."""
        if self.epoch != epoch + 1:
            self.epoch, self.losses = epoch + 1, []
        return len(self.losses)

    def fired_hooks(self) -> set[str]:
        """Return the hooks that were fired before the checkpoint, and are not fired again."""
        stages = ["phase_start", "epoch_start", "batch_start"]
        n_fired = {"": 0, "phase_start": 1, "epoch_start": 2, "batch_start": 3, "batch_end": 2}
        fired = stages[: n_fired.get(self.hook, 1)]
        return {f"on_{hook}" for hook in [*fired, *(["phase_end"] * (self.hook == "phase_end"))]}


class RunnablePhase(Protocol):
    """A phase as the loop sees it; implemented in `modularml.phases`."""

    label: str
    input_sources: list[InputBinding]
    active_nodes: Any
    freeze: list[str] | None
    callbacks: list[Callback]
    position: RunState
    n_epochs: int
    on_nonfinite: str
    recording: ResultRecording

    @property
    def training(self) -> bool: ...  # noqa: D102

    @property
    def logs_losses(self) -> bool: ...  # noqa: D102

    @property
    def is_main(self) -> bool: ...  # noqa: D102

    def graph(self) -> ModelGraph: ...  # noqa: D102

    def feed(self, *, live: bool = False) -> BatchFeed: ...  # noqa: D102

    def learn_from(self, feed: BatchFeed, *, live: bool = False) -> list[tuple[Any, Any]]: ...  # noqa: D102

    def all_callbacks(self) -> list[Callback]: ...  # noqa: D102

    def step_options(self) -> StepOptions: ...  # noqa: D102

    def step_of(self, feed: BatchFeed) -> Callable[[ExecutionContext], None]: ...  # noqa: D102

    def log_scores(self, results: PhaseResults) -> None: ...  # noqa: D102

    def progress(self) -> dict[str, Any] | None: ...  # noqa: D102


def phase_state(phase: RunnablePhase) -> dict[str, Any]:
    """Return everything that determines how a phase continues.

    Returns
    -------
    dict
        The state of `ModelGraph.get_state` (weights, optimizers, frozen nodes), which
        `ModelGraph.set_state` accepts, and ``run``: ``random`` states, ``samplers`` and
        ``callbacks`` in order, and ``position``: the 0-based ``epoch``, its next ``batch``, and
        the ``losses`` of its batches so far. The position is None before the first epoch.
    """
    samplers, callbacks = samplers_and_callbacks(phase)
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
    """Restore a state from `phase_state`, and return the position for the loop.

    Raises
    ------
    ConfigError
        If the phase has other samplers or callbacks than the saved one. Nothing has changed then.
    """
    run = state["run"]
    samplers, callbacks = samplers_and_callbacks(phase)
    counts = len(run["samplers"]), len(run["callbacks"])
    if counts != (len(samplers), len(callbacks)):
        raise ConfigError(
            f"phase {phase.label!r} has {len(samplers)} samplers and {len(callbacks)} callbacks, "
            f"the state has {counts[0]} and {counts[1]}; define the phase as it was saved"
        )
    phase.graph().set_state({k: v for k, v in state.items() if k != "run"})
    for part, saved in zip(samplers + callbacks, run["samplers"] + run["callbacks"], strict=True):
        part.set_state(copy.deepcopy(saved))
    set_random_states(run["random"])
    position: dict[str, Any] | None = run["position"]
    return position


def samplers_and_callbacks(phase: RunnablePhase) -> tuple[list[Any], list[Any]]:
    """Return the samplers and the callbacks of a phase, each once."""
    samplers = [b.sampler for b in phase.input_sources if b.sampler is not None]
    return list({id(s): s for s in samplers}.values()), list(phase.callbacks)


@contextmanager
def restored_on_exit(experiment: Any, phases: Iterable[RunnablePhase]) -> Iterator[None]:
    """Undo the changes of a block on exit.

    Weights, optimizers, random states, nodes, rows, history, and the states of samplers and
    callbacks are restored bit for bit.
    """
    graph = experiment.model_graph
    if graph is not None:
        graph.build()
    state = None if graph is None else graph.get_state()
    sets = {fs: fs.get_state() for fs in experiment.ctx.available_featuresets.values()}
    history, randomness = list(experiment._history), random_states()
    parts = {
        id(part): part
        for phase in phases
        for group in samplers_and_callbacks(phase)
        for part in group
    }
    saved = [(part, copy.deepcopy(part.get_state())) for part in parts.values()]
    with experiment.ctx.temporary():
        try:
            yield
        finally:
            if graph is not None and state is not None:
                graph.set_state(state)
            for fs, rows in sets.items():
                fs.set_state(rows)
            for part, part_state in saved:
                part.set_state(part_state)
            experiment._history[:] = history
            set_random_states(randomness)


@contextmanager
def restored_on_error(graph: ModelGraph | None) -> Iterator[None]:
    """Restore random states and frozen nodes if a block fails."""
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
