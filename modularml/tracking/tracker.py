"""The base class of trackers: what they log, and when."""

from __future__ import annotations

import json
import shutil
import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from modularml._arguments import at_least, with_arguments_of
from modularml._optional import has, require
from modularml._warning import warn
from modularml.engine.callback import ExperimentCallback
from modularml.engine.interruption import is_interruption
from modularml.errors import ConfigError
from modularml.strategies.comparison.config_paths import config_by_path, config_of
from modularml.strategies.held_out_checks import logged_figures
from modularml.tracking.tracked_run import Session, Store


class TrackingWarning(UserWarning):
    """A tracker stopped logging; the run that it logged is not affected."""


class Tracker(ExperimentCallback):
    """Base class of trackers; they differ in where they write.

    A tracker logs each run of an experiment: its config as parameters, the metrics of each epoch
    as ``phase/metric`` (``group/phase/metric`` within groups) with the 0-based epoch as step, and
    at the end files: the experiment as ``.mml``, curves, the graph and the audit of its rows.
    Folds, members and trials are runs below that of their cross-validation, ensemble or sweep;
    each is logged where it is trained, in a worker process too. A resumed run is the same run:
    epochs that the store holds are not logged again.

    Everything is sent by one thread. If that fails, one `TrackingWarning` is given, nothing more
    is logged, and the run goes on.

    Parameters
    ----------
    name : str, optional
        Name of the run. By default the label of the experiment, or that of its fold or trial; if a
        phase or group was run alone, its label follows.
    parent : str, optional
        Id of the run that runs are logged below. It is set in the copies of a tracker that folds,
        members and trials get. An empty string switches the tracker off.
    artifacts : bool
        Whether files are logged.
    rows : bool
        Whether the ``.mml`` has rows and recorded outputs. Without them it is enough to predict;
        see `Experiment.save`.
    timeout : float
        In seconds: how long the start and the end of a run wait for a call that does not return.
    every_seconds : float
        Least time between two transmissions of metrics.
    label : str, optional
    execution_order : int

    Attributes
    ----------
    run_id_ : str
        Id of the newest run, kept in checkpoints; empty before the first.

    Raises
    ------
    MissingDependencyError
        Before a run, if the package that writes to the store is not installed.
    """

    writes_files = True
    may_be_empty = frozenset({"parent"})
    package: ClassVar[str]
    """Module that writes to the store."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        with_arguments_of(Tracker.__init__, cls.__init__)

    def __init__(
        self,
        *,
        name: str | None = None,
        parent: str | None = None,
        artifacts: bool = True,
        rows: bool = False,
        timeout: float = 30.0,
        every_seconds: float = 2.0,
        label: str | None = None,
        execution_order: int = 0,
    ) -> None:
        at_least(0, timeout=timeout, every_seconds=every_seconds)
        super().__init__(label, execution_order)
        self.name, self.parent, self.artifacts, self.rows = name, parent, artifacts, rows
        self.timeout, self.every_seconds = timeout, every_seconds
        self.run_id_ = ""
        self._session: Session | None = None
        self._own_parent = parent

    def __getstate__(self) -> dict[str, Any]:
        """Omit the open run."""
        return {**vars(self), "_session": None}

    @staticmethod
    def as_key(name: str) -> str:
        """Return the name that the store has for a metric."""
        return name

    @abstractmethod
    def open_store(self, name: str, run_id: str, experiment: str) -> Store:
        """Create a run with a name in a store, or reopen that of an id.

        It is called in a thread. `experiment` is the label of the experiment.
        """

    # -- hooks ----------------------------------------------------------------------------------

    def check_ready(self, experiment: Any, phase: Any = None) -> None:
        """Import the package of the store, and refuse two trackers with one label."""
        labels = [c.label for c in experiment.exp_callbacks if isinstance(c, Tracker)]
        if labels.count(self.label) > 1:
            raise ConfigError(f"two trackers are labelled {self.label!r}; pass label= to one")
        require(self.package, purpose="to track runs")

    def separate_files(self, label: str) -> None:
        """Name runs by the label of their experiment, which is that of the fold."""
        self.name = None

    def on_run_start(self, *, experiment: Any, run: Any) -> None:
        """Open a run, or that of the checkpoint which is resumed."""
        with self._harmless():
            runner = experiment._runner
            if not all(phase.is_main for _, phase in runner.item.paths()):
                return
            alone = "" if run.label == experiment.label else f"_{run.label}"
            resumed = self.run_id_ if runner.is_resumed else ""
            self._begin(run, experiment, f"{self.name or experiment.label}{alone}", resumed)

    def on_epoch_end(self, *, experiment: Any, path: str, results: Any, epoch: int) -> None:
        """Add the metrics of an epoch to those that are sent next."""
        session = self._session
        if session is not None and session.error is None:
            session.add(path, results._metrics.at_epoch(epoch), epoch)
        elif session is not None:
            self._give_up(session.error)

    def on_run_end(self, *, experiment: Any, run: Any) -> None:
        """Send what was not sent, and the files; close the run."""
        session = self._session
        if session is not None and session.owner is run:
            with self._harmless():
                session.add_all(run.results)
                self._end(session, run.status, experiment, run)

    def on_variants_start(self, *, experiment: Any, label: str, resume: bool) -> None:
        """Open a run that the runs of folds, members or trials are logged below."""
        self.check_ready(experiment)
        self._own_parent, self.parent = self.parent, ""
        with self._harmless():
            note = experiment._checkpoint_dir  # a file there holds the id of the run of all
            if note is not None:
                note /= f"{label}.{self.label}.run-id".replace("/", "_")
            is_known = resume and note is not None and note.exists()
            self.parent = self._own_parent
            try:
                self._begin(label, experiment, label, note.read_text("utf-8") if is_known else "")
            finally:
                session = self._session
                self.parent = session.store.group if session is not None else ""
                _failed.discard(self.parent)
            if note is not None and self.parent:
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(self.run_id_, "utf-8")

    def on_variants_end(
        self, *, experiment: Any, label: str, runs: Any, error: BaseException | None
    ) -> None:
        """Log the mean and standard deviation (n - 1) of scores, or the best; close the run."""
        self.parent = self._own_parent
        session = self._session
        if session is None:
            return
        with self._harmless():
            results = {key: member.history[-1].results for key, member in runs.items()}
            figures = logged_figures(results, "kept")[0]
            kind = "best" if "best" in figures else "mean"
            for name in dict.fromkeys(name for row in figures.values() for name in row):
                values = [row[name] for row in figures.values() if name in row]
                score = name.replace(".", "/", 1)
                session.add(kind, {score: float(np.mean(values))}, 0)
                if len(values) > 1:
                    session.add("std", {score: float(np.std(values, ddof=1))}, 0)
            session.flush()
            is_stopped = error is not None and is_interruption(error)
            status = "interrupted" if is_stopped else "failed" if error else "completed"
            self._end(session, status, experiment)

    # -- internals ------------------------------------------------------------------------------

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Let no error of a tracker's own stop a run."""
        try:
            yield
        except TrackingWarning:  # warnings are errors, as the user asked for
            raise
        except Exception as error:  # noqa: BLE001
            self._give_up(error)

    def _begin(self, owner: Any, experiment: Any, name: str, run_id: str) -> None:
        """Open a run in a new thread, and wait for it."""
        if self.parent == "" or self.parent in _failed or self._session is not None:
            return
        opened = partial(self.open_store, name, run_id, experiment.label)
        self._session = session = Session(owner, opened, self.every_seconds, self.as_key)
        self.run_id_ = ""
        if run_id:
            session.submit(session.read_steps)
        if not session.wait(self.timeout) or session.error is not None:
            self._give_up(session.error)
            return
        self.run_id_ = session.store.run_id
        _failed.discard(self.run_id_)
        if not run_id:
            trackers = [c.label for c in experiment.exp_callbacks if isinstance(c, Tracker)]
            own = tuple(f"callbacks.{label}" for label in trackers)
            params = {
                name: value
                for name, value in config_by_path(config_of(experiment)).items()
                if value not in ("", None) and not name.startswith(own)
            }
            session.submit(lambda store: store.write_params(params))

    def _end(self, session: Session, status: str, experiment: Any, run: Any = None) -> None:
        """Send files, close the run and wait for both."""
        is_lost = bool(session.names & _failed)
        folder = Path(tempfile.mkdtemp(prefix="modularml-tracker-"))
        if self.artifacts and session.error is None and not is_lost:
            for path in self._files(folder, experiment, run):
                session.submit(lambda store, path=path: store.write_file(path))  # type: ignore[misc]
        session.close(status)
        in_time = is_lost or session.wait(self.timeout)
        session.end(partial(shutil.rmtree, folder, ignore_errors=True))
        if not in_time or session.error is not None:
            self._give_up(session.error)
        self._session = None

    def _give_up(self, error: BaseException | None) -> None:
        """Stop logging, and warn unless a run beside this one has warned."""
        session, self._session = self._session, None
        names = {self.parent, self.run_id_} - {None, ""}
        if session is not None:
            session.end()
            names |= session.names
        if names & _failed:
            return
        _failed.update(names)
        problem = f"{type(error).__name__}: {error}".partition("\n")[0] if error else ""
        problem = problem or f"no answer within timeout={self.timeout:g} seconds"
        warn(
            f"{self.label} stopped logging, and the run goes on without it: {problem:.500}. Check "
            "the store, then run again, or remove the tracker",
            TrackingWarning,
        )

    def _files(self, folder: Path, experiment: Any, run: Any) -> list[Path]:
        """Write the files of a run to a folder; those of variants belong to their runs."""
        writers: dict[str, Any] = {}
        if reports := experiment._audit.reports.values():
            writers["audit.txt"] = lambda path: path.write_text(
                "\n\n".join(map(repr, reports)) + "\n", "utf-8"
            )
        if experiment.model_graph is not None:
            writers["graph.svg"] = lambda path: experiment.model_graph.visualize().save(path)
        if run is not None and run.status == "completed":
            writers["experiment"] = partial(experiment.save, rows=self.rows)
        if run is not None and run.results.labels and has("matplotlib"):
            writers["curves.png"] = lambda path: run.results.plot(path=path)
        problems = []
        for name, write in writers.items():
            try:
                write(folder / name)
            except Exception as error:  # noqa: BLE001 - what cannot be written is left out
                problems.append(f"{name} ({type(error).__name__}: {error})".partition("\n")[0])
        if problems:
            warn(f"{self.label} logs no {', no '.join(problems)}", TrackingWarning)
        return sorted(folder.iterdir())


_failed: set[str | None] = set()
"""Ids and groups of runs that could not be logged: other runs below them are not tried."""


def shown(value: Any, length: int) -> str:
    """Return a parameter as text of at most this length."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= length else f"{text[: length - 3]}..."
