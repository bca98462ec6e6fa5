"""An experiment in a file, and its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from modularml.config import decode
from modularml.context import ExperimentContext, RegistrationPolicy
from modularml.data import FeatureSet
from modularml.data.packing import packed, unpacked
from modularml.errors import ConfigError, MMLKindError, UnknownNameError
from modularml.experiment.checkpointing import Checkpointing
from modularml.experiment.group import PhaseGroup
from modularml.experiment.stored_history import packed_history, plain_state, unpacked_history
from modularml.graph.files import ContextYaml, graph_from
from modularml.graph.model_graph import ModelGraph
from modularml.io import inspect, limits
from modularml.io.artifact import Contents, read_artifact, write_artifact
from modularml.io.names import check_label, inside
from modularml.io.randomness import random_states, set_random_states

__all__ = ["ExperimentFiles"]

_SUFFIX = ".ckpt.mml"
_OPTIONS = ("audit", "seed", "deterministic", "results_config")


class ExperimentFiles(ContextYaml):
    """`save`, `load` and checkpoints of an `Experiment`."""

    artifact_kind = "exp"
    makes_nodes = True
    label: str
    _ctx: ExperimentContext
    _plan: PhaseGroup
    _history: list[Any]
    _checkpointing: Checkpointing | None
    _checkpoint_dir: Path | None = None

    def save(
        self, filepath: str | Path, *, overwrite: bool = False, package_code: bool = False
    ) -> Path:
        """Write everything to a file ``name.exp.mml``: rows, graph, weights, plan and history.

        Raises
        ------
        MMLExistsError
            If there is a file and `overwrite` is false.
        MMLError
            If a part cannot be stored as data, or the file not be written.
        """
        config: Any = self.get_config  # type: ignore[attr-defined]
        return self._write(filepath, "exp", config, self._file_state, overwrite, package_code)

    @classmethod
    def load(
        cls,
        filepath: str | Path,
        *,
        checkpoint_dir: str | Path | None = None,
        allow_packaged_code: bool | str = False,
        overwrite: bool = False,
        custom_objects: Mapping[str, Any] | None = None,
        allow_import: Iterable[str] = (),
    ) -> Self:
        """Read an experiment with its rows, graph and history from a file.

        Parameters
        ----------
        filepath : path-like
            With or without its suffix.
        checkpoint_dir : path-like, optional
            Folder for its checkpoints from now on.
        allow_packaged_code : bool or str
            Whether code that the author packaged may run; see `BaseModel.load`.
        overwrite : bool
            Whether nodes with the same ids or labels, and the graph of the active context, make
            room. Where they do not, the experiment has a context of its own, its ``ctx``.
        custom_objects, allow_import
            Where classes of yours are found; see `BaseModel.load`.

        Raises
        ------
        MMLError
            If the file is damaged, newer, or holds something else. Nothing has changed then.
        """
        contents = read_artifact(
            filepath,
            "exp",
            allow_packaged_code=allow_packaged_code,
            custom_objects=custom_objects,
            allow_import=allow_import,
        )
        ctx = ExperimentContext.get_active()
        contents.ids = ctx.free_ids(contents.ids, overwrite=overwrite)
        contents.use_ids(contents.ids)
        with contents.building(), ctx.beside(overwrite=overwrite) as beside:
            policy = RegistrationPolicy.from_value(contents.config["registration_policy"])
            new: Self = _built(cls, contents, beside)
            if checkpoint_dir is not None:
                new.set_checkpoint_dir(checkpoint_dir)
        new._ctx.set_registration_policy(policy)
        return new

    @staticmethod
    def inspect(filepath: str | Path) -> dict[str, Any]:
        """Tell what is in a file, of any kind, without making anything of it."""
        return inspect(filepath)

    # -- checkpoints --------------------------------------------------------------------------

    def set_checkpoint_dir(self, path: str | Path, *, create: bool = True) -> None:
        """Set the folder for checkpoints.

        Raises
        ------
        ConfigError
            If it does not exist and `create` is false, or is no folder.
        """
        folder = Path(path)
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            raise ConfigError(f"{str(folder)!r} is no folder; make it, or pass create=True")
        self._checkpoint_dir = folder

    @property
    def available_checkpoints(self) -> dict[str, Path]:
        """Files of checkpoints by name: those in the folder, and those that phases wrote."""
        folder = self._checkpoint_dir
        found = sorted(folder.glob(f"*{_SUFFIX}")) if folder is not None else []
        phases = [getattr(phase, "checkpointing", None) for phase in self._plan.flatten()]
        for kept in [self._checkpointing, *phases]:
            paths = [] if kept is None else [kept.get_path(key) for key in kept.saved_keys]
            found += [path for path in paths if path is not None]
        return {path.name.removesuffix(_SUFFIX): path for path in found}

    def save_checkpoint(
        self, name: str, *, overwrite: bool = False, meta: dict[str, Any] | None = None
    ) -> Path:
        """Write weights, optimizers, history and random states to the folder of checkpoints.

        Rows are not in it; their fingerprints are.

        Parameters
        ----------
        name : str
            Letters, digits and ``. _ = -``.
        overwrite : bool
        meta : dict, optional
            Plain data of yours, kept with it.

        Raises
        ------
        ConfigError
            If no folder was set.
        MMLError
            If the name cannot be a file's, or the file not be written.
        """
        if self._checkpoint_dir is None:
            raise ConfigError("there is no folder for checkpoints; call set_checkpoint_dir(path)")
        path = inside(self._checkpoint_dir, f"{check_label(name)}{_SUFFIX}")
        return self._checkpoint_to(path, overwrite, meta)

    def restore_checkpoint(self, name_or_path: str | Path, *, strict: bool = True) -> None:
        """Go back to a checkpoint of this experiment, or of its graph; nodes are found by label.

        Parameters
        ----------
        name_or_path : str or path-like
            One of `available_checkpoints`, or a file.
        strict : bool
            Whether rows that differ from those it was taken with are an error.

        Raises
        ------
        UnknownNameError
            If there is neither such a name nor such a file.
        MMLKindError
            If the file is no checkpoint.
        MMLError
            If it is damaged or does not fit. Nothing has changed then.
        """
        known = self.available_checkpoints
        path = known.get(str(name_or_path), Path(name_or_path))
        if not path.exists() and not path.with_name(f"{path.name}{_SUFFIX}").exists():
            raise UnknownNameError("checkpoint", str(name_or_path), known)
        contents = read_artifact(path, "ckpt")
        if contents.type not in ("ModelGraph", "Experiment"):
            problem = f"is a checkpoint of a {contents.type}"
            raise MMLKindError(limits.OTHER_KIND, contents.path, "", problem)
        with self._ctx.activate(), contents.building():
            state = contents.state()
            whole = contents.type == "Experiment"
            if whole and strict:
                self._check_rows(state["fingerprints"])
            history = unpacked_history(state["history"]) if whole else self._history
            graph = self._ctx.model_graph
            if graph is not None and (not whole or state["model_graph"] is not None):
                graph._restore(state["model_graph"] if whole else state)
            if whole:
                set_plan_states(self._plan, state["plan"])
            self._history[:] = history
        if whole:
            set_random_states(state["random"])

    # -- within -------------------------------------------------------------------------------

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
            facts={"backends": {} if graph is None else graph._file_backends()},
            package_code=package_code,
        )

    def _checkpoint_to(self, path: Path, overwrite: bool, meta: dict[str, Any] | None) -> Path:
        config = {"label": self.label, "meta": dict(meta or {})}
        return self._write(path, "ckpt", lambda: config, self._checkpoint_state, overwrite)

    def _file_state(self) -> dict[str, Any]:
        sets = self._ctx.available_featuresets.values()
        graph = self._ctx.model_graph
        with self._ctx.activate():
            return {
                "featuresets": {fs.label: packed(fs.get_state()) for fs in sets},
                "model_graph": None if graph is None else graph._file_state(),
                "plan": plan_states(self._plan),
                "history": packed_history(self._history),
            }

    def _checkpoint_state(self) -> dict[str, Any]:
        graph = self._ctx.model_graph
        with self._ctx.activate():
            return {
                "fingerprints": self._fingerprints(),
                "model_graph": None if graph is None else graph._file_state(),
                "plan": plan_states(self._plan),
                "history": packed_history(self._history),
                "random": random_states(),
            }

    def _fingerprints(self) -> dict[str, str]:
        sets = self._ctx.available_featuresets.values()
        return {fs.label: fs.collection.fingerprint for fs in sets}

    def _check_rows(self, wanted: Mapping[str, str]) -> None:
        mine = self._fingerprints()
        if other := [label for label, print_ in wanted.items() if mine.get(label) != print_]:
            raise ConfigError(
                f"the rows of {other} are not those it was taken with; give the same data, or pass "
                "strict=False"
            )


def _built(cls: Any, contents: Contents, ctx: ExperimentContext) -> Any:
    """Make an experiment and all that belongs to it in a fresh, active context."""
    config, state = contents.config, contents.state()
    for label, data in state["featuresets"].items():
        rows = unpacked(data)
        fs = FeatureSet(label, rows["collection"], node_id=contents.ids.get(label))
        fs.set_state(rows)
    if config["model_graph"] is not None:
        graph = graph_from(ModelGraph, config["model_graph"]["params"], contents.ids)
        graph._set_file_state(state["model_graph"])
    callbacks = [decode(c) for c in config["callbacks"]]
    options = {name: decode(config[name]) for name in _OPTIONS if name in config}
    new = cls(config["label"], None, ctx, decode(config["checkpointing"]), callbacks, **options)
    new._plan = decode(config["execution_plan"])
    set_plan_states(new._plan, state["plan"])
    new._history = unpacked_history(state["history"])
    return new


def plan_states(plan: PhaseGroup) -> list[list[Any]]:
    """Return what samplers have drawn and callbacks have learned, phase by phase."""
    return [[plain_state(part) for part in _parts(phase)] for phase in plan.flatten()]


def set_plan_states(plan: PhaseGroup, states: list[list[Any]]) -> None:
    """Give samplers and callbacks their states; a plan of another shape keeps its own."""
    phases = [_parts(phase) for phase in plan.flatten()]
    if [len(parts) for parts in phases] != [len(part) for part in states]:
        return
    for parts, found in zip(phases, states, strict=True):
        for part, state in zip(parts, found, strict=True):
            if state:
                part.set_state(state)


def _parts(phase: Any) -> list[Any]:
    samplers = [b.sampler for b in phase.input_sources if b.sampler is not None]
    return [*samplers, *phase.callbacks]
