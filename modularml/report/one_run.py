"""Sections of a report about an experiment: plan, graph, training, evaluation, environment."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from typing import Any, get_args

from modularml._optional import loaded
from modularml.errors import ConfigError, ModularMLError
from modularml.experiment import Experiment, TrainResults
from modularml.experiment.evaluating import compared_rows, scored_predictions, split_rows
from modularml.experiment.run_audit import plan_audit
from modularml.graph.predict import predictions
from modularml.phases.phase import ExperimentPhase
from modularml.phases.train_eval import TrainPhase
from modularml.report.blocks import (
    Block,
    Code,
    Facts,
    Notes,
    Section,
    Table,
    from_diagram,
    from_matplotlib,
    in_words,
    shown,
)
from modularml.report.data import audit_notes, featureset_sections, group_columns
from modularml.report.evaluation import (
    Compared,
    compared_results,
    plots,
    score_table,
)
from modularml.results.eval_results import EvalResults, FitResults
from modularml.results.phase_results import PhaseResults
from modularml.results.scores import Meaning
from modularml.strategies.comparison.config_paths import config_by_path, config_of
from modularml.viz.curves import loss_curves, series

MOST_PHASES, MOST_CURVES = 12, 14
PACKAGES = ("torch", "tensorflow", "keras", "sklearn", "numpy", "pandas", "pyarrow", "scipy")
_NAMES = {"sklearn": "scikit-learn"}


@dataclass(frozen=True)
class Options:
    """What a report shows.

    Parameters
    ----------
    notes : str
        Your own introduction.
    group_by : str, optional
        Column of groups for scores; by default the one that splits keep together.
    metrics : list of str, optional
        By default ``accuracy`` for classes, else ``rmse``, ``mae`` and ``r2``.
    level : float
        Of the intervals.
    outputs : {'auto', 'values', 'logits', 'probabilities'}
        What outputs of nodes are; see `EvalResults.scores`.
    file : mapping
        What `inspect` says of the file that was read.
    """

    notes: str = ""
    group_by: str | None = None
    metrics: Any = None
    level: float = 0.95
    outputs: Meaning = "auto"
    file: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.outputs not in get_args(Meaning):
            raise ConfigError(f"outputs must be one of {get_args(Meaning)}, got {self.outputs!r}")
        if not 0 < self.level < 1:
            raise ConfigError(f"level must be between 0 and 1, exclusive, got {self.level!r}")

    @property
    def file_name(self) -> str:
        """Name of the file that was read."""
        return str(self.file["path"]).replace("\\", "/").rpartition("/")[2] if self.file else ""


def experiment_sections(experiment: Experiment, options: Options) -> Iterator[Section]:
    """Yield all sections of an experiment."""
    yield Section("What was asked", tuple(_asked(experiment, options)))
    yield from rows_section(experiment)
    yield from graph_section(experiment)
    yield from result_sections(experiment, options)
    yield environment(options)
    yield reproduction(experiment, options)


def result_sections(experiment: Experiment, options: Options) -> Iterator[Section]:
    """Yield the sections about training and evaluation."""
    trained = {k: r for k, r in phase_results(experiment).items() if isinstance(r, TrainResults)}
    if trained:
        more = len(trained) - MOST_PHASES
        note = (f"The newest {MOST_PHASES} of {len(trained):,} phases.",) if more > 0 else ()
        yield Section("Training", note)
    for path, results in list(trained.items())[-MOST_PHASES:]:
        yield Section(path, tuple(_curves(path, results)), 3)
    yield from _evaluation(experiment, options)


def rows_section(experiment: Experiment) -> Iterator[Section]:
    """Yield the sections of all FeatureSets."""
    sets = list(experiment.ctx.available_featuresets.values())
    blocks = () if sets else ("The experiment reads no FeatureSet.",)
    yield Section("Data", blocks)
    for fs in sets:
        yield from featureset_sections(fs)


# -- plan ------------------------------------------------------------------------------------------


def _asked(experiment: Experiment, options: Options) -> Iterator[Block]:
    if options.notes:
        yield options.notes
    if failed := [run for run in experiment.history if run.status != "completed"]:
        texts = []
        for run in failed[-5:]:
            error, text = run.execution_meta.get("error"), run.status
            if error is not None:
                kind = f"{type(error).__name__}: " if isinstance(error, BaseException) else ""
                text += f": {shown(f'{kind}{error}')}"
            texts.append(("error" if run.status == "failed" else "warning", run.label, text))
        yield Notes(tuple(texts))
    phases = experiment.execution_plan.flatten()
    if phases:
        yield phase_table(experiment)
        found = audit_notes(plan_audit(phases, experiment.ctx)) if _has_rows(experiment) else ()
        yield Notes(found or (("ok", "Use of rows", "No phase reports on rows that it learned."),))
    if experiment.history:
        lines = [
            {
                "run": run.label,
                "status": run.status,
                "started": f"{run.started_at:%Y-%m-%d %H:%M} UTC",
                "seconds": run.seconds,
                "phases": shown(run.results.labels),
            }
            for run in experiment.history
        ]
        yield Table.of_lines("Runs, oldest first", lines)
    else:
        yield "Nothing has run yet."


def phase_table(experiment: Experiment) -> Table:
    """Return the phases of the plan."""
    lines = []
    for path, phase in _planned(experiment):
        splits = dict.fromkeys(
            f"{b.upstream_ref.node_label}: {b.split or 'all rows'}" for b in phase.input_sources
        )
        samplers = [b.sampler for b in phase.input_sources if b.sampler is not None]
        size = getattr(samplers[0], "batch_size", None) if samplers else phase.batch_size
        lines.append(
            {
                "phase": path,
                "kind": type(phase).__name__,
                "rows": shown(list(splits)),
                "epochs": phase.n_epochs if isinstance(phase, TrainPhase) else None,
                "batch size": size,
                "losses": shown([f"{a.loss.name} on {a.on}" for a in phase.losses]),
                "callbacks": shown([type(c).__name__ for c in phase.callbacks]),
            }
        )
    return Table.of_lines("Phases of the plan", lines)


def _planned(experiment: Experiment) -> list[tuple[str, ExperimentPhase]]:
    """Return the phases of the plan by path, without the label of the plan."""
    return [pair for item in experiment.execution_plan.all for pair in item.paths()]


def _has_rows(experiment: Experiment) -> bool:
    return all(fs.has_rows for fs in experiment.ctx.available_featuresets.values())


# -- graph -----------------------------------------------------------------------------------------


def graph_section(experiment: Experiment) -> Iterator[Section]:
    """Yield the section of the graph, if there is one."""
    graph = experiment.model_graph
    if graph is None:
        return
    summary = graph.summary()
    frame = summary.to_pandas().replace("", None).dropna(axis=1, how="all")
    diagram = graph.visualize(show_features=True, show_targets=True)
    yield Section(
        "Model",
        (from_diagram(diagram, f"Graph {graph.label}"), Table.of(summary._title, frame)),
    )


# -- training --------------------------------------------------------------------------------------


def phase_results(experiment: Experiment) -> dict[str, PhaseResults]:
    """Return the newest results of each phase by path, in the order in which they ran."""
    found: dict[str, PhaseResults] = {}
    for run in experiment.history:
        for path, results in run.results.paths():
            found.pop(path, None)
            found[path] = results
    return found


def _curves(path: str, results: TrainResults) -> Iterator[Block]:
    if not results.n_epochs:
        yield "No epoch has ended."
        return
    yield Facts.of(
        epochs=results.n_epochs,
        epoch_of_the_weights=results.kept_epoch,
        best_epoch=results.best_epoch,
    )
    frame = results.to_pandas()
    names = [str(name) for name in frame.columns if "[" not in str(name)]
    losses = [n for n in names if n.endswith("loss")]
    for title, chosen in (("Losses", losses), ("Metrics", [n for n in names if n not in losses])):
        known = [name for name in chosen if frame[name].notna().any()][:MOST_CURVES]
        if not known or results.n_epochs < 2:
            continue
        curves = {n: (frame[n].dropna().index.to_numpy(), frame[n].dropna()) for n in known}
        lines = {name: (x, y.to_numpy()) for name, (x, y) in curves.items()}
        if title == "Losses":
            best = results.kept_epoch if results.best_epoch is not None else None
            figure = loss_curves(lines, best_epoch=best)
        else:
            figure = series(lines, x="epoch", y="value")
        text = f"Line plot over epochs. {in_words(lines, 'epoch')}"
        yield from_matplotlib(figure, f"{title} of {path}", text)
    columns = {f"at the weights' epoch ({results.kept_epoch})": results.figures("kept")}
    columns["last epoch"] = results.figures("last")
    if results.best_epoch is not None:
        columns[f"best epoch ({results.best_epoch})"] = results.figures("best")
    rows = [{"metric": n} | {k: f.get(n) for k, f in columns.items()} for n in names]
    yield Table.of_lines("Metrics", rows)


# -- evaluation ------------------------------------------------------------------------------------


def evaluations(experiment: Experiment, options: Options) -> Iterator[tuple[str, Compared]]:
    """Yield names and the compared rows of recorded evaluations; else of splits, predicted now."""
    any_recorded = False
    grouped = group_columns(experiment.ctx.available_featuresets.values())
    default = options.group_by or next(iter(grouped), None)
    planned = dict(reversed(_planned(experiment)))
    for path, results in phase_results(experiment).items():
        if isinstance(results, EvalResults | FitResults) and results._execution:
            any_recorded = any_recorded or isinstance(results, EvalResults)
            own = getattr(planned.get(path), "group_by", None)
            group_by = options.group_by or own or default
            fitted = ", fitted on these rows" if isinstance(results, FitResults) else ""
            for compared in compared_results(path + fitted, results, group_by, options.outputs):
                yield path, compared
    if not any_recorded and experiment.history:
        yield from _predicted(experiment, default, options.outputs)


def _predicted(
    experiment: Experiment, group_by: str | None, outputs: Meaning
) -> Iterator[tuple[str, Compared]]:
    """Yield predictions for each split, with the weights that the graph has now."""
    graph = experiment.model_graph
    if graph is None or not graph.is_built or not _has_rows(experiment):
        return
    sets = experiment.ctx.available_featuresets.values()
    for split in dict.fromkeys(name for fs in sets for name in fs.available_splits):
        with suppress(ModularMLError):  # of another FeatureSet, or without targets
            for found in scored_predictions(predictions(graph, split_rows(graph, split))):
                views = [fs.get_split(split) for fs in sets if split in fs.splits]
                learned = any(map(graph.learned_among, views))
                name = f"{split}, {'learned from' if learned else 'not learned from'}"
                yield name, Compared.of(f"split {name}", compared_rows(found, outputs), group_by)


def _evaluation(experiment: Experiment, options: Options) -> Iterator[Section]:
    blocks: dict[str, list[Block]] = {}
    known = phase_results(experiment)
    graph = experiment.model_graph if _has_rows(experiment) else None
    for path, results in known.items():
        if not isinstance(results, TrainResults):
            values = {n: results._metrics.epoch_values(n) for n in results.metric_names()}
            lines = [
                {"metric": n, "value": v[max(v)]}
                for n, v in values.items()
                if v and not (results._execution and "[" in n)  # groups have a table of scores
            ]
            if lines:
                blocks[path] = [Table.of_lines("Logged metrics", lines)]
    for path, compared in evaluations(experiment, options):
        parts = blocks.setdefault(path, [])
        if not len(compared.true):
            parts.append("No row has a target.")
            continue
        parts.append(score_table(compared, options.metrics, options.level))
        recorded = known.get(path)
        if graph is not None and isinstance(recorded, EvalResults):
            views = [v for i in recorded._tails() for v in recorded.source_views(i).values()]
            learned = next(filter(None, (graph.learned_among(v, repr(path)) for v in views)), "")
            if learned:
                parts.append(Notes((("warning", "Rows that were learned from", learned),)))
        parts.extend(plots(compared))
    if not blocks:
        text = "No evaluation with targets and outputs is recorded."
        yield Section("Evaluation", (text,))
        return
    yield Section("Evaluation", ())
    for path, parts in list(blocks.items())[-MOST_PHASES:]:
        yield Section(path, tuple(parts), 3)


# -- environment -----------------------------------------------------------------------------------


def environment(options: Options) -> Section:
    """Return versions and machine of this process, and the origin of a file."""
    own = getattr(loaded("modularml"), "__version__", None)
    versions = {"Python": platform.python_version(), "modularml": own}
    for name in PACKAGES:
        if loaded(name) is not None:
            with suppress(metadata.PackageNotFoundError):
                versions[_NAMES.get(name, name)] = metadata.version(_NAMES.get(name, name))
    lines = [{"package": name, "version": version} for name, version in versions.items()]
    blocks: list[Block] = []
    if options.file is not None:
        blocks = [
            "The experiment was read from a file. These are the versions that wrote the report.",
            Facts.of(
                file=options.file_name,
                written_by=f"modularml {options.file['library']}",
                content_id=options.file["content_id"][:16],
            ),
        ]
    blocks += [
        Facts.of(system=platform.system(), machine=platform.machine()),
        Table.of_lines("Versions", lines),
    ]
    return Section("Environment", tuple(blocks))


def reproduction(experiment: Experiment, options: Options, code: str = "") -> Section:
    """Return seeds, fingerprints, settings, code to run and the config as YAML."""
    sets = experiment.ctx.available_featuresets.values()
    seed = "none, so weights and batches differ from run to run"
    blocks: list[Block] = [
        Facts.of(
            seed=seed if experiment.seed is None else experiment.seed,
            deterministic_modes=experiment.deterministic,
        ),
        Table.of_lines("Fingerprints of the data", [
            {"FeatureSet": fs.label, "fingerprint": fs.collection.fingerprint} for fs in sets
        ]),
    ]  # fmt: skip
    with experiment.ctx.activate():
        settings = config_by_path(config_of(experiment))
        lines = [
            {"setting": path, "value": shown(value)}
            for path, value in settings.items()
            if value is not None and ".upstream_ref" not in path
        ]
        blocks.append(Code("Run it again", code or _code(experiment, options), is_open=True))
        title = "Settings, by the paths of a sweep"
        blocks.append(Table.of_lines(title, lines, most=300, is_folded=True))
        try:
            blocks.append(Code("The config as YAML", experiment.to_yaml()))
        except ConfigError as error:
            blocks.append(f"The config cannot be written as YAML: {error}")
    return Section("How to reproduce", tuple(blocks))


def _code(experiment: Experiment, options: Options) -> str:
    lines = ["import modularml as mml", ""]
    if options.file is None:
        lines += [
            "# after experiment.save('experiment'), in a process that has your classes:",
            "experiment = mml.Experiment.load('experiment')",
        ]
    else:
        lines.append(f"experiment = mml.Experiment.load({options.file_name!r})")
    if not _has_rows(experiment):
        lines.append("experiment.attach(...)  # the rows with the fingerprints above")
    lines.append("print(experiment.history[-1])")
    if len(experiment.execution_plan):
        lines += ["experiment.run()  # goes on from the saved weights", ""]
        lines += ["# from the start: new weights, the same settings"]
        lines += ["fresh = mml.Experiment.from_yaml('config.yaml')", "fresh.run()"]
    return "\n".join(lines)
