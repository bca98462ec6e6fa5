"""Checkpoints of experiments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modularml._warning import warn
from modularml.context import ExperimentContext
from modularml.engine.callback import ExperimentCallback
from modularml.engine.checkpointing import (
    EXPERIMENT_SAVE_ON,
    Checkpointing,
    checked_checkpointing,
)
from modularml.errors import ConfigError, MMLKindError, MMLNotFoundError, UnknownNameError
from modularml.experiment.history_files import (
    HistoryLog,
    packed_history,
    read_files,
    read_history,
    read_random_states,
    unpacked_history,
)
from modularml.experiment.phase_states import PlanState
from modularml.experiment.resume import described_run
from modularml.graph.files import (
    ContextYaml,
    file_backends,
    file_state,
)
from modularml.io import limits
from modularml.io.artifact import Contents, read_artifact, write_artifact
from modularml.io.names import check_label, find_file, folder_at, inside
from modularml.io.randomness import random_states, set_random_states
from modularml.phases.group import PhaseGroup, absent_classes
from modularml.phases.phase import ExperimentPhase
from modularml.phases.train_eval import TrainPhase

_SUFFIX = ".ckpt.mml"


class ExperimentCheckpoints(ContextYaml):
    """Checkpoints of an `Experiment`."""

    artifact_kind = "exp"
    makes_nodes = True
    label: str
    _ctx: ExperimentContext
    _plan: PhaseGroup
    _history: list[Any]
    _callbacks: list[ExperimentCallback]
    _checkpointing: Checkpointing | None
    _checkpoint_dir: Path | None = None
    _runner: Any

    @property
    def checkpointing(self) -> Checkpointing | None:
        """When the experiment's state is saved; None for never."""
        return self._checkpointing

    def set_checkpointing(self, checkpointing: Checkpointing | None) -> None:
        """Attach or replace the experiment's checkpointing.

        Raises
        ------
        ConfigError
            If it names hooks or template fields that an experiment lacks.
        """
        self._checkpointing = checked_checkpointing(
            checkpointing, "an Experiment", EXPERIMENT_SAVE_ON, ("label",)
        )

    @contextmanager
    def disable_checkpointing(self) -> Iterator[None]:
        """Save no checkpoints within a ``with`` block, in phases neither."""
        with self._without_checkpointing(self._plan.flatten()):
            yield

    @contextmanager
    def _without_checkpointing(self, phases: Iterable[ExperimentPhase]) -> Iterator[None]:
        checkpointing = self._checkpointing
        saved = [(p, p.checkpointing) for p in phases if isinstance(p, TrainPhase)]
        self._checkpointing = None
        for phase, _ in saved:
            phase.set_checkpointing(None)
        try:
            yield
        finally:
            self._checkpointing = checkpointing
            for phase, of_phase in saved:
                phase.set_checkpointing(of_phase)

    def set_checkpoint_dir(self, path: str | Path, *, create: bool = True) -> None:
        """Set the folder for checkpoints.

        Raises
        ------
        ConfigError
            If it does not exist and `create` is false, or is not a folder.
        """
        self._checkpoint_dir = folder_at(path, create=create)

    @property
    def available_checkpoints(self) -> dict[str, Path]:
        """Checkpoint files by name, in the experiment's folder and those of phases.

        Files with the same name in two folders are listed as ``folder/name``.
        """
        folders = self._checkpoint_folders(self._plan.flatten())
        paths = sorted({path for folder in folders for path in folder.glob(f"*{_SUFFIX}")})
        names = [path.name.removesuffix(_SUFFIX) for path in paths]
        return {
            name if names.count(name) == 1 else f"{path.parent.name}/{name}": path
            for name, path in zip(names, paths, strict=True)
        }

    def _checkpoint_folders(self, phases: Iterable[Any]) -> list[Path]:
        """Return the folders that the experiment and these phases write to."""
        checkpointings = [
            self._checkpointing,
            *(getattr(phase, "checkpointing", None) for phase in phases),
        ]
        folders = [c.directory for c in checkpointings if c is not None and c.directory is not None]
        if (checkpoint_dir := self._checkpoint_dir) is not None:
            folders += [checkpoint_dir, *filter(Path.is_dir, checkpoint_dir.glob("*"))]
        return folders

    def save_checkpoint(
        self, name: str, *, overwrite: bool = False, meta: dict[str, Any] | None = None
    ) -> Path:
        """Write weights, optimizers, history and random states to a checkpoint.

        Rows are not in it; their fingerprints are.

        Parameters
        ----------
        name : str
            Letters, digits and ``. _ = -``.
        overwrite : bool
        meta : dict, optional
            Plain data to store with it.

        Raises
        ------
        ConfigError
            If no folder was set.
        MMLError
            If the name is not a valid file name, or the file cannot be written.
        """
        if self._checkpoint_dir is None:
            raise ConfigError("there is no folder for checkpoints; call set_checkpoint_dir(path)")
        path = inside(self._checkpoint_dir, f"{check_label(name)}{_SUFFIX}")
        return self._checkpoint_to(path, overwrite, meta)

    def restore_checkpoint(self, name_or_path: str | Path, *, strict: bool = True) -> None:
        """Restore a checkpoint of this experiment, or of its graph, by node labels.

        Of a checkpoint taken during a phase, only the graph is restored; ``run(resume=path)``
        resumes the phase.

        Parameters
        ----------
        name_or_path : str or path-like
            One of `available_checkpoints`, or a file.
        strict : bool
            Whether it is an error if the rows differ from those of the checkpoint, or the plan has
            other phases, samplers or callbacks. Otherwise what fits is restored.

        Raises
        ------
        UnknownNameError
            If there is neither such a name nor such a file.
        MMLKindError
            If the file is not a checkpoint.
        MMLError
            If it is damaged or does not fit. Nothing has changed then.
        """
        contents = read_artifact(self._checkpoint_path(name_or_path), "ckpt")
        if contents.type not in ("ModelGraph", "Experiment"):
            problem = f"is a checkpoint of a {contents.type}"
            raise MMLKindError(limits.OTHER_KIND, contents.path, "", problem)
        of_phase = "in_phase" in contents.config.get("run", ())
        self._restore(contents, strict, contents.type == "Experiment" and not of_phase)

    def _checkpoint_path(self, name_or_path: str | Path) -> Path:
        checkpoints = self.available_checkpoints
        try:
            return find_file(checkpoints.get(str(name_or_path), name_or_path), "ckpt")
        except MMLNotFoundError:
            raise UnknownNameError("checkpoint", str(name_or_path), checkpoints) from None

    def _restore(
        self, contents: Contents, strict: bool, whole: bool, same_plan: bool = True
    ) -> dict[str, Any]:
        """Restore a checkpoint, or only its graph, and return its state."""
        plan = PlanState(self._plan)
        if whole:
            contents.read_log()
        with self._ctx.activate(), contents.building():
            state: dict[str, Any] = contents.state()
            names, other = state.get("plan_names"), list[str]()
            if whole:  # FeatureSets whose rows differ from those of the checkpoint
                rows = self._fingerprints()
                other = [
                    label for label, x in state["fingerprints"].items() if rows.get(label) != x
                ]
            if other and strict:
                raise ConfigError(
                    f"the rows of {other} differ from those of the checkpoint; use the same data, "
                    "or pass strict=False"
                )
            if whole and strict and same_plan and names is not None:
                plan.check(names)
            history, layouts = self._history, list[Any]()
            if whole:
                history, layouts = self._history_of(contents, state, other)
            graph, graph_state = self._ctx.model_graph, state
            if contents.type == "Experiment":
                graph_state = state["model_graph"]
            if strict and (graph is None) != (graph_state is None):
                raise ConfigError(
                    f"{'the checkpoint' if graph_state is None else 'this experiment'} has no "
                    "model graph; define the experiment as it was saved, or pass strict=False"
                )
            if graph is not None and graph_state is not None:
                graph.set_state({**graph_state, "is_built": True})
            if whole:
                plan.set(state["plan"], names, strict=strict and same_plan)
            self._history[:] = history
        if whole:
            set_random_states(state["random"])
        if contents.segment is not None and self._runner is not None and not other:
            folder = Path(contents.path).parent.resolve()
            log = HistoryLog(folder, contents.segment, history, layouts)
            self._runner.logs[folder] = log
        return state

    def _history_of(
        self, contents: Contents, state: dict[str, Any], other: Sequence[str]
    ) -> tuple[list[Any], list[Any]]:
        """Return the history and layouts of a checkpoint; add the rest of its log to `state`.

        If FeatureSets in `other` have other rows now, the history is not restored, as its results
        refer to rows by number.
        """
        segments = contents.log()
        # the files that checkpointings had written
        files = read_files(segments)
        for i, keeping in enumerate(state.get("run", {}).get("keeping", ())):
            if keeping is not None and keeping["files"] is None:
                keeping["files"] = files.get(i, [])
        if other:
            warn(
                "strict=False does not restore the history of the checkpoint: its results refer "
                f"to rows of {list(other)} by number, and these rows differ now"
            )
            if contents.segment is not None:
                state["random"] = read_random_states(segments)
            return self._history, []
        if contents.segment is None:
            return unpacked_history(state["history"]), []
        history, layouts, state["random"] = read_history(segments)
        return history, layouts

    def _write(
        self,
        filepath: str | Path,
        kind: str,
        config: Any,
        state: Any,
        overwrite: bool,
        package_code: bool = False,
    ) -> Path:
        graph = self._ctx.model_graph
        return write_artifact(
            filepath,
            kind,
            "Experiment",
            config,
            state,
            overwrite=overwrite,
            ids={i: node.label for i, node in self._ctx.available_nodes.items()},
            facts={
                "backends": {} if graph is None else file_backends(graph),
                "classes": absent_classes([*self._plan.flatten(), *self._callbacks]),
            },
            package_code=package_code,
        )

    def _checkpoint_to(
        self,
        path: Path,
        overwrite: bool,
        meta: dict[str, Any] | None,
        about: Mapping[str, Any] | None = None,
        run: Mapping[str, Any] | None = None,
        log: HistoryLog | None = None,
    ) -> Path:
        files: list[Any] = []
        if log is not None and run is not None:  # lists of files grow with a run
            files = [keeping and keeping["files"] for keeping in run["keeping"]]
            keeping = [own and {**own, "files": None} for own in run["keeping"]]
            run = {**run, "keeping": keeping}
        state = {"fingerprints": self._fingerprints(), **self._learned_state(history=log is None)}
        if log is None:
            state["random"] = random_states()
        if run is not None:
            state["run"] = run

        def config() -> dict[str, Any]:  # called after the state has been packed
            config_data: dict[str, Any] = {"label": self.label, "meta": dict(meta or {})}
            if log is not None:
                labels = {i: node.label for i, node in self._ctx.available_nodes.items()}
                config_data["log"] = vars(log.append(self._history, random_states(), labels, files))
            if about is None or run is None:
                return config_data
            parts_of_phases = [*(run["parts"] or state["plan"]), run["callbacks"]]
            is_whole = not any(part.omitted for parts in parts_of_phases for part in parts)
            return {**config_data, "run": {**about, "is_whole": is_whole}}

        return self._write(path, "ckpt", config, lambda: state, overwrite)

    def _save_run_checkpoint(
        self,
        path: Path,
        overwrite: bool,
        meta: dict[str, Any] | None,
        position: dict[str, Any] | None,
        *,
        alone: bool = False,
    ) -> Path:
        """Write a checkpoint from which the current run can be resumed.

        Unless `alone`, new entries of the history are appended to a log beside it.
        """
        folder, logs = path.parent.resolve(), self._runner.logs
        log = None if alone else logs.pop(folder, None)
        if not alone and (log is None or not log.is_intact):
            log = HistoryLog(folder)
        about, run = described_run(self._runner, self._runner.item, position)
        written = self._checkpoint_to(path, overwrite, meta, about, run, log)
        if log is not None:  # after a failure the next checkpoint starts another log
            logs[folder] = log
        return written

    def _learned_state(self, results: bool = True, *, history: bool = True) -> dict[str, Any]:
        graph = self._ctx.model_graph
        with self._ctx.activate():
            return {
                "model_graph": None if graph is None else file_state(graph),
                "plan": PlanState(self._plan).get() if results else None,
                "plan_names": PlanState(self._plan).names,
                **({"history": packed_history(self._history, results)} if history else {}),
            }

    def _fingerprints(self) -> dict[str, str]:
        sets = self._ctx.available_featuresets.values()
        return {fs.label: fs.collection.fingerprint for fs in sets}
