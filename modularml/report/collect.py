"""What a report of each kind of result holds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from modularml.context import ExperimentContext
from modularml.data import FeatureSet
from modularml.errors import ConfigError
from modularml.experiment import Experiment
from modularml.io import inspect
from modularml.report.blocks import MISSING, Code, Notes, Report, Section, Table, shown
from modularml.report.card import card_of
from modularml.report.data import featureset_sections
from modularml.report.many import collection_sections, cv_sections, sweep_sections
from modularml.report.runs import Options, environment, experiment_sections
from modularml.strategies.comparison.collection import ExperimentCollection
from modularml.strategies.folds.cv_results import CVResults
from modularml.strategies.sweeps.results import SweepResults

__all__ = ["loaded_source", "report_of", "with_card"]


def loaded_source(source: Any, options: Options, load: Any) -> tuple[Any, Options]:
    """Return a result, and what `inspect` says of its file; files are loaded."""
    if not isinstance(source, str | Path):
        if load:
            raise ConfigError(f"{', '.join(load)} are for files, got a {type(source).__name__}")
        return source, options
    facts = inspect(source)
    classes = {"Experiment": Experiment, "FeatureSet": FeatureSet}
    if facts["type"] not in classes:
        raise ConfigError(
            f"{str(source)!r} holds a {facts['kind']}; pass the file of an experiment or a "
            "FeatureSet"
        )
    with ExperimentContext().activate():
        return classes[facts["type"]].load(source, **load), replace(options, file=facts)


def report_of(source: Any, options: Options, title: str | None = None) -> Report:
    """Collect what a report of a result shows."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kind, sections = _sections(source, options)
        found = list(sections)
    texts = dict.fromkeys(" ".join(str(w.message).split()) for w in caught)
    if texts:
        notes = Notes(tuple(("warning", "Warning", shown(text)) for text in texts))
        found.insert(1, Section("Warnings", (notes,)))
    label = title or getattr(source, "label", None) or kind
    return Report(str(label), kind, _headline(source, found, options.level), tuple(found))


def with_card(report: Report, about: Mapping[str, str], file: str) -> Report:
    """Return the report with its model card as Markdown."""
    code = Code("The model card as Markdown", card_of(report, about, file))
    return replace(report, sections=(*report.sections, Section("Model card", (code,))))


def _sections(source: Any, options: Options) -> tuple[str, Iterator[Section]]:
    if isinstance(source, Experiment):
        return "Experiment", experiment_sections(source, options)
    if isinstance(source, CVResults):
        return "Cross-validation", cv_sections(source, options)
    if isinstance(source, SweepResults):
        return "Sweep", sweep_sections(source, options)
    if isinstance(source, ExperimentCollection):
        return "Comparison", collection_sections(source, options)
    if isinstance(source, FeatureSet):
        return "FeatureSet", _of_rows(source, options)
    raise TypeError(
        "source must be an Experiment, CVResults, SweepResults, ExperimentCollection, FeatureSet "
        f"or the path of a file, got a {type(source).__name__}"
    )


def _of_rows(fs: FeatureSet, options: Options) -> Iterator[Section]:
    yield Section("Data", (options.notes,) if options.notes else ())
    yield from featureset_sections(fs)
    yield environment(options)


def _headline(
    source: Any, sections: list[Section], level: float
) -> tuple[tuple[str, str, str], ...]:
    """Return the most important figures: name, value and interval."""
    tables = [b for s in sections for b in s.blocks if isinstance(b, Table)]
    if isinstance(source, Experiment):
        return (*_scores(tables, level), *_sizes(source))
    if isinstance(source, CVResults):
        return (*_mean_scores(tables), ("folds", shown(source.n_folds), ""))
    if isinstance(source, SweepResults):
        found = [("trials", shown(len(source)), "")]
        if any(s.title == "Best trial" for s in sections):
            found.insert(0, (source._objective.name, shown(source.best.value), "best trial"))
        return tuple(found)
    n = len(source)
    return (("rows" if isinstance(source, FeatureSet) else "members", shown(n), ""),)


def _scores(tables: list[Table], level: float) -> Iterator[tuple[str, str, str]]:
    """Yield the scores of the last evaluation."""
    for last in [t for t in tables if t.caption.startswith("Scores of ")][-1:]:
        cells = dict(zip(last.columns, last.rows[0], strict=True))
        where = last.caption.removeprefix("Scores of ")
        for name in [c for c in last.columns[2:] if not c.endswith(" interval")][:3]:
            bounds = cells[f"{name} interval"]
            shown_bounds = "" if bounds == MISSING else f"{level:.0%}: {bounds}"
            yield f"{name}, {where}", cells[name], shown_bounds


def _mean_scores(tables: list[Table]) -> Iterator[tuple[str, str, str]]:
    """Yield mean scores over folds, those of training last."""
    for table in [t for t in tables if t.caption == "Scores"][:1]:
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        rows.sort(key=lambda row: row["score"].endswith("train_loss"))
        for row in rows[:3]:
            yield f"{row['score']}, mean", row["mean"], f"95%: {row['low']} to {row['high']}"


def _sizes(experiment: Experiment) -> Iterator[tuple[str, str, str]]:
    sets = experiment.ctx.available_featuresets.values()
    yield "rows", shown(sum(fs.collection.n_absent or len(fs) for fs in sets)), ""
    graph = experiment.model_graph
    counts = [n.parameters for n in graph.summary().nodes] if graph is not None else [None]
    if None not in counts:
        yield "parameters", shown(sum(c or 0 for c in counts)), ""
    if experiment.history:
        yield "time of all runs", f"{sum(r.seconds for r in experiment.history):,.1f} s", ""
