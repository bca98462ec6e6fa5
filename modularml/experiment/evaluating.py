"""Evaluation of a trained graph on any rows with targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array, Columns
from modularml.data.featureset import FeatureSet
from modularml.data.schema import RAW
from modularml.data.selectors import as_list, select_one
from modularml.data.view import FeatureSetView
from modularml.errors import ConfigError, DataError, ScalerError, UnknownNameError
from modularml.experiment.run_audit import refuse_or_warn
from modularml.graph.lineage import source_columns_of
from modularml.graph.model_graph import ModelGraph
from modularml.graph.predict import Prediction, predictions
from modularml.graph.prediction_inputs import RowReader
from modularml.graph.unscaling import is_encoded, learned_classes
from modularml.results.result_tables import ComparedRows, ScoreTable, classifies
from modularml.results.scores import Meaning, Metrics, find_scores
from modularml.results.scoring import (
    Reduce,
    Replicates,
    ScoredGroup,
    check_reduce,
    class_numbers,
    score_groups,
)

if TYPE_CHECKING:
    import pandas as pd


def evaluate(
    graph: ModelGraph,
    data: Any,
    *,
    metrics: Metrics | None,
    group_by: str | None,
    node: Any,
    batch_size: int | None,
    unscale: bool,
    outputs: Meaning,
    audit: str,
    per: str | None = None,
    reduce: Reduce = "mean",
) -> ScoreTable:
    """Score a graph on rows with targets; see `Experiment.evaluate`.

    Parameters
    ----------
    audit : {'warn', 'error', 'off'}
        What happens if the graph learned from some of the rows.
    """
    # unknown names are refused before anything runs
    check_reduce(reduce, per)
    if metrics is not None and not find_scores(metrics, outputs):
        raise ConfigError(f"metrics must name at least one score or be None, got {metrics!r}")
    rows = split_rows(graph, data) if isinstance(data, str) else data
    scored = scored_predictions(predictions(graph, rows, node=node, batch_size=batch_size))
    if audit != "off":
        report_learned_rows([(graph, rows)], scored, audit)
    how: dict[str, Any] = {"unscale": unscale, "outputs": outputs, "per": per, "reduce": reduce}
    return score_table(scored, metrics=metrics, group_by=group_by, **how)


def compared_rows(prediction: Prediction, outputs: Meaning) -> ComparedRows:
    """Return targets and outputs of predictions in original units, for plots."""
    return ComparedRows.of(
        prediction.node,
        prediction.compared,
        prediction.compared_values(raw=True),
        prediction.values(unscale=True),
        prediction.labels,
        mask=prediction.compared_mask(),
        column=prediction.by_row,
        meaning=outputs,
    )


def scored_predictions(found: Sequence[Prediction]) -> list[Prediction]:
    """Return the predictions that have targets; refuse rows that lack the columns of these."""
    if not found[0].n_rows:
        raise DataError("data has no rows to evaluate; pass at least one")
    scored = [prediction for prediction in found if prediction.compared is not None]
    if not scored:
        raise DataError(
            f"node {found[0].label!r} has no targets to compare its outputs with; select "
            "targets in the reference of its FeatureSet, name them with ModelNode(targets=), or "
            "pass node="
        )
    for prediction in scored:
        check_targets(prediction)
    return scored


def score_table(
    scored: Sequence[Prediction],
    *,
    metrics: Metrics | None,
    group_by: str | None,
    unscale: bool,
    outputs: Meaning,
    per: str | None = None,
    reduce: Reduce = "mean",
) -> ScoreTable:
    """Return the scores of predictions of the same rows; see `Experiment.evaluate`."""
    groups = None if group_by is None else scored[0].by_row(group_by)
    samples = None if per is None else Replicates(per, scored[0].by_row(per, "per"), reduce)
    table, drawn = [], dict[str, ComparedRows]()
    for prediction in scored:
        is_classifier = classifies(prediction.node, prediction.compared)
        default = ["accuracy"] if is_classifier else ["rmse", "mae", "r2"]
        scores = find_scores(default if metrics is None else metrics, outputs)
        if unscale:
            check_units(prediction)
            drawn[prediction.label] = compared_rows(prediction, outputs)
        rows = drawn.get(prediction.label)
        lines = score_groups(
            scores,
            prediction.compared_values(raw=False) if rows is None else rows.true,
            prediction.values(unscale=False) if rows is None else rows.out,
            mask=prediction.compared_mask() if rows is None else rows.mask,
            groups=groups,
            group_by=group_by,
            who="data",
            prepared=partial(_prepared, prediction.node, prediction.compared, rows is not None),
            replicates=samples,
        )
        on = {"node": prediction.label} if len(scored) > 1 else {}
        table += [{**on, **line} for line in _wide(lines, has_groups=group_by is not None)]
    frame: pd.DataFrame = require("pandas").DataFrame(table)
    if group_by is not None:  # None for all rows would make floats of integers
        frame["group"] = require("pandas").Series([row["group"] for row in table], dtype=object)
    return ScoreTable.of(frame, drawn, per=per, reduce=reduce)


def split_rows(graph: ModelGraph, split: str) -> Any:
    """Return the rows of a split, by label if the graph reads several FeatureSets."""
    refs = [ref for node in graph.nodes.values() for ref in node.feature_refs]
    sets: dict[str, FeatureSet] = {str(ref.node_label): ref.resolve() for ref in refs}
    views = {label: fs.get_split(split) for label, fs in sets.items() if split in fs.splits}
    if not views:
        raise UnknownNameError("split", split, [s for fs in sets.values() for s in fs.splits])
    return views if len(views) > 1 else next(iter(views.values()))


def check_targets(prediction: Prediction) -> None:
    """Refuse rows that lack a target column."""
    for leaf in source_columns_of(prediction.compared):
        raw = {name.split(".")[1]: f"{name.rpartition('.')[0]}.{RAW}" for name in leaf.columns}
        reader = prediction.reader_of(leaf)
        if missing := [key for key, name in raw.items() if not reader.has(name)]:
            raise DataError(
                f"outputs of node {prediction.label!r} are compared with {list(raw)}, and "
                f"data lacks {missing}; add them, or use predict() for rows without targets"
            )


def check_units(prediction: Prediction) -> None:
    """Refuse to compare outputs of unknown units with targets in their original units."""
    flow = prediction.compared
    names = [name for leaf in source_columns_of(flow) for name in leaf.columns]
    is_scaled = any(not name.endswith(f".{RAW}") for name in names)
    if is_scaled and prediction.has_unknown_units and not classifies(prediction.node, flow):
        raise ScalerError(
            f"it is unknown whether outputs of node {prediction.label!r} have the units of the "
            f"scaled targets {names}; name the target, ModelNode(..., targets=), or pass "
            "unscale=False"
        )


def _prepared(node: Any, flow: Any, unscale: bool, true: Array, out: Array) -> Array:
    """Return known targets in the type of their column, and labels as class numbers."""
    leaves, kinds = source_columns_of(flow), set()
    for leaf in leaves:
        schema = leaf.source.ref.resolve().collection.schema
        for name in leaf.columns:
            read = f"{name.rpartition('.')[0]}.{RAW}" if unscale else name
            kinds.add(schema[read].dtype.kind)
    if true.dtype.kind in "fO" and kinds <= set("biu"):  # as some values were missing
        numbers = true.astype(np.float64)
        true = numbers.astype(np.int64) if (numbers == np.rint(numbers)).all() else numbers
    if true.dtype.kind == "f" or out[0].size < 2:
        return true
    labels = learned_classes(node, flow)
    return class_numbers(true, out, labels, encoded=any(map(is_encoded, leaves)))


def _wide(found: Sequence[ScoredGroup], *, has_groups: bool) -> list[dict[str, Any]]:
    """Return one row for all rows and one per group, with a column for each score."""
    table: list[dict[str, Any]] = []
    for at, row in enumerate(found):
        if at == 0 or row.score == found[0].score:
            table.append({"group": row.group} if has_groups else {})
        table[-1][row.score] = row.value
    sizes = [(row.n_rows, row.n_missing) for row in found if row.score == found[0].score]
    return [
        {**line, "n": n, "n_missing": n_missing}
        for line, (n, n_missing) in zip(table, sizes, strict=True)
    ]


def report_learned_rows(
    graphs: Sequence[tuple[ModelGraph, Any]], scored: Sequence[Prediction], audit: str
) -> None:
    """Warn of rows that one of the graphs learned from, or refuse them.

    Each graph comes with the rows that it predicted.
    """
    for message in learned_messages(graphs, scored):
        refuse_or_warn(message, audit, "evaluate")


def learned_messages(
    graphs: Sequence[tuple[ModelGraph, Any]], scored: Sequence[Prediction]
) -> Iterator[str]:
    """Yield, for each FeatureSet, a warning if one of the graphs learned from the scored rows."""
    leaves = [(p, leaf) for p in scored for leaf in source_columns_of(p.compared)]
    readers = {str(leaf.source.ref.node_label): p.reader_of(leaf) for p, leaf in leaves}
    for label, reader in readers.items():
        messages = (_learned_message(graph, data, label, reader) for graph, data in graphs)
        if message := next(filter(None, messages), ""):
            yield message


def _learned_message(graph: ModelGraph, data: Any, label: str, reader: RowReader) -> str:
    """Return a warning if nodes of the graph learned from rows of a FeatureSet; else ''."""
    rows = data
    if isinstance(data, Mapping) and label in data and not isinstance(data, FeatureSet):
        rows = data[label]
    if isinstance(rows, FeatureSet):
        rows = rows.to_view()
    if isinstance(rows, FeatureSetView):
        split = rows.source.splits.get(str(rows.label))
        if split is not None and np.array_equal(split.valid_indices, rows.valid_indices):
            return graph.taken_for_unseen(rows.source, str(rows.label))
        return graph.learned_among(rows)
    new = _as_featureset(graph, label, reader)
    return "" if new is None else graph.learned_among(new.to_view(), "data")


def _as_featureset(graph: ModelGraph, label: str, reader: RowReader) -> FeatureSet | None:
    """Return new rows as a FeatureSet, to recognise them; None if they lack columns."""
    fs: Any = graph.context.get_node(label=label)
    schema = fs.collection.schema
    keys = {domain: list(schema.keys(domain)) for domain in ("features", "targets")}
    if not all(reader.has(f"{d}.{key}.{RAW}") for d, names in keys.items() for key in names):
        return None
    raw = reader.raw
    columns = {key: raw.with_missing(key) for names in keys.values() for key in names}
    known = np.ones(reader.n_rows, dtype=bool)  # a row that was learned from lacks no label
    for values in columns.values():
        if values.dtype == object and values.ndim == 1:
            known &= [value is not None for value in values]
    columns = {key: values[known] for key, values in columns.items()}
    return FeatureSet.from_dict(label, columns, keys["features"], keys["targets"], register=False)


def permuted_parts(
    graph: ModelGraph, view: FeatureSetView, columns: Columns | Mapping[str, Columns], by: str
) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Yield what is permuted together: its name, that of an element, and places by key."""
    schema = view.collection.schema

    def keys_of(names: Columns) -> list[str]:
        return [schema[select_one(schema, name)].key for name in as_list(names)]

    if isinstance(columns, Mapping):
        if by != "column":
            raise ConfigError("groups of columns are permuted as a whole; omit by, or name columns")
        if empty := [name for name, names in columns.items() if not as_list(names)]:
            raise ConfigError(f"groups of columns must name at least one, got none for {empty}")
        keys = {name: keys_of(names) for name, names in columns.items()}
    elif columns is not None:
        keys = {key: [key] for key in keys_of(columns)}
    else:
        refs = [ref for node in graph.nodes.values() for ref in node.feature_refs]
        read = [name for r in refs if r.resolve() is view.source for name in r.columns("features")]
        masks = set(schema.masks.values())
        keys = {key: [key] for name in read if (key := schema[name].key) not in masks}
    for name, together in keys.items():
        key = together[0]
        spec = schema[f"{schema.domain_of(key)}.{key}.{RAW}"]
        if by == "column" or len(spec.shape) != 1:
            yield name, None, dict.fromkeys(together, ...)
            continue
        for place, element in enumerate(spec.elements or map(str, range(spec.shape[0]))):
            yield name, element, {key: (slice(None), place)}
