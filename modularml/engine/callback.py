"""Callbacks of phases and experiments, and the dispatcher of their hooks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias, TypedDict, TypeVar

from modularml._arguments import with_arguments_of
from modularml._registry import Registry
from modularml.config import Configurable, Stateful
from modularml.data.execution_context import ExecutionContext
from modularml.results.metric_store import (
    ArtifactResult,
    CallbackResult,
    MetricResult,
    PayloadResult,
)
from modularml.results.phase_results import PhaseResults

__all__ = [
    "ArtifactResult",
    "Callback",
    "CallbackOptions",
    "CallbackResult",
    "ExperimentCallback",
    "Hooks",
    "MetricResult",
    "PayloadResult",
    "PhaseHooks",
    "callback_registry",
    "registered",
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
    "on_run_start",
    "on_experiment_start",
    "on_group_start",
    "on_phase_start",
    "on_epoch_end",
    "on_phase_end",
    "on_group_end",
    "on_experiment_end",
    "on_exception",
    "on_run_end",
    "on_variants_start",
    "on_variants_end",
)


Results: TypeAlias = PhaseResults | None
C = TypeVar("C")


class _CallbackBase(Configurable, Stateful):
    """Base class of callbacks of phases and of experiments."""

    changes_weights: ClassVar[bool] = True
    """Whether batch hooks may change weights; outputs of frozen nodes are then not reused."""

    gradient_squares: Any = None
    """Receives the squared norms of gradients of each update; see `GradientSquares`."""

    measures_time: ClassVar[bool] = False
    """Whether it measures time; variants with it are trained one after another."""

    reads_batches: ClassVar[bool] = True
    """Whether its batch hooks must run after each batch, not only after several."""

    unused_hooks: tuple[str, ...] = ()
    """Hooks that it overrides, but does not need with its arguments."""

    writes_files: ClassVar[bool] = False
    """Whether it writes files or has other effects that a preview cannot undo; previews skip it."""

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
        """Raise an error for what is bound to fail, before a run starts."""

    def separate_files(self, label: str) -> None:
        """Write to separate files from now on, those of the fold with this label."""


class CallbackOptions(TypedDict, total=False):
    """Arguments of all callbacks."""

    label: str | None
    execution_order: int


class Callback(_CallbackBase):
    """Base class of phase callbacks; override the hooks you need.

    Every hook is called by keyword and may return nothing, a `CallbackResult`, or any object.

    Parameters
    ----------
    label : str, optional
        The class's name by default.
    execution_order : int
        Callbacks with higher numbers run later.

    Examples
    --------
    >>> class Counter(Callback):
    ...     def __init__(self, label=None, execution_order=0):
    ...         super().__init__(label, execution_order)
    ...         self.n = 0
    ...
    ...     def on_epoch_end(self, **facts):
    ...         self.n += 1
    >>> Counter().label
    'Counter'
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
        """Run after a batch, when its outputs and losses are known."""

    def on_epoch_end(
        self, *, experiment: Any, phase: Any, exec_ctx: ExecutionContext, results: Results = None
    ) -> Any:
        """Run after an epoch, when its metrics are logged."""

    def on_phase_end(self, *, experiment: Any, phase: Any, results: Results = None) -> Any:
        """Run after the last batch."""

    def on_exception(
        self, *, experiment: Any, phase: Any, exception: BaseException, results: Results = None
    ) -> Any:
        """Run when the phase stops with an error, which is raised afterwards."""


class ExperimentCallback(_CallbackBase):
    """Base class of experiment callbacks; override the hooks you need.

    Examples
    --------
    >>> class Bell(ExperimentCallback):
    ...     def on_experiment_end(self, *, experiment):
    ...         print(f"{experiment.label} has ended")
    >>> Bell().label
    'Bell'
    """

    def on_run_start(self, *, experiment: Any, run: Any) -> Any:
        """Run before a plan, a group or a phase is run or resumed; `run` is new in the history."""

    def on_run_end(self, *, experiment: Any, run: Any) -> Any:
        """Run after a run has ended, completed or not; see ``run.status``."""

    def on_variants_start(self, *, experiment: Any, label: str, resume: bool) -> Any:
        """Run before folds, members or trials, each with a copy of this callback."""

    def on_variants_end(
        self, *, experiment: Any, label: str, runs: Any, error: BaseException | None
    ) -> Any:
        """Run after folds, members or trials.

        `runs` holds experiments that have completed, by label; of a sweep, ``best`` alone.
        """

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

    def on_epoch_end(self, *, experiment: Any, path: str, results: Any, epoch: int) -> Any:
        """Run after an epoch of a phase, whose path is its label or ``group/label``."""

    def on_phase_end(self, *, experiment: Any, phase: Any) -> Any:
        """Run after a phase."""

    def on_exception(self, *, experiment: Any, exception: BaseException) -> Any:
        """Run when the experiment stops with an error, which is raised afterwards."""


class Hooks:
    """Calls the hooks that callbacks override, in order; others cost nothing.

    Parameters
    ----------
    callbacks : sequence of callbacks
    base : type
        Base class, whose hooks do nothing.
    hooks : sequence of str

    Attributes
    ----------
    methods : dict of str to list of (callback, callable)
        The callbacks that override each hook, with their methods.
    """

    def __init__(
        self, callbacks: Sequence[_CallbackBase], base: type, hooks: Sequence[str]
    ) -> None:
        self.methods: dict[str, list[tuple[Any, Callable[..., Any]]]] = {h: [] for h in hooks}
        for callback in sorted(callbacks, key=lambda c: c.execution_order):
            for hook in hooks:
                method = getattr(type(callback), hook, None)
                overrides = method is not getattr(base, hook) or hook in vars(callback)
                if overrides and hook not in callback.unused_hooks:
                    self.methods[hook].append((callback, getattr(callback, hook)))

    def __call__(self, hook: str, **facts: Any) -> None:
        """Call the callbacks that override a hook."""
        for _, method in self.methods[hook]:
            method(**facts)

    def report(self, error: BaseException, **facts: Any) -> Iterator[tuple[Any, Any]]:
        """Call the hooks for an error; yield each callback with the value it returned.

        Errors that the hooks raise are added to it as notes.
        """
        for callback, method in self.methods["on_exception"]:
            try:
                returned = method(**facts, exception=error)
            except BaseException as second:  # noqa: BLE001 - the first error is the one that counts
                error.add_note(f"on_exception failed in turn: {second!r}")
                continue
            yield callback, returned


class PhaseHooks(Hooks):
    """Calls the callbacks of a phase and records what they return.

    Parameters
    ----------
    phase : ExperimentPhase
    experiment : Experiment
    results : PhaseResults
    extra_callbacks : sequence of Callback
        Callbacks besides the phase's own.
    fired : collection of str
        Hooks that were fired before the phase was stopped; each is skipped once.

    Attributes
    ----------
    called : bool
        Whether any callback has been called.
    of_batches : list of Callback
        Those with hooks of batches.
    """

    def __init__(
        self,
        phase: Any,
        experiment: Any,
        results: PhaseResults,
        extra_callbacks: Sequence[Callback] = (),
        fired: Collection[str] = (),
    ) -> None:
        callbacks = [*phase.all_callbacks(), *extra_callbacks]
        if experiment.is_preview:
            callbacks = [c for c in callbacks if not c.writes_files]
        super().__init__(callbacks, Callback, PHASE_HOOKS)
        self.facts = {"experiment": experiment, "phase": phase, "results": results}
        self.results, self.fired, self.called = results, set(fired), False
        of_batches = self.methods["on_batch_start"] + self.methods["on_batch_end"]
        self.of_batches: list[Callback] = [callback for callback, _ in of_batches]

    def __call__(self, hook: str, epoch: int = 0, **facts: Any) -> None:
        """Call the callbacks that override a hook, unless it was fired before.

        What one returns is recorded before the next is called, so that early stopping sees the
        metric that an evaluation has just logged.
        """
        if hook in self.fired:
            self.fired.remove(hook)
            return
        for callback, method in self.methods[hook]:
            self.called = True
            self._record(callback, method(**self.facts, **facts), hook, epoch, facts)

    def readers_of_batches(self) -> list[Callback]:
        """Return the callbacks that each batch must wait for."""
        return [callback for callback in self.of_batches if callback.reads_batches]

    def record_error(self, error: BaseException) -> None:
        """Call the hooks for an error, and record what they return."""
        for callback, returned in self.report(error, **self.facts):
            self._record(callback, returned, "on_exception", 0, {})

    def _record(
        self, callback: Callback, returned: Any, hook: str, epoch: int, facts: Mapping[str, Any]
    ) -> None:
        """Record the value a hook returned as results with label, epoch and batch."""
        if returned is None:
            return
        ctx, edge = facts.get("exec_ctx"), hook.removeprefix("on_")
        is_results = isinstance(returned, list) and all(
            isinstance(value, CallbackResult) for value in returned
        )
        results = []
        for value in returned if is_results else [returned]:
            result = value if isinstance(value, CallbackResult) else PayloadResult(payload=value)
            result.label = result.label or callback.label
            result.edge = edge
            if ctx is not None:
                result.epoch = ctx.epoch_idx
                result.batch = ctx.batch_idx if edge.startswith("batch") else None
            results.append(result)
        self.results._add_callback_results(results, epoch)


callback_registry: Registry[type] = Registry("callback")


def registered(cls: type[C]) -> type[C]:
    """Register a callback, which may pass on `CallbackOptions` as ``**options``."""
    with_arguments_of(Callback.__init__, cls.__init__)
    callback_registry.register(cls.__name__, cls)
    return cls
