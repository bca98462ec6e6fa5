"""The experiment: a context, a graph, a plan of phases and a history of runs."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modularml._arguments import Checked, at_least
from modularml._warning import warn
from modularml.config import config_registry
from modularml.context import ExperimentContext, RegistrationPolicy
from modularml.engine.callback import ExperimentCallback
from modularml.engine.checkpointing import (
    Checkpointing,
)
from modularml.engine.run_state import restored_on_exit
from modularml.errors import ConfigError
from modularml.experiment.run import ExperimentRun, History, Runner, stream_events
from modularml.experiment.run_audit import Mode, RunAudit
from modularml.experiment.saving import ExperimentFiles
from modularml.experiment.trained_graph import TrainedGraph
from modularml.graph.model_graph import ModelGraph
from modularml.graph.model_node import ModelNode
from modularml.io.randomness import is_seeded, seed_all
from modularml.loops.events import Event
from modularml.phases.group import PhaseGroup
from modularml.phases.phase import ExperimentPhase, all_of
from modularml.results.group_results import PhaseGroupResults
from modularml.results.recording import ResultsConfig, ResultsStorage


class SeedWarning(UserWarning):
    """A seed was set after the weights of a model were drawn."""


class Experiment(Checked, ExperimentFiles, TrainedGraph):
    """Runs phases on a graph and records their results.

    Parameters
    ----------
    label : str
    registration_policy : RegistrationPolicy or str, optional
        What happens when a node's label is already in use.
    ctx : ExperimentContext, optional
        By default a new one, which becomes active. To use nodes that exist already, see
        `from_active_context`.
    checkpointing : Checkpointing, optional
        Saves the whole experiment's state at the ends of phases and groups.
    callbacks : list of ExperimentCallback, optional
    audit : {'warn', 'error', 'off'}
        What happens when a quick `FeatureSet.audit` of the rows of a training phase finds
        problems: warn of them, once for each version of the data, or refuse to run.
    seed : int, optional
        At least 0. Seeds Python, numpy and the loaded frameworks, now and at the start of each run,
        in separate streams; samplers without a seed get one too. Create the experiment before the
        models, whose initial weights are drawn at construction.
    deterministic : bool
        Whether runs turn on the deterministic modes of the frameworks.
    results_config : ResultsConfig, optional
        Memory limit of recorded outputs, and the folder for the rest.

    Notes
    -----
    Threads share the frameworks' random generators, so layers such as dropout are reproducible
    bit for bit only if one experiment runs at a time in a process.

    Examples
    --------
    >>> experiment = Experiment.from_active_context("first")
    >>> experiment.history
    []
    """

    def __init__(
        self,
        label: str,
        registration_policy: RegistrationPolicy | str | None = None,
        ctx: ExperimentContext | None = None,
        checkpointing: Checkpointing | None = None,
        callbacks: list[ExperimentCallback] | None = None,
        *,
        audit: Mode = "warn",
        seed: int | None = None,
        deterministic: bool = False,
        results_config: ResultsConfig | None = None,
    ) -> None:
        at_least(0, seed=seed)
        if results_config is not None and not isinstance(results_config, ResultsConfig):
            raise TypeError(f"results_config must be a ResultsConfig, got {results_config!r}")
        self._audit = RunAudit(audit)
        self.label, self.seed, self.deterministic = label, seed, deterministic
        self.results_config = results_config
        self.results_storage = ResultsStorage(results_config or ResultsConfig())
        if ctx is not None and not isinstance(ctx, ExperimentContext):
            raise TypeError(f"ctx must be an ExperimentContext or None, got {ctx!r}")
        fresh = ctx is None
        if ctx is None:
            ctx = ExperimentContext(registration_policy=registration_policy)
        elif registration_policy is not None:
            ctx.set_registration_policy(registration_policy)
        self._ctx = ctx
        self._plan = PhaseGroup(label)
        self._history: list[ExperimentRun] = []
        self._runner: Runner | None = None
        self._previewing = False
        self._sides: dict[str, Any] = {}
        """Rows of a fold by FeatureSet label, if this is the experiment of one."""
        self._callbacks: list[ExperimentCallback] = []
        initial = [] if callbacks is None else callbacks
        for callback in all_of(ExperimentCallback, "callbacks", initial):
            self.add_callback(callback)
        self._checkpointing: Checkpointing | None = None
        self.set_checkpointing(checkpointing)
        ctx.set_experiment(self)
        if fresh:  # last, so that a failure leaves the active context unchanged
            ctx.make_active()
        if seed is not None:
            _warn_of_drawn_weights(ctx, seed)
            seed_all(seed, "models")

    @classmethod
    def from_active_context(
        cls,
        label: str,
        registration_policy: RegistrationPolicy | str | None = None,
        checkpointing: Checkpointing | None = None,
        callbacks: list[ExperimentCallback] | None = None,
        **options: Any,
    ) -> Experiment:
        """Create an experiment from the nodes and the graph of the active context.

        Other options are those of the constructor.
        """
        ctx = ExperimentContext.get_active()
        return cls(label, registration_policy, ctx, checkpointing, callbacks, **options)

    # -- properties ----------------------------------------------------------------------------

    @property
    def ctx(self) -> ExperimentContext:
        """The context: nodes by id and label."""
        return self._ctx

    @property
    def model_graph(self) -> ModelGraph | None:
        """The graph of the context, or None."""
        graph: ModelGraph | None = self._ctx.model_graph
        return graph

    @property
    def audit(self) -> Mode:
        """Mode of the audit before training: warn, error or off."""
        return self._audit.mode

    @property
    def execution_plan(self) -> PhaseGroup:
        """Phases and groups that `run` executes; add to it."""
        return self._plan

    @property
    def exp_callbacks(self) -> list[ExperimentCallback]:
        """Callbacks in order of execution."""
        return sorted(self._callbacks, key=lambda c: c.execution_order)

    @property
    def history(self) -> History:
        """All runs, oldest first, including failed and interrupted ones."""
        return History(self._history)

    @property
    def last_run(self) -> ExperimentRun | None:
        """The newest run, or None."""
        return self._history[-1] if self._history else None

    def add_callback(self, callback: ExperimentCallback) -> None:
        """Add a callback; anything but an `ExperimentCallback` is a TypeError."""
        if not isinstance(callback, ExperimentCallback):
            raise TypeError(
                f"callback must be an ExperimentCallback, got a {type(callback).__name__}"
            )
        self._callbacks.append(callback)

    # -- running ------------------------------------------------------------------------------

    def run(
        self, *, resume: str | Path | None = None, strict: bool = True, **kwargs: Any
    ) -> PhaseGroupResults:
        """Run the execution plan.

        Parameters
        ----------
        resume : 'auto', name or path of a checkpoint, optional
            Resume a stopped run. ``"auto"`` takes the newest readable checkpoint of this run; if
            there is none, the run starts from the beginning. Completed phases are not run again;
            their results come from the checkpoint. On the CPU, with the same versions, the final
            state equals that of an uninterrupted run bit for bit.
        strict : bool
            Whether it is an error if the checkpoint has another config or other rows.
        **kwargs
            Display flags; see `run_phase`.

        Returns
        -------
        PhaseGroupResults
            The results of every phase by label; one run is added to the history.

        Raises
        ------
        ConfigError
            If the plan is empty, or the checkpoint is of another run.
        MMLError
            If the checkpoint at a path is damaged or does not fit.

        Notes
        -----
        If a `Checkpointing` writes to disk, Ctrl-C and SIGTERM finish the batch and write a
        checkpoint before the run ends; a second signal ends it at once.
        """
        if not len(self._plan):
            raise ConfigError(
                "the execution plan is empty; add phases with "
                "experiment.execution_plan.add_phase(phase), or run one with run_phase(phase)"
            )
        results: PhaseGroupResults = self._recorded(
            self._plan, kwargs, resume, strict, hook="experiment"
        )
        return results

    def run_phase(
        self,
        phase: ExperimentPhase,
        *,
        resume: str | Path | None = None,
        strict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Run one phase, in the plan or not, and add it to the history.

        Parameters
        ----------
        phase : TrainPhase, EvalPhase or another phase
        resume, strict
            See `run`.
        **kwargs
            ``show_training_progress``, ``show_eval_progress``, ``show_sampler_progress``,
            ``persist_progress``, ``persist_epoch_progress`` and ``val_loss_metric``.

        Returns
        -------
        TrainResults, EvalResults or other PhaseResults
        """
        _check(phase, ExperimentPhase)
        return self._recorded(phase, kwargs, resume, strict)

    def run_group(
        self,
        group: PhaseGroup,
        *,
        resume: str | Path | None = None,
        strict: bool = True,
        **kwargs: Any,
    ) -> PhaseGroupResults:
        """Run a group of phases, in the plan or not; see `run_phase`."""
        _check(group, PhaseGroup)
        results: PhaseGroupResults = self._recorded(group, kwargs, resume, strict)
        return results

    def stream(self, phase: ExperimentPhase, **kwargs: Any) -> Iterator[Event]:
        """Run one phase as a stream of events, one per epoch; see `run_phase`.

        The stages of `modularml.streams` work on it. Nothing runs before the first event is
        requested. Closing the stream, or ending the iteration, ends the phase cleanly; its results
        are in the history.

        Parameters
        ----------
        phase : TrainPhase or another phase
        **kwargs
            Display flags, see `run_phase`; progress bars are off by default.

        Yields
        ------
        Event
            ``step`` (1-based), ``epoch`` (0-based), every metric of the epoch by name
            (``train_loss``, ``val_loss``...), and ``model``, the graph itself.

        Examples
        --------
        ``pipe(experiment.stream(train), early_stop("val_loss", patience=10))``
        """
        _check(phase, ExperimentPhase)
        return stream_events(self, phase, {"show_training_progress": False, **kwargs})

    @property
    def is_preview(self) -> bool:
        """Whether a preview is running; it skips callbacks that write files."""
        return self._previewing

    def preview_phase(self, phase: ExperimentPhase, **kwargs: Any) -> Any:
        """Run a phase and undo all its changes; the history is not changed.

        Callbacks that write files (`CSVLogger`, yours with ``writes_files = True``) are skipped.
        """
        _check(phase, ExperimentPhase)
        return self._previewed([phase], kwargs, lambda runner: runner.phase(phase))

    def preview_group(self, group: PhaseGroup, **kwargs: Any) -> PhaseGroupResults:
        """Run a group and undo all its changes; the history is not changed."""
        _check(group, PhaseGroup)
        results: PhaseGroupResults = self._previewed(
            group.flatten(), kwargs, lambda runner: runner.group(group)
        )
        return results

    def preview_run(self, **kwargs: Any) -> PhaseGroupResults:
        """Run the execution plan and undo all its changes."""
        return self.preview_group(self._plan, **kwargs)

    # -- internals ----------------------------------------------------------------------------

    def __repr__(self) -> str:
        graph = None if self.model_graph is None else self.model_graph.label
        return (
            f"Experiment({self.label!r}, graph={graph!r}, {len(self._plan.flatten())} phases "
            f"planned, {len(self._history)} runs)"
        )

    def _repr_html_(self) -> str:
        text = html.escape(f"{self!r}\n{self._plan!r}")
        return f"<pre>{text}</pre>" + (self.history._repr_html_() if self._history else "")

    def _recorded(
        self,
        item: ExperimentPhase | PhaseGroup,
        flags: dict[str, Any],
        resume: str | Path | None,
        strict: bool,
        hook: str = "group",
    ) -> Any:
        runner = Runner(self, flags, item)
        with (
            self._ctx.activate(),
            runner.interruptible(),
            runner.recording(item, resume, strict) as group_results,
        ):
            if hook == "experiment" and self._checkpointing is not None and not runner.is_resumed:
                self._checkpointing.reset()
            return runner.run(item, group_results, hook)

    def _previewed(self, phases: list[ExperimentPhase], flags: dict[str, Any], work: Any) -> Any:
        before, self._previewing = self._previewing, True
        try:
            runner = Runner(self, flags)
            with (
                self._ctx.activate(),
                self._without_checkpointing(phases),
                restored_on_exit(self, phases),
                runner.reproducibly(),
            ):
                return work(runner)
        finally:
            self._previewing = before


def _check(item: Any, cls: type) -> None:
    if not isinstance(item, cls):
        raise TypeError(f"expected a {cls.__name__}, got a {type(item).__name__}")


def _warn_of_drawn_weights(ctx: ExperimentContext, seed: int) -> None:
    """Warn of weights that a seed does not determine, as they are older than it."""
    nodes = (n for n in ctx.available_computenodes.values() if isinstance(n, ModelNode))
    drawn = [
        node.label
        for node in nodes
        if node.has_weights and not node.learned_from and not is_seeded(node.backend.value)
    ]
    if drawn:
        warn(
            f"the weights of {', '.join(map(repr, drawn))} were drawn before seed={seed} was set, "
            "which does not determine them: another process gets others. Create the experiment "
            "before models that have weights at construction and before graph.build(), or seed "
            "their framework first (torch.manual_seed, keras.utils.set_random_seed)",
            SeedWarning,
        )


config_registry.register("Experiment", Experiment, overwrite=True)
