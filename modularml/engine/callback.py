"""What listens to a phase: callbacks, what they return, and the one dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

from modularml._registry import Registry
from modularml.config import Configurable, Stateful
from modularml.data.execution import ExecutionContext
from modularml.results.callback_results import (
    ArtifactResult,
    CallbackResult,
    MetricResult,
    PayloadResult,
)
from modularml.results.train_eval import PhaseResults

__all__ = [
    "ArtifactResult",
    "Callback",
    "CallbackResult",
    "Dispatcher",
    "ExperimentCallback",
    "MetricResult",
    "PayloadResult",
    "callback_registry",
]

PHASE_HOOKS = (
    "on_phase_start",
    "on_epoch_start",
    "on_batch_start",
    "on_batch_end",
    "on_epoch_end",
    "on_phase_end",
    "on_exception",
)
EXPERIMENT_HOOKS = (
    "on_experiment_start",
    "on_group_start",
    "on_phase_start",
    "on_phase_end",
    "on_group_end",
    "on_experiment_end",
    "on_exception",
)


Results: TypeAlias = PhaseResults | None


class _Listener(Configurable, Stateful):
    """What callbacks of phases and of experiments share."""

    changes_weights: ClassVar[bool] = True
    """Whether hooks of batches may change weights; outputs of frozen nodes are then not reused."""

    writes_files: ClassVar[bool] = False
    """Whether it writes what a preview could not undo, such as files; previews leave it out."""

    def __init__(self, label: str | None = None, execution_order: int = 0) -> None:
        self._label = label
        self._execution_order = execution_order

    @property
    def label(self) -> str:
        """Name of this callback, unique within its phase for its type."""
        return self._label or type(self).__name__

    @property
    def execution_order(self) -> int:
        """Callbacks with higher numbers run later."""
        return self._execution_order

    def check_ready(self, experiment: Any, phase: Any = None) -> None:
        """Refuse what can be known to fail before anything of a run has begun."""

    def keep_apart(self, label: str) -> None:
        """Write to files of its own from now on: it belongs to the fold with this label."""


class Callback(_Listener):
    """Listens to a phase; override the hooks you need.

    Every hook is called by keyword and may return nothing, a `CallbackResult`, or any object.

    Parameters
    ----------
    label : str, optional
        The class's name where it is not given.
    execution_order : int
        Callbacks with higher numbers run later.
    """

    def on_phase_start(self, *, experiment: Any, phase: Any, results: Results = None) -> Any:
        """Run before the first batch."""

    def on_epoch_start(
        self, *, experiment: Any, phase: Any, exec_ctx: ExecutionContext, results: Results = None
    ) -> Any:
        """Run before an epoch."""

    def on_batch_start(
        self, *, experiment: Any, phase: Any, exec_ctx: ExecutionContext, results: Results = None
    ) -> Any:
        """Run before a batch."""

    def on_batch_end(
        self, *, experiment: Any, phase: Any, exec_ctx: ExecutionContext, results: Results = None
    ) -> Any:
        """Run after a batch, outputs and losses being known."""

    def on_epoch_end(
        self, *, experiment: Any, phase: Any, exec_ctx: ExecutionContext, results: Results = None
    ) -> Any:
        """Run after an epoch, its metrics being logged."""

    def on_phase_end(self, *, experiment: Any, phase: Any, results: Results = None) -> Any:
        """Run after the last batch."""

    def on_exception(
        self, *, experiment: Any, phase: Any, exception: BaseException, results: Results = None
    ) -> Any:
        """Run when the phase stops with an error, which is raised afterwards."""


class ExperimentCallback(_Listener):
    """Listens to an experiment; override the hooks you need."""

    def on_experiment_start(self, *, experiment: Any) -> Any:
        """Run before the first phase of a run."""

    def on_experiment_end(self, *, experiment: Any) -> Any:
        """Run after the last phase of a run."""

    def on_group_start(self, *, experiment: Any, phase_group: Any) -> Any:
        """Run before a group of phases."""

    def on_group_end(self, *, experiment: Any, phase_group: Any) -> Any:
        """Run after a group of phases."""

    def on_phase_start(self, *, experiment: Any, phase: Any) -> Any:
        """Run before a phase."""

    def on_phase_end(self, *, experiment: Any, phase: Any) -> Any:
        """Run after a phase."""

    def on_exception(self, *, experiment: Any, exception: BaseException) -> Any:
        """Run when the experiment stops with an error, which is raised afterwards."""


class Dispatcher:
    """Calls the hooks that somebody overrides, in order; all others cost nothing.

    Parameters
    ----------
    listeners : sequence of callbacks
    base : type
        Class whose own hooks do nothing.
    hooks : sequence of str
    """

    def __init__(self, listeners: Sequence[_Listener], base: type, hooks: Sequence[str]) -> None:
        ordered = sorted(listeners, key=lambda c: c.execution_order)
        self._hooks: dict[str, list[tuple[_Listener, Callable[..., Any]]]] = {
            hook: [(c, getattr(c, hook)) for c in ordered if _overrides(c, base, hook)]
            for hook in hooks
        }

    def listens(self, hook: str) -> bool:
        """Tell whether anybody overrides a hook."""
        return bool(self._hooks[hook])

    def listeners(self, hook: str) -> list[_Listener]:
        """Return everybody who overrides a hook."""
        return [listener for listener, _ in self._hooks[hook]]

    def notify(self, hook: str, **facts: Any) -> Iterator[tuple[_Listener, Any]]:
        """Call a hook of everybody who overrides it, and yield what each said at once.

        What one says is known before the next is called: an early stop sees the metric that an
        evaluation has just made.
        """
        for listener, call in self._hooks[hook]:
            said = call(**facts)
            if said is not None:
                yield listener, said

    def report(self, error: BaseException, **facts: Any) -> Iterator[tuple[_Listener, Any]]:
        """Fire the hook for an error; what a callback raises in turn is added to it as a note."""
        for listener, call in self._hooks["on_exception"]:
            try:
                said = call(**facts, exception=error)
            except BaseException as second:  # noqa: BLE001 - the first error is the one that counts
                error.add_note(f"on_exception failed in turn: {second!r}")
                continue
            if said is not None:
                yield listener, said


def as_results(
    said: Any, listener: _Listener, edge: str, facts: Mapping[str, Any]
) -> list[CallbackResult]:
    """Turn what a hook returned into results that say who, when and where."""
    ctx = facts.get("exec_ctx")
    many = (
        said
        if isinstance(said, list) and all(isinstance(s, CallbackResult) for s in said)
        else [said]
    )
    found = []
    for one in many:
        result = one if isinstance(one, CallbackResult) else PayloadResult(payload=one)
        result.label = result.label or listener.label
        result.edge = edge
        if ctx is not None:
            result.epoch = ctx.epoch_idx
            result.batch = ctx.batch_idx if edge.startswith("batch") else None
        found.append(result)
    return found


def _overrides(listener: Any, base: type, hook: str) -> bool:
    own = getattr(type(listener), hook, None)
    return own is not getattr(base, hook) or hook in vars(listener)


callback_registry: Registry[type] = Registry("callback")
