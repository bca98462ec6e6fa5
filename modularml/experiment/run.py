"""Runs of an experiment: their history entries, and the runner of phases."""

from __future__ import annotations

import html
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modularml._optional import require
from modularml.backends import Backend
from modularml.engine.callback import EXPERIMENT_HOOKS, ExperimentCallback, Hooks
from modularml.engine.checkpoint_callback import ExperimentCheckpointCallback, reserve_folder
from modularml.engine.checkpointing import Checkpointing
from modularml.engine.display import Display, check_flags
from modularml.engine.interruption import Interruption, exit_on_signals, is_interruption
from modularml.engine.loop import phase_epochs
from modularml.engine.monitoring import check_lengths
from modularml.engine.run_state import RunState, restored_on_error, samplers_and_callbacks
from modularml.experiment.resume import config_hash, resume_from
from modularml.graph.files import check_storable
from modularml.io.atomic import Owned
from modularml.io.randomness import (
    OwnRandomness,
    derived_seed,
    deterministic,
    seed_of_state,
    set_random_states,
    unchanged_randomness,
)
from modularml.loops.events import Event
from modularml.phases.group import PhaseGroup
from modularml.phases.phase import ExperimentPhase
from modularml.results.group_results import PhaseGroupResults
from modularml.results.phase_results import PhaseResults

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


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


@dataclass
class ExperimentRun:
    """One entry of an experiment's history.

    Parameters
    ----------
    label : str
        Label of the phase or group that ran.
    started_at, ended_at : datetime
        In UTC.
    status : {'running', 'completed', 'failed', 'interrupted'}
    results : PhaseGroupResults
        Results of every phase that was started.
    execution_meta : dict
        ``durations`` in seconds by phase label (``group/label`` if an earlier phase has the same
        label), the ``error`` of a failed run, and ``limit_batches`` by path of the phases with it.
    metadata : dict
        Your own data.
    """

    label: str
    started_at: datetime
    ended_at: datetime | None = None
    status: str = "running"
    results: PhaseGroupResults = field(default_factory=lambda: PhaseGroupResults("run"))
    execution_meta: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_pandas(self) -> pd.DataFrame:
        """Return epoch metrics of every phase; see `PhaseGroupResults.to_pandas`."""
        return self.results.to_pandas()

    @property
    def seconds(self) -> float:
        """Duration of the run, so far if it is still running."""
        return ((self.ended_at or datetime.now(UTC)) - self.started_at).total_seconds()

    def __repr__(self) -> str:
        facts = f"{self.status}, {self.seconds:.1f} s, {self.results.labels}"
        return f"ExperimentRun({self.label!r}, {facts})"

    def _repr_html_(self) -> str:
        return f"<b>{html.escape(repr(self))}</b>{self.results._repr_html_()}"


class History(list[ExperimentRun]):
    """The runs of an experiment, oldest first; a list that notebooks show as a table."""

    def _repr_html_(self) -> str:
        facts = [(r.label, r.status, r.seconds, ", ".join(r.results.labels)) for r in self]
        columns = ["run", "status", "seconds", "phases"]
        frame: pd.DataFrame = require("pandas").DataFrame(facts, columns=columns)
        return frame.to_html(float_format="{:.1f}".format)


class Runner:
    """Runs phases and groups of one experiment, and times them.

    Parameters
    ----------
    experiment : Experiment
    flags : dict
        Display flags, as given to ``run``.
    item : phase or PhaseGroup, optional
        What will run, if checkpoints of the run may be written.

    Attributes
    ----------
    number : int
        The number of runs completed before.
    logs : dict of Path to HistoryLog
        The logs beside the checkpoints of this run, by folder.
    n_fired, done : int
        The number of experiment hooks fired so far, and of finished phases.
    """

    def __init__(
        self,
        experiment: Any,
        flags: dict[str, Any],
        item: ExperimentPhase | PhaseGroup | None = None,
    ) -> None:
        self.experiment, self.item = experiment, item
        self.flags = check_flags(flags)
        quiet = experiment.is_preview
        callbacks = [c for c in experiment.exp_callbacks if not (c.writes_files and quiet)]
        if experiment.checkpointing is not None:
            callbacks = [*callbacks, ExperimentCheckpointCallback(experiment.checkpointing)]
        self.hooks = Hooks(callbacks, ExperimentCallback, EXPERIMENT_HOOKS)
        self._number = len(experiment.history)
        self.durations: dict[str, float] = {}
        self._path: list[str] = []
        self.number = sum(run.status == "completed" for run in experiment._history)
        self.n_fired = self.done = self._begun = 0
        self._resumed: dict[str, Any] = {"told": 0, "done": 0}
        self._interruption: Interruption | None = None
        self.own = OwnRandomness()
        self.owned = Owned()
        self.logs: dict[Path, Any] = {}

    def phase(self, phase: ExperimentPhase, into: PhaseGroupResults | None = None) -> PhaseResults:
        """Run a phase; its results are added first, so that a failed one leaves some."""
        results: PhaseResults = self._results(phase.results_class, phase.label, into)
        for _ in self.epochs(phase, results):
            pass
        return results

    @property
    def is_resumed(self) -> bool:
        """Whether it resumes a run that was stopped."""
        return "item" in self._resumed

    def _results(self, cls: Any, label: str, into: PhaseGroupResults | None) -> Any:
        """Return new results, or those of the run that is resumed."""
        if into is not None and self.is_resumed and label in into.labels:
            return into[label]
        results = cls(label)
        if into is not None:
            into.add_result(results)
        return results

    def epochs(self, phase: ExperimentPhase, results: PhaseResults) -> Iterator[int]:
        """Run a phase and yield the number of each finished epoch; skip if complete."""
        self._begun += 1
        is_left = self._begun > self._resumed["done"]
        if is_left and "in_phase" not in self._resumed:
            self._seed_samplers(phase)
        self.notify("on_phase_start", phase=phase)
        if is_left:
            record, started = self._resumed.pop("in_phase", None), time.perf_counter()
            path = "/".join([*self._path, phase.label])
            epochs = phase_epochs(
                phase,
                self.experiment,
                results,
                Display.from_flags(self.flags, training=phase.training),
                state=None if record is None else RunState.resumed(record),
                extra_callbacks=[] if self._interruption is None else [self._interruption],
            )
            try:
                with closing(epochs):
                    for epoch in epochs:
                        self.hooks(
                            "on_epoch_end",
                            experiment=self.experiment,
                            path=path,
                            results=results,
                            epoch=epoch,
                        )
                        yield epoch
            finally:
                name = path if phase.label in self.durations else phase.label
                self.durations[name] = time.perf_counter() - started
            self.done += 1
        self.notify("on_phase_end", phase=phase)

    def group(self, group: PhaseGroup, into: PhaseGroupResults | None = None) -> PhaseGroupResults:
        """Run all phases and groups of a group, in order."""
        results: PhaseGroupResults = self._results(PhaseGroupResults, group.label, into)
        self._path.append(group.label)
        self.run(group, results)
        self._path.pop()
        return results

    def run(
        self, item: ExperimentPhase | PhaseGroup, into: PhaseGroupResults, hook: str = "group"
    ) -> Any:
        """Run a phase, or all items of a group between hooks, adding to these results.

        `hook` is ``"group"``, or ``"experiment"`` for the whole plan.
        """
        if not isinstance(item, PhaseGroup):
            return self.phase(item, into)
        facts = {"phase_group": item} if hook == "group" else {}
        self.notify(f"on_{hook}_start", **facts)
        for part in item.all:
            self.group(part, into) if isinstance(part, PhaseGroup) else self.phase(part, into)
        self.notify(f"on_{hook}_end", **facts)
        return into

    def notify(self, hook: str, **facts: Any) -> None:
        """Fire a hook of the experiment, unless it was fired before a resume."""
        self.n_fired += 1
        if self.n_fired > self._resumed["told"]:
            self.hooks(hook, experiment=self.experiment, **facts)

    @contextmanager
    def recording(
        self,
        item: ExperimentPhase | PhaseGroup,
        resume: str | Path | None = None,
        strict: bool = True,
    ) -> Iterator[PhaseGroupResults]:
        """Record a block as one entry of the history, whether or not it fails."""
        before, self.experiment._runner = self.experiment._runner, self
        results = PhaseGroupResults(item.label)
        run = ExperimentRun(item.label, datetime.now(UTC), results=results)
        try:
            self._check_ready(item, run, resume)
            with unchanged_randomness() if self.experiment.seed is not None else nullcontext():
                state = None if resume is None else resume_from(self, item, resume, strict)
        except BaseException:
            self.owned.release()
            self.experiment._runner = before
            raise
        if state is None:
            self.experiment._history.append(run)
        run = self.experiment._history[-1]
        try:
            self.hooks("on_run_start", experiment=self.experiment, run=run)
            self.experiment._audit.check(item, self.experiment.ctx)
            with self.reproducibly(), restored_on_error(self.experiment.model_graph):
                if state is not None:
                    set_random_states(state["random"])
                    if state["random"].get("tensorflow") is None and self._runs(Backend.TENSORFLOW):
                        logger.warning(
                            "the checkpoint holds no random states of TensorFlow, as it was "
                            "written with MODULARML_PUBLIC_ONLY=1 or by an older version; "
                            "dropout and other draws differ from those of a run that was never "
                            "stopped"
                        )
                yield run.results
            run.status = "completed"
        except BaseException as error:
            run.status = "interrupted" if is_interruption(error) else "failed"
            run.execution_meta["error"] = error
            for _ in self.hooks.report(error, experiment=self.experiment):
                pass
            raise
        finally:
            self.owned.release()
            self.experiment._runner = before
            run.ended_at = datetime.now(UTC)
            run.execution_meta["durations"] = self.durations
            limits = {path: phase.limit_batches for path, phase in item.paths()}
            if limits := {path: limit for path, limit in limits.items() if limit is not None}:
                run.execution_meta["limit_batches"] = limits
            self.hooks("on_run_end", experiment=self.experiment, run=run)

    def _check_ready(
        self, item: ExperimentPhase | PhaseGroup, run: ExperimentRun, resume: str | Path | None
    ) -> None:
        """Raise errors that can be foreseen in any phase, before the first starts."""
        checkpointing, graph = self.experiment.checkpointing, self.experiment.model_graph
        try:
            for callback in self.experiment.exp_callbacks:
                callback.check_ready(self.experiment)
            if checkpointing is not None and checkpointing.mode == "disk":
                reserve_folder(
                    checkpointing, self.experiment, "", [phase.label for _, phase in item.paths()]
                )
            for _, phase in item.paths():
                phase.check_ready(self.experiment)
            if graph is not None and self._on_disk:
                check_storable(graph)
            # schedules are restored when a run is resumed
            if graph is not None and resume is None:
                check_lengths(item.flatten(), graph)
        except Exception as error:
            run.status, run.ended_at, run.execution_meta["error"] = "failed", run.started_at, error
            self.experiment._history.append(run)
            raise

    # -- checkpoints and resuming -------------------------------------------------------------

    @cached_property
    def config(self) -> str:
        """Hash of what defines the run."""
        assert self.item is not None
        return config_hash(self.experiment, self.item)

    def resume(self, run_info: dict[str, Any]) -> None:
        """Skip finished phases and fired hooks from now on."""
        self._resumed, self.done = dict(run_info), run_info["done"]
        self._number = len(self.experiment.history) - 1

    @cached_property
    def _on_disk(self) -> list[Checkpointing]:
        """The checkpointings that write files during this run."""
        assert self.item is not None
        checkpointings = [self.experiment.checkpointing]
        checkpointings += [getattr(phase, "checkpointing", None) for phase in self.item.flatten()]
        return [c for c in checkpointings if c is not None and c.mode == "disk"]

    def interruptible(self) -> AbstractContextManager[Any]:
        """Return a context in which signals end the run, with a checkpoint if on disk."""
        on_disk = self._on_disk
        folder = (on_disk[0].directory or self.experiment._checkpoint_dir) if on_disk else None
        if folder is None:
            spills = self.experiment.results_storage.config.memory_budget is not None
            return exit_on_signals() if spills else nullcontext()  # to remove temporary files
        path, save = Path(folder) / "interrupted.ckpt.mml", self.experiment._save_run_checkpoint
        self._interruption = Interruption(path, save)
        return self._interruption.catching

    @contextmanager
    def reproducibly(self) -> Iterator[None]:
        """Seed random generators and turn on deterministic modes, as configured."""
        seed = self.experiment.seed
        randomness = (
            self.own.shared() if seed is None else self.own.seeded(seed, "run", self._number)
        )
        with randomness, deterministic() if self.experiment.deterministic else nullcontext():
            yield

    def paused(self) -> AbstractContextManager[None]:
        """Restore the random states of the caller within a block."""
        return nullcontext() if self.experiment.seed is None else self.own.paused()

    def _runs(self, backend: Backend) -> bool:
        """Return whether a node of the graph runs in a framework."""
        graph = self.experiment.model_graph
        nodes = () if graph is None else graph.nodes.values()
        return any(getattr(node, "backend", None) is backend for node in nodes)

    def _seed_samplers(self, phase: ExperimentPhase) -> None:
        """Seed samplers without a seed from the experiment or the global generators."""
        samplers, _ = samplers_and_callbacks(phase)
        unseeded = [(i, sampler) for i, sampler in enumerate(samplers) if sampler.seed is None]
        seed = self.experiment.seed
        if unseeded and seed is None:
            seed = seed_of_state(self._runs(Backend.TORCH))
        for i, sampler in unseeded:
            names = self._number, *self._path, phase.label, i
            sampler.seed_ = derived_seed(seed, "sampler", *names)
