"""Members of a collection: experiments, runs, folds, ensembles and files, and their scores."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modularml._warning import warn
from modularml.audit import AuditWarning
from modularml.errors import ConfigError, DataError, MMLError, MMLNotFoundError
from modularml.experiment import Experiment
from modularml.experiment.evaluating import evaluate
from modularml.experiment.run import ExperimentRun
from modularml.io.names import find_file
from modularml.strategies.comparison.run_facts import (
    Loaded,
    RunFacts,
    facts_of,
    facts_of_file,
    row_key,
)
from modularml.strategies.cv_results import CVResults
from modularml.strategies.ensemble import Ensemble
from modularml.strategies.sweeps.results import SweepResults

if TYPE_CHECKING:
    import pandas as pd

_SUFFIX = ".exp.mml"


class Member:
    """An experiment, run, cross-validation or ensemble, or a file that is loaded when needed.

    Parameters
    ----------
    source : Experiment, ExperimentRun, CVResults, Ensemble or Path
    options : dict
        Passed to `Experiment.load`.

    Raises
    ------
    MMLError
        If the file is damaged, too new or not an experiment.
    """

    def __init__(self, source: Loaded | Path, options: Mapping[str, Any]) -> None:
        self.source, self._options = source, options
        self._of_file = facts_of_file(source) if isinstance(source, Path) else None
        self._loaded: Loaded | None = None if isinstance(source, Path) else source

    def facts(self) -> dict[str, RunFacts]:
        """Return the facts of each run by its label; of one alone by ""."""
        facts = facts_of(self.load()) if self._of_file is None else self._of_file
        return {"": next(iter(facts.values()))} if len(facts) == 1 else facts

    def load(self) -> Loaded:
        """Return the object; an experiment of a file is loaded once."""
        if self._loaded is None:
            self._loaded = Experiment.load(self.source, **self._options)  # type: ignore[arg-type]
        return self._loaded

    def experiments(self, name: str) -> list[Experiment]:
        """Return the experiment, or those of all folds or members.

        Raises
        ------
        ConfigError
            If it is a run, which has no graph.
        """
        loaded = self.load()
        if isinstance(loaded, CVResults):
            labels = [label for label in loaded.fold_labels if label not in loaded.failed_folds]
            return [loaded.get_experiment(label) for label in labels]
        if isinstance(loaded, Ensemble):
            return list(loaded.members.values())
        if isinstance(loaded, ExperimentRun):
            raise ConfigError(
                f"{name!r} is an ExperimentRun, which holds results but no graph; pass its "
                "Experiment instead"
            )
        return [loaded]


def members_of(items: Any, *, recursive: bool, options: Mapping[str, Any]) -> dict[str, Member]:
    """Return members by name; damaged files are named in a warning and left out.

    Parameters
    ----------
    items : list, or mapping of str to item, or one item
    recursive : bool
        Whether files in subfolders are read too.
    options : mapping
        Passed to `Experiment.load`.

    Raises
    ------
    DataError
        If there are none, or a folder has no file of an experiment.
    MMLNotFoundError
        If there is no such file or folder.
    TypeError
        If an item is none of these.
    """
    members: dict[str, Member] = {}
    damaged: list[str] = []
    sources = [] if isinstance(items, Mapping) else list(_sources_of(items, recursive=recursive))
    for name, item in items.items() if isinstance(items, Mapping) else ():
        inner = list(_sources_of(item, recursive=recursive))
        is_one = len(inner) == 1 and not _is_folder(item)
        sources += [(str(name) if is_one else f"{name}/{label}", source) for label, source in inner]
    for name, source in sources:
        try:
            member = Member(source, options)
        except MMLNotFoundError:
            raise
        except MMLError as error:
            damaged.append(f"{source}: {error}")
            continue
        names = (name if i == 1 else f"{name} ({i})" for i in range(1, len(members) + 2))
        members[next(free for free in names if free not in members)] = member
    if damaged and members:
        warn(f"{len(damaged)} files cannot be read and are left out: {'; '.join(damaged)}")
    if not members:
        problem = (
            f"none of the files can be read: {'; '.join(damaged)}" if damaged else "it is empty"
        )
        raise DataError(
            f"a collection needs at least one experiment, and {problem}; pass experiments, runs, "
            "CVResults, or files that Experiment.save wrote"
        )
    return members


def _sources_of(item: Any, *, recursive: bool) -> Iterator[tuple[str, Loaded | Path]]:
    if isinstance(item, Experiment | ExperimentRun | CVResults | Ensemble):
        yield item.label, item
    elif isinstance(item, SweepResults):
        best = item.best_experiment()
        yield best.label, best
    elif isinstance(item, list | tuple):
        for inner in item:
            yield from _sources_of(inner, recursive=recursive)
    elif not isinstance(item, str | os.PathLike):
        raise TypeError(
            "a collection holds Experiments, ExperimentRuns, CVResults, Ensembles, SweepResults, "
            "paths of .mml files and folders, or dicts of these by name; got a "
            f"{type(item).__name__}"
        )
    elif _is_folder(item):
        folder = Path(item).expanduser()
        paths = sorted((folder.rglob if recursive else folder.glob)(f"*{_SUFFIX}"))
        if not paths:
            others = sorted(path.name for path in folder.iterdir())[:5]
            raise DataError(
                f"folder {str(folder)!r} has no file of an experiment (*{_SUFFIX}); it has "
                f"{others or 'nothing'}. Name another folder, or pass recursive=True to read "
                "subfolders"
            )
        for path in paths:
            yield path.relative_to(folder).as_posix().removesuffix(_SUFFIX), path
    else:
        path = find_file(Path(item), "exp")
        yield path.name.removesuffix(_SUFFIX), path


def _is_folder(item: Any) -> bool:
    return isinstance(item, str | os.PathLike) and Path(item).expanduser().is_dir()


def check_split(split: str, experiments: Mapping[str, Sequence[Experiment]]) -> None:
    """Refuse a split that holds other rows in some experiments."""
    first: tuple[str, Any] | None = None
    for name, of_member in experiments.items():
        for experiment in of_member:
            sets = experiment.ctx.available_featuresets.values()
            views = [fs.get_split(split) for fs in sets if split in fs.splits]
            keys = frozenset(row_key(v.collection, v.valid_indices) for v in views)
            first = first or (name, keys)
            if keys != first[1]:
                raise ConfigError(
                    f"split {split!r} holds other rows in {name!r} than in {first[0]!r}, so scores "
                    "on it do not compare them; pass rows instead, such as a FeatureSet or a frame"
                )


def evaluated(member: Member, name: str, data: Any, **options: Any) -> list[pd.DataFrame]:
    """Return the scores of a member, of each fold; report rows that were learned from once.

    An ensemble is scored by its mean prediction.
    """
    loaded = member.load()
    tables: list[pd.DataFrame] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if isinstance(loaded, Ensemble):
            if not options.pop("unscale"):
                raise ConfigError(
                    f"unscale=False is not supported for the ensemble {name!r}, whose members have "
                    "scalers of their own; pass unscale=True"
                )
            return [loaded.evaluate(data, **options)]
        for experiment in member.experiments(name):
            audit = "warn" if isinstance(loaded, CVResults) else experiment.audit
            graph: Any = experiment.model_graph
            if graph is None:
                raise ConfigError(f"{name!r} has no graph to evaluate; add a ModelGraph")
            with experiment.ctx.activate():
                tables.append(
                    evaluate(graph, data, node=None, batch_size=None, audit=audit, **options)
                )
    learned = [w for w in caught if issubclass(w.category, AuditWarning)]
    if learned:
        others = f" (and {len(learned) - 1} other folds)" if len(learned) > 1 else ""
        warn(f"{learned[0].message}{others}", AuditWarning)
    others_once = dict.fromkeys((str(w.message), w.category) for w in caught if w not in learned)
    for message, category in others_once:
        warn(message, category)
    return tables


def mean_table(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the mean of equally shaped tables, with standard deviations if there are several."""
    first = tables[0].copy()
    keys = {"node", "group", "n", "n_missing"}
    if len(tables) == 1:
        return first
    for name in [c for c in first if c not in keys]:
        values = np.stack([table[name].to_numpy() for table in tables])
        first[name] = values.mean(axis=0)
        first.insert(list(first).index(name) + 1, f"{name}_std", values.std(axis=0, ddof=1))
    return first
