"""Members of a collection, and the scores of their folds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from modularml._warning import warn
from modularml.errors import ConfigError, DataError, MMLError, MMLNotFoundError, UnknownNameError
from modularml.experiment import Experiment
from modularml.experiment.run import ExperimentRun
from modularml.io.names import find_file
from modularml.strategies.comparison.run_facts import (
    RunFacts,
    facts_of_ensemble,
    facts_of_experiment,
    facts_of_file,
    facts_of_folds,
    facts_of_run,
    row_key,
)
from modularml.strategies.ensembles.ensemble import Ensemble
from modularml.strategies.folds.cv_results import CVResults
from modularml.strategies.sweeps.results import SweepResults

__all__ = [
    "FoldScores",
    "Loaded",
    "Member",
    "check_folds",
    "common_folds",
    "fold_scores",
    "full_name",
    "members_of",
]


@dataclass(frozen=True)
class FoldScores:
    """Scores of one metric by fold.

    Parameters
    ----------
    metric : str
        Full name of the metric, such as ``val.rmse``.
    values : dict
        Score by label of the fold.
    rows : dict
        What identifies the rows of each side, by label of the fold.
    scored : dict
        What identifies the rows that the metric was computed on, by label of the fold; None if
        unknown.
    ratio : float
        Mean number of held-out rows per row trained on.
    """

    metric: str
    values: dict[str, float]
    rows: dict[str, Any]
    scored: dict[str, Any]
    ratio: float


def fold_scores(name: str, cv: CVResults, metric: str) -> FoldScores:
    """Return the scores of a metric that was logged, or is computed on held-out rows.

    Raises
    ------
    UnknownNameError
        If it is neither.
    """
    frame: Any = cv.to_pandas()
    column = full_name(metric, list(frame), optional=True)
    if column is None:
        try:
            frame = cv.to_pandas(metrics=[metric])
        except UnknownNameError:
            raise UnknownNameError(f"metric of {name!r}", metric, list(frame)) from None
        column = next(str(c) for c in frame if str(c).endswith(f".{metric}"))
    values = {str(fold): float(value) for fold, value in frame[column].items()}
    rows = {label: _sides(cv, label) for label in cv.fold_labels}
    scored = {}
    for label in values:
        facts = list(facts_of_experiment(cv.get_experiment(label)).values())[-1]
        scored[label] = facts.rows_of(str(column))
    sides = [side for label in values for side in cv.sides(label).values()]
    ratio = float(np.mean([len(side.val) / len(side.train) for side in sides]))
    return FoldScores(str(column), values, rows, scored, ratio)


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


def _sides(cv: CVResults, label: str) -> Any:
    """Return what identifies the rows on both sides of a fold."""
    keys = set()
    experiment = next(iter(cv._experiments.values()))  # folds share their rows
    for name, side in cv.sides(label).items():
        fs: Any = experiment.ctx.get_node(name, enforce_type="FeatureSet")
        collection = fs.collection
        trained = side.train if side.stop is None else np.concatenate([side.train, side.stop])
        keys.add((row_key(collection, side.val), row_key(collection, trained)))
    return frozenset(keys)


def check_folds(name: str, scores: FoldScores, base: str, baseline: FoldScores) -> None:
    """Refuse cross-validations whose folds, or whose scored rows, differ.

    Raises
    ------
    ConfigError
        With the first fold that differs.
    """
    for label in scores.rows:
        if label in baseline.rows and scores.rows[label] != baseline.rows[label]:
            raise ConfigError(
                f"{name!r} and {base!r} cannot be tested against each other, as {label} holds "
                "other rows; run both cross-validations with the same data, bindings, n_folds, "
                "n_repeats and seed"
            )
        known = scores.scored.get(label), baseline.scored.get(label)
        if None not in known and known[0] != known[1]:
            raise ConfigError(
                f"{scores.metric!r} of {name!r} and {baseline.metric!r} of {base!r} were computed "
                f"on different rows of {label}; choose a metric of the same rows, or a name such "
                "as 'rmse', which is computed on the held-out rows"
            )


def common_folds(scores: Mapping[str, FoldScores]) -> list[str]:
    """Return the folds that all have scores for, at least 2; warn of others.

    Raises
    ------
    ConfigError
        If there are fewer, or a score is not finite.
    """
    every = list(dict.fromkeys(label for s in scores.values() for label in s.rows))
    common = [label for label in every if all(label in s.values for s in scores.values())]
    if len(common) < 2:
        raise ConfigError(
            f"{list(scores)} have {len(common)} folds in common, and a test needs at least 2; run "
            "them with the same folds"
        )
    for name, s in scores.items():
        if bad := [label for label in common if not np.isfinite(s.values[label])]:
            raise ConfigError(
                f"{s.metric!r} of {name!r} is {s.values[bad[0]]} in {bad[0]}; a test needs finite "
                "scores of all folds"
            )
    if others := [label for label in every if label not in common]:
        warn(f"{others} are left out of the test, as some of {list(scores)} have no score for them")
    return common


Loaded: TypeAlias = Experiment | ExperimentRun | CVResults | Ensemble
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
        if self._of_file is not None:
            facts = self._of_file
        elif isinstance(self.source, CVResults):
            return {"": facts_of_folds(self.source)}
        elif isinstance(self.source, Ensemble):
            return {"": facts_of_ensemble(self.source)}
        elif isinstance(self.source, ExperimentRun):
            return {"": facts_of_run(self.source)}
        else:
            assert isinstance(self.source, Experiment)
            facts = facts_of_experiment(self.source)
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
    for name, source in _sources(items, recursive=recursive):
        try:
            member = Member(source, options)
        except MMLNotFoundError:
            raise
        except MMLError as error:
            damaged.append(f"{source}: {error}")
            continue
        members[_free(name, members)] = member
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


def _sources(items: Any, *, recursive: bool) -> Iterator[tuple[str, Loaded | Path]]:
    """Yield names, and objects or files."""
    if isinstance(items, Mapping):
        for name, item in items.items():
            inner = list(_sources_of(item, recursive=recursive))
            is_one = len(inner) == 1 and not _is_folder(item)
            for label, source in inner:
                yield str(name) if is_one else f"{name}/{label}", source
        return
    for item in items if isinstance(items, list | tuple) else [items]:
        yield from _sources_of(item, recursive=recursive)


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
        yield from _files_in(Path(item).expanduser(), recursive=recursive)
    else:
        path = find_file(Path(item), "exp")
        yield path.name.removesuffix(_SUFFIX), path


def _is_folder(item: Any) -> bool:
    return isinstance(item, str | os.PathLike) and Path(item).expanduser().is_dir()


def _files_in(folder: Path, *, recursive: bool) -> Iterator[tuple[str, Path]]:
    paths = sorted((folder.rglob if recursive else folder.glob)(f"*{_SUFFIX}"))
    if not paths:
        others = sorted(path.name for path in folder.iterdir())[:5]
        raise DataError(
            f"folder {str(folder)!r} has no file of an experiment (*{_SUFFIX}); it has "
            f"{others or 'nothing'}. Name another folder, or pass recursive=True to read subfolders"
        )
    for path in paths:
        yield path.relative_to(folder).as_posix().removesuffix(_SUFFIX), path


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """Return a name that is not taken: itself, or with a number."""
    names = (name if i == 1 else f"{name} ({i})" for i in range(1, len(taken) + 2))
    return next(free for free in names if free not in taken)
