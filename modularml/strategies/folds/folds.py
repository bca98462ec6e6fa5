"""Folds: their rows, and what is held out and logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modularml._typing import Array, IntArray
from modularml.data import FeatureSetView
from modularml.data.ids import id_array
from modularml.data.joining import Link, table_of
from modularml.data.lineage import Source
from modularml.data.row_records import with_series
from modularml.data.selectors import select_one
from modularml.engine.loop import Display, run_phase
from modularml.errors import ConfigError, DataError, SplitError
from modularml.experiment import (
    EvalPhase,
    EvalResults,
    Experiment,
    InputBinding,
    PhaseGroupResults,
    TrainResults,
)
from modularml.graph.model_graph import ModelGraph
from modularml.graph.relations import links_of, meetings_of
from modularml.io.randomness import derived_seed
from modularml.results.plots import ComparedRows
from modularml.results.scores import find_scores
from modularml.splitters import FoldSplitter, KFoldSplitter, RandomSplitter
from modularml.splitters.base import key_list
from modularml.strategies.folds.cv_binding import CVBinding
from modularml.strategies.variants.variant import Sides, Variant

__all__ = [
    "At",
    "compared_rows",
    "held_out_results",
    "held_out_scores",
    "logged_figures",
    "make_folds",
]


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
    for run, results in runs.items():
        for label, phase in results.flatten().items():
            values = phase.figures(at) if isinstance(phase, TrainResults) else _losses(phase)
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


def _losses(phase: Any) -> dict[str, float]:
    """Return the losses over all rows of an evaluation or fit phase."""
    if not phase._execution:
        return {}
    layout = phase._execution[0].layout
    losses: dict[str, float] = {}
    for _, node_id in layout.losses if layout is not None else ():
        losses |= phase.aggregated_losses(node_id)
    return losses


def make_folds(
    bindings: Sequence[CVBinding],
    *,
    n_folds: int,
    n_repeats: int,
    seed: int,
    splitter: FoldSplitter | None,
    graph: ModelGraph | None = None,
) -> list[Variant]:
    """Split the pools of all bindings consistently.

    FeatureSets that share samples, or are grouped by the same columns, are split together, so that
    related rows are held out together. FeatureSets that the graph relates to these by a key, with
    no binding or one without a rule, follow them. Others are split with the same rule and seed:
    equal numbers of rows without groups and strata are split at the same positions.
    """
    folds: list[Variant] = []
    links = _relations(graph)
    bindings, followers = _leading(bindings, links)
    for repeat in range(n_repeats):
        cuts = []
        for connected in _connected(bindings):
            rule = _rule(connected, n_folds, seed + repeat, splitter, repeat)
            cuts.append(_cut(connected, rule, derived_seed(seed + repeat, "stop") % 2**32))
        if len({len(cut) for cut in cuts}) != 1:
            raise ConfigError(
                f"{splitter!r} splits FeatureSets that share neither samples nor groups into "
                f"{[len(cut) for cut in cuts]} folds; their numbers must be equal"
            )
        for parts in zip(*cuts, strict=True):
            sides = {label: side for part in parts for label, side in part.items()}
            sides |= _followed(sides, links, followers)
            fold_seed = derived_seed(seed, len(folds)) % 2**32
            folds.append(Variant(f"fold_{len(folds)}", fold_seed, repeat, sides))
    return folds


def _relations(graph: ModelGraph | None) -> list[tuple[tuple[str, str], Link]]:
    """Return the links between rows of FeatureSets of a graph, with their labels."""
    nodes = [] if graph is None else list(graph.nodes.values())
    sets = {r.node_label: r.resolve() for node in nodes for r in node.feature_refs}
    labels = list(sets)
    table_index = {
        Source(node.node_id, ref): labels.index(ref.node_label)
        for node in nodes
        for ref in node.feature_refs
    }
    tables = [table_of(fs.to_view()) for fs in sets.values()]
    try:
        links = links_of(meetings_of(nodes, ()), tables, table_index)  # type: ignore[arg-type]
    except DataError:  # refused later if needed: parts of them may be related
        return []
    return [((labels[x.tables[0]], labels[x.tables[1]]), x) for x in links]


def _leading(
    bindings: Sequence[CVBinding], links: Sequence[tuple[tuple[str, str], Link]]
) -> tuple[list[CVBinding], list[CVBinding]]:
    """Return the bindings that are split, and those whose rows follow them."""
    leading: list[CVBinding] = []
    for b in bindings:
        has_no_rule = all(rule is None for rule in (b.group_by, b.stratify_by, b.val_size))
        related = {x for pair, _ in links if b.featureset.label in pair for x in pair}
        cut = [other for other in leading if other.featureset.label in related]
        if not (has_no_rule and cut) or any(_are_linked(b, other) for other in leading):
            leading.append(b)
    return leading, [b for b in bindings if b not in leading]


def _followed(
    sides: Mapping[str, Sides],
    links: Sequence[tuple[tuple[str, str], Link]],
    followers: Sequence[CVBinding],
) -> dict[str, Sides]:
    """Return the rows of other FeatureSets that are linked to those of a fold."""
    new_sides, sides_of = dict[str, Sides](), dict(sides)
    binding_of = {b.featureset.label: b for b in followers}
    for pair, link in [*links] * len(links):  # repeated for indirect links
        for side, (old, new) in enumerate((pair, pair[::-1])):
            if old not in sides_of or new in sides_of:
                continue
            cut, pool = sides_of[old], binding_of[new].pool().indices if new in binding_of else None
            parts: dict[str, IntArray] = {}
            for part in ("train", "val", "pool", "stop"):
                if (rows := getattr(cut, part)) is None:
                    continue
                keys = link.keys[side].take(pa.array(rows)).drop_null()
                is_linked = pc.is_in(link.keys[1 - side], value_set=keys)
                linked_rows = np.flatnonzero(is_linked.to_numpy(zero_copy_only=False))
                parts[part] = linked_rows if pool is None else np.intersect1d(linked_rows, pool)
            names = {n: getattr(cut, n) for n in ("train_name", "val_name", "stop_name")}
            if new in binding_of:
                names = {
                    n: getattr(binding_of[new], n.replace("_name", "_split_name")) for n in names
                }
            train, val, stop = parts["train"], parts["val"], parts.get("stop")
            sides_of[new] = new_sides[new] = Sides(train, val, parts["pool"], stop=stop, **names)
    return new_sides


def _connected(bindings: Sequence[CVBinding]) -> list[list[CVBinding]]:
    """Group bindings that must be split together."""
    groups: list[list[CVBinding]] = []
    for binding in bindings:
        overlapping = [
            group for group in groups if any(_are_linked(binding, other) for other in group)
        ]
        groups = [group for group in groups if group not in overlapping]
        groups.append([*(other for group in overlapping for other in group), binding])
    return groups


def _are_linked(a: CVBinding, b: CVBinding) -> bool:
    if a.groups is not None and key_list(a.groups) == key_list(b.groups):
        return True
    return len(a.pool().take_intersection(b.pool())) > 0


def _rule(
    bindings: Sequence[CVBinding],
    n_folds: int,
    seed: int,
    splitter: FoldSplitter | None,
    repeat: int,
) -> FoldSplitter:
    """Return the splitter of some bindings; they must agree, or follow the first."""
    names = ("group_by", "stratify_by", "bins", "val_size", "stop_size")
    lead, *others = ({name: getattr(b, name) for name in names} for b in bindings)
    for other, binding in zip(others, bindings[1:], strict=True):
        if other not in (lead, dict.fromkeys(names)):
            raise ConfigError(
                f"{binding!r} shares samples or groups with {bindings[0]!r}, so both are split "
                f"together; pass it the same {', '.join(names)}, or none of them"
            )
    if splitter is None:
        keys = {name: lead[name] for name in names[:3]} | {"group_by": bindings[0].groups}
        if (share := lead["val_size"]) is None:
            return KFoldSplitter(n_folds, **keys, seed=seed)
        return _Parts(n_folds, share, keys, seed)
    grouped: Any = with_series(splitter, bindings[0].featureset.kept_together)
    if repeat > 0:
        grouped = type(grouped).from_config({**grouped.get_config(), "seed": grouped.seed + repeat})
    of_fold: FoldSplitter = grouped
    return of_fold


class _Parts(FoldSplitter):
    """Folds that validate on disjoint random parts of equal size."""

    def __init__(self, n_folds: int, share: float, keys: Mapping[str, Any], seed: int) -> None:
        if n_folds * share > 1 + 1e-9:
            raise ConfigError(
                f"{n_folds} folds cannot each validate on {share:g} of the rows, each row at most "
                f"once; val_size may be at most {1 / n_folds:g}"
            )
        ratios = {f"fold_{i}_val": share for i in range(n_folds)}
        rest = 1 - n_folds * share
        if rest > 1e-9:
            ratios["rest"] = rest
        self.n_folds, self.parts = n_folds, RandomSplitter(ratios, **keys, seed=seed)
        self.group_by, self.stratify_by, self.bins = keys.values()

    @property
    def needs(self) -> list[str]:
        return self.parts.needs

    def folds(self, n: int, *, columns: Mapping[str, Array]) -> list[tuple[IntArray, IntArray]]:
        parts = self.parts.assign(n, columns=columns)
        held_out = [parts[f"fold_{i}_val"] for i in range(self.n_folds)]
        return [(np.setdiff1d(np.arange(n), val), val) for val in held_out]


def _cut(bindings: Sequence[CVBinding], rule: FoldSplitter, seed: int) -> list[dict[str, Sides]]:
    """Split pools together by samples, each of which counts once."""
    pools = [binding.pool() for binding in bindings]
    samples = _samples(pools)
    first = np.unique(np.concatenate(samples), return_index=True)[1]
    columns = {name: _column(pools, name, first) for name in rule.needs}
    for binding, pool, sample_numbers in zip(bindings, pools, samples, strict=True):
        for name in key_list(binding.group_by):
            values, expected = _values(pool, name), columns[name][sample_numbers]
            if ((values != expected) & ((values == values) | (expected == expected))).any():  # noqa: PLR0124
                raise SplitError(
                    f"a sample has another {name!r} in {binding.featureset.label!r} than in "
                    f"{bindings[0].featureset.label!r}; correct one of them"
                )
    folds: list[dict[str, Sides]] = []
    for train, val in rule.folds(len(first), columns=columns):
        if not len(train) or not len(val) or np.bincount(np.append(train, val)).max() > 1:
            raise SplitError(
                f"{rule!r} returned a fold with an empty side, or with rows on both sides"
            )
        stop = np.empty(0, dtype=np.int64)
        if (share := bindings[0].stop_size) is not None:
            stop = rule.hold_back(train, share, columns=columns, seed=seed + len(folds))
        without_stop = np.setdiff1d(train, stop)
        folds.append(
            {
                binding.featureset.label: Sides(
                    pool.indices[np.isin(sample_numbers, without_stop)],
                    pool.indices[np.isin(sample_numbers, val)],
                    pool.indices,
                    binding.train_split_name,
                    binding.val_split_name,
                    None if share is None else pool.indices[np.isin(sample_numbers, stop)],
                    binding.stop_split_name,
                )
                for binding, pool, sample_numbers in zip(bindings, pools, samples, strict=True)
            }
        )
    return folds


def _samples(pools: Sequence[FeatureSetView]) -> list[IntArray]:
    """Return the sample number of each row, in order of first appearance."""
    if len(pools) == 1:
        return [np.arange(len(pools[0]))]
    ids = [pool.collection.ids[pool.indices] for pool in pools]
    codes = id_array(np.concatenate(ids)).dictionary_encode().indices.to_numpy()
    return np.split(codes.astype(np.int64), np.cumsum([len(pool_ids) for pool_ids in ids])[:-1])


def _column(pools: Sequence[FeatureSetView], name: str, first: IntArray) -> Array:
    """Return a column of samples, given their first positions in all pools."""
    parts, start = [], 0
    for pool in pools:
        positions = first[(first >= start) & (first < start + len(pool))] - start
        if len(positions):
            parts.append(_values(pool, name)[positions])
        start += len(pool)
    return np.concatenate(parts)


def _values(pool: FeatureSetView, name: str) -> Array:
    values: Array = pool.column(select_one(pool.collection.schema, name))
    return values
