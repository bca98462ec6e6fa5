"""Held-out rows of folds: their outputs, scores and plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modularml.engine.loop import Display, run_phase
from modularml.errors import ConfigError
from modularml.experiment import EvalPhase, EvalResults, Experiment, InputBinding
from modularml.results.plots import ComparedRows
from modularml.results.scores import find_scores
from modularml.strategies.variants.variant import Variant

__all__ = ["compared_rows", "held_out_results", "held_out_scores"]


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
            rows[label] = held_out_results(experiment, folds[label], name).compared_rows(name)
    return rows


def held_out_results(experiment: Experiment, fold: Variant, node: str) -> EvalResults:
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
            results = held_out_results(experiment, fold, node.label)
            prefix = f"{split}." if len(tails) == 1 else f"{split}.{node.label}."
            scores = find_scores(metrics)
            rows = results.scored(scores, node, group_by=group_by, **(how or {}))
            held_out_scores += [(prefix + row.score, row.group, row.value) for row in rows]
    return held_out_scores
