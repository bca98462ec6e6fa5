"""Files of ensembles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from modularml.config import encode
from modularml.context import ExperimentContext
from modularml.data.featureset import FeatureSet
from modularml.data.featureset_packing import packed_without_rows, unpacked
from modularml.errors import ConfigError, DataError
from modularml.experiment import Experiment
from modularml.graph.files import (
    check_ties,
    file_backends,
    file_state,
    graph_from,
    set_file_state,
    warn_of_stored_rows,
)
from modularml.graph.model_graph import ModelGraph
from modularml.io.artifact import Contents, read_artifact, write_artifact
from modularml.strategies.member_predictions import HeldOut, Members

_FACTS = ("label", "n", "vary", "seed", "stacked")


class EnsembleFiles:
    """`save` and `load` of an `Ensemble`."""

    artifact_kind = "en"
    _trained: Any
    _members: Members | None
    failed_members: dict[str, Any]

    def save(
        self,
        filepath: str | Path,
        *,
        overwrite: bool = False,
        package_code: bool = False,
        group_by: str | None = None,
    ) -> Path:
        """Write what `predict` needs of all members to one file ``name.en.mml``.

        The file holds the graph, weights, columns and fitted scalers of each member, but no rows.
        For intervals, it holds the residuals of rows that members have not learned from.

        Parameters
        ----------
        filepath : path-like
            The suffix is appended.
        overwrite : bool
            Whether an existing file may be replaced.
        package_code : bool
            Whether the source of your own classes is included; see `BaseModel.save`.
        group_by : str, optional
            Column of these rows that is stored too, for intervals by group.

        Warns
        -----
        UserWarning
            If an estimator stores training rows to predict with; these are in the file.

        Raises
        ------
        NotFittedError
            If no member is trained.
        MMLExistsError
            If the file exists and `overwrite` is false.
        MMLError
            If a part cannot be stored as data, or the file cannot be written.
        """
        trained: Members = self._trained
        members = trained.of
        graphs: list[Any] = [experiment.model_graph for experiment in members.values()]
        for graph in graphs:
            check_ties(graph)
        warn_of_stored_rows(graphs[0])
        known: dict[str, HeldOut] = {}
        if trained.variants is not None or trained.known is not None:
            try:
                known = trained.held_out(group_by=group_by)
            except DataError:  # the members predict no numbers
                if group_by is not None:
                    raise
        elif group_by is not None:
            raise ConfigError("members of vary='seed' hold out no rows to group; omit group_by")
        nodes = [n for e in members.values() for n in e.ctx.available_nodes.items()]

        def state() -> dict[str, Any]:
            weights, sets = {}, {}
            for label, e in members.items():
                with e.ctx.activate():
                    weights[label] = file_state(e.model_graph)
                for fs in e.ctx.available_featuresets.values():
                    rows = packed_without_rows({**fs.get_state(), "splits": {}})
                    sets[f"{label}/{fs.label}"] = rows
            held_out = {label: vars(residuals) for label, residuals in known.items()}
            return {"model_graph": weights, "featuresets": sets, "held_out": held_out}

        return write_artifact(
            filepath,
            self.artifact_kind,
            "Ensemble",
            self.get_config,
            state,
            overwrite=overwrite,
            ids={node_id: node.label for node_id, node in nodes},
            facts={"backends": file_backends(graphs[0])},
            package_code=package_code,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments and the graphs of members as plain data."""
        configs = {}
        for label, experiment in self._trained.of.items():
            with experiment.ctx.activate():
                sets = [fs.label for fs in experiment.ctx.available_featuresets.values()]
                configs[label] = {"model_graph": encode(experiment.model_graph), "sets": sets}
        failed = {label: str(error) for label, error in self.failed_members.items()}
        return {
            **{name: getattr(self, name) for name in _FACTS},
            "members": configs,
            "failed": failed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Refuse: members have weights, so an ensemble is read from a file."""
        raise ConfigError("an ensemble is more than its config; use Ensemble.load(path)")

    @classmethod
    def load(
        cls,
        filepath: str | Path,
        *,
        allow_packaged_code: bool | str = False,
        custom_objects: Mapping[str, Any] | None = None,
        allow_import: Iterable[str] = (),
    ) -> Self:
        """Read an ensemble that predicts; it has no experiment and cannot be run again.

        Parameters
        ----------
        filepath : path-like
            With or without its suffix.
        allow_packaged_code : bool or str
            Whether code that the author packaged may run; see `BaseModel.load`.
        custom_objects, allow_import
            Where your own classes are found; see `BaseModel.load`.

        Raises
        ------
        MMLError
            If the file is damaged, too new, or of another kind.
        """
        trusted = allow_packaged_code, custom_objects, allow_import
        contents = read_artifact(filepath, cls.artifact_kind, *trusted)
        contents.use_ids(contents.ids)
        with contents.building():
            config, state = contents.config, contents.state()
            new = cls.__new__(cls)
            unknown = dict.fromkeys(("experiment", "phase", "bindings", "n_jobs", "timeout"))
            vars(new).update(unknown | {name: config[name] for name in _FACTS})
            members, known = _members(config, state, contents), dict[str, HeldOut]()
            for label, data in state["held_out"].items():
                residuals, held_out, groups = data["residuals"], data["held_out"], data["groups"]
                fits = residuals.ndim == 2 and held_out.shape == (len(residuals), len(members))
                fits = fits and all(len(values) == len(residuals) for values in groups.values())
                if not fits or held_out.dtype != np.bool_ or not held_out.any(axis=1).all():
                    raise DataError(f"residuals of node {label!r} do not fit its members")
                known[label] = HeldOut(residuals, held_out, groups)
            new._members = Members(members, known=known or None)
            new.failed_members = {k: ConfigError(str(v)) for k, v in config["failed"].items()}
        return new


def _members(
    config: Mapping[str, Any], state: Mapping[str, Any], contents: Contents
) -> dict[str, Experiment]:
    """Build each member in a separate context."""
    members = {}
    for label, tree in config["members"].items():
        ctx = ExperimentContext(registration_policy="error")
        with ctx.activate():
            for name in tree["sets"]:
                rows = unpacked(state["featuresets"][f"{label}/{name}"])
                fs = FeatureSet(name, rows["collection"], node_id=contents.ids.get(name))
                fs.set_state(rows)
            graph = graph_from(ModelGraph, tree["model_graph"]["params"], contents.ids)
            set_file_state(graph, state["model_graph"][label])
            members[label] = Experiment(label, ctx=ctx, audit="off")
    if not members:
        raise DataError("it has no members")
    return members
