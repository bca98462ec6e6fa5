"""Saving and loading of experiments, and their checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from modularml.config import decode, encode
from modularml.context import ExperimentContext, RegistrationPolicy
from modularml.data.featureset import FeatureSet
from modularml.data.featureset_packing import packed, packed_without_rows, unpacked
from modularml.errors import ConfigError
from modularml.experiment.checkpoints import ExperimentCheckpoints
from modularml.experiment.history_files import (
    unpacked_history,
)
from modularml.experiment.phase_states import PlanState
from modularml.experiment.run_audit import RunAudit
from modularml.graph.files import (
    attach_rows,
    check_ties,
    graph_from,
    set_file_state,
    warn_of_stored_rows,
)
from modularml.graph.model_graph import ModelGraph
from modularml.io.artifact import read_artifact
from modularml.io.inspection import inspect
from modularml.phases.group import callback_from, plan_from
from modularml.results.recording import ResultsConfig

_OPTIONS = ("audit", "seed", "deterministic", "results_config")


class ExperimentFiles(ExperimentCheckpoints):
    """`save`, `load`, config and state of an `Experiment`."""

    _audit: RunAudit
    seed: int | None
    deterministic: bool
    results_config: ResultsConfig | None

    def save(
        self,
        filepath: str | Path,
        *,
        overwrite: bool = False,
        package_code: bool = False,
        rows: bool = True,
        results: bool | None = None,
    ) -> Path:
        """Save rows, graph, weights, plan and history to a file ``name.exp.mml``.

        Parameters
        ----------
        filepath : path-like
            The suffix is appended.
        overwrite : bool
            Whether an existing file may be replaced.
        package_code : bool
            Whether the source of your own classes is included; see `BaseModel.save`.
        rows : bool
            Whether rows are included. Without them, the file has columns, fitted scalers, the row
            numbers of each split and the fingerprint of the data: enough for `predict`, and for
            `attach` to restore the rows. How splits were made is omitted, since conditions contain
            values.
        results : bool, optional
            Whether recorded outputs, results and states of callbacks, and error messages are
            included; by default if rows are, since they may reveal values of rows. Metrics are
            always included.

        Warns
        -----
        UserWarning
            If rows are omitted, but an estimator stores training rows to predict with.

        Raises
        ------
        MMLExistsError
            If the file exists and `overwrite` is false.
        MMLError
            If a part cannot be stored as data, or the file cannot be written.
        """
        graph = self._ctx.model_graph
        if graph is not None:
            check_ties(graph)
        if not rows and graph is not None:
            warn_of_stored_rows(graph)

        def state() -> dict[str, Any]:
            pack = packed if rows else packed_without_rows
            sets = self._ctx.available_featuresets.values()
            featuresets = {fs.label: pack(fs.get_state()) for fs in sets}
            whole = rows if results is None else results
            return {"featuresets": featuresets, **self._learned_state(whole)}

        return self._write(filepath, "exp", self.get_config, state, overwrite, package_code)

    def attach(self, *sets: FeatureSet) -> None:
        """Restore rows that ``save(rows=False)`` omitted; see `FeatureSet.attach`."""
        attach_rows(self._ctx, sets)

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
        """Load an experiment with its rows, graph and history from a file.

        Parameters
        ----------
        filepath : path-like
            With or without its suffix.
        checkpoint_dir : path-like, optional
            Folder for its checkpoints from now on.
        allow_packaged_code : bool or str
            Whether code that the author packaged may run; see `BaseModel.load`.
        overwrite : bool
            Whether nodes with the same ids or labels, and the graph of the active context, are
            replaced. Otherwise the experiment gets a separate context, its ``ctx``.
        custom_objects, allow_import
            Where your own classes are found; see `BaseModel.load`.

        Notes
        -----
        Classes and functions that only phases and callbacks use may be missing: the graph still
        predicts, and a run that needs one is refused with its name.

        Raises
        ------
        MMLError
            If the file is damaged, too new, or of another kind. Nothing has changed then.
        """
        trusted = allow_packaged_code, custom_objects, allow_import
        contents = read_artifact(filepath, "exp", *trusted)
        ctx = ExperimentContext.get_active()
        contents.ids = ctx.free_ids(contents.ids, overwrite=overwrite)
        contents.use_ids(contents.ids)
        with contents.building(), ctx.beside(overwrite=overwrite) as beside:
            policy = RegistrationPolicy.from_value(contents.config["registration_policy"])
            config, state = contents.config, contents.state()
            for label, data in state["featuresets"].items():
                rows = unpacked(data)
                fs = FeatureSet(label, rows["collection"], node_id=contents.ids.get(label))
                fs.set_state(rows)
            if config["model_graph"] is not None:
                graph = graph_from(ModelGraph, config["model_graph"]["params"], contents.ids)
                set_file_state(graph, state["model_graph"])
            callbacks = [callback_from(c, contents) for c in config["callbacks"]]
            options = {name: decode(config[name]) for name in _OPTIONS if name in config}
            make: Any = cls
            new: Self = make(
                config["label"], None, beside, decode(config["checkpointing"]), callbacks, **options
            )
            names = state.get("plan_names")
            parts = (
                [names_of_phase for _, names_of_phase in names]
                if names
                else [range(len(names_of_phase)) for names_of_phase in state["plan"] or ()]
            )
            new._plan = plan_from(config["execution_plan"], contents, parts)
            if state["plan"] is not None:
                PlanState(new._plan).set(state["plan"], None, strict=True)  # matched by position
            new._history = unpacked_history(state["history"])
            if checkpoint_dir is not None:
                new.set_checkpoint_dir(checkpoint_dir)
        new._ctx.set_registration_policy(policy)
        return new

    @staticmethod
    def inspect(filepath: str | Path) -> dict[str, Any]:
        """Describe the contents of a file of any kind without loading it."""
        facts: dict[str, Any] = inspect(filepath)
        return facts

    def get_config(self) -> dict[str, Any]:
        """Return label, graph, plan and callbacks as plain data; weights and rows are state."""
        with self._ctx.activate():
            return {
                "label": self.label,
                "registration_policy": self._ctx.registration_policy.value,
                "model_graph": encode(self._ctx.model_graph),
                "execution_plan": encode(self._plan),
                "checkpointing": encode(self._checkpointing),
                "callbacks": [encode(c) for c in self._callbacks],
                "audit": self._audit.mode,
                "seed": self.seed,
                "deterministic": self.deterministic,
                "results_config": encode(self.results_config),
            }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Create an experiment from its config in the active context, with new weights.

        The FeatureSets it reads from must exist under their labels.
        """
        make: Any = cls
        new: Self = make(
            config["label"],
            config["registration_policy"],
            ExperimentContext.get_active(),
            decode(config["checkpointing"]),
            [decode(c) for c in config["callbacks"]],
            **{name: decode(config[name]) for name in _OPTIONS if name in config},
        )
        if config["model_graph"] is not None:
            decode(config["model_graph"])  # after the seed is set, as in a script
        new._plan = decode(config["execution_plan"])
        return new

    def get_state(self) -> dict[str, Any]:
        """Return weights, optimizers, rows and history."""
        graph = self._ctx.model_graph
        return {
            "model_graph": None if graph is None else graph.get_state(),
            "featuresets": {
                fs.label: fs.get_state() for fs in self._ctx.available_featuresets.values()
            },
            "history": list(self._history),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from `get_state`; nodes are found by label."""
        sets = {label: self._ctx.get_node(label=label) for label in state["featuresets"]}
        graph = self._ctx.model_graph
        if state["model_graph"] is not None:
            if graph is None:
                raise ConfigError(
                    "the state has a model graph but this experiment has none; create it first"
                )
            graph.set_state(state["model_graph"])
        for label, fs in sets.items():
            fs.set_state(state["featuresets"][label])  # type: ignore[attr-defined]
        self._history = list(state["history"])
