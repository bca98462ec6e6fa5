"""The protocol of a phase that the loop can run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from modularml.backends import StepOptions
from modularml.data.execution import ExecutionContext
from modularml.engine.batch_feed import BatchFeed
from modularml.engine.binding import InputBinding
from modularml.engine.callback import Callback
from modularml.graph.model_graph import ModelGraph
from modularml.loops.stream import Stream
from modularml.results.phase_results import PhaseResults
from modularml.results.recording import ResultRecording

__all__ = ["RunnablePhase"]


class RunnablePhase(Protocol):
    """A phase as the loop sees it; implemented in `modularml.phases`."""

    label: str
    input_sources: list[InputBinding]
    active_nodes: Any
    freeze: list[str] | None
    callbacks: list[Callback]
    stop_requested: bool
    position: Stream
    partial_epoch: tuple[int, list[Sequence[Any]]] | None
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
