"""Held-out rows of folds: checks that nothing learns from them, predictions and scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from modularml._optional import require
from modularml._warning import warn
from modularml.data.batch import as_numpy
from modularml.data.scaling import LeakWarning
from modularml.data.selectors import select_one
from modularml.engine.display import Display
from modularml.engine.loop import run_phase
from modularml.engine.monitoring import loggers_of, monitors_of
from modularml.errors import AuditError, ConfigError
from modularml.experiment import (
    EvalPhase,
    EvalResults,
    Experiment,
    FitPhase,
    InputBinding,
    PhaseGroupResults,
    TrainPhase,
    TrainResults,
)
from modularml.experiment.run_audit import RunAudit
from modularml.graph.unscaling import unscale_outputs
from modularml.io.randomness import unchanged_randomness
from modularml.results.eval_results import by_column, output_labels
from modularml.results.result_tables import ComparedRows
from modularml.results.scores import find_scores
from modularml.results.scoring import blanked, target_steps
from modularml.splitters.base import key_list
from modularml.strategies.folds import CVBinding
from modularml.strategies.variants.variant import Plan, Variant, reads_only, variant_experiment

if TYPE_CHECKING:
    import pandas as pd


class SelectionWarning(UserWarning):
    """An epoch or a learning rate is selected on the rows used for scores."""


def audit_variant(experiment: Experiment, plan: Plan, variant: Variant) -> None:
    """Audit the rows of one variant, as all are similar."""
    auditor = RunAudit(experiment.audit)
    if auditor.mode != "off":
        with unchanged_randomness():
            new = variant_experiment(experiment, plan, variant, variant.label)
        auditor.check(new.execution_plan, new.ctx, plan=False)
        experiment._audit.reports |= auditor.reports


def learning_inputs(plan: Plan) -> Iterator[tuple[TrainPhase | FitPhase, Any]]:
    """Yield the phases that learn, with each of their inputs."""
    for phase in plan.flatten():
        if isinstance(phase, TrainPhase | FitPhase):
            yield from ((phase, source) for source in phase.input_sources)


def check_scored_rows(
    experiment: Experiment, plan: Plan, bindings: Sequence[CVBinding], why: str
) -> bool:
    """Warn of phases that learn or select by validation rows of folds, or refuse them.

    Return whether an epoch or a rate is selected on these rows; `why` says what that makes wrong.
    """
    bound = {b.featureset.label: b for b in bindings}
    for phase, source in learning_inputs(plan):
        binding, name = bound.get(source.upstream_ref.node_label), source.split
        if binding is None or name == binding.train_split_name:
            continue
        fs = binding.featureset
        rows = fs if name is None else fs.splits.get(name)
        if rows is None or not rows.is_disjoint_with(binding.pool()):
            message = (
                f"phase {phase.label!r} learns from {name or 'all rows'!r} of {fs.label!r}, "
                "but folds validate on some of these rows; make it read "
                f"{binding.train_split_name!r}"
            )
            _warn_or_refuse(experiment, message, LeakWarning)
    if selected := _selections(experiment, plan, bound):
        _warn_or_refuse(experiment, f"{'; '.join(selected)}. {why}", SelectionWarning)
    return bool(selected)


def _selections(experiment: Experiment, plan: Plan, bound: Mapping[Any, CVBinding]) -> list[str]:
    """Describe what is selected on validation rows of folds, phase by phase."""

    def is_scored(source: Any) -> bool:
        binding = bound.get(source.upstream_ref.node_label)
        if binding is None or source.split == binding.train_split_name:
            return False
        if source.split in (None, binding.val_split_name):
            return True
        if binding.stop_size is not None and source.split == binding.stop_split_name:
            return False
        return not binding.featureset.get_split(source.split).is_disjoint_with(binding.pool())

    stopped = {k: b.val_split_name for k, b in bound.items() if b.stop_size is not None}
    messages = []
    for phase in plan.flatten():
        for monitor, names in monitors_of(phase, experiment.model_graph).items():
            for logger in loggers_of(monitor, phase.callbacks):
                evaluation: Any = getattr(logger, "eval_phase", None)
                sources = [] if evaluation is None else evaluation.input_sources
                if reads_only(logger, stopped) or not any(map(is_scored, sources)):
                    continue
                messages.append(
                    f"{' and '.join(names)} of phase {phase.label!r} select by {monitor!r}, "
                    f"which {logger.label!r} computes on {sources[0].split or 'all rows'!r}"
                )
    return messages


def _warn_or_refuse(experiment: Experiment, message: str, category: type[Warning]) -> None:
    """Warn of a plan whose scores would be too optimistic, or refuse it."""
    if experiment.audit == "error":
        raise AuditError(f"{message}; pass Experiment(audit='warn') to run anyway")
    warn(message, category)


def compared_rows(
    experiments: Mapping[str, Experiment], folds: Mapping[str, Variant], node: Any
) -> dict[str, ComparedRows]:
    """Return the held-out rows of each fold, predicted by it, for plots."""
    rows = {}
    for label, experiment in experiments.items():
        graph: Any = experiment.model_graph
        tails = [] if graph is None else [graph.get_node(n).label for n in graph.tail_nodes]
        if node is None and len(tails) != 1:
            raise ConfigError(f"node must be given unless there is one tail node, got {tails}")
        name = tails[0] if node is None else getattr(node, "label", node)
        with experiment.ctx.activate():
            rows[label] = _held_out_results(experiment, folds[label], name).compared_rows(name)
    return rows


def _held_out_results(experiment: Experiment, fold: Variant, node: str) -> EvalResults:
    """Evaluate the held-out rows of a fold in one step."""
    graph = experiment.model_graph
    if graph is None:
        raise ConfigError(f"experiment {experiment.label!r} has no graph to predict with")
    graph.get_node(node)
    sources = []
    for head in graph._running([node]):
        for ref in head.feature_refs:
            if ref.node_label not in fold.sides:
                raise ConfigError(
                    f"{ref.node_label!r} has no CVBinding, so no rows of it are held out; pass "
                    "one in bindings="
                )
            split = fold.sides[ref.node_label].val_name
            sources.append(InputBinding(head.node_id, ref, split))
    phase = EvalPhase("out_of_fold", input_sources=sources, active_nodes=[node])
    results = EvalResults("out_of_fold")
    run_phase(phase, experiment, results, Display())
    return results


def held_out_scores(
    experiment: Experiment,
    fold: Variant,
    metrics: Any,
    group_by: str | None,
    how: Mapping[str, Any] | None = None,
) -> list[tuple[str, Any, float]]:
    """Return name, group and value of metrics on the held-out rows of a fold."""
    graph = experiment.model_graph
    if graph is None:
        raise ConfigError(f"experiment {experiment.label!r} has no graph to score")
    split = next(iter(fold.sides.values())).val_name
    held_out_scores = []
    with experiment.ctx.activate():
        tails = [graph.get_node(node) for node in graph.tail_nodes]
        for node in tails:
            results = _held_out_results(experiment, fold, node.label)
            prefix = f"{split}." if len(tails) == 1 else f"{split}.{node.label}."
            scores = find_scores(metrics)
            rows = results.scored(scores, node, group_by=group_by, **(how or {}))
            held_out_scores += [(prefix + row.score, row.group, row.value) for row in rows]
    return held_out_scores


At: TypeAlias = Literal["kept", "last", "best"]


def logged_figures(
    runs: Mapping[str, PhaseGroupResults], at: At
) -> tuple[dict[str, dict[str, float]], list[tuple[str, str, str, float]], set[str]]:
    """Return logged scores by run, those of groups, and names of missing ones.

    A score is a metric of a training phase in one epoch, or a loss over all rows or a metric of
    another phase: ``train.val_loss``, ``test.mse``.
    """
    frame: dict[str, dict[str, float]] = {}
    groups, unlogged = [], set()
    phase: Any
    for run, results in runs.items():
        for label, phase in results.flatten().items():
            if isinstance(phase, TrainResults):
                values = phase.figures(at)
            else:  # losses over all rows of an evaluation or fit phase
                values, layout = {}, phase._execution[0].layout if phase._execution else None
                for _, node_id in layout.losses if layout is not None else ():
                    values |= phase.aggregated_losses(node_id)
            for name in phase.metric_names():
                logged = phase._metrics.epoch_values(name)
                if not logged:
                    continue
                if not isinstance(phase, TrainResults):
                    values.setdefault(name, logged[max(logged)])
                base, bracket, group = name.partition("[")
                score = f"{label}.{base if bracket else name}"
                if bracket and name in values:
                    groups.append((run, score, group.removesuffix("]"), values.pop(name)))
                elif name not in values and not bracket:
                    values[name] = float("nan")
                    unlogged.add(score)
            if values:
                row = {f"{label}.{name}": value for name, value in values.items()}
                frame[run] = frame.get(run, {}) | row
    return frame, groups, unlogged


def predicted_rows(
    experiment: Experiment,
    fold: Variant,
    node: str,
    bindings: Mapping[Any, CVBinding],
    *,
    repeats: bool,
) -> pd.DataFrame:
    """Return the predicted held-out rows of a fold; see `CVResults.out_of_fold`."""
    with experiment.ctx.activate():
        ctx = _held_out_results(experiment, fold, node).execution_contexts().one()
    assert ctx.layout is not None
    node_id = next(i for i, name in ctx.layout.labels.items() if node in (i, name))
    output, target = as_numpy(ctx.output(node_id)), ctx.domain(node_id, "targets")
    columns: dict[str, Any] = {"fold": fold.label}
    if repeats:
        columns["repeat"] = fold.repeat
    bound = [s for s in ctx.sources(node_id) if s.ref.node_label in bindings]
    if bound and (keys := key_list(bindings[bound[0].ref.node_label].group_by)):
        collection = bindings[bound[0].ref.node_label].featureset.collection
        rows = ctx.indices(bound[0])["default"]
        names = [select_one(collection.schema, key) for key in keys]
        values = [collection.numpy(name)[rows].tolist() for name in names]
        columns["group"] = values[0] if len(keys) == 1 else list(zip(*values, strict=True))
    mask = target_steps([ctx], node_id)
    predictions = unscale_outputs(ctx, node_id, "outputs", output)
    columns |= by_column("prediction", blanked(predictions, mask), output_labels(ctx, node_id))
    if target is not None:
        targets = unscale_outputs(ctx, node_id, "targets", target)
        columns |= by_column("target", blanked(targets, mask))
    pandas = require("pandas")
    index = pandas.Index(ctx.sample_uuids(node_id), name="sample_uuid")
    return pandas.DataFrame(columns, index=index)  # type: ignore[no-any-return]
