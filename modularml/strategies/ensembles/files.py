"""Bootstrap rows of members, and files of ensembles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from modularml._typing import Array, IntArray
from modularml.config import encode
from modularml.context import ExperimentContext
from modularml.data import FeatureSet
from modularml.data.packing import packed_without_rows, unpacked
from modularml.data.selectors import select_one
from modularml.errors import ConfigError, DataError
from modularml.experiment import Experiment
from modularml.experiment.saving import warn_of_stored_rows
from modularml.graph.files import (
    check_ties,
    file_backends,
    file_state,
    graph_from,
    set_file_state,
)
from modularml.graph.model_graph import ModelGraph
from modularml.io.artifact import Contents, read_artifact, write_artifact
from modularml.io.randomness import derived_seed
from modularml.splitters.base import key_list
from modularml.splitters.dealing import factorise
from modularml.strategies.folds.cv_binding import CVBinding
from modularml.strategies.predictors.member_predictions import HeldOut
from modularml.strategies.predictors.predictor import Predictor
from modularml.strategies.variants.variant import Sides, Variant

__all__ = ["EnsembleFiles", "make_bootstraps"]


def make_bootstraps(binding: CVBinding, *, n: int, seed: int) -> list[Variant]:
    """Draw the training rows of `n` members from the pool of a binding.

    A row that is drawn several times is in the training split as often, so that samplers, scalers
    and estimators see it as often. Whole groups are drawn if the binding has `group_by`, and as
    many rows as there are of each stratum if it has `stratify_by`. Rows that are not drawn are the
    validation split of the member.

    Raises
    ------
    ConfigError
        If the binding asks for what a bootstrap does not do.
    """
    _check(binding)
    pool = binding.pool()
    schema = pool.collection.schema
    columns = {
        key: pool.column(select_one(schema, key))
        for key in key_list(binding.group_by, binding.stratify_by)
    }
    groups, strata = (
        factorise(keys, columns).codes if (keys := key_list(names)) else None
        for names in (binding.group_by, binding.stratify_by)
    )
    variants = []
    for i in range(n):
        generator = np.random.default_rng(derived_seed(seed, "bootstrap", i))
        positions = _drawn(len(pool), groups, strata, generator)
        rest = np.setdiff1d(np.arange(len(pool)), positions)
        names = binding.train_split_name, binding.val_split_name
        sides = Sides(pool.indices[positions], pool.indices[rest], pool.indices, *names)
        seed_of_member = derived_seed(seed, "member", i) % 2**32
        label = str(binding.featureset.label)
        variants.append(Variant(f"member_{i}", seed_of_member, sides={label: sides}))
    return variants


def _check(binding: CVBinding) -> None:
    for name in ("val_size", "stop_size", "bins"):
        if (value := getattr(binding, name)) is not None:
            raise ConfigError(
                f"vary='bootstrap' draws rows with replacement and has no {name}, got {value!r}; "
                "omit it, and split off rows for early stopping before"
            )
    if binding.group_by is not None and binding.stratify_by is not None:
        raise ConfigError(
            "vary='bootstrap' draws whole groups or rows of each stratum, not both; pass group_by "
            "or stratify_by to the CVBinding"
        )


def _drawn(
    n: int, groups: Array | None, strata: Array | None, generator: np.random.Generator
) -> IntArray:
    """Return positions drawn with replacement, ascending."""
    if groups is not None:
        n_groups = int(groups.max()) + 1
        times = np.bincount(generator.integers(n_groups, size=n_groups), minlength=n_groups)
        return np.repeat(np.arange(n), times[groups])
    if strata is None:
        return np.sort(generator.integers(n, size=n))
    parts = [np.flatnonzero(strata == code) for code in range(int(strata.max()) + 1)]
    drawn = [part[generator.integers(len(part), size=len(part))] for part in parts]
    return np.sort(np.concatenate(drawn))


_FACTS = ("label", "n", "vary", "seed", "stacked")


class EnsembleFiles:
    """`save` and `load` of an `Ensemble`."""

    artifact_kind = "en"
    _trained: Any
    _predictor: Predictor | None
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
        predictor: Predictor = self._trained
        members = predictor.members
        graphs: list[Any] = [experiment.model_graph for experiment in members.values()]
        for graph in graphs:
            check_ties(graph)
        warn_of_stored_rows(graphs[0])
        known = {}
        if predictor.variants is not None or predictor.known is not None:
            known = predictor.known_residuals(group_by)
        elif group_by is not None:
            raise ConfigError("members of vary='seed' hold out no rows to group; omit group_by")
        nodes = [n for e in members.values() for n in e.ctx.available_nodes.items()]
        return write_artifact(
            filepath,
            self.artifact_kind,
            "Ensemble",
            self.get_config,
            lambda: {
                "model_graph": {label: _graph_state(e) for label, e in members.items()},
                "featuresets": {
                    f"{label}/{fs.label}": packed_without_rows({**fs.get_state(), "splits": {}})
                    for label, e in members.items()
                    for fs in e.ctx.available_featuresets.values()
                },
                "held_out": {label: vars(residuals) for label, residuals in known.items()},
            },
            overwrite=overwrite,
            ids={node_id: node.label for node_id, node in nodes},
            facts={"backends": file_backends(graphs[0])},
            package_code=package_code,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments and the graphs of members as plain data."""
        configs = {}
        for label, experiment in self._trained.members.items():
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
            vars(new).update({name: config[name] for name in _FACTS})
            new._set_loaded(config, _members(config, state, contents), _held_out(state))
        return new

    def _set_loaded(
        self, config: Mapping[str, Any], members: dict[str, Experiment], known: Any
    ) -> None:
        """Set what the constructor sets, of an ensemble from a file."""
        self._predictor = Predictor(members, known=known)
        self.failed_members = {k: ConfigError(str(v)) for k, v in config["failed"].items()}
        unknown = dict.fromkeys(("experiment", "phase", "bindings", "n_jobs", "timeout"))
        vars(self).update(unknown)


def _graph_state(experiment: Experiment) -> Any:
    graph: Any = experiment.model_graph
    with experiment.ctx.activate():
        return file_state(graph)


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


def _held_out(state: Mapping[str, Any]) -> dict[str, HeldOut] | None:
    """Return the residuals of a file; None if it has none."""
    n_members, known = len(state["model_graph"]), {}
    for label, data in state["held_out"].items():
        residuals, held_out, groups = data["residuals"], data["held_out"], data["groups"]
        fits = residuals.ndim == 2 and held_out.shape == (len(residuals), n_members)
        fits = fits and all(len(values) == len(residuals) for values in groups.values())
        if not fits or held_out.dtype != np.bool_ or not held_out.any(axis=1).all():
            raise DataError(f"residuals of node {label!r} do not fit its members")
        known[label] = HeldOut(residuals, held_out, groups)
    return known or None
