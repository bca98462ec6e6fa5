"""The experiment: a context, a graph, a plan of phases and a history of runs."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modularml._arguments import Checked, at_least
from modularml._optional import require
from modularml.config import config_registry, decode, encode
from modularml.context import ExperimentContext, RegistrationPolicy
from modularml.engine.callback import ExperimentCallback
from modularml.engine.checkpointing import (
    EXPERIMENT_SAVE_ON,
    Checkpointing,
    check_checkpointing,
)
from modularml.engine.run_state import untouched
from modularml.errors import ConfigError
from modularml.experiment.auditing import Mode, RunAudit
from modularml.experiment.files import ExperimentFiles
from modularml.experiment.run import ExperimentRun, Runner
from modularml.experiment.streaming import stream_events
from modularml.graph.model_graph import ModelGraph
from modularml.io.randomness import seed_all
from modularml.loops.events import Event
from modularml.phases.group import PhaseGroup
from modularml.phases.phase import ExperimentPhase, active_graph, all_of
from modularml.phases.train_eval import TrainPhase
from modularml.results.group_results import PhaseGroupResults
from modularml.results.spill import ResultsConfig, ResultsStorage

__all__ = ["Experiment"]


class Experiment(Checked, ExperimentFiles):
    """Runs phases on a graph and remembers what came of it.

    Parameters
    ----------
    label : str
    registration_policy : RegistrationPolicy or str, optional
        What happens when a node's label is taken, from now on.
    ctx : ExperimentContext, optional
        A new one, which becomes active, where none is given. Nodes that exist already are taken
        over by `from_active_context`.
    checkpointing : Checkpointing, optional
        Keeps the whole experiment's state at the ends of phases and groups.
    callbacks : list of ExperimentCallback, optional
    audit : {'warn', 'error', 'off'}
        What a quick `FeatureSet.audit` of the rows does that a training phase is about to read:
        warn of what it finds, once for each version of the data, or refuse to run.
    seed : int, optional
        At least 0. Seeds Python, numpy and the frameworks that are loaded, now and at the start of
        each run, in streams of their own; samplers without a seed get one too. Make the experiment
        before the models, whose first weights are drawn when they are made.
    deterministic : bool
        Whether runs turn on the frameworks' own switches for equal bits.
    results_config : ResultsConfig, optional
        How much memory recorded outputs may take, and where they go beyond it.

    Notes
    -----
    Threads share the frameworks' generators, so layers that draw numbers (dropout) give equal
    bits only where one experiment runs at a time in a process.

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
        self._callbacks: list[ExperimentCallback] = []
        given = [] if callbacks is None else callbacks
        for callback in all_of(ExperimentCallback, "callbacks", given):
            self.add_callback(callback)
        self._checkpointing: Checkpointing | None = None
        self.set_checkpointing(checkpointing)
        ctx.set_experiment(self)
        if fresh:  # last: an experiment that cannot be made leaves the active context alone
            ctx.make_active()
        if seed is not None:
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
        """Make an experiment of the nodes and the graph that were made so far.

        Other options are those of the constructor.
        """
        ctx = ExperimentContext.get_active()
        return cls(label, registration_policy, ctx, checkpointing, callbacks, **options)

    # -- what there is ------------------------------------------------------------------------

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
        """What an audit of the rows does before they are trained on: warn, error or off."""
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
    def history(self) -> list[ExperimentRun]:
        """All runs, oldest first; those that failed or were interrupted too."""
        return list(self._history)

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
            Resume a run that was stopped. With ``"auto"`` the newest checkpoint of this run
            is taken that can be read, and where there is none, the run starts from the beginning.
            Phases that were done are not run again; their results come from the checkpoint. On
            the CPU, with the same versions, all ends bit for bit as if it had never been stopped.
        strict : bool
            Whether it is an error that the checkpoint is of another config, or other rows.
        **kwargs
            Display flags, as of `run_phase`.

        Returns
        -------
        PhaseGroupResults
            Of every phase by label; one run is added to the history.

        Raises
        ------
        ConfigError
            If the plan is empty, or the checkpoint is of another run.
        MMLError
            If the checkpoint at a path is damaged or does not fit.

        Notes
        -----
        Where a `Checkpointing` writes to disk, Ctrl-C and SIGTERM let the batch finish and a
        checkpoint be written before the run ends; a second one ends it at once.
        """
        if not len(self._plan):
            raise ConfigError(
                "the execution plan is empty; add phases to experiment.execution_plan"
            )
        found: PhaseGroupResults = self._recorded(self._whole, self._plan, kwargs, resume, strict)
        return found

    def run_phase(
        self,
        phase: ExperimentPhase,
        *,
        resume: str | Path | None = None,
        strict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Run one phase, whether or not it is in the plan, and keep it in the history.

        Parameters
        ----------
        phase : TrainPhase, EvalPhase or another phase
        resume, strict
            As of `run`.
        **kwargs
            ``show_training_progress``, ``show_eval_progress``, ``show_sampler_progress``,
            ``persist_progress``, ``persist_epoch_progress`` and ``val_loss_metric``.

        Returns
        -------
        TrainResults, EvalResults or other PhaseResults
        """
        self._check(phase, ExperimentPhase)
        work = lambda runner, into: runner.phase(phase, into)  # noqa: E731
        return self._recorded(work, phase, kwargs, resume, strict)

    def run_group(
        self,
        group: PhaseGroup,
        *,
        resume: str | Path | None = None,
        strict: bool = True,
        **kwargs: Any,
    ) -> PhaseGroupResults:
        """Run a group of phases, whether or not it is in the plan; see `run_phase`."""
        self._check(group, PhaseGroup)

        def work(runner: Runner, into: PhaseGroupResults) -> PhaseGroupResults:
            runner.notify("on_group_start", phase_group=group)
            runner.items(group, into)
            runner.notify("on_group_end", phase_group=group)
            return into

        found: PhaseGroupResults = self._recorded(work, group, kwargs, resume, strict)
        return found

    def stream(self, phase: ExperimentPhase, **kwargs: Any) -> Iterator[Event]:
        """Run one phase as a stream of events, one an epoch; see `run_phase`.

        The stages of `modularml.streams` work on it. Nothing runs before the first event is asked
        for. Whoever stops iterating, or closes the stream, ends the phase cleanly: its results
        are in the history.

        Parameters
        ----------
        phase : TrainPhase or another phase
        **kwargs
            Display flags, as of `run_phase`; progress bars are off unless they are asked for.

        Yields
        ------
        Event
            ``step`` (1-based), ``epoch`` (0-based), every metric of the epoch by name
            (``train_loss``, ``val_loss``...), and ``model``, which is the graph itself.

        Examples
        --------
        ``pipe(experiment.stream(train), early_stop("val_loss", patience=10))``
        """
        self._check(phase, ExperimentPhase)
        return stream_events(self, phase, {"show_training_progress": False, **kwargs})

    @property
    def is_preview(self) -> bool:
        """Whether what runs is a preview; callbacks that write files are left out of it."""
        return self._previewing

    def preview_phase(self, phase: ExperimentPhase, **kwargs: Any) -> Any:
        """Run a phase and undo everything it changed; nothing is kept in the history.

        Callbacks that write files (`CSVLogger`, yours with ``writes_files = True``) are left out.
        """
        self._check(phase, ExperimentPhase)
        return self._previewed([phase], kwargs, lambda runner: runner.phase(phase))

    def preview_group(self, group: PhaseGroup, **kwargs: Any) -> PhaseGroupResults:
        """Run a group and undo everything it changed; nothing is kept in the history."""
        self._check(group, PhaseGroup)
        found: PhaseGroupResults = self._previewed(
            group.flatten(), kwargs, lambda runner: runner.group(group)
        )
        return found

    def preview_run(self, **kwargs: Any) -> PhaseGroupResults:
        """Run the execution plan and undo everything it changed."""
        return self.preview_group(self._plan, **kwargs)

    def predict(
        self,
        data: Any,
        *,
        node: Any | None = None,
        batch_size: int | None = None,
        unscale: bool = True,
        fmt: str = "numpy",
        decode: bool = False,
        tags: bool = False,
    ) -> Any:
        """Return the graph's outputs for new or known rows; see `ModelGraph.predict`."""
        with self._ctx.activate():
            return active_graph("predict").predict(
                data,
                node=node,
                batch_size=batch_size,
                unscale=unscale,
                fmt=fmt,
                decode=decode,
                tags=tags,
            )

    # -- checkpointing ------------------------------------------------------------------------

    @property
    def checkpointing(self) -> Checkpointing | None:
        """When the experiment's state is kept; None for never."""
        return self._checkpointing

    def set_checkpointing(self, checkpointing: Checkpointing | None) -> None:
        """Attach or replace the experiment's checkpointing.

        Raises
        ------
        ConfigError
            If it names hooks or template fields that an experiment has not.
        """
        if checkpointing is not None:
            check_checkpointing(checkpointing)
            if unknown := set(checkpointing.save_on) - EXPERIMENT_SAVE_ON:
                raise ConfigError(
                    f"save_on of an Experiment may hold {sorted(EXPERIMENT_SAVE_ON)}, got {unknown}"
                )
            Checkpointing.validate_placeholders(
                checkpointing.name_template or "", frozenset({"label"}), "Experiment"
            )
        self._checkpointing = checkpointing

    @contextmanager
    def disable_checkpointing(self) -> Iterator[None]:
        """Keep no states within a ``with`` block, neither mine nor those of phases."""
        with self._keeping_nothing(self._plan.flatten()):
            yield

    @contextmanager
    def _keeping_nothing(self, phases: Iterable[ExperimentPhase]) -> Iterator[None]:
        own = self._checkpointing
        kept = [(p, p.checkpointing) for p in phases if isinstance(p, TrainPhase)]
        self._checkpointing = None
        for phase, _ in kept:
            phase.set_checkpointing(None)
        try:
            yield
        finally:
            self._checkpointing = own
            for phase, checkpointing in kept:
                phase.set_checkpointing(checkpointing)

    # -- config and state ---------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Return label, graph, plan and callbacks as plain data; weights and rows are state."""
        with self._ctx.activate():
            return {
                "label": self.label,
                "registration_policy": self._ctx.registration_policy.value,
                "model_graph": encode(self.model_graph),
                "execution_plan": encode(self._plan),
                "checkpointing": encode(self._checkpointing),
                "callbacks": [encode(c) for c in self._callbacks],
                "audit": self.audit,
                "seed": self.seed,
                "deterministic": self.deterministic,
                "results_config": encode(self.results_config),
            }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Experiment:
        """Make an experiment from its config in the active context, with new weights.

        The FeatureSets that it reads from must be there under their labels.
        """
        ctx = ExperimentContext.get_active()
        if config["model_graph"] is not None:
            decode(config["model_graph"])
        new = cls(
            config["label"],
            config["registration_policy"],
            ctx,
            decode(config["checkpointing"]),
            [decode(c) for c in config["callbacks"]],
            audit=config.get("audit", "warn"),
            seed=config.get("seed"),
            deterministic=config.get("deterministic", False),
            results_config=decode(config.get("results_config")),
        )
        new._plan = decode(config["execution_plan"])
        return new

    def get_state(self) -> dict[str, Any]:
        """Return weights, optimizers, rows and history."""
        graph = self.model_graph
        return {
            "model_graph": None if graph is None else graph.get_state(),
            "featuresets": {
                fs.label: fs.get_state() for fs in self._ctx.available_featuresets.values()
            },
            "history": list(self._history),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to what `get_state` returned; nodes are found by label."""
        sets = {label: self._ctx.get_node(label=label) for label in state["featuresets"]}
        graph = self.model_graph
        if state["model_graph"] is not None:
            if graph is None:
                raise ConfigError(
                    "the state has a model graph, this experiment has none; make it first"
                )
            graph.set_state(state["model_graph"])
        for label, fs in sets.items():
            fs.set_state(state["featuresets"][label])  # type: ignore[attr-defined]
        self._history = list(state["history"])

    # -- within -------------------------------------------------------------------------------

    def __repr__(self) -> str:
        graph = None if self.model_graph is None else self.model_graph.label
        return (
            f"Experiment({self.label!r}, graph={graph!r}, {len(self._plan.flatten())} phases "
            "planned, "
            f"{len(self._history)} runs)"
        )

    def _repr_html_(self) -> str:
        facts = [(r.label, r.status, r.seconds, ", ".join(r.results.labels)) for r in self._history]
        columns = ["run", "status", "seconds", "phases"]
        runs = require("pandas").DataFrame(facts, columns=columns)
        text = html.escape(f"{self!r}\n{self._plan!r}")
        return f"<pre>{text}</pre>" + (runs.to_html(float_format="{:.1f}".format) if facts else "")

    def _recorded(
        self,
        work: Any,
        item: ExperimentPhase | PhaseGroup,
        flags: dict[str, Any],
        resume: str | Path | None,
        strict: bool,
    ) -> Any:
        runner = Runner(self, flags, item)
        with (
            self._ctx.activate(),
            runner.interruptible(),
            runner.recording(item, resume, strict) as into,
        ):
            return work(runner, into)

    def _previewed(self, phases: list[ExperimentPhase], flags: dict[str, Any], work: Any) -> Any:
        before, self._previewing = self._previewing, True
        try:
            runner = Runner(self, flags)
            quiet = self._keeping_nothing(phases)
            with self._ctx.activate(), quiet, untouched(self, phases), runner.reproducibly():
                return work(runner)
        finally:
            self._previewing = before

    def _whole(self, runner: Runner, into: PhaseGroupResults) -> PhaseGroupResults:
        if self._checkpointing is not None and not runner.is_resumed:
            self._checkpointing.reset()
        runner.notify("on_experiment_start")
        runner.items(self._plan, into)
        runner.notify("on_experiment_end")
        return into

    @staticmethod
    def _check(item: Any, cls: type) -> None:
        if not isinstance(item, cls):
            raise TypeError(f"expected a {cls.__name__}, got a {type(item).__name__}")


config_registry.register("Experiment", Experiment, overwrite=True)
