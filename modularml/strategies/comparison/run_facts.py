"""Facts of runs to compare: config, rows, metrics and durations, and their table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from modularml._optional import require
from modularml._typing import IntArray
from modularml._warning import warn
from modularml.audit.similarity import id_words
from modularml.data.collection import SampleCollection
from modularml.data.ids import make_ids
from modularml.data.schema import SAMPLE_UUIDS
from modularml.engine.monitoring import direction
from modularml.errors import ConfigError, MMLError, MMLKindError, UnknownNameError
from modularml.experiment import Experiment, PhaseGroupResults, TrainResults
from modularml.experiment.run import ExperimentRun
from modularml.io import limits
from modularml.io.archive import open_archive
from modularml.io.inspection import inspect
from modularml.io.tensors import load_table, load_tensors
from modularml.strategies.comparison.config_paths import config_by_path, config_of
from modularml.strategies.cv_results import CVResults
from modularml.strategies.ensemble import Ensemble
from modularml.strategies.held_out_checks import logged_figures

if TYPE_CHECKING:
    import pandas as pd

Loaded: TypeAlias = Experiment | ExperimentRun | CVResults | Ensemble
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


def facts_of(source: Loaded) -> dict[str, RunFacts]:
    """Return the facts of each run of an experiment, by label; of other sources by one label.

    Of folds and members, the facts are what they have in common, and their mean scores.
    """
    if isinstance(source, ExperimentRun):
        return _of_runs({}, [source])
    if isinstance(source, Experiment):
        with source.ctx.activate():
            sets = source.ctx.available_featuresets.values()
            rows = [
                (str(fs.label), fs.collection, {k: v.valid_indices for k, v in fs.splits.items()})
                for fs in sets
            ]
            common = _common(config_of(source), rows)
        return _of_runs(common, source.history)
    reads: Mapping[str, list[Split]] = {}
    if isinstance(source, CVResults):
        kind, scores, failed = "folds", source.to_pandas(), source.failed_folds
        labels = [label for label in source.fold_labels if label not in failed]
        experiments = [source.get_experiment(label) for label in labels]
        status, reads = f"{len(failed)} of {source.n_folds} folds failed", source.held_out
    else:
        kind, failed, experiments = "ensemble", source.failed_members, list(source.members.values())
        scores = source.to_pandas().select_dtypes("number")
        scores = scores.drop(columns="seconds", errors="ignore")
        status = f"{len(failed)} members failed"
    facts = [list(facts_of(experiment).values())[-1] for experiment in experiments]
    first = facts[0]
    sizes, keys = dict[Split, Any](), dict[Split, Any]()
    for split, size in first.sizes.items():
        known: list[Any] = [f.sizes.get(split) for f in facts]
        sizes[split] = size if min(known) == max(known) else f"{min(known)}-{max(known)}"
        of_all = [f.keys.get(split) for f in facts]  # one key that all share, or those of all
        keys[split] = of_all[0] if len(set(of_all)) == 1 else tuple(of_all)
        keys[split] = None if None in of_all else keys[split]
    run = RunFacts(
        kind,
        config={k: v for k, v in first.config.items() if all(f.config.get(k) == v for f in facts)},
        fingerprints=first.fingerprints,
        sizes=sizes,
        keys=keys,
        reads={**reads, **first.reads},
        metrics={str(name): float(value) for name, value in scores.mean().items()},
        spread={str(name): float(value) for name, value in scores.std().items()},
        n_members=len(facts),
        seconds=sum(f.seconds or 0.0 for f in facts),
        status=status if failed else first.status,
    )
    return {"": run}


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
        return _of_runs(_common(described["config"], _rows_of_file(path)), described["runs"])
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"deviates from the format: {type(error).__name__} {error}"[:200]
        raise MMLError(limits.MISFIT, path, "state.json", problem) from None


# -- parts of facts --------------------------------------------------------------------------------

Rows: TypeAlias = Iterable[tuple[str, SampleCollection, Mapping[str, IntArray]]]
"""Label, rows and splits of FeatureSets."""


def _common(config: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
    """Return the facts that all runs of an experiment share."""
    fingerprints, sizes, keys = {}, dict[Split, Any](), dict[Split, Any]()
    for label, collection, splits in rows:
        fingerprints[label] = collection.fingerprint
        sizes[label, None] = collection.n_absent or collection.n_samples
        keys[label, None] = row_key(collection)
        for name, positions in splits.items():
            sizes[label, name] = len(positions)
            keys[label, name] = row_key(collection, positions)
    facts = {"fingerprints": fingerprints, "sizes": sizes, "keys": keys}
    return {"config": config_by_path(config), **facts}


def _of_runs(common: Mapping[str, Any], runs: Iterable[Any]) -> dict[str, RunFacts]:
    """Return facts by label, of a label that occurs again with a number: ``train (2)``.

    Runs are objects, or what `inspect` tells of them.
    """
    found: dict[str, RunFacts] = {}
    keys, counts = common.get("keys", {}), Counter[str]()
    for run in runs:
        if isinstance(run, ExperimentRun):
            read: Mapping[str, Any] = dict(_reads(run.results))
            metrics = logged_figures({"run": run.results}, "kept")[0].get("run", {})
            label, seconds, status = run.label, run.seconds, run.status
        else:
            read, label, seconds, status = (
                run[k] for k in ("rows_of", "label", "seconds", "status")
            )
            metrics = {k: v for k, v in run["metrics"].items() if "[" not in k}
        reads = {  # a FeatureSet and its split, or all of its rows if there is no such split
            phase: [(fs, split) if (fs, split) in keys else (fs, None) for fs, split in splits]
            for phase, splits in read.items()
        }
        counts[label] += 1
        name = label if counts[label] == 1 else f"{label} ({counts[label]})"
        facts: dict[str, Any] = {**common, "reads": reads, "metrics": metrics}
        found[name] = RunFacts("run", **facts, seconds=seconds, status=status)
    return found or {"": RunFacts("run", **common)}


def _rows_of_file(path: Path) -> Iterator[tuple[str, SampleCollection, dict[str, IntArray]]]:
    archive = open_archive(path)
    for label, data in archive.json("state.json")["featuresets"].items():
        member = data["table"]["$table"]
        table = load_table(archive.payloads[member], path, member)
        collection = SampleCollection(table, masks=data.get("masks"))
        if "absent" in data:
            absent = data["absent"]
            collection = collection.without_rows(absent["rows"], absent["fingerprint"])
        splits = {}
        for name, stored in data["splits"].items():
            if "$tensor" in stored:
                member = stored["in"]
                tensors = load_tensors(archive.payloads[member], path, member)
                rows = tensors[stored["$tensor"]]
            else:
                rows = np.array(stored["$array"]).ravel()
            splits[name] = np.asarray(rows, dtype=np.int64)
        yield label, collection, splits


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


# -- table -----------------------------------------------------------------------------------------


def comparison_table(facts: Mapping[str, RunFacts], *, differences_only: bool) -> pd.DataFrame:
    """Return one row per run; see `ExperimentCollection.compare`."""
    rows = []
    for f in facts.values():
        row = {f"config.{path}": value for path, value in f.config.items()}
        row |= {f"data.{label}": print_ for label, print_ in f.fingerprints.items()}
        row |= {f"rows.{label}{f'.{s}' if s else ''}": n for (label, s), n in f.sizes.items()}
        rows.append(row)
    paths = list(dict.fromkeys(path for row in rows for path in row))
    if differences_only:
        paths = _different(rows, paths)
    for row, f in zip(rows, facts.values(), strict=True):
        for name, value in f.metrics.items():
            row[name] = value
            if name in f.spread:
                row[f"{name}_std"] = f.spread[name]
        row |= {"n_members": f.n_members, "seconds": f.seconds, "status": f.status}
    metrics = metric_names(facts)
    spreads = {f"{name}_std" for f in facts.values() for name in f.spread}
    columns = [c for name in metrics for c in (name, f"{name}_std") if c in {*metrics, *spreads}]
    members = ["n_members"] if any(f.n_members for f in facts.values()) else []
    frame: pd.DataFrame = require("pandas").DataFrame(
        rows, index=list(facts), columns=[*paths, *columns, *members, "seconds", "status"]
    )
    return frame.rename_axis("run")


def _different(rows: Sequence[Mapping[str, Any]], paths: Sequence[str]) -> list[str]:
    """Return the paths whose values differ; of a part that some runs lack, only the part."""
    absent = object()
    values = {p: [row.get(p, absent) for row in rows] for p in paths}
    plain = int | float | str | None
    differing = [
        path
        for path, every in values.items()
        if len({value if isinstance(value, plain) else repr(value) for value in every}) > 1
    ]
    having = {p: tuple(p in row for row in rows) for p in differing}
    kept: list[str] = []
    for path in differing:
        parts = path.split(".")
        above = (".".join(parts[:i]) for i in range(1, len(parts)))
        if all(having[path]) or not any(having.get(part) == having[path] for part in above):
            kept.append(path)
    return kept


def metric_names(facts: Mapping[str, RunFacts]) -> list[str]:
    """Return the names of all metrics."""
    return list(dict.fromkeys(name for f in facts.values() for name in f.metrics))


def full_name(metric: str, columns: list[Any], *, optional: bool = False) -> str | None:
    """Return the only column of a metric, by its full name or without its phase.

    Raises
    ------
    UnknownNameError
        If there is none, unless `optional`.
    ConfigError
        If several phases logged it.
    """
    matching = [c for c in columns if c == metric] or [
        c for c in columns if str(c).endswith(f".{metric}")
    ]
    if len(matching) > 1:
        raise ConfigError(f"metric {metric!r} may be any of {matching}; pass its full name")
    if not matching and not optional:
        raise UnknownNameError("metric", metric, columns)
    return str(matching[0]) if matching else None


def greater_is_better(metric: str, mode: str | None) -> bool:
    """Return whether greater values of a metric are better, by `mode` or its name."""
    if mode not in (None, "min", "max"):
        raise ConfigError(f"mode must be 'min', 'max' or None, got {mode!r}")
    known = direction(metric.rpartition(".")[2], ()) if mode is None else mode == "max"
    if known is None:
        raise ConfigError(
            f"it is unknown whether greater values of {metric!r} are better; pass mode='min' or "
            "'max'"
        )
    return known


def warn_of_other_rows(facts: Mapping[str, RunFacts], metrics: Sequence[str] = ()) -> None:
    """Warn of metrics that were computed on other rows in some runs.

    By default of all but the losses of training, which may have other rows.
    """
    others: dict[tuple[str, str], list[str]] = {}
    evaluated = [name for name in metric_names(facts) if not name.endswith(".train_loss")]
    for metric in metrics or evaluated:
        rows = {n: f.rows_of(metric) for n, f in facts.items() if metric in f.metrics}
        known = {name: keys for name, keys in rows.items() if keys is not None}
        for one, other in combinations(known, 2):
            if known[one] != known[other]:
                others.setdefault((one, other), []).append(metric)
                break
    for (one, other), names in others.items():
        warn(
            f"{names} of {one!r} and {other!r} were computed on different rows, so their values do "
            "not compare the models; evaluate(data) scores all on the same rows"
        )
