"""Sections of a report about many runs: folds, sweeps and collections."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from modularml._warning import warn
from modularml.context import ExperimentContext
from modularml.data.featureset import FeatureSet
from modularml.errors import ConfigError, ModularMLError
from modularml.experiment import Experiment
from modularml.io.inspection import inspect
from modularml.report.blocks import (
    MISSING,
    Block,
    Code,
    Facts,
    Figure,
    Notes,
    Report,
    Section,
    Table,
    from_matplotlib,
    scores_in,
    shown,
)
from modularml.report.data import featureset_sections
from modularml.report.evaluation import Compared, plots, score_table
from modularml.report.one_run import (
    Options,
    environment,
    experiment_sections,
    graph_section,
    phase_table,
    reproduction,
    result_sections,
    rows_section,
)
from modularml.results.result_tables import ComparedRows
from modularml.splitters.base import key_list
from modularml.strategies.comparison.collection import ExperimentCollection
from modularml.strategies.cv_results import CVResults
from modularml.strategies.sweeps.results import Kind, SweepResults


def loaded_source(source: Any, options: Options, load: Any) -> tuple[Any, Options]:
    """Return a result, and what `inspect` says of its file; files are loaded."""
    if not isinstance(source, str | Path):
        if load:
            raise ConfigError(f"{', '.join(load)} are for files, got a {type(source).__name__}")
        return source, options
    facts = inspect(source)
    classes: dict[str, Any] = {"Experiment": Experiment, "FeatureSet": FeatureSet}
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
        kinds = [kind for kind in _KINDS if isinstance(source, kind)]
        if not kinds:
            raise TypeError(
                "source must be an Experiment, CVResults, SweepResults, ExperimentCollection, "
                f"FeatureSet or the path of a file, got a {type(source).__name__}"
            )
        kind, sections, headline = _KINDS[kinds[0]]
        found = list(sections(source, options))
    texts = dict.fromkeys(" ".join(str(w.message).split()) for w in caught)
    if texts:
        notes = Notes(tuple(("warning", "Warning", shown(text)) for text in texts))
        found.insert(1, Section("Warnings", (notes,)))
    label = title or getattr(source, "label", None) or kind
    return Report(str(label), kind, tuple(headline(source, found, options.level)), tuple(found))


Headline = Iterator[tuple[str, str, str]]
"""The most important figures: name, value and interval."""


def featureset_report(fs: FeatureSet, options: Options) -> Iterator[Section]:
    """Yield the sections of a FeatureSet alone."""
    yield Section("Data", (options.notes,) if options.notes else ())
    yield from featureset_sections(fs)
    yield environment(options)


def experiment_headline(experiment: Experiment, sections: list[Section], level: float) -> Headline:
    """Yield the scores of the last evaluation, and sizes."""
    for rows, scores in list(scores_in(sections))[-1:]:
        for name, (value, bounds) in list(scores.items())[:3]:
            yield f"{name}, {rows}", value, "" if bounds == MISSING else f"{level:.0%}: {bounds}"
    sets = experiment.ctx.available_featuresets.values()
    yield "rows", shown(sum(fs.collection.n_absent or len(fs) for fs in sets)), ""
    graph = experiment.model_graph
    counts = [n.parameters for n in graph.summary().nodes] if graph is not None else [None]
    if None not in counts:
        yield "parameters", shown(sum(c or 0 for c in counts)), ""
    if experiment.history:
        yield "time of all runs", f"{sum(r.seconds for r in experiment.history):,.1f} s", ""


def cv_headline(cv: CVResults, sections: list[Section], level: float) -> Headline:
    """Yield mean scores over folds, those of training last."""
    tables = [b for s in sections for b in s.blocks if isinstance(b, Table)]
    for table in [t for t in tables if t.caption == "Scores"][:1]:
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        rows.sort(key=lambda row: row["score"].endswith("train_loss"))
        for row in rows[:3]:
            yield f"{row['score']}, mean", row["mean"], f"95%: {row['low']} to {row['high']}"
    yield "folds", shown(cv.n_folds), ""


def sweep_headline(results: SweepResults, sections: list[Section], level: float) -> Headline:
    """Yield the value of the best trial."""
    if any(s.title == "Best trial" for s in sections):
        yield results._objective.name, shown(results.best.value), "best trial"
    yield "trials", shown(len(results)), ""


MOST_BARS, MOST_RUNS = 6, 40


# -- folds -----------------------------------------------------------------------------------------


def cv_sections(cv: CVResults, options: Options) -> Iterator[Section]:
    """Yield the sections of a cross-validation."""
    labels = [label for label in cv.fold_labels if label not in cv.failed_folds]
    yield Section("What was asked", tuple(_asked_of_folds(cv, labels, options)))
    yield Section("Data", ())
    for binding in cv._bindings.values():
        yield from featureset_sections(binding.featureset)
    lines = []
    for fold in cv.fold_labels:
        for name, side in cv.sides(fold).items():
            counts = {split: len(rows) for split, rows in side.splits.items()}
            lines.append({"fold": fold, "FeatureSet": name} | counts)
    sizes = Table.of("Rows of each fold", pd.DataFrame(lines))
    yield Section("Rows of the folds", (sizes,), 3)
    if not labels:
        return
    first = cv.get_experiment(labels[0])
    yield from graph_section(first)
    note = (
        "Mean and 95% interval over folds (Student's t). Folds share training rows, so intervals "
        "tend to be too narrow."
    )
    scores: list[Block] = [Table.of("Scores", cv.summary().reset_index(names="score"), note)]
    if len(cv._experiments) > 1:
        scores.append(Table.of("Scores of each fold", cv.to_pandas().reset_index()))
    text = f"One line for each of {len(cv._experiments)} folds over epochs."
    scores += drawn("Curves of the folds", cv.plot, text)
    yield Section("Scores over folds", tuple(scores))
    yield Section("Held-out rows", ())
    for compared in _held_out(cv, labels, options):
        blocks = (score_table(compared, options.metrics, options.level), *plots(compared))
        yield Section(compared.name, blocks, 3)
    yield environment(options)
    yield reproduction(first, options, f"mml.CrossValidation(...)  # {cv.label}")


def _asked_of_folds(cv: CVResults, labels: list[str], options: Options) -> Iterator[Block]:
    if options.notes:
        yield options.notes
    bindings = list(cv._bindings.values())
    groups = [key for b in bindings for key in key_list(b.group_by)]
    strata = [key for b in bindings for key in key_list(b.stratify_by)]
    yield Facts.of(
        folds=cv.n_folds,
        repeats=1 + max(fold.repeat for fold in cv._folds.values()),
        kept_together=groups or None,
        stratified_by=strata or None,
    )
    notes = [("error", label, shown(error)) for label, error in cv.failed_folds.items()]
    if cv.selected_on_scored_rows:
        text = (
            "An epoch or a learning rate was selected on the rows that the scores are computed on; "
            "hold out others for that with CVBinding(stop_size=)."
        )
        notes.append(("warning", "Scores are too optimistic", text))
    if notes:
        yield Notes(tuple(notes))
    if labels:
        yield phase_table(cv.get_experiment(labels[0]))


def _held_out(cv: CVResults, labels: list[str], options: Options) -> Iterator[Compared]:
    """Yield the held-out rows of all folds, of the first repeat, by tail node."""
    keys = [k for b in cv._bindings.values() for k in key_list(b.group_by)]
    group_by = options.group_by or next(iter(keys), None)
    graph = cv.get_experiment(labels[0]).model_graph
    for node in () if graph is None else graph.tail_nodes.values():
        name = f"held-out rows, {node.label}"
        try:
            found = cv.compared_rows(node.label)
            parts = {k: v for k, v in found.items() if not cv._folds[k].repeat}
            rows = replace(ComparedRows.joined(parts), meaning=options.outputs)
            compared = Compared.of(name, rows, group_by)
        except ModularMLError as error:
            warn(f"{name} are not scored: {error}")
        else:
            yield compared


# -- sweeps ----------------------------------------------------------------------------------------


def sweep_sections(results: SweepResults, options: Options) -> Iterator[Section]:
    """Yield the sections of a sweep, and those of its best experiment if it is at hand."""
    frame, objective = results.to_pandas(), results._objective
    counts = Counter(frame["state"])
    asked: list[Block] = [options.notes] if options.notes else []
    better = "greater" if objective.is_greater_better else "smaller"
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    asked.append(Facts.of(objective=objective.name, better=better, trials=states or "none"))
    yield Section("What was asked", tuple(asked))
    complete = frame[frame["state"] == "complete"] if len(frame) else frame
    if len(complete):
        best = results.best
        lines = [{"setting": k, "value": shown(v)} for k, v in best.params.items()]
        facts = Facts.of(trial=best.number, value=best.value)
        settings = Table.of("Settings", pd.DataFrame(lines))
        yield Section("Best trial", (facts, settings))
    yield Section("Trials", tuple(_trials(results, frame, len(complete))))
    known = results._best
    if known is not None and len(complete) and known[0] == results.best.number:
        yield from rows_section(known[1])
        yield from graph_section(known[1])
        yield from result_sections(known[1], options)
        yield environment(options)
        yield reproduction(known[1], options, "results.best_experiment()")
        return
    text = (
        "The best experiment was not trained by this process; results.best_experiment().report() "
        "trains it again and describes it."
    )
    yield Section("Best experiment", (text,))
    yield environment(options)


def _trials(results: SweepResults, frame: Any, n_complete: int) -> Iterator[Block]:
    ascending = not results._objective.is_greater_better
    ordered = frame.sort_values("value", ascending=ascending, kind="stable").reset_index()
    if len(frame) and not frame["error"].any():
        ordered = ordered.drop(columns="error")
    yield Table.of("Trials, best first", ordered)
    kinds: dict[Kind, str] = {
        "history": "Values of the objective over trials",
        "importance": "Importance of settings",
        "parallel": "Settings of each trial",
        "slice": "Values over each setting",
    }
    for kind, title in kinds.items() if n_complete > 1 else ():
        text = f"{title}, {n_complete} complete trials; the table of trials has the numbers."
        shaded = kind in ("parallel", "slice")  # the best are darkest
        yield from drawn(title, partial(results.plot, kind), text, is_themed=not shaded)


# -- collections -----------------------------------------------------------------------------------


def collection_sections(collection: ExperimentCollection, options: Options) -> Iterator[Section]:
    """Yield the sections of a comparison."""
    table = collection.compare()
    asked = (options.notes,) if options.notes else ()
    status = table[["status", "seconds"]].reset_index()
    yield Section("What was compared", (*asked, Table.of("Runs", status)))
    parts = {
        "What differs": [c for c in table if str(c).startswith("config.")],
        "Data": [c for c in table if str(c).startswith(("data.", "rows."))],
    }
    for title, columns in parts.items():
        part = table[columns].reset_index() if columns else None
        same = "These are the same in all runs."
        blocks = (same,) if part is None else (Table.of(f"{title}, by run", part),)
        yield Section(title, blocks)
    others = {"n_members", "seconds", "status", *parts["What differs"], *parts["Data"]}
    metrics = [c for c in table if c not in others]
    yield Section("Metrics", tuple(_metrics(collection, table, metrics)))
    yield environment(options)
    code = "mml.ExperimentCollection([...]).compare()"
    yield Section("How to reproduce", (Code("Compare again", code, is_open=True),))


def _metrics(collection: ExperimentCollection, table: Any, metrics: list[Any]) -> Iterator[Block]:
    if not metrics:
        yield "No metric was logged."
        return
    yield Table.of("Metrics of the saved weights", table[metrics].reset_index())
    common = [m for m in metrics if table[m].notna().all() and not str(m).endswith("_std")]
    if len(table) > MOST_RUNS:
        yield f"Bars of {len(table):,} runs are not drawn; the limit is {MOST_RUNS}."
        return
    for metric in common[:MOST_BARS]:
        values = {str(run): table.loc[run, metric] for run in table.index}
        words = ", ".join(f"{run} {shown(value)}" for run, value in values.items())
        yield from drawn(str(metric), partial(collection.plot, metric), f"Bars: {words}.")
    if len(common) > MOST_BARS:
        yield f"The first {MOST_BARS} of {len(common):,} metrics are drawn."


def drawn(
    title: str, draw: Callable[[], Any], description: str, *, is_themed: bool = True
) -> Iterator[Figure | str]:
    """Yield a figure, or why it cannot be drawn."""
    try:
        figure = draw()
    except ModularMLError as error:
        yield f"{title} cannot be drawn: {error}"
        return
    names = [axes.get_title(loc="left") for axes in figure.axes]
    for axes in figure.axes:
        axes.set_title("", loc="left")
    if figure.get_suptitle():
        figure.suptitle("")
    _, colon, metric = names[0].rpartition(": ") if names else ("", "", "")
    named = f"{title}: {metric}" if colon else title
    yield from_matplotlib(figure, named, description, is_themed=is_themed)


_KINDS: dict[type, tuple[str, Callable[..., Iterator[Section]], Callable[..., Headline]]] = {
    Experiment: ("Experiment", experiment_sections, experiment_headline),
    CVResults: ("Cross-validation", cv_sections, cv_headline),
    SweepResults: ("Sweep", sweep_sections, sweep_headline),
    ExperimentCollection: (
        "Comparison",
        collection_sections,
        lambda collection, *_: iter([("members", shown(len(collection)), "")]),
    ),
    FeatureSet: (
        "FeatureSet",
        featureset_report,
        lambda fs, *_: iter([("rows", shown(len(fs)), "")]),
    ),
}
"""Name, sections and headline of each kind of source."""
