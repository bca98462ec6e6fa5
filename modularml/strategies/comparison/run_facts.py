"""Facts of runs to compare: config, rows, metrics and durations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from modularml._typing import IntArray
from modularml.audit.likeness import id_words
from modularml.data.collection import SampleCollection
from modularml.data.ids import make_ids
from modularml.data.schema import SAMPLE_UUIDS
from modularml.errors import MMLError, MMLKindError
from modularml.experiment import Experiment, PhaseGroupResults, TrainResults
from modularml.experiment.run import ExperimentRun
from modularml.io import inspect, limits
from modularml.io.archive import open_archive
from modularml.io.tensors import load_table, load_tensors
from modularml.strategies.comparison.config_paths import config_by_path, config_of
from modularml.strategies.ensembles.ensemble import Ensemble
from modularml.strategies.folds.cv_results import CVResults
from modularml.strategies.folds.folds import logged_figures

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "RunFacts",
    "facts_of_ensemble",
    "facts_of_experiment",
    "facts_of_file",
    "facts_of_folds",
    "facts_of_run",
    "row_key",
]

RowKey: TypeAlias = tuple[int, int, int]
Split: TypeAlias = tuple[str, str | None]
"""Label of a FeatureSet, and a split of it; None for all rows."""


@dataclass(frozen=True)
class RunFacts:
    """Facts of one run, of the folds of a cross-validation, or of the members of an ensemble.

    Parameters
    ----------
    kind : {'run', 'folds', 'ensemble'}
    config : dict
        Settings by path.
    fingerprints : dict
        Fingerprint of the data by FeatureSet label.
    sizes : dict
        Number of rows by FeatureSet and split; a range such as ``40-41`` over members.
    keys : dict
        What identifies the rows, by FeatureSet and split; None if unknown.
    reads : dict
        FeatureSets and splits that phases (``test``) and evaluations (``train.val``) read.
    metrics, spread : dict
        Value of each metric, over members their mean and standard deviation.
    n_members : int or None
        Number of folds, or of members of an ensemble.
    seconds : float or None
    status : str
    """

    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    sizes: dict[Split, Any] = field(default_factory=dict)
    keys: dict[Split, Any] = field(default_factory=dict)
    reads: dict[str, list[Split]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    n_members: int | None = None
    seconds: float | None = None
    status: str = "not run"

    def rows_of(self, metric: str) -> frozenset[Any] | None:
        """Return what identifies the rows that a metric was computed on; None if unknown."""
        phase = next((p for p in self.reads if metric.startswith(f"{p}.")), None)
        if phase is None:
            return None
        name, own = metric.removeprefix(f"{phase}."), self.reads[phase]
        evaluations = {
            key.removeprefix(f"{phase}."): splits
            for key, splits in self.reads.items()
            if key.startswith(f"{phase}.")
        }
        matching = [s for e, s in evaluations.items() if name == e or name.startswith(f"{e}_")]
        if name != "train_loss" and evaluations:
            own = [split for splits in matching[:1] or evaluations.values() for split in splits]
        keys = {self.keys.get(split) for split in own}
        return None if None in keys or not keys else frozenset(keys)


def row_key(collection: SampleCollection, rows: IntArray | None = None) -> RowKey | None:
    """Return what identifies rows, in any order: number, sum and xor of hashed sample ids.

    None if the ids were omitted from a file.
    """
    if collection.n_absent and SAMPLE_UUIDS in collection.table.column_names:
        return None
    if collection.n_absent:
        ids = make_ids(collection.fingerprint, collection.n_absent)
    else:
        ids = collection.ids
    words = id_words(ids if rows is None else ids[rows])
    return len(words), int(words.sum(dtype=np.uint64)), int(np.bitwise_xor.reduce(words))


def facts_of_experiment(experiment: Experiment) -> dict[str, RunFacts]:
    """Return the facts of each run of an experiment, by label of the run; "" if there is none."""
    common = _config_and_rows(experiment)
    if not experiment.history:
        return {"": RunFacts("run", **common)}
    names = _unique(run.label for run in experiment.history)
    return {name: _of_run(run, common) for name, run in zip(names, experiment.history, strict=True)}


def facts_of_run(run: ExperimentRun) -> RunFacts:
    """Return the facts of a run without its experiment: metrics, duration and status."""
    return _of_run(run, {})


def facts_of_folds(cv: CVResults) -> RunFacts:
    """Return the facts of a cross-validation: what its folds have in common, and means."""
    labels = [label for label in cv.fold_labels if label not in cv.failed_folds]
    facts = _of_several("folds", [cv.get_experiment(label) for label in labels], cv.to_pandas())
    status = f"{len(cv.failed_folds)} of {cv.n_folds} folds failed"
    return replace(
        facts,
        reads={**cv.held_out, **facts.reads},
        status=status if cv.failed_folds else facts.status,
    )


def facts_of_ensemble(ensemble: Ensemble) -> RunFacts:
    """Return the facts of an ensemble: what its members have in common, and their means."""
    scores = ensemble.to_pandas().select_dtypes("number").drop(columns="seconds", errors="ignore")
    facts = _of_several("ensemble", list(ensemble.members.values()), scores)
    n_failed = len(ensemble.failed_members)
    return replace(facts, status=f"{n_failed} members failed") if n_failed else facts


def _of_several(kind: str, experiments: Sequence[Experiment], scores: pd.DataFrame) -> RunFacts:
    """Return what experiments have in common, and means of their scores."""
    facts = [list(facts_of_experiment(experiment).values())[-1] for experiment in experiments]
    first = facts[0]
    return RunFacts(
        kind,
        config={k: v for k, v in first.config.items() if all(f.config.get(k) == v for f in facts)},
        fingerprints=first.fingerprints,
        sizes={split: _range([f.sizes.get(split) for f in facts]) for split in first.sizes},
        keys={split: _common([f.keys.get(split) for f in facts]) for split in first.keys},
        reads=first.reads,
        metrics={str(name): float(value) for name, value in scores.mean().items()},
        spread={str(name): float(value) for name, value in scores.std().items()},
        n_members=len(facts),
        seconds=sum(f.seconds or 0.0 for f in facts),
        status=first.status,
    )


def facts_of_file(path: Path) -> dict[str, RunFacts]:
    """Return the facts of each run in a file, without building objects.

    Raises
    ------
    MMLError
        If the file is damaged, too new or not an experiment.
    """
    described = inspect(path)
    if described["type"] != "Experiment":
        problem = f"is of kind {described['kind']}"
        raise MMLKindError(limits.OTHER_KIND, path, "", problem, "Pass files of experiments")
    try:
        return _of_file(path, described)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"deviates from the format: {type(error).__name__} {error}"[:200]
        raise MMLError(limits.MISFIT, path, "state.json", problem) from None


def _of_file(path: Path, described: Mapping[str, Any]) -> dict[str, RunFacts]:
    fingerprints, sizes, keys = _rows_of_file(path)
    common: dict[str, Any] = {
        "config": config_by_path(described["config"]),
        "fingerprints": fingerprints,
        "sizes": sizes,
        "keys": keys,
    }
    runs = described["runs"]
    if not runs:
        return {"": RunFacts("run", **common)}
    return {
        name: RunFacts(
            "run",
            **common,
            reads={p: [_known(s, keys) for s in splits] for p, splits in run["rows_of"].items()},
            metrics={k: v for k, v in run["metrics"].items() if "[" not in k},
            seconds=run["seconds"],
            status=run["status"],
        )
        for name, run in zip(_unique(run["label"] for run in runs), runs, strict=True)
    }


# -- parts of facts --------------------------------------------------------------------------------


def _of_run(run: ExperimentRun, common: Mapping[str, Any]) -> RunFacts:
    frame, *_ = logged_figures({"run": run.results}, "kept")
    reads = {p: [_known(s, common.get("keys", {})) for s in r] for p, r in _reads(run.results)}
    return RunFacts(
        "run",
        **common,
        reads=reads,
        metrics=frame.get("run", {}),
        seconds=run.seconds,
        status=run.status,
    )


def _config_and_rows(experiment: Experiment) -> dict[str, Any]:
    fingerprints, sizes, keys = {}, dict[Split, Any](), dict[Split, Any]()
    with experiment.ctx.activate():
        config = config_by_path(config_of(experiment))
        for fs in experiment.ctx.available_featuresets.values():
            label, collection = str(fs.label), fs.collection
            splits = {name: view.valid_indices for name, view in fs.splits.items()}
            fingerprints[label] = collection.fingerprint
            _add_rows(label, collection, splits, sizes, keys)
    return {"config": config, "fingerprints": fingerprints, "sizes": sizes, "keys": keys}


def _add_rows(
    label: str,
    collection: SampleCollection,
    splits: Mapping[str, IntArray],
    sizes: dict[Split, Any],
    keys: dict[Split, Any],
) -> None:
    """Add the size and key of a FeatureSet and of each split."""
    sizes[label, None] = collection.n_absent or collection.n_samples
    keys[label, None] = row_key(collection)
    for name, rows in splits.items():
        sizes[label, name] = len(rows)
        keys[label, name] = row_key(collection, rows)


def _rows_of_file(path: Path) -> tuple[dict[str, str], dict[Split, Any], dict[Split, Any]]:
    """Return fingerprints, and sizes and keys of the rows of a file."""
    archive = open_archive(path)
    fingerprints, sizes, keys = {}, dict[Split, Any](), dict[Split, Any]()
    for label, data in archive.json("state.json")["featuresets"].items():
        member = data["table"]["$table"]
        table = load_table(archive.payloads[member], path, member)
        collection = SampleCollection(table, masks=data.get("masks"))
        if "absent" in data:
            absent = data["absent"]
            collection = collection.without_rows(absent["rows"], absent["fingerprint"])
        splits = {
            name: np.asarray(_array(stored, archive, path), dtype=np.int64)
            for name, stored in data["splits"].items()
        }
        fingerprints[label] = collection.fingerprint
        _add_rows(label, collection, splits, sizes, keys)
    return fingerprints, sizes, keys


def _array(stored: Mapping[str, Any], archive: Any, path: Path) -> Any:
    if "$tensor" in stored:
        member = stored["in"]
        return load_tensors(archive.payloads[member], path, member)[stored["$tensor"]]
    return np.array(stored["$array"]).ravel()


def _reads(results: PhaseGroupResults) -> Iterable[tuple[str, list[Split]]]:
    """Yield the FeatureSets and splits that phases and their evaluations read."""
    for label, phase in results.flatten().items():
        evaluations: dict[str, Any] = {}
        if isinstance(phase, TrainResults):
            for (name, _), result in phase.evaluations().items():
                evaluations.setdefault(f"{label}.{name}", result.results)
        for name, recorded in {label: phase, **evaluations}.items():
            steps = recorded._execution[:1]
            if steps and steps[0].layout is not None:
                views = steps[0].layout.views.values()
                yield name, [(str(view.source.label), str(view.label)) for view in views]


def _known(split: Sequence[Any], keys: Mapping[Split, Any]) -> Split:
    """Return a FeatureSet and its split, or all of its rows if there is no such split."""
    label, name = split
    return (label, name) if (label, name) in keys else (label, None)


def _range(sizes: Sequence[Any]) -> Any:
    least, most = min(sizes), max(sizes)
    return least if least == most else f"{least}-{most}"


def _common(keys: Sequence[Any]) -> Any:
    """Return the key that all folds share, or those of all folds; None if one is unknown."""
    if None in keys:
        return None
    return keys[0] if len(set(keys)) == 1 else tuple(keys)


def _unique(labels: Iterable[str]) -> list[str]:
    """Return names, those that occur again with a number: ``train``, ``train (2)``."""
    names: list[str] = []
    counts: dict[str, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
        names.append(label if counts[label] == 1 else f"{label} ({counts[label]})")
    return names
